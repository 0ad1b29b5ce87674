"""The engine has the reference's bits on every kind of instruction, and a slip in it would be seen."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from npusim import engine, numerics, reference
from npusim.engine import elementwise, matmul, matmul_rows, scalar, table, threads
from npusim.isa import ALL
from npusim.isa.encoding import Decoded
from npusim.isa.matmul import FACTORED, RECORD, SCALARS
from npusim.memory import MEMORIES, MachineState, Sums
from tests.npusim.strategies import DRAM, FAMILIES, Case, machine, make, small_program


def outcome(execute: Callable[..., None], state: MachineState, ins: Decoded) -> tuple[str, MachineState]:
    """The message of an overflow, or "", and the state afterwards."""
    twin = state.copy()
    try:
        execute(twin, [ins])
    except OverflowError as error:
        return str(error), twin
    return "", twin


def agree(state: MachineState, ins: Decoded) -> bool:
    """Whether the engine has the reference's bits, with the handlers of `npusim.engine.stream` and without."""
    expected = outcome(reference.execute, state, ins)
    with pytest.MonkeyPatch.context() as patch:
        same = equal(outcome(engine.execute, state, ins), expected)
        patch.setattr(engine, "HANDLERS", {})
        return same and equal(outcome(engine.execute, state, ins), expected)


def equal(one: tuple[str, MachineState], other: tuple[str, MachineState]) -> bool:
    (fault, a), (expected, b) = one, other
    same_memories = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in MEMORIES)
    if fault:
        return fault == expected and same_memories
    return same_memories and same_sums(a.held, b.held) and a.tallies == b.tallies


def same_sums(a: dict[int, Sums], b: dict[int, Sums]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[unit].products, b[unit].products) and np.array_equal(a[unit].rows, b[unit].rows) for unit in a
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_reference(family: str) -> None:
    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(FAMILIES[family])
    def check(case: Case) -> None:
        assert agree(case.state, case.ins)

    check()


def test_every_instruction_has_a_kernel() -> None:
    assert set(engine.EXECUTORS) == {spec.mnemonic for spec in ALL}


def ramp(dtype: Any = np.int16) -> MachineState:
    """SRAM holds -8192, -8191, ... as ``dtype``: every shift by a few bits meets its ties on both sides of 0."""
    state = MachineState(machine(), DRAM)
    count = state.sram.size // np.dtype(dtype).itemsize // 2
    state.vector("sram", 0, dtype, count)[:] = np.arange(count) - count // 2
    return state


HALF = 32768
TIES = {
    "ewlin": make("ewlin", a_dtype="i16", out_dtype="i16", rows=64, cols=256, batch=1, a_row=512, out_row=512, shift=3,
                  a_mul=1, out_addr=HALF, b_addr=0xFFFFFFFF, a_mul_addr=0xFFFFFFFF, bias_addr=0xFFFFFFFF),
    "ewmul": make("ewmul", a_dtype="i16", b_dtype="i16", out_dtype="i32", rows=16, cols=256, batch=1, a_row=512,
                  out_row=1024, shift=5, out_addr=HALF, b_addr=16100, b_row=512),
    "table": make("table", out_dtype="i16", rows=64, cols=256, a_row=512, out_row=512, multiplier=1 << 4,
                  shift=10, out_addr=HALF),
    "lnapply": make("lnapply", out_dtype="i16", rows=64, cols=64, a_addr=12288, a_row=128, out_row=128, shift=1,
                    stat_addr=HALF + 16384, fraction_bits=15, out_addr=HALF, g_addr=2048, b_addr=4096),
    "matmul": make("matmul", a_dtype="i16", b_dtype="i8", out_dtype="i16", rq_mode="channel", m=64, k=1, n=16, batch0=1,
                   batch1=1, a_row=2, b_addr=HALF - 16, b_n=1, b_k=16, out_addr=HALF, out_row=32, rq_addr=0),
}  # fmt: skip
"""Instructions on the ramp whose results are exact ties very often."""


def tied(op: str) -> MachineState:
    state = ramp()
    if op == "table":
        state.vector("param", 0, np.int16, 513)[:] = np.arange(513) * 3 - 700
    if op == "lnapply":
        statistics = state.vector("sram", HALF + 16384, np.int32, 64 * 3).reshape(64, 3)
        statistics[:] = [65, 1 << 20, 36]  # (64 x - 65) / 2: an integer and a half
        state.vector("param", 2048, np.int16, 64)[:] = 1
    if op == "matmul":
        state.vector("sram", HALF - 16, np.int8, 16)[:] = np.arange(16) - 8
        records = np.zeros(16, RECORD)
        records["multiplier"], records["shift"] = 1 << 10, np.arange(16) % 4 + 11
        state.vector("param", 0, RECORD, 16)[:] = records
    return state


