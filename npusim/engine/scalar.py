"""The integer arithmetic of ``npusim.numerics`` for one value at a time, as kernels call it. Every value is an int64.

Ranges and rounding are those that ``npusim.numerics`` states; the tests hold the two against each other.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from npusim import numerics
from npusim.engine.cache import inlined

Int: TypeAlias = Any
"""An int64, or a constant that Numba makes one."""

# Kernels hold these as constants.
RSQRT_SEED, RECIP_SEED, EXP2_KNOTS = numerics.RSQRT_SEED, numerics.RECIP_SEED, numerics.EXP2_KNOTS
ONE = np.int64(1)
INT32_LOW, INT32_HIGH = -(2**31), 2**31 - 1
SATURATE, WRAP, TRAP = 0, 1, 2
OVERFLOW = {"saturate": SATURATE, "wrap": WRAP, "trap": TRAP}


@inlined
def clamp(value: Int, low: Int, high: Int) -> Int:
    return min(max(value, low), high)


@inlined
def rescale(value: Int, multiplier: Int, shift: Int) -> Int:
    return (value * multiplier + (ONE << (shift - 1))) >> shift


@inlined
def rescale_double(value: Int, multiplier: Int, shift: Int) -> Int:
    extra = 0
    if shift > 31:
        extra = 1 << 30 if value >= 0 else -(1 << 30)
    return (value * multiplier + (ONE << (shift - 1)) + extra) >> shift


@inlined
def narrow_accumulator(value: Int, low: Int, high: Int, overflow: Int) -> Int:
    """SATURATE or WRAP to [low, high]; TRAP leaves the value, and the caller counts the overflows."""
    if overflow == SATURATE:
        return clamp(value, low, high)
    if overflow == WRAP:
        return ((value - low) & (high - low)) + low
    return value


@inlined
def bit_length(value: Int) -> Int:
    bits = 0
    for step in (32, 16, 8, 4, 2, 1):
        if value >> step > 0:
            value >>= step
            bits += step
    return bits + (1 if value > 0 else 0)


@inlined
def rsqrt(value: Int) -> tuple[Int, Int]:
    even = (bit_length(value) + 1) & ~1
    u = value << (32 - even) if even <= 32 else value >> (even - 32)
    y = RSQRT_SEED[clamp((u >> 24) - 64, 0, RSQRT_SEED.size - 1)]
    for _ in range(2):
        square = (y * y) >> 30
        y = (y * ((3 << 30) - ((u * square) >> 32))) >> 31
    return (y + (1 << 9)) >> 10, 20 + (even >> 1)


@inlined
def reciprocal(value: Int) -> tuple[Int, Int]:
    bits = bit_length(value)
    u = value << (32 - bits)
    y = RECIP_SEED[clamp((u >> 24) - 128, 0, RECIP_SEED.size - 1)]
    for _ in range(2):
        y = (y * ((2 << 30) - ((u * y) >> 32))) >> 30
    return y, 30 + bits


@inlined
def normalised_multiplier(value: Int, shift: Int, bits: Int) -> tuple[Int, Int]:
    drop = bit_length(value) - (bits - 1)
    rounded = (value + (ONE << (drop - 1))) >> drop if drop > 0 else value << -drop
    carry = rounded >> (bits - 1)
    return rounded >> carry, shift - drop - carry


@inlined
def exp2_negative(distance: Int, fraction_bits: Int, result_bits: Int) -> Int:
    whole = min(distance >> fraction_bits, 40)
    wide = (distance & ((ONE << fraction_bits) - 1)) << (16 - fraction_bits)
    segment = wide >> 9
    knot = EXP2_KNOTS[segment]
    value = knot - (((knot - EXP2_KNOTS[segment + 1]) * (wide & 511)) >> 9)
    scaled = (value * ((ONE << result_bits) - 1)) >> 16
    return (scaled + (ONE << (13 + whole))) >> (14 + whole)


@inlined
def table_lookup_16(value: Int, table: Any) -> Int:
    index = (value + 32768) >> 7
    left = table[index]
    return (left << 7) + (table[index + 1] - left) * ((value + 32768) & 127)
