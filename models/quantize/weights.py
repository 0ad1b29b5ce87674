"""Channel-wise weight quantization: Eq. 1 with one grid per output row, rounded to the nearest index or by GPTQ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.grid import AsymmetricGrid, Float64, Int64

DAMPING = 0.01
"""Of GPTQ: share of the mean diagonal that is added to the diagonal, so that rank-deficient inputs can be inverted."""
_BLOCK = 128


@dataclass(frozen=True)
class QuantizedWeight:
    """Smoothed weights W * smoothing on integer grids, per output row (q - zero_point) * scale.

    bits: 4, 6 or 8; q: (N, K) uint8, below 2^bits; scale: (N,) float64; zero_point: (N,) int64.
    smoothing: (K,) float64, what the layer's input channels are divided by; ones without smoothing.
    """

    bits: int
    q: NDArray[np.uint8]
    scale: Float64
    zero_point: Int64
    smoothing: Float64

    def values(self) -> Float64:
        """The smoothed weights that the integers stand for, (N, K) float64."""
        return (self.q.astype(np.int64) - self.zero_point[:, None]) * self.scale[:, None]


def quantize_weight(
    weight: Float64, smoothing: Float64, bits: int, moment: NDArray[np.floating] | None, where: str
) -> QuantizedWeight:
    """Quantize weights (N, K), smoothed by (K,); with `moment` (K, K), X^T X of the inputs, rounded by GPTQ.

    Raises:
        ModelError: a weight or moment is NaN or infinite; the message starts with `where`.
    """
    smoothed = weight * smoothing
    grid = AsymmetricGrid.from_min_max(smoothed.min(axis=1), smoothed.max(axis=1), bits, where)
    columns = AsymmetricGrid(bits, grid.scale[:, None], grid.zero_point[:, None])
    q = columns.quantize(smoothed, where)
    if moment is not None:
        if not np.isfinite(moment).all():
            raise ModelError(f"{where}: NaN or infinity in the inputs' second moments")
        q = gptq(smoothed, columns, q, moment / np.outer(smoothing, smoothing))
    return QuantizedWeight(bits, q.astype(np.uint8), grid.scale, grid.zero_point, smoothing)


def gptq(weight: Float64, grid: AsymmetricGrid, nearest: Int64, moment: Float64) -> Int64:
    """Grid indices (N, K) chosen column by column, each rounding error spread over the columns that follow.

    GPTQ (Frantar et al., arXiv 2210.17323): with H = X^T X, the columns not yet rounded take up the error of the one
    that was, through the Cholesky factor of H^-1, so that |X W^T - X W^^T| stays small. Rows are independent; a row
    for which this is no better than `nearest` (N, K) on the same inputs keeps the nearest indices.

    Args:
        weight: (N, K) float64.
        grid: one grid per row, scale (N, 1).
        nearest: (N, K) indices of the nearest grid points.
        moment: (K, K) float64, X^T X of the inputs that `weight` will meet.
    """
    columns = weight.shape[1]
    mean = float(np.trace(moment)) / columns
    if mean <= 0.0:
        return nearest
    damped = moment + np.eye(columns) * (DAMPING * mean)
    inverse = np.linalg.inv(damped)
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T  # upper: H^-1 = factor^T factor
    left, q = weight.copy(), np.empty_like(nearest)
    levels = 2**grid.bits - 1
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((len(weight), end - start))
        for k in range(start, end):
            index = np.clip(np.rint(left[:, k] / grid.scale[:, 0]) + grid.zero_point[:, 0], 0, levels)
            q[:, k] = index
            error = (left[:, k] - (index - grid.zero_point[:, 0]) * grid.scale[:, 0]) / factor[k, k]
            left[:, k:end] -= np.outer(error, factor[k, k:end])
            errors[:, k - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    worse = output_error(weight, grid, q, moment) >= output_error(weight, grid, nearest, moment)
    q[worse] = nearest[worse]
    return q


def output_error(weight: Float64, grid: AsymmetricGrid, q: Int64, moment: Float64) -> Float64:
    """Per row, |X (w - w^)^T|^2 of indices q (N, K), with X^T X = `moment`: (N,)."""
    difference = weight - grid.dequantize(q)
    return np.asarray(np.einsum("nk,nk->n", difference @ moment, difference))
