"""From real factors to integers: multipliers with shifts, power-of-two scales, fixed point."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, frexp, log2

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError

HEADROOM = 2.0
"""16-bit tensors hold this many times the calibrated maximum: unseen prompts reach further than the calibration's."""


@dataclass(frozen=True)
class Activation:
    """How a tensor's integers stand for reals: ``(q - zero_point) * scale``."""

    dtype: str
    scale: float
    zero_point: int = 0


def multiplier_shift(factor: float, bits: int = 16, where: str = "") -> tuple[int, int]:
    """Return (multiplier, shift) with ``multiplier * 2^-shift`` nearest ``factor``; shift in 2..62.

    The multiplier has bits - 1 significant bits (fewer for factors so small that the shift would exceed 62).
    Raises UserError naming ``where`` when the factor lies outside what the requantizer can express.
    """
    mantissa, exponent = frexp(factor)
    multiplier = round(mantissa * (1 << (bits - 1)))
    shift = bits - 1 - exponent
    if multiplier == 1 << (bits - 1):
        multiplier, shift = multiplier >> 1, shift - 1
    if shift > 62:  # A factor this small only needs fewer significant bits.
        multiplier, shift = round(factor * 2.0**62), 62
    if not (factor > 0 and shift >= 2):
        raise UserError(
            f"{where}: scale factor {factor:g} needs shift {shift}; allowed 2..62 with a {bits}-bit multiplier"
        )
    return multiplier, shift


def multipliers_shifts(factors: NDArray[np.float64], where: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vector form of ``multiplier_shift`` for 16-bit multipliers."""
    pairs = np.array([multiplier_shift(float(f), 16, where) for f in factors], np.int64)
    return pairs[:, 0], pairs[:, 1]


def fraction_bits(largest: float, bits: int = 16, headroom: float = HEADROOM) -> int:
    """Most fractional bits with which ``largest * headroom`` still fits a signed integer of ``bits`` bits."""
    return floor(log2(((1 << (bits - 1)) - 1) / max(largest * headroom, 1e-9)))


def power_of_two(largest: float) -> Activation:
    """A symmetric 16-bit tensor whose step is a power of two, so that later changes of scale are exact shifts."""
    return Activation("i16", 2.0 ** -fraction_bits(largest, headroom=1.25))


def symmetric(largest: float, dtype: str = "i16") -> Activation:
    """A symmetric tensor of 8 or 16 bits. 8-bit tensors get no headroom: their resolution is worth more."""
    limit, headroom = (127, 1.0) if dtype == "i8" else (32767, HEADROOM)
    return Activation(dtype, max(largest * headroom, 1e-9) / limit)


def common_shift(largest_factor: float, bits: int = 16, most: int = 20) -> int:
    """Greatest shift, at most ``most``, for which the largest factor still fits a signed ``bits``-bit multiplier."""
    return max(1, min(most, floor(log2(((1 << (bits - 1)) - 1) / largest_factor)))) if largest_factor else most


def ceil_power(value: float) -> int:
    """Smallest n with ``2^n >= value``."""
    return ceil(log2(value))
