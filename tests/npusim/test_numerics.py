"""The ISA's arithmetic against Python integers, fractions and float64: rounding, saturation, error bounds, tables."""

from __future__ import annotations

from decimal import Decimal, getcontext
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim import numerics

INT32 = st.one_of(st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]), st.integers(-(2**31), 2**31 - 1))
MULTIPLIER = st.one_of(st.integers(0, 30).map(lambda n: 1 << n), st.integers(0, 2**31 - 1))
SHIFT = st.integers(1, 62)


def half_up(value: Fraction) -> int:
    """The nearest integer, ties to +infinity."""
    return floor(value + Fraction(1, 2))


def array(*values: int) -> Any:
    return np.array(values, np.int64)


def srdhm(a: int, b: int) -> int:
    """gemmlowp's SaturatingRoundingDoublingHighMul of two int32, C++'s division truncating toward zero."""
    if a == b == -(2**31):
        return 2**31 - 1
    total = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(total) // 2**31 * (1 if total >= 0 else -1)


def rounding_divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp's RoundingDivideByPOT: the nearest integer to x / 2^exponent, ties away from zero."""
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (1 if x < 0 else 0))


@given(INT32, MULTIPLIER, SHIFT)
def test_rescale_rounds_to_the_nearest_integer_and_ties_up(value: int, multiplier: int, shift: int) -> None:
    exact = half_up(Fraction(value * multiplier, 1 << shift))
    assert numerics.rescale(array(value), multiplier, shift).tolist() == [exact]


@given(st.integers(1, 20), st.integers(-(2**20), 2**20), st.integers(0, 20))
def test_rescale_of_exact_ties(shift: int, half: int, power: int) -> None:
    value = (2 * half + 1) << (shift - 1)  # value / 2^shift = half + 1/2
    assert numerics.rescale(array(value), 1 << power, shift + power).tolist() == [half + 1]


@given(INT32, st.one_of(st.integers(0, 30).map(lambda n: 1 << n), st.integers(0, 2**31 - 1)), SHIFT)
def test_double_rounding_is_gemmlowps(value: int, multiplier: int, shift: int) -> None:
    if shift < 31:  # one stage only
        exact = half_up(Fraction(value * multiplier, 1 << shift))
    else:
        exact = rounding_divide_by_pot(srdhm(value, multiplier), shift - 31)
    assert numerics.rescale_double(array(value), multiplier, shift).tolist() == [exact]


@given(st.integers(32, 40), st.integers(-(2**20), 2**20))
def test_double_rounding_of_exact_ties_goes_away_from_zero(shift: int, half: int) -> None:
    value = (2 * half + 1) << (shift - 31)  # value * 2^30 / 2^shift = half + 1/2, exact after the first stage
    assert numerics.rescale_double(array(value), 1 << 30, shift).tolist() == [half + 1 if half >= 0 else half]


@given(INT32, MULTIPLIER, SHIFT, st.integers(-(2**31), 2**31 - 1), st.sampled_from([8, 16, 32]), st.booleans())
def test_requantize_saturates_before_the_zero_point_and_clamps_after_it(
    value: int, multiplier: int, shift: int, zero_point: int, bits: int, double: bool
) -> None:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    one = numerics.rescale_double if double else numerics.rescale
    scaled = int(one(array(value), multiplier, shift)[0])
    expected = min(max(min(max(scaled, -(2**31)), 2**31 - 1) + zero_point, low), high)
    got = numerics.requantize(array(value), multiplier, shift, zero_point, low, high, double)
    assert got.tolist() == [expected]


@given(st.integers(24, 48), st.lists(st.integers(-(2**60), 2**60), min_size=1))
def test_narrowing_of_accumulators(bits: int, values: list[int]) -> None:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    wide = np.array([*values, low, high, low - 1, high + 1], np.int64)
    assert numerics.narrow_accumulator(wide, bits, "saturate").tolist() == [
        min(max(v, low), high) for v in wide.tolist()
    ]
    wrapped = [int.from_bytes((v % (1 << 64)).to_bytes(8, "little"), "little") % (1 << bits) for v in wide.tolist()]
    signed = [v - (1 << bits) if v > high else v for v in wrapped]
    assert numerics.narrow_accumulator(wide, bits, "wrap").tolist() == signed
    assert numerics.narrow_accumulator(array(low, 0, high), bits, "trap").tolist() == [low, 0, high]
    with pytest.raises(OverflowError, match=f"{bits} bits"):
        numerics.narrow_accumulator(array(high + 1), bits, "trap")


@given(st.lists(st.integers(1, 2**62), min_size=1))
def test_bit_length(values: list[int]) -> None:
    assert numerics.bit_length(array(*values)).tolist() == [v.bit_length() for v in values]


EDGES = [1, 2, 3, 4, 5, *(2**n + d for n in range(3, 62) for d in (-1, 0, 1)), 2**62 - 1, 2**62]


def positive(high: int) -> st.SearchStrategy[int]:
    """Values up to ``high``, every number of bits equally likely."""
    return st.integers(1, high.bit_length()).flatmap(lambda n: st.integers(1 << (n - 1), min(high, (1 << n) - 1)))


def check_rsqrt(value: int) -> None:
    mantissa, shift = (int(a[0]) for a in numerics.rsqrt(array(value)))
    assert 2**20 <= mantissa <= 2**21
    squared = Fraction(mantissa * mantissa * value, 1 << 2 * shift)  # (mantissa 2^-shift sqrt(value))^2
    bound = Fraction(1, 2**20)
    assert (1 - bound) ** 2 < squared < (1 + bound) ** 2


