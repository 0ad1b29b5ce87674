"""From real factors to integers: multipliers with shifts, the grids of 16-bit tensors, table knots."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, frexp, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError

HEADROOM = 2.25
"""16-bit tensors hold this many times the calibrated maximum: unseen prompts reach further than the calibration's."""

RESIDUAL_HEADROOM = 1.2
GELU_TAIL = 6.0


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
    """``multiplier_shift`` of each of many factors (any shape), for 16-bit multipliers."""
    different, where_from = np.unique(factors, return_inverse=True)
    pairs = np.array([multiplier_shift(float(f), 16, where) for f in different], np.int64)[where_from.reshape(-1)]
    return pairs[:, 0].reshape(factors.shape), pairs[:, 1].reshape(factors.shape)


def fraction_bits(largest: float, bits: int = 16, headroom: float = HEADROOM) -> int:
    """Most fractional bits with which ``largest * headroom`` still fits a signed integer of ``bits`` bits."""
    return floor(log2(((1 << (bits - 1)) - 1) / max(largest * headroom, 1e-9)))


def residual(largest: float, before: Activation | None = None) -> Activation:
    """A 16-bit tensor of the residual stream; its step is 4096/n of the one ``before`` it: carrying over is exact.

    A stream that grows more than 4096-fold at once gets the step that it needs.
    """
    needed = max(largest * RESIDUAL_HEADROOM, 1e-9) / 32767
    parts = floor(4096 * before.scale / needed) if before else 0
    return Activation("i16", before.scale * 4096 / parts if before and parts else needed)


def fitted_step(unit: float, largest: float) -> float:
    """``unit`` times the least power of two with which ``largest`` fits 16 signed bits."""
    return unit * 2.0 ** -floor(log2(32767 * unit / max(largest, 1e-9)))


def symmetric(largest: float, dtype: str = "i16") -> Activation:
    """A symmetric tensor of 8 or 16 bits. 8-bit tensors get no headroom: their resolution is worth more."""
    limit, headroom = (127, 1.0) if dtype == "i8" else (32767, HEADROOM)
    return Activation(dtype, max(largest * headroom, 1e-9) / limit)


def gelu_input(largest: float) -> Activation:
    """The 16-bit grid in front of GELU. Below -6 the function is 0 to within 1e-8, so no step is spent there."""
    high = max(largest * HEADROOM, 1e-9)
    low = min(high, GELU_TAIL)
    scale = (high + low) / 65535
    return Activation("i16", scale, round(low / scale) - 32768)


def spline_knots(values: NDArray[Any]) -> NDArray[Any]:
    """Knots of the line segments that fit a function best in the mean square: (..., n + 2) samples to (..., n) knots.

    The samples are at the knots, and one beyond each end. Segments through the samples themselves lie on the inner
    side of a curve, by a twelfth of the second difference on average.
    """
    inner = values[..., 1:-1]
    return np.asarray(inner - (values[..., 2:] - 2 * inner + values[..., :-2]) / 12)


def common_shift(largest_factor: float, bits: int = 16, most: int = 20) -> int:
    """Greatest shift, at most ``most``, for which the largest factor still fits a signed ``bits``-bit multiplier."""
    return max(1, min(most, floor(log2(((1 << (bits - 1)) - 1) / largest_factor)))) if largest_factor else most


def ceil_power(value: float) -> int:
    """Smallest n with ``2^n >= value``."""
    return ceil(log2(value))
