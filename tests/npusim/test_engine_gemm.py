"""Products by dot-product instructions: every variant that the processor has gives the exact product, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npusim.engine import dot, gemm, matmul, matmul_rows, packed_weights, threads
from npusim.isa.matmul import RECORD
from npusim.memory import MachineState, Sums
from npusim.testing.matmuls import operand_modes
from tests.npusim.strategies import DRAM, FAMILIES, Case, machine, make
from tests.npusim.test_engine import agree, rebuilt

PORTABLE = """
import numpy as np
from npusim.engine import dot, gemm
rng = np.random.default_rng(0)
a, b = rng.integers(0, 256, (50, 131), np.uint8), rng.integers(-128, 128, (131, 70)).astype(np.int8)
a[0], b[:, 0] = 255, -128
exact = all(
    (gemm.gemm(x, gemm.pack_weights(b)) == x.astype(int) @ b.astype(int)).all() for x in (a, a.view(np.int8))
)
print(dot.available(), exact)
"""


@contextmanager
def variant(name: str) -> Iterator[None]:
    """The engine with another variant than the processor's fastest."""
    chosen = dot.VARIANTS[name]
    multiply = rebuilt(gemm.multiply, tile=dot.make_tile(chosen))
    with pytest.MonkeyPatch.context() as patch:
        for module in (gemm, matmul):
            patch.setattr(module, "VARIANT", chosen)
        patch.setattr(packed_weights, "_kept", OrderedDict())
        patch.setattr(gemm, "product", rebuilt(gemm.product, multiply=multiply))
        patch.setattr(matmul, "execute_rows", rebuilt(matmul_rows.execute_rows, multiply=multiply))
        yield


