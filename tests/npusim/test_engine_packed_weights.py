"""Kept weights are those that lie in memory now, whatever wrote them; what is kept stays bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.engine import gemm, packed_weights
from npusim.engine.gemm import Elements
from npusim.engine.packed_weights import packed

N, K = 24, 200
NO_SHIFTS = np.zeros(0, np.int16)


def weights(memory: Any, start: int = 0, n: int = N, k: int = K) -> Elements:
    return Elements(memory, start, 1, 0, 0, k, 1, 8, 1)


def same(left: gemm.Columns, right: gemm.Columns) -> bool:
    return np.array_equal(left.units, right.units) and np.array_equal(left.sums, right.sums)


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_weights._kept.clear()
    monkeypatch.setattr(packed_weights, "_kept_bytes", 0)


def test_equal_bytes_elsewhere_are_not_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.random.default_rng(0).integers(0, 256, 3 * N * K).astype(np.uint8)
    memory[2 * N * K :] = memory[: N * K]
    first = packed(weights(memory), 1, N, K, NO_SHIFTS, True)
    monkeypatch.setattr(gemm, "pack", lambda *_: pytest.fail("packed again"))
    assert packed(weights(memory, 2 * N * K), 1, N, K, NO_SHIFTS, True) is first


@given(st.integers(0, N * K - 1), st.integers(1, 255))
def test_any_other_byte_is_noticed(place: int, change: int) -> None:
    memory = np.random.default_rng(1).integers(0, 256, N * K).astype(np.uint8)
    packed(weights(memory), 1, N, K, NO_SHIFTS, True)
    memory[place] = (int(memory[place]) + change) % 256
    expected = gemm.pack(weights(memory), 1, N, K, NO_SHIFTS, True)
    assert same(packed(weights(memory), 1, N, K, NO_SHIFTS, True), expected)


@pytest.mark.parametrize("shifts", [NO_SHIFTS, np.arange(K, dtype=np.int16) % 4])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_forms_are_kept_apart(shifts: Any, as_bytes: bool) -> None:
    memory = np.random.default_rng(2).integers(-16, 16, N * K).astype(np.int8).view(np.uint8)
    for form in (not as_bytes, as_bytes):
        packed(weights(memory), 1, N, K, NO_SHIFTS, form)
    expected = gemm.pack(weights(memory), 1, N, K, shifts, as_bytes)
    assert same(packed(weights(memory), 1, N, K, shifts, as_bytes), expected)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "LIMIT_BYTES", 5 * 3 * N * K)
    for seed in range(12):
        memory = np.random.default_rng(seed).integers(0, 256, N * K).astype(np.uint8)
        packed(weights(memory), 1, N, K, NO_SHIFTS, True)
    kept = sum(map(packed_weights._size, packed_weights._kept.values()))
    assert 0 < kept == packed_weights._kept_bytes <= packed_weights.LIMIT_BYTES