@pytest.mark.parametrize("op", TIES)
def test_exact_ties(op: str) -> None:
    assert agree(tied(op), TIES[op])


def test_the_ties_are_there() -> None:
    """Rounding half down instead of half up changes many results of each of them."""
    for op in TIES:
        state, slipped = tied(op), tied(op)
        engine.execute(state, [TIES[op]])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numerics, "rescale", half_down)
            reference.execute(slipped, [TIES[op]])
        assert np.count_nonzero(state.sram != slipped.sram) > 100, op


def half_down(value: Any, multiplier: Any, shift: Any) -> Any:
    v, m, s = (np.asarray(a, np.int64) for a in (value, multiplier, shift))
    return (v * m + (np.int64(1) << (s - 1)) - 1) >> s


SLIPS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "half down": lambda value, multiplier, shift: (value * multiplier + (1 << (shift - 1)) - 1) >> shift,
    "no rounding": lambda value, multiplier, shift: (value * multiplier) >> shift,
    "half away from zero": lambda value, multiplier, shift: (
        (value * multiplier + (1 << (shift - 1)) - (1 if value < 0 else 0)) >> shift
    ),
    "half to even": lambda value, multiplier, shift: (
        (value * multiplier + (1 << (shift - 1)) - (1 - ((value * multiplier) >> shift & 1))) >> shift
    ),
}


def rebuilt(kernel: Any, **names: Any) -> Any:
    """A kernel's source compiled anew with other global ``names``."""
    function = kernel.py_func
    return numba.njit(FunctionType(function.__code__, {**function.__globals__, **names}))


