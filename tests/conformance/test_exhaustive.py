"""Every accumulator and every table input, not a sample of them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.engine.scalar import requantize, requantize_double
from tests.conformance import mapping

Array = NDArray[Any]
SINGLE = [(1 << 30, 32), (2147483647, 38), (1234567891, 33), (1 << 30, 31), (3, 2), (0x7FFF, 16)]
DOUBLE = [(1 << 30, 32), (2147483647, 38), (1234567891, 33), (1987654321, 45), (1 << 30, 31)]
ZERO_POINT = -5


@numba.njit  # type: ignore[misc]
def single_defect(multiplier: int, shift: int, zero_point: int) -> int:
    """First int32 for which single rounding is not the nearest integer, ties up; 2^32 if there is none.

    The definition is stated without the rounding constant: floor plus one if the remainder is at least one half.
    """
    for index in range(1 << 32):
        value = index - (1 << 31)
        product = value * multiplier
        quotient = product >> shift
        remainder = product - (quotient << shift)
        nearest = quotient + (1 if 2 * remainder >= 1 << shift else 0)
        saturated = min(max(nearest, -(1 << 31)), (1 << 31) - 1)
        expected = min(max(saturated + zero_point, -128), 127)
        if requantize(value, multiplier, shift, zero_point, -128, 127) != expected:
            return index
    return 1 << 32


@numba.njit  # type: ignore[misc]
def double_defect(multiplier: int, shift: int, zero_point: int) -> int:
    """First int32 for which double rounding is not gemmlowp's; 2^32 if there is none.

    gemmlowp: SaturatingRoundingDoublingHighMul, whose division truncates toward zero, then RoundingDivideByPOT by
    ``shift - 31``.
    """
    exponent = shift - 31
    mask = (1 << exponent) - 1
    for index in range(1 << 32):
        value = index - (1 << 31)
        product = value * multiplier
        total = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
        high = total >> 31 if total >= 0 else -(-total >> 31)
        threshold = (mask >> 1) + (1 if high < 0 else 0)
        scaled = (high >> exponent) + (1 if (high & mask) > threshold else 0)
        expected = min(max(scaled + zero_point, -32768), 32767)
        if requantize_double(value, multiplier, shift, zero_point, -32768, 32767) != expected:
            return index
    return 1 << 32


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "shift"), SINGLE)
def test_single_rounding_of_all_accumulators(multiplier: int, shift: int) -> None:
    assert single_defect(multiplier, shift, ZERO_POINT) == 1 << 32


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "shift"), DOUBLE)
def test_double_rounding_of_all_accumulators(multiplier: int, shift: int) -> None:
    assert double_defect(multiplier, shift, ZERO_POINT) == 1 << 32


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