@st.composite
def operands(draw: st.DrawFn) -> tuple[Any, Any]:
    """a of 8 bits, either sign, and b int8: random, or the extremes of both; shapes on both sides of a tile's edges."""
    m = draw(st.one_of(st.integers(1, 13), st.integers(40, 60)))
    k = draw(st.one_of(st.integers(1, 9), st.integers(60, 70)))
    n = draw(st.one_of(st.integers(1, 17), st.integers(60, 70), st.integers(120, 135)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = [0, 127, 128, 255] if draw(st.booleans()) else np.arange(256)
    a, b = (rng.choice(np.array(bits, np.uint8), shape) for shape in ((m, k), (k, n)))
    return a.view(np.int8) if draw(st.booleans()) else a, b.view(np.int8)


def exact(a: Any, b: Any) -> Any:
    return a.astype(np.int64) @ b.astype(np.int64)


@pytest.mark.parametrize("name", dot.available())
def test_every_variant_is_exact(name: str) -> None:
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    @given(operands())
    def check(drawn: tuple[Any, Any]) -> None:
        a, b = drawn
        assert np.array_equal(gemm.gemm(a, gemm.pack_weights(b)), exact(a, b))

    with variant(name):
        check()


@pytest.mark.parametrize("name", dot.available())
def test_instructions_of_every_variant_equal_the_reference(name: str) -> None:
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(FAMILIES["matmul"])
    def check(case: Case) -> None:
        assert agree(case.state, case.ins)

    state = MachineState(machine(acc_bits=48), DRAM)  # wide enough that no pair of types needs its folds
    state.sram[:] = np.random.default_rng(5).integers(0, 256, state.sram.size)
    records = state.vector("param", 0, RECORD, 1)
    records["multiplier"], records["shift"] = 20000, 24
    with variant(name):
        check()
        for a, b in operand_modes(machine()):
            assert agree(state, linear(a, b, 77)), (a, b)


def test_the_longest_k_and_no_longer() -> None:
    a, b = np.full((2, gemm.LONGEST_K), 255, np.uint8), np.full((gemm.LONGEST_K, 3), -128, np.int8)
    assert np.array_equal(gemm.gemm(a, gemm.pack_weights(b)), exact(a, b))
    for k in (0, gemm.LONGEST_K + 1):
        with pytest.raises(ValueError, match=rf"k = {k}: allowed 1\.\.65793"):
            gemm.pack_weights(np.zeros((k, 3), np.int8))


def test_a_processor_without_vector_extensions(tmp_path: Path, repository: Path) -> None:
    """Numba compiles for a plain x86-64 (elsewhere: the processor's base), and the last variant is all there is."""
    environment = {
        **os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(repository),
    }  # fmt: skip
    command = [sys.executable, "-c", PORTABLE]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "['words256'] True"


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads.SETTINGS, "NUMBA_NUM_THREADS", 3)
    rng = np.random.default_rng(3)
    a, b = rng.integers(-128, 128, (101, 33)).astype(np.int8), rng.integers(-128, 128, (33, 70)).astype(np.int8)
    assert np.array_equal(gemm.gemm(a, gemm.pack_weights(b)), exact(a, b))


def linear(a: str, b: str, k: int, **values: int) -> Any:
    row, column = (-(-k * int(kind[1:]) // 8) for kind in (a, b))
    return make(
        "matmul", a_dtype=a, b_dtype=b, out_dtype="i32", rq_mode="tensor", m=7, k=k, n=5, batch0=1, batch1=1,
        a_row=row, b_addr=30000, b_n=column, b_k=int(b[1:]) // 8, out_addr=60000, out_row=20, **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "zero", "bits", "longest"),
    [
        ("u8", "i8", 0, 24, 257),  # 257 * 255 * 128 = 8388480 < 2^23
        ("i8", "i8", 0, 24, 511),  # 512 * 128 * 128 = 2^23
        ("i16", "i8", 0, 32, 511),
        ("u16", "i8", 0, 32, 256),
        ("i16", "i16", 0, 40, 511),
        ("u8", "i4", 0, 24, 4112),
        ("i8", "i8", -128, 24, 257),  # 127 + 128 = 255
        ("u8", "i8", 128, 24, 511),  # -128..127
    ],
)
def test_folds_are_followed_where_the_proof_fails(a: str, b: str, zero: int, bits: int, longest: int) -> None:
    """The longest k at which no accumulator can overflow, by hand."""
    on, point = machine(acc_bits=bits, overflow="wrap"), np.array([zero])
    assert matmul.plan(linear(a, b, longest), on, point, None) is not None
    assert matmul.plan(linear(a, b, longest + 1), on, point, None) is None


@pytest.mark.parametrize(
    ("a", "b", "shifted", "expected"),
    [
        ("u8", "i8", 0, (1, 1, 16448)),  # 4 * 16448 * 255 * 128 < 2^31
        ("u4", "i4", 1, (1, 1, 32896)),  # 8 << 3 = 64 fits a byte
        ("u8", "i8", 1, (0, 1, 4112)),  # 128 << 3 does not; 2 * 4112 * 255 * 1024 < 2^31
        ("i16", "i8", 0, (0, 1, 255)),  # 2 * 255 * 2^15 * 2^7 < 2^31
        ("i16", "i16", 0, (0, 2, 128)),  # 2 * 128 * 255 * 2^15 < 2^31, for the low byte of a
    ],
)
def test_int32_sums_end_before_they_overflow(
    a: str, b: str, shifted: int, expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "VARIANT", dot.VARIANTS["vnni512"])
    ins, zero = linear(a, b, 100, shifted=shifted), np.zeros(1, np.int64)
    assert matmul.plan(ins, machine(acc_bits=48), zero, None) == expected


def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note each call that packs an operand for dot products."""
    calls: list[int] = []
    pack = matmul.packed
    monkeypatch.setattr(matmul, "packed", lambda *operand: calls.append(1) or pack(*operand))
    return calls


@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
def test_an_overflow_on_the_way_is_as_in_the_array(overflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums leave the accumulator in the first folds and come back: another order would not show it."""
    state = MachineState(machine(acc_bits=24, overflow=overflow), DRAM)
    state.sram[:20000] = 255
    columns = state.vector("sram", 30000, np.int8, 5 * 1000).reshape(5, 1000)
    columns[:, :500], columns[:, 500:] = -128, 127
    records = state.vector("param", 0, RECORD, 1)
    records["multiplier"], records["shift"] = 16384, 14
    calls = packs(monkeypatch)
    assert agree(state, linear("u8", "i8", 1000))
    assert not calls
    assert agree(state, linear("u8", "i8", 257))
    assert calls


def test_held_sums_count_in_the_proof() -> None:
    on, zero = machine(acc_bits=24), np.zeros(1, np.int64)
    ins = linear("u8", "i8", 100, acc_continue=1)
    room = (1 << 23) - 1 - 100 * 255 * 128
    for sign in (-1, 1):
        held = Sums(np.array([[5, sign * room]]), np.zeros((1, 1), np.int64))
        assert matmul.plan(ins, on, zero, held) is not None
        held.products[0, 1] += sign
        assert matmul.plan(ins, on, zero, held) is None


@pytest.mark.parametrize(("a", "b"), [("i16", "i8"), ("u16", "i8"), ("i16", "i16"), ("u16", "i16"), ("u8", "i8")])
@pytest.mark.parametrize("sign", [-1, 1])
def test_long_sums_of_extremes_leave_int32_in_time(a: str, b: str, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """48-bit accumulators hold sums far beyond the int32 of the dot products: each segment ends before it overflows."""
    k = 2000
    state = MachineState(machine(acc_bits=48), DRAM)
    extreme = {"i16": -32768, "u16": 65535, "u8": 255, "i8": -128}
    state.vector("sram", 0, {"i16": "<i2", "u16": "<u2", "u8": "u1"}[a], 7 * k)[:] = extreme[a]
    greatest = {"i8": 127, "i16": 32767}[b]
    state.vector("sram", 30000, {"i8": "i1", "i16": "<i2"}[b], 5 * k)[:] = extreme.get(b) if sign < 0 else greatest
    records = state.vector("param", 0, RECORD, 1)
    records["multiplier"], records["shift"] = 32767, 28
    calls = packs(monkeypatch)
    assert agree(state, linear(a, b, k))
    assert calls


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((4, 4096), np.uint8), np.ones((8, 4), np.int8)),
        (np.ones((4, 8), np.int16), np.ones((8, 4), np.int8)),
        (np.ones((4, 8), np.uint8), np.ones((8, 4), np.uint8)),
    ],
)
def test_operands_that_do_not_fit_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match="allowed"):
        gemm.gemm(a, gemm.pack_weights(b))
