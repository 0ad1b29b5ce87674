"""The bootstrap interval against a case counted by hand, scipy's, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from models.errors import ModelError
from models.metrics import mean_interval


def test_two_values_give_the_three_means_that_resamples_can_have() -> None:
    # 0 and 1 drawn twice: the mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4, so both ends are extremes.
    assert mean_interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert mean_interval([3.0]) == (3.0, 3.0, 3.0)


def test_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=32)
    other = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(6))
    mean, low, high = mean_interval(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert [low, high] == pytest.approx(list(other.confidence_interval), abs=0.03)
    assert mean_interval(values.tolist()) == (mean, low, high)
    assert mean_interval(values.tolist(), seed=1) != (mean, low, high)


def test_infinite_values_stay_infinite() -> None:
    assert mean_interval([math.inf, math.inf]) == (math.inf, math.inf, math.inf)
    mean, low, high = mean_interval([30.0] * 40 + [math.inf])
    assert (mean, low, high) == (math.inf, 30.0, math.inf)  # (40/41)^41 = 36 % of the resamples miss the infinite one


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, math.nan], [math.inf, -math.inf]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ModelError, match="mean_interval: values h"):
        mean_interval(values)
