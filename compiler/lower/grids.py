"""What the input of a quantized linear must be: grid, zero point and smoothing of each time range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.lower.scales import HEADROOM
from models.quantize import QuantizedLinear, follows_ranges
from npusim.errors import UserError

Float64 = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """Integers ``real / (divisor * scale) + zero_point``, in each of R time ranges, or the same in all (R = 1).

    ``dtype``: element type; ``scale``: (R,); ``zero_point``: (R,) int64; ``divisor``: (R, K), smoothing included;
    ``smoothed``: whether channels are divided differently. Whether anything changes between ranges, and whether
    channels differ, is the method's decision, never that of numbers which happen to be equal.
    """

    dtype: str
    scale: Float64
    zero_point: NDArray[np.int64]
    divisor: Float64
    smoothed: bool

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
        return len(self.scale) > 1

    def by_step(self, range_of_step: NDArray[np.int64]) -> NDArray[np.int64]:
        """(steps,) which row of `units` and `offset` a denoising step uses."""
        return range_of_step if self.changes else np.zeros_like(range_of_step)


def grid_of(layer: str, q: QuantizedLinear, absmax: float) -> Grid:
    """The grid of a linear's input; a dynamic one takes 16 bits, of which it makes fewer at run time.

    ``absmax``: the largest magnitude of a dynamic linear's smoothed input. Raises UserError for bits that change with
    the time range, and for grids that do where a linear has one for all steps.
    """
    same_bits(layer, q)
    ranges = len(q.set_of_range) if follows_ranges(layer) and not q.dynamic else 1
    divisor = np.stack([q.divisor(r) for r in range(ranges)])
    if q.dynamic:
        scale = np.full(ranges, max(absmax * HEADROOM, 1e-9) / 32767)
        return Grid("i16", scale, np.zeros(ranges, np.int64), divisor, q.smoothed)
    bits = int(q.act_bits[0])
    dtype, below = (f"u{bits}", 0) if bits < 16 else ("i16", 32768)
    for numbers in (q.act_scale, q.act_zp) if ranges == 1 else ():
        if (numbers != numbers[0]).any():
            raise UserError(f"{layer}: grids {numbers.tolist()} in different steps; allowed: one grid for all steps")
    return Grid(dtype, q.act_scale[:ranges], q.act_zp[:ranges] - below, divisor, q.smoothed)


def same_bits(layer: str, q: QuantizedLinear) -> None:
    """Raise UserError unless a linear has the same bits in all time ranges: its tensors have one type in all code."""
    for what, bits in (("weights", {w.bits for w in q.weights}), ("inputs", set(q.act_bits.tolist()))):
        if len(bits) > 1:
            given = ", ".join(map(str, sorted(bits)))
            raise UserError(f"{layer}: {what} of {given} bits in different steps; allowed: the same bits in all steps")
