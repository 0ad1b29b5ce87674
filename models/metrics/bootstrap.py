"""The mean of a metric over clips, with the interval that resampling the clips gives (Efron 1979)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.errors import ModelError

RESAMPLES = 2000
TAILS = (0.025, 0.975)


class MeanInterval(NamedTuple):
    """A mean and the ends of its 95 % interval, in the metric's own unit."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int = 0) -> MeanInterval:
    """Mean of one value per clip, with the 95 % percentile interval of 2,000 bootstrap resamples of the clips.

    The ends are order statistics, not interpolated, so an infinite value (PSNR of equal clips) stays infinite. Cells
    measured on the same captions and resampled with the same seed are resampled alike. The interval of a mean over
    few clips (under about 10) is too narrow.

    Raises:
        ModelError: there is no value, one is NaN, or both infinities occur, so that there is no mean.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ModelError(f"mean_interval: values have shape {sample.shape}, allowed is (clips >= 1,)")
    if np.isnan(sample).any() or {math.inf, -math.inf} <= set(sample.tolist()):
        raise ModelError("mean_interval: values hold NaN or both infinities; they have no mean")
    picks = np.random.default_rng(seed).integers(0, sample.size, (RESAMPLES, sample.size))
    low, high = np.quantile(sample[picks].mean(axis=1), TAILS, method="inverted_cdf")
    return MeanInterval(float(sample.mean()), float(low), float(high))