@given(positive(2**62))
def test_rsqrt_keeps_its_error_bound(value: int) -> None:
    check_rsqrt(value)


@pytest.mark.parametrize("value", EDGES)
def test_rsqrt_at_the_edges_of_its_intervals(value: int) -> None:
    check_rsqrt(value)


def test_rsqrt_in_every_interval_of_its_seed() -> None:
    u = np.concatenate([np.arange(64, 256) << 24, (np.arange(65, 257) << 24) - 1]).astype(np.int64)
    mantissa, shift = numerics.rsqrt(u)
    error = mantissa * 2.0**-shift * np.sqrt(u.astype(np.float64)) - 1
    assert np.abs(error).max() < 2.0**-20


def check_reciprocal(value: int) -> None:
    mantissa, shift = (int(a[0]) for a in numerics.reciprocal(array(value)))
    assert 2**30 <= mantissa <= 2**31
    assert abs(Fraction(mantissa * value, 1 << shift) - 1) < Fraction(1, 2**27)


@given(positive(2**32 - 1))
def test_reciprocal_keeps_its_error_bound(value: int) -> None:
    check_reciprocal(value)


@pytest.mark.parametrize("value", [v for v in EDGES if v < 2**32])
def test_reciprocal_at_the_edges_of_its_intervals(value: int) -> None:
    check_reciprocal(value)


def test_reciprocal_in_every_interval_of_its_seed() -> None:
    for u in [*(i << 24 for i in range(128, 256)), *((i << 24) - 1 for i in range(129, 257))]:
        check_reciprocal(u)


@given(positive(2**40), st.integers(-20, 90), st.sampled_from([16, 32]))
def test_normalised_multiplier_is_the_nearest_of_its_width(value: int, shift: int, bits: int) -> None:
    multiplier, down = (int(a[0]) for a in numerics.normalised_multiplier(array(value), array(shift), bits))
    assert 1 << (bits - 2) <= multiplier < 1 << (bits - 1)
    exact, got = Fraction(value) / Fraction(2) ** shift, Fraction(multiplier) / Fraction(2) ** down
    assert abs(got - exact) <= Fraction(1, 2) / Fraction(2) ** down  # half a unit of the multiplier's last place


@given(st.integers(0, 16), st.sampled_from([8, 12, 15, 16]), st.lists(st.integers(0, 65535), min_size=1))
def test_exponential_is_within_one_unit(fraction_bits: int, bits: int, distances: list[int]) -> None:
    got = numerics.exp2_negative(np.array(distances, np.int64), fraction_bits, bits)
    exact = (2.0**bits - 1) * 2.0 ** (-np.array(distances, np.float64) / 2.0**fraction_bits)
    assert np.abs(got - exact).max() < 1


@pytest.mark.parametrize("fraction_bits", [0, 7, 8, 12, 16])
def test_exponential_over_all_distances(fraction_bits: int) -> None:
    distance = np.arange(65536)
    got = numerics.exp2_negative(distance, fraction_bits, 15)
    exact = 32767 * 2.0 ** (-distance / 2.0**fraction_bits)
    assert got[0] == 32767
    # Half a unit from rounding, (ln 2 / 128)^2 / 8 of the value from the straight line within a segment.
    assert np.abs(got - exact).max() < 0.5 + 32767 * (np.log(2) / 128) ** 2 / 8 + 0.01
    assert (np.diff(got) <= 0).all()


def test_table_lookup_over_all_inputs() -> None:
    x = np.arange(-32768, 32768)
    for seed in range(3):
        table = np.random.default_rng(seed).integers(-32768, 32768, 513)
        table[:4] = [-32768, 32767, -32768, -32768]
        got = numerics.table_lookup_16(x, table)
        index, fraction = np.divmod(x + 32768, 128)
        assert (got == table[index] * (128 - fraction) + table[index + 1] * fraction).all()
        assert np.abs(got).max() < 2**31
        straight = np.interp(x, np.arange(513) * 128 - 32768, table) * 128
        assert np.abs(got - straight).max() < 1e-6


def test_read_only_tables_against_independent_values() -> None:
    getcontext().prec = 60
    for i, seed in zip(range(64, 256), numerics.RSQRT_SEED.tolist(), strict=True):
        exact = Decimal(2) ** 30 / ((Decimal(2 * i + 1) / 512).sqrt())
        assert abs(seed - exact) <= 1
    for i, seed in zip(range(128, 256), numerics.RECIP_SEED.tolist(), strict=True):
        assert abs(seed - Fraction(2**30 * 512, 2 * i + 1)) <= 1
    for i, knot in enumerate(numerics.EXP2_KNOTS.tolist()):
        assert knot == int((Decimal(2) ** 30 * Decimal(2) ** (Decimal(-i) / 128)).to_integral_value())
    for table in (numerics.RSQRT_SEED, numerics.RECIP_SEED, numerics.EXP2_KNOTS):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@given(st.integers(1, 62), st.sampled_from([-1, 1]), st.integers(0, 3))
def test_rescale_is_exact_up_to_its_bound(shift: int, sign: int, below: int) -> None:
    value = sign * (2**63 - 1 - (1 << shift - 1) - below)
    assert numerics.rescale(value, 1, shift) == (value + (1 << shift - 1)) >> shift
    value -= sign << 30
    extra = sign * (1 << 30) if shift > 31 else 0
    assert numerics.rescale_double(value, 1, shift) == (value + (1 << shift - 1) + extra) >> shift
