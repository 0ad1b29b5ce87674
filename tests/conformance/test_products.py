"""Integer matrix products of ONNX Runtime and of torch, and of the MATMUL instruction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from npusim.config import Machine
from tests.conformance import mapping
from tests.conformance.bench import Bench
from tests.conformance.side_venv import work

Array = NDArray[Any]

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation, and for the generated cases."""
SHAPES = [(1, 1, 1), (6, 64, 64), (17, 65, 127), (33, 300, 40), (40, 1152, 72)]


def operands(m: int, k: int, n: int, kind: Any, extreme: bool, seed: int) -> tuple[Array, Array]:
    rng, low, high = np.random.default_rng(seed), int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    if extreme:
        return rng.choice([low, high], (m, k)).astype(kind), rng.choice([-128, 127], (k, n)).astype(np.int8)
    return rng.integers(low, high + 1, (m, k)).astype(kind), rng.integers(-128, 128, (k, n)).astype(np.int8)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_onnx_runtime_matmul_integer(kind: Any, onnx: str, edge_machine: Machine) -> None:
    """Zero points of the activations and, one for each column, of the weights."""
    rng = np.random.default_rng(3)
    arrays, jobs, given = {}, [], []
    for number, (m, k, n) in enumerate(SHAPES):
        a, b = operands(m, k, n, kind, number % 2 == 1, number)
        a_zp, b_zp = (
            rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1),
            rng.integers(-128, 128, n).astype(np.int8),
        )
        names = [f"{number}_{role}" for role in ("a", "b", "a_zp", "b_zp")]
        arrays |= dict(zip(names, (a, b, np.array(a_zp, kind), b_zp), strict=True))
        jobs.append({"arrays": names})
        given.append((a, b, int(a_zp), b_zp))
    expected = work(onnx, "onnx_run.py", jobs, arrays)
    for number, (a, b, a_zp, b_zp) in enumerate(given):
        bench = Bench(edge_machine)
        wide = b_zp.astype(np.int64)
        bias = a_zp * (len(b) * wide - b.astype(np.int64).sum(axis=0))
        bench.matmul(a, b, bench.records(bias, 2, 1, wide), "i32", mode="channel")
        np.testing.assert_array_equal(bench.run()[0], expected[str(number)], f"{a.shape} by {b.shape}")


@pytest.mark.parametrize(("m", "k", "n"), [(17, 8, 8), (32, 64, 128), (48, 1152, 72)])
@pytest.mark.parametrize("extreme", [False, True])
def test_torch_int_mm(m: int, k: int, n: int, extreme: bool, edge_machine: Machine) -> None:
    a, b = operands(m, k, n, np.int8, extreme, k)
    expected = torch._int_mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    got = mapping.matmul_i32(edge_machine, a[None], b[None], 0, 0)
    np.testing.assert_array_equal(got[0], expected)