@pytest.mark.parametrize("slip", SLIPS)
def test_a_rounding_slip_in_a_kernel_is_seen(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = numba.njit(SLIPS[slip])
    monkeypatch.setattr(elementwise, "linear", rebuilt(elementwise.linear, rescale=wrong))
    assert not agree(tied("ewlin"), TIES["ewlin"])


def test_slips_in_other_kernels_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = numba.njit(SLIPS["half down"])
    monkeypatch.setattr(table, "look_up", rebuilt(table.look_up, rescale=wrong))
    assert not agree(tied("table"), TIES["table"])
    slipped = rebuilt(matmul_rows.requantize, rescale=wrong)
    monkeypatch.setattr(matmul, "execute_rows", rebuilt(matmul_rows.execute_rows, requantize=slipped))
    assert not agree(tied("matmul"), TIES["matmul"])


def results(state: MachineState, ins: Decoded, count: int) -> list[int]:
    """The int32 results at ``out_addr``, which engine and reference must agree on."""
    assert agree(state, ins)
    engine.execute(state, [ins])
    return state.vector("sram", ins.out_addr, np.int32, count).tolist()


ONE_ROW = {"m": 1, "k": 1, "batch0": 1, "batch1": 1, "a_dtype": "i8", "b_dtype": "i8", "out_dtype": "i32"}


@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
def test_the_ends_of_an_accumulator(overflow: str) -> None:
    """Sums one inside, at, and one and two beyond each end of 24 bits, read out as they are."""
    top = 2**23 - 1
    sums = [top - 1, top, top + 1, top + 2, -top, -top - 1, -top - 2, -top - 3]
    state = MachineState(machine(acc_bits=24, overflow=overflow), DRAM)
    state.sram[0] = 1  # a; b is 0, so that a sum is its bias
    records = state.vector("param", 0, RECORD, len(sums))
    records["bias_low"], records["bias_high"] = np.array(sums) & 0xFFFF_FFFF, np.array(sums) >> 32
    records["multiplier"], records["shift"] = 2, 1
    ins = make("matmul", n=len(sums), b_addr=8, b_n=1, out_addr=64, rq_mode="channel", **ONE_ROW)
    wrapped = [(value + top + 1) % 2**24 - top - 1 for value in sums]
    clamped = [min(max(value, -top - 1), top) for value in sums]
    assert results(state, ins, len(sums)) == (wrapped if overflow == "wrap" else clamped)


def test_the_late_bias_saturates() -> None:
    """In a factored mode, scaled sum plus bias beyond 32 bits stops there; then one fraction bit goes."""
    sums, biases = [127, 127, -128, -128, 127], [2**31 - 1, 5, -(2**31), -7, -(2**31)]
    state = MachineState(machine(), DRAM)
    state.sram[0] = 1
    state.vector("sram", 8, np.int8, 5)[:] = sums
    channels, scalars = state.vector("param", 0, FACTORED, 5), state.vector("param", 512, SCALARS, 1)
    channels["bias"], channels["multiplier"], channels["shift"] = biases, 2**14, 1
    scalars["multiplier"], scalars["shift"] = 2**14, 3  # each sum times 2^24
    fields = {"rq_mode": "factored", "fraction_bits": 1, "scalars_addr": 512}
    ins = make("matmul", n=5, b_addr=8, b_n=1, out_addr=64, **fields, **ONE_ROW)
    wide = [min(max((s << 24) + b, -(2**31)), 2**31 - 1) for s, b in zip(sums, biases, strict=True)]
    assert results(state, ins, 5) == [min(value + 1 >> 1, 2**31 - 1) for value in wide]


def test_the_first_scale_saturates_before_the_second() -> None:
    """Sums of about 2^22 times 2^13 stop at 32 bits; a quarter of that is what the second scale leaves."""
    state = MachineState(machine(), DRAM)
    state.vector("sram", 0, np.int16, 1)[:] = 32767
    state.vector("sram", 8, np.int8, 2)[:] = [127, -128]
    channels, scalars = state.vector("param", 0, FACTORED, 2), state.vector("param", 512, SCALARS, 1)
    channels["multiplier"], channels["shift"] = 2**14, 1
    scalars["multiplier"], scalars["shift"] = 2**14, 15
    fields = {"rq_mode": "factored", "fraction_bits": 1, "scalars_addr": 512}
    ins = make("matmul", n=2, b_addr=8, b_n=1, out_addr=64, **fields, **{**ONE_ROW, "a_dtype": "i16"})
    assert results(state, ins, 2) == [2**29, -(2**29)]


def test_a_table_saturates_before_its_zero_point() -> None:
    state = MachineState(machine(), DRAM)
    state.vector("param", 0, np.int16, 513)[:] = 32767
    state.vector("param", 0, np.int16, 513)[256:] = -32768
    state.vector("sram", 0, np.int16, 2)[:] = [-30000, 30000]
    fields = {"multiplier": 65535, "shift": 1, "out_zp": -1000, "out_dtype": "i32", "out_addr": 64}
    assert results(state, make("table", rows=1, cols=2, **fields), 2) == [2**31 - 1001, -(2**31)]
    fields["out_zp"] = 1000
    assert results(state, make("table", rows=1, cols=2, **fields), 2) == [2**31 - 1, 1000 - 2**31]


@pytest.mark.parametrize("mode", ["u8 i8", "i8 i8", "i16 i8", "i16 i16"])
@pytest.mark.parametrize("extreme", [-1, 1])
def test_long_sums_of_extreme_products(mode: str, extreme: int) -> None:
    """Sums that leave int32, so that segments of k matter, and the largest that the 40-bit accumulators meet."""
    a_kind, b_kind = mode.split()
    state = MachineState(machine(), DRAM)
    k, a_size, b_size = 1500, 1 + a_kind.startswith("i16"), 1 + b_kind.startswith("i16")
    low = {"u8": 0, "i8": -128, "i16": -32768}
    a, b = (
        state.vector("sram", 1, np.dtype(f"<{a_kind[0]}{a_size}"), 5 * k),
        state.vector("sram", 20001, f"<i{b_size}", 6 * k),
    )
    a[:] = low[a_kind] if a_kind != "u8" else 255
    b[:] = low[b_kind] if extreme == 1 or b_kind == "i8" else 32767
    records = np.zeros(1, RECORD)
    records["multiplier"], records["shift"], records["zero_point"] = 32767, 20, -128
    state.vector("param", 0, RECORD, 1)[:] = records
    ins = make(
        "matmul", a_dtype=a_kind, b_dtype=b_kind, out_dtype="i32", rq_mode="tensor", m=5, k=k, n=6, batch0=1, batch1=1,
        a_addr=1, a_row=k * a_size, b_addr=20001, b_k=6 * b_size, b_n=b_size, out_addr=40001, out_row=24,
    )  # fmt: skip
    assert agree(state, ins)


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads.SETTINGS, "NUMBA_NUM_THREADS", 3)
    for op, ins in TIES.items():
        assert agree(tied(op), ins)


