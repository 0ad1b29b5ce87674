"""Smoothing per time range by powers of two: one shared smoothing per channel, and a left shift of 0 to 3 per range.

In range r the input of channel j is divided by s_j * 2^k_rj before it is put on the activation grid, and its grid
index, zero point subtracted, is shifted left by k_rj before it meets the weights W_j * s_j. So each range smooths its
own outliers while the quantized weights stay: a change of range swaps shifts and scales only.

The shared s is Eq. 2's, averaged over all steps. The shifts minimise the rounding noise that the range's grid adds to
the layer's output,

    D_r^2 / 12 * sum over j of (s_j 2^k_rj)^2 |W_j|^2,    D_r: the grid's step, |W_j|^2: over all output rows,

where a larger k_rj narrows the range to be covered, if channel j bounds it, and passes more noise through channel j.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.grid import Float64

MAX_SHIFT = 3
_PER_OCTAVE = 8
"""Bounds tried per octave of the range."""


def input_shifts(low: Float64, high: Float64, weight_square: Float64) -> NDArray[np.uint8]:
    """The shifts (K,) of one range, each in 0..3.

    For any bound on the magnitudes, the least shifts that meet it are best; so bounds are tried, from the largest
    magnitude that there is to the smallest that shifts can reach.

    Args:
        low: (K,) the least value of each channel in the range, divided by the shared smoothing.
        high: (K,) the largest.
        weight_square: (K,) |W_j|^2 of the smoothed weights W_j * s_j.
    """
    magnitude = np.maximum(np.abs(low), np.abs(high))
    bounds = magnitude.max() * 2.0 ** (-np.arange(MAX_SHIFT * _PER_OCTAVE + 1) / _PER_OCTAVE)
    best, found = np.inf, np.zeros(len(low), np.uint8)
    with np.errstate(divide="ignore"):
        octaves = np.log2(magnitude)
    for bound in bounds[bounds > 0]:
        # A little slack: a channel that meets the bound exactly must not be shifted for a rounding error.
        shifts = np.clip(np.ceil(octaves - np.log2(bound) - 1e-9), 0, MAX_SHIFT)
        factor = 2.0**shifts
        width = max((high / factor).max(), 0.0) - min((low / factor).min(), 0.0)
        noise = width**2 * (factor**2 @ weight_square)
        if noise < best:
            best, found = noise, shifts.astype(np.uint8)
    return found
