"""Integer arithmetic that the ISA is defined by: rounding, requantization, reciprocal (square root), power of two.

NumPy int64 and Python integers only: slow and obvious. Everything here is exact; ``>>`` keeps the sign.
The read-only tables are built with integer square roots, so no float takes part anywhere.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64 = NDArray[np.int64]


def rescale(value: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> Int64:
    """``(value * multiplier + 2^(shift-1)) >> shift``, ties to +infinity: TOSA 1.0 ``apply_scale_16`` and ``_32``.

    int64 arrays (broadcast). ``shift`` is 1 to 62; the caller keeps ``|value * multiplier| <= 2^63 - 1 - 2^(shift-1)``,
    so that the sum fits int64.
    """
    v, m, s = (np.asarray(a, np.int64) for a in (value, multiplier, shift))
    return (v * m + (np.int64(1) << (s - 1))) >> s


def rescale_double(value: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> Int64:
    """TOSA ``apply_scale_32`` with DOUBLE_ROUND, equal to gemmlowp.

    Above a shift of 31 it rounds twice: at bit 31 with ties to +infinity, then the rest with ties away from zero. The
    caller keeps ``|value * multiplier|`` 2^30 below the bound of `rescale`.
    """
    v, m, s = (np.asarray(a, np.int64) for a in (value, multiplier, shift))
    extra = np.where(s > 31, np.where(v >= 0, np.int64(1 << 30), np.int64(-(1 << 30))), np.int64(0))
    return (v * m + (np.int64(1) << (s - 1)) + extra) >> s


def saturate_32(value: Int64) -> Int64:
    """Clamp to the range of int32."""
    return np.clip(value, -(2**31), 2**31 - 1)


def rescale_twice(
    value: Int64, first: tuple[Int64, Int64], second: tuple[Int64, Int64], bias: Int64, fraction_bits: int
) -> Int64:
    """Two rescales by (multiplier, shift), each saturated to 32 bits, then a bias, then ``fraction_bits`` off."""
    once = saturate_32(rescale(value, *first))
    twice = saturate_32(rescale(once, *second))
    return rescale(saturate_32(twice + bias), 1, fraction_bits)


def requantize(
    value: Int64, multiplier: ArrayLike, shift: ArrayLike, zero_point: int, low: int, high: int, double: bool = False
) -> Int64:
    """RESCALE as TOSA orders it: scale, saturate to int32, add the output zero point, clamp to the output type."""
    scaled = rescale_double(value, multiplier, shift) if double else rescale(value, multiplier, shift)
    return np.clip(saturate_32(scaled) + zero_point, low, high)


def count_overflows(value: Int64, bits: int) -> int:
    """Number of sums that do not fit ``bits`` bits."""
    return int(np.count_nonzero((value < -(1 << (bits - 1))) | (value > (1 << (bits - 1)) - 1)))


def narrow_accumulator(value: Int64, bits: int, overflow: str) -> Int64:
    """Fit a sum to an accumulator of ``bits`` bits: ``saturate``, ``wrap``, or ``trap`` (OverflowError)."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if overflow == "saturate":
        return np.clip(value, low, high)
    if overflow == "wrap":
        return ((value - low) & ((1 << bits) - 1)) + low
    if ((value < low) | (value > high)).any():
        raise OverflowError(f"accumulator of {bits} bits overflows")
    return value


