"""Every accumulator and every table input, not a sample of them, through the engine's own kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from npusim import engine
from npusim.config import Machine
from npusim.isa.matmul import RECORD
from npusim.memory import MachineState, Sums
from npusim.testing.cases import make
from tests.conformance import mapping

Array = NDArray[Any]
SINGLE = [(1 << 30, 32), (2147483647, 38), (1234567891, 33), (1 << 30, 31), (3, 2), (0x7FFF, 16)]
DOUBLE = [(1 << 30, 32), (2147483647, 38), (1234567891, 33), (1987654321, 45), (1 << 30, 31)]
ZERO_POINT = -5


ROWS = COLS = 1024
BLOCK = ROWS * COLS


@numba.njit  # type: ignore[misc]
def single_defect(first: int, results: Array, multiplier: int, shift: int) -> int:
    """First of the int32 from ``first`` on whose result is not the nearest integer, ties up; -1 if there is none.

    The definition is stated without the rounding constant: floor plus one if the remainder is at least one half.
    """
    for index in range(results.size):
        product = (first + index) * multiplier
        quotient = product >> shift
        remainder = product - (quotient << shift)
        nearest = quotient + (1 if 2 * remainder >= 1 << shift else 0)
        saturated = min(max(nearest, -(1 << 31)), (1 << 31) - 1)
        if results[index] != min(max(saturated + ZERO_POINT, -32768), 32767):
            return index
    return -1


@numba.njit  # type: ignore[misc]
def double_defect(first: int, results: Array, multiplier: int, shift: int) -> int:
    """First of the int32 from ``first`` on whose result is not gemmlowp's; -1 if there is none.

    gemmlowp: SaturatingRoundingDoublingHighMul, whose division truncates toward zero, then RoundingDivideByPOT by
    ``shift - 31``.
    """
    exponent = shift - 31
    mask = (1 << exponent) - 1
    for index in range(results.size):
        product = (first + index) * multiplier
        total = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
        high = total >> 31 if total >= 0 else -(-total >> 31)
        threshold = (mask >> 1) + (1 if high < 0 else 0)
        scaled = (high >> exponent) + (1 if (high & mask) > threshold else 0)
        if results[index] != min(max(scaled + ZERO_POINT, -32768), 32767):
            return index
    return -1


def assert_right(
    machine: Machine, find_defect: Callable[..., int], multiplier: int, shift: int, steps: int = 1, rounding: str = ""
) -> None:
    """Let the engine requantize accumulators that MATMUL is told are held, a block of 2^20 of them at a time.

    All of int32; ``steps`` > 1 leaves blocks out. ``rounding``: the machine's, by default what is looked for.
    """
    fields = machine.model_dump()
    rounding = rounding or ("double" if find_defect is double_defect else "single")
    fields["mac_array"] |= {"acc_bits": 32, "requant_multiplier_bits": 32, "factored_requant": False}
    fields["mac_array"]["requant_rounding"] = rounding
    fields["sram"] |= {"capacity_bytes": 4 * BLOCK}
    state, out = MachineState(Machine.model_validate(fields), 0), 2 * BLOCK
    record = state.vector("param", 0, RECORD, 1)
    record["multiplier"], record["shift"] = multiplier, shift
    ins = make(
        "matmul", m=ROWS, k=1, n=COLS, batch0=1, batch1=1, b_dtype="i8", acc_continue=1, out_dtype="i16",
        out_zp=ZERO_POINT, out_addr=out, out_row=2 * COLS,
    )  # fmt: skip
    ramp, nothing = np.arange(BLOCK).reshape(ROWS, COLS), np.zeros((ROWS, 1), np.int64)
    results = state.vector("sram", out, np.int16, BLOCK)
    for first in range(-(1 << 31), 1 << 31, BLOCK * steps):
        state.held[ins.unit] = Sums(ramp + first, nothing)
        engine.execute(state, [ins])
        index = find_defect(first, results, multiplier, shift)
        assert index < 0, f"accumulator {first + index}: {results[index]}"


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "shift"), SINGLE)
def test_single_rounding_of_all_accumulators(multiplier: int, shift: int, edge_machine: Machine) -> None:
    assert_right(edge_machine, single_defect, multiplier, shift)


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "shift"), DOUBLE)
def test_double_rounding_of_all_accumulators(multiplier: int, shift: int, edge_machine: Machine) -> None:
    assert_right(edge_machine, double_defect, multiplier, shift)


@pytest.mark.parametrize("find_defect", [single_defect, double_defect], ids=["single", "double"])
def test_a_rounding_slip_is_found(find_defect: Callable[..., int], edge_machine: Machine) -> None:
    """The searches see what the kernels compute: on a machine of the other rounding they find a difference."""
    assert_right(edge_machine, find_defect, 1987654321, 45, steps=512)
    with pytest.raises(AssertionError, match=r"^accumulator -?\d+: "):
        assert_right(
            edge_machine,
            find_defect,
            1987654321,
            45,
            steps=512,
            rounding="double" if find_defect is single_defect else "single",
        )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_all_inputs_of_a_narrow_type_through_the_requantizer(bits: int, double: bool, edge_machine: Machine) -> None:
    x = np.arange(-(1 << bits - 1), 1 << bits - 1).reshape(-1, 64)
    multiplier, shift = (1 << 30, 33) if bits == 8 else (1 << 30, 38)
    got = mapping.rescale_matmul(
        edge_machine, x.astype(f"i{bits // 8}"), np.array([multiplier]), np.array([shift]), 0, 3, "i8", True, double
    )
    if double:  # x / 2 rounded up in the first stage; what is left rounded away from zero in the second
        scaled = np.floor(x / 2 + 0.5) / 2.0 ** (shift - 31)
        rounded = np.where(scaled < 0, np.ceil(scaled - 0.5), np.floor(scaled + 0.5))
    else:
        rounded = np.floor(x / 2.0 ** (shift - 30) + 0.5)
    np.testing.assert_array_equal(got, np.clip(rounded + 3, -128, 127))


def test_table_of_steps_beyond_16_bits_over_all_inputs(edge_machine: Machine) -> None:
    """Outside TOSA's domain, defined here: neighbours of opposite extremes, by the interpolation's own formula."""
    x, entries = np.arange(-32768, 32768), np.where(np.arange(513) % 2, 32767, -32768)
    got = mapping.table(edge_machine, x.astype(np.int16).reshape(256, 256), entries.astype(np.int16)).ravel()
    index, fraction = np.divmod(x + 32768, 128)
    np.testing.assert_array_equal(got, entries[index] * (128 - fraction) + entries[index + 1] * fraction)