def test_overflows_are_counted_in_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(threads.SETTINGS, "NUMBA_NUM_THREADS", 3)
    state = MachineState(machine(acc_bits=24, overflow="trap"), DRAM)
    state.vector("sram", 0, np.int16, 64 * 8)[-8:] = 32767  # only the last row overflows
    state.vector("sram", 2048, np.int8, 8)[:] = 127
    state.vector("param", 0, RECORD, 1)["shift"] = 1
    ins = make(
        "matmul", a_dtype="i16", b_dtype="i8", out_dtype="i32", m=64, k=8, n=1, batch0=1, batch1=1, a_row=16,
        b_addr=2048, b_k=1, b_n=1, out_addr=4096, out_row=4,
    )  # fmt: skip
    fault, after = outcome(engine.execute, state, ins)
    assert fault == "accumulator of 24 bits overflows"
    assert np.array_equal(after.sram, state.sram)
    assert agree(state, ins)


def test_an_access_outside_a_memory_is_refused() -> None:
    state = MachineState(machine(), DRAM)
    for op in ("ewlin", "ewmul"):
        with pytest.raises(ValueError, match=r"sram bytes 65536\.\.65537 lie outside its 65536 bytes"):
            engine.execute(state, [make(op, rows=1, cols=1, batch=1, shift=1, a_addr=65536, out_addr=0)])
    with pytest.raises(ValueError, match="dram bytes"):
        engine.execute(state, [make("load", rows=1, planes=1, row_bytes=1, dram_addr=DRAM)])


def test_a_program_runs_from_its_words() -> None:
    program = small_program()
    states = []
    for executor in (engine, reference):
        state = MachineState(program.machine, program.dram_bytes)
        for start, contents in program.areas.values():
            state.dram[start:][: contents.size] = contents
        state.vector("dram", 0xC0, np.int16, 32)[:] = np.arange(32) - 16
        executor.run(state, program.prologue)
        for step in range(program.steps):
            state.bases = program.bases(step)
            executor.run(state, program.step)
        states.append(state.vector("dram", 0x140, np.int32, 16).tolist())
    assert states[0] == states[1]
    assert any(states[0])


scalar_rsqrt, scalar_reciprocal = scalar.rsqrt, scalar.reciprocal
scalar_normalised, scalar_exp2, scalar_double = (
    scalar.normalised_multiplier,
    scalar.exp2_negative,
    scalar.rescale_double,
)


@numba.njit
def apply_scalars(wide: Any, narrow: Any, shift: Any, out: Any) -> None:
    for i in range(wide.size):
        out[0, i], out[1, i] = scalar_rsqrt(wide[i])
        out[2, i], out[3, i] = scalar_reciprocal(narrow[i])
        out[4, i], out[5, i] = scalar_normalised(narrow[i], shift[i], 16)
        out[6, i] = scalar_exp2(narrow[i] & 65535, shift[i] & 15, 8 + (shift[i] & 7))
        out[7, i] = scalar_double((narrow[i] - (1 << 31)), narrow[i] >> 1, shift[i])


def test_scalar_functions_equal_numerics_over_the_whole_range() -> None:
    rng = np.random.default_rng(11)
    count = 40_000
    wide = np.maximum(rng.integers(0, 2**62, count) >> rng.integers(0, 62, count), 1)
    narrow = np.maximum(rng.integers(0, 2**32, count) >> rng.integers(0, 32, count), 1)
    shift = rng.integers(1, 63, count)
    out = np.empty((8, count), np.int64)
    apply_scalars(wide, narrow, shift, out)
    exponents = np.array(
        [
            int(numerics.exp2_negative(d & 65535, int(s & 15), int(8 + (s & 7))))
            for d, s in zip(narrow, shift, strict=True)
        ]
    )
    expected = [
        *numerics.rsqrt(wide),
        *numerics.reciprocal(narrow),
        *numerics.normalised_multiplier(narrow, shift, 16),
        exponents,
        numerics.rescale_double(narrow - 2**31, narrow >> 1, shift),
    ]
    for row, values in enumerate(expected):
        assert np.array_equal(out[row], values), row
