"""Real factors become integers as near as their width allows, or are refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.lower.scales import common_shift, fitted_step, fraction_bits, multiplier_shift, residual, symmetric
from npusim.errors import UserError

positive = st.floats(1e-30, 1e30, allow_nan=False).filter(lambda f: f > 0)


@given(positive, st.sampled_from([16, 24, 31, 32]))
def test_multiplier_and_shift_are_as_near_as_their_bits(factor: float, bits: int) -> None:
    if factor >= 2.0 ** (bits - 3) * (1 - 2.0**-bits):  # the shift would be less than 2
        with pytest.raises(UserError, match=r"^somewhere: scale factor"):
            multiplier_shift(factor, bits, "somewhere")
        return
    multiplier, shift = multiplier_shift(factor, bits, "somewhere")
    assert 2 <= shift <= 62
    assert 0 <= multiplier < 1 << (bits - 1)
    error = abs(Fraction(multiplier, 1 << shift) - Fraction(factor))
    assert error <= max(Fraction(factor) / (1 << (bits - 1)), Fraction(1, 1 << 63))


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0**40])
def test_multiplier_refuses_what_it_cannot_express(factor: float) -> None:
    with pytest.raises(UserError, match=r"blocks\.0: scale factor .* allowed 2\.\.62 with a 16-bit multiplier"):
        multiplier_shift(factor, 16, "blocks.0")


def test_multiplier_that_rounds_up_to_a_power_of_two_stays_in_range() -> None:
    assert multiplier_shift(1 - 2.0**-40, 16) == (1 << 14, 14)


@given(st.floats(1e-6, 1e6), st.sampled_from([1.0, 1.25, 1.5, 2.0]))
def test_fraction_bits_are_the_most_that_fit(largest: float, headroom: float) -> None:
    bits = fraction_bits(largest, headroom=headroom)
    assert largest * headroom * 2.0**bits <= 32767
    assert largest * headroom * 2.0 ** (bits + 1) > 32767


@given(st.floats(1e-6, 1e6), st.floats(0.1, 100))
def test_scales_hold_the_calibrated_maximum(largest: float, growth: float) -> None:
    first, wide, narrow = residual(largest), symmetric(largest), symmetric(largest, "i8")
    carried = residual(largest * growth, first)
    assert 1.2 * largest / first.scale <= 32768
    assert 1.2 * largest * growth / carried.scale <= 32768
    if growth < 4096:
        assert 4096 * first.scale / carried.scale == pytest.approx(round(4096 * first.scale / carried.scale), abs=1e-9)
    assert 1.25 * largest / wide.scale <= 32767
    assert largest / narrow.scale == pytest.approx(127)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_fitted_step_is_the_finest_that_fits(unit: float, largest: float) -> None:
    step = fitted_step(unit, largest)
    assert 16383 < largest / step <= 32768
    assert Fraction(step / unit).numerator == 1 or Fraction(step / unit).denominator == 1


def test_tensors_of_zeros_have_a_step() -> None:
    assert min(fitted_step(0.1, 0.0), residual(0.0).scale, symmetric(0.0).scale) > 0


@given(st.floats(1e-9, 3e4), st.sampled_from([16, 24]))
def test_common_shift_keeps_the_multiplier_in_range(largest: float, bits: int) -> None:
    shift = common_shift(largest, bits)
    assert 1 <= shift <= 20
    limit = (1 << (bits - 1)) - 1
    if shift > 1:
        assert largest * 2.0**shift <= limit
    if shift < 20:
        assert largest * 2.0 ** (shift + 1) > limit
