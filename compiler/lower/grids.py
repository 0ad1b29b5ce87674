"""What the input of a quantized linear must be: grid, zero point and smoothing of each time range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.lower.scales import HEADROOM
from models.quantize import QuantizedLinear
from npusim.errors import UserError

Float64 = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """Integers ``real / (divisor * scale) + zero_point``, in each of R time ranges.

    ``dtype``: element type; ``scale``: (R,); ``zero_point``: (R,) int64; ``divisor``: (R, K), smoothing included.
    """

    dtype: str
    scale: Float64
    zero_point: NDArray[np.int64]
    divisor: Float64

    @property
    def common(self) -> int:
        """The zero point that an operation adds as an immediate: the middle of those of all ranges."""
        return int(self.zero_point.min() + self.zero_point.max()) // 2

    @property
    def offset(self) -> NDArray[np.int64]:
        """What a range's zero point has more than the common one, (R, 1)."""
        return np.asarray(self.zero_point - self.common)[:, None]

    @property
    def units(self) -> Float64:
        """The real value of one step, by range and channel: (R, K)."""
        return np.asarray(self.divisor * self.scale[:, None])

    @property
    def changes(self) -> bool:
        """Whether anything differs between ranges."""
        return bool((self.units != self.units[:1]).any() or (self.zero_point != self.zero_point[0]).any())


def grid_of(layer: str, q: QuantizedLinear, absmax: float) -> Grid:
    """The grid of a linear's input; a dynamic one takes 16 bits, of which it makes fewer at run time.

    ``absmax``: the largest magnitude of a dynamic linear's smoothed input. Raises UserError for bits that change with
    the time range.
    """
    same_bits(layer, q)
    ranges = len(q.set_of_range)
    divisor = np.stack([q.divisor(r) for r in range(ranges)])
    if q.dynamic:
        scale = np.full(ranges, max(absmax * HEADROOM, 1e-9) / 32767)
        return Grid("i16", scale, np.zeros(ranges, np.int64), divisor)
    bits = int(q.act_bits[0])
    dtype, below = (f"u{bits}", 0) if bits < 16 else ("i16", 32768)
    return Grid(dtype, q.act_scale, q.act_zp - below, divisor)


def same_bits(layer: str, q: QuantizedLinear) -> None:
    """Raise UserError unless a linear has the same bits in all time ranges: its tensors have one type in all code."""
    for what, bits in (("weights", {w.bits for w in q.weights}), ("inputs", set(q.act_bits.tolist()))):
        if len(bits) > 1:
            given = ", ".join(map(str, sorted(bits)))
            raise UserError(f"{layer}: {what} of {given} bits in different steps; allowed: the same bits in all steps")