def _rsqrt_seed() -> Int64:
    """First guesses of 2^30 / sqrt(r) at the middle of each of 192 intervals of r = u / 2^32 in [1/4, 1)."""
    return np.array([isqrt((1 << 101) // (2 * i + 1)) >> 16 for i in range(64, 256)], np.int64)


def _recip_seed() -> Int64:
    """First guesses of 2^30 / r at the middle of each of 128 intervals of r = u / 2^32 in [1/2, 1)."""
    return np.array([(1 << 39) // (2 * i + 1) for i in range(128, 256)], np.int64)


def _exp2_knots() -> Int64:
    """round(2^30 * 2^(-i/128)) for i = 0..128, by repeated integer square roots with 60 bits."""
    root = [1 << 59]  # 2^-1 with 60 fractional bits, then 2^-(1/2), 2^-(1/4), ...
    for _ in range(7):
        root.append(isqrt(root[-1] << 60))
    knots = []
    for i in range(129):
        value = 1 << 60
        for k in range(8):
            if i >> (7 - k) & 1:
                value = (value * root[k]) >> 60
        knots.append((value + (1 << 29)) >> 30)
    return np.array(knots, np.int64)


RSQRT_SEED, RECIP_SEED, EXP2_KNOTS = _rsqrt_seed(), _recip_seed(), _exp2_knots()
for _table in (RSQRT_SEED, RECIP_SEED, EXP2_KNOTS):
    _table.setflags(write=False)


def bit_length(value: Int64) -> Int64:
    """Number of bits of each positive value (64 minus the count of leading zeros)."""
    return np.array([int(v).bit_length() for v in np.ravel(value)], np.int64).reshape(np.shape(value))


def rsqrt(value: Int64) -> tuple[Int64, Int64]:
    """Return (mantissa, shift) with ``mantissa * 2^-shift`` close to ``1 / sqrt(value)``; mantissa in [2^20, 2^21].

    value is in 1..2^62. Normalise by an even shift to u in [2^30, 2^32), seed from 192 entries, two Newton steps
    ``y <- y (3 - u y^2) / 2`` in Q30, then keep 21 bits. Relative error below 2^-20.
    """
    even = (bit_length(value) + 1) & ~1
    u = np.where(even <= 32, value << np.maximum(32 - even, 0), value >> np.maximum(even - 32, 0))
    y = RSQRT_SEED[(u >> 24) - 64]
    for _ in range(2):
        square = (y * y) >> 30
        y = (y * ((np.int64(3) << 30) - ((u * square) >> 32))) >> 31
    return (y + (1 << 9)) >> 10, np.int64(20) + (even >> 1)


def reciprocal(value: Int64) -> tuple[Int64, Int64]:
    """Return (mantissa, shift) with ``mantissa * 2^-shift`` close to ``1 / value``; mantissa in [2^30, 2^31].

    value is in 1..2^32-1. Normalise to u in [2^31, 2^32), seed from 128 entries, two Newton steps ``y <- y (2 - u y)``
    in Q30. Relative error below 2^-27.
    """
    bits = bit_length(value)
    u = value << (32 - bits)
    y = RECIP_SEED[(u >> 24) - 128]
    for _ in range(2):
        y = (y * ((np.int64(2) << 30) - ((u * y) >> 32))) >> 30
    return y, np.int64(30) + bits


def normalised_multiplier(value: Int64, shift: Int64, bits: int) -> tuple[Int64, Int64]:
    """Round ``value * 2^-shift``, positive, to (multiplier, shift), with ``bits - 1`` significant bits."""
    drop = bit_length(value) - (bits - 1)
    down = np.maximum(drop, 1)
    rounded = np.where(drop > 0, (value + (np.int64(1) << (down - 1))) >> down, value << np.maximum(-drop, 0))
    carry = rounded >> (bits - 1)
    return rounded >> carry, shift - drop - carry


def exp2_negative(distance: Int64, fraction_bits: int, result_bits: int) -> Int64:
    """``round((2^result_bits - 1) * 2^(-distance / 2^fraction_bits))`` nearly (within one unit).

    distance >= 0, fraction_bits <= 16, result_bits <= 16.

    The fraction picks one of 128 segments of 2^-x on [0, 1) and interpolates linearly; the integer part shifts.
    """
    whole = np.minimum(distance >> fraction_bits, 40)
    fraction = distance & ((1 << fraction_bits) - 1)
    wide = fraction << (16 - fraction_bits)
    segment, rest = wide >> 9, wide & 511
    knot = EXP2_KNOTS[segment]
    value = knot - (((knot - EXP2_KNOTS[segment + 1]) * rest) >> 9)
    scaled = (value * ((1 << result_bits) - 1)) >> 16
    return np.asarray((scaled + (np.int64(1) << (13 + whole))) >> (14 + whole), np.int64)


def table_lookup_16(value: Int64, table: Int64) -> Int64:
    """TOSA TABLE for int16: 513 int16 entries, interpolated over 7 fraction bits; the int32 result has 7 more."""
    index = (value + 32768) >> 7
    left = table[index]
    return np.asarray((left << 7) + (table[index + 1] - left) * ((value + 32768) & 127), np.int64)
