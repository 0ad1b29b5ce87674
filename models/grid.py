"""The asymmetric integer grid of the paper's Eq. 1, in float64.

With b bits, and the range widened so that it includes 0:

    step = (max - min) / (2^b - 1),    z = round(-min / step)
    q    = clamp(round(x / step) + z, 0, 2^b - 1),    x^ = (q - z) * step

`round` is half to even. A step under `MIN_STEP` is raised to it, element by element: a constant-zero channel must
not change the steps of its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError

MIN_STEP = 1e-12

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class AsymmetricGrid:
    """An unsigned b-bit grid, or an array of them (one per channel or time range), with broadcasting semantics.

    scale: step in units of the tensor, float64, any shape; zero_point: int64, same shape, in [0, 2^bits - 1].
    """

    bits: int
    scale: Float64
    zero_point: Int64

    @classmethod
    def from_min_max(
        cls, minimum: NDArray[np.floating], maximum: NDArray[np.floating], bits: int, where: str
    ) -> AsymmetricGrid:
        """The grids that cover [min(minimum, 0), max(maximum, 0)], elementwise over two arrays of one shape.

        Raises:
            ModelError: a bound is NaN or infinite or minimum > maximum; the message starts with `where`.
        """
        low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ModelError(f"{where}: NaN or infinity; only finite values can be quantized")
        if (low > high).any():
            raise ModelError(f"{where}: a minimum lies above its maximum")
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        levels = 2**bits - 1
        with np.errstate(over="ignore"):
            scale = np.maximum((high - low) / levels, MIN_STEP)
        if not np.isfinite(scale).all():
            raise ModelError(f"{where}: the range exceeds float64")
        zero_point = np.clip(np.rint(-low / scale), 0, levels).astype(np.int64)
        return cls(bits, scale, zero_point)

    def quantize(self, values: NDArray[np.floating], where: str) -> Int64:
        """Grid indices q, int64, in [0, 2^bits - 1]; `values` broadcasts against `scale`.

        Raises:
            ModelError: a value is NaN or infinite; the message starts with `where`.
        """
        wide = np.asarray(values, np.float64)
        if not np.isfinite(wide).all():
            raise ModelError(f"{where}: NaN or infinity; only finite values can be quantized")
        levels = 2**self.bits - 1
        # Clamped before the cast: values far outside the range would not fit int64. Rounding and adding z
        # are exact below 2^53, and anything larger is clamped either way.
        return np.clip(np.rint(wide / self.scale) + self.zero_point, 0, levels).astype(np.int64)

    def dequantize(self, indices: NDArray[np.integer]) -> Float64:
        """The values x^ = (q - z) * step that grid indices stand for, float64."""
        return (np.asarray(indices, np.int64) - self.zero_point) * self.scale
