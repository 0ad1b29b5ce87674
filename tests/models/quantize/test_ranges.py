"""Time ranges: what can be asked for, and the chosen ones against every division there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.errors import ModelError
from models.quantize import get_method, quantize
from models.quantize.ranges import check_ranges, choose_ranges, parse_ranges, range_costs, range_of_step, refine
from models.stats import HISTOGRAM_BINS, CalibrationStats
from models.workloads import get_workload


def test_text() -> None:
    assert parse_ranges("4") == 4
    assert parse_ranges("0,5, 12") == (0, 5, 12)
    for bad in ("", "4.0", "a", "0,,3", "-1", "٣", "9" * 50):
        with pytest.raises(ModelError, match=r"ranges=.*allowed is a number, as 4, or the first step of each"):
            parse_ranges(bad)


@pytest.mark.parametrize("count", [1, 2, 4, 10, 20])
def test_equal_ranges(count: int) -> None:
    found = range_of_step(count, 20)
    assert np.unique(found, return_counts=True)[1].tolist() == [20 // count] * count
    assert (np.diff(found) >= 0).all()


def test_given_starts() -> None:
    assert range_of_step((0, 1, 4), 6).tolist() == [0, 1, 1, 1, 2, 2]


def test_defaults_are_the_methods() -> None:
    found = {
        n: check_ranges(get_method(n), None, 20) for n in ("cw_tw", "asq", "ssq", "tsw", "tsq", "tsq_pot", "tsq_dp")
    }
    assert found == {"cw_tw": 1, "asq": 1, "ssq": 1, "tsw": 20, "tsq": 20, "tsq_pot": 20, "tsq_dp": 4}


@given(hnp.arrays(np.float64, (7, 7), elements=st.floats(0, 100)), st.integers(1, 7))
def test_chosen_ranges_are_the_cheapest_of_all(cost: np.ndarray, count: int) -> None:
    cost[np.tril_indices(7, -1)] = np.inf

    def total(starts: tuple[int, ...]) -> float:
        ends = [*starts[1:], 7]
        return sum(cost[start, end - 1] for start, end in zip(starts, ends, strict=True))

    best = min(total((0, *inner)) for inner in combinations(range(1, 7), count - 1))
    found = choose_ranges(cost, count)
    assert sorted(set(found.tolist())) == list(range(count))
    starts = tuple(int(np.argmax(found == index)) for index in range(count))
    assert (np.diff(found) >= 0).all()
    assert total(starts) == pytest.approx(best)


def test_refine_splits_where_settings_change() -> None:
    fine, coarse_of_range = refine(np.array([0, 0, 0, 1, 1]), ["a", "b", "b", "b", "c"])
    assert fine.tolist() == [0, 1, 1, 2, 3]
    assert coarse_of_range.tolist() == [0, 0, 1, 1]


def _stats(low: list[float], high: list[float]) -> CalibrationStats:
    """One linear 'l' of one channel with these ranges per step and inputs of magnitude 1..2."""
    steps = len(low)
    counts = np.zeros((steps, 2, HISTOGRAM_BINS), np.float32)
    counts[:, :, HISTOGRAM_BINS // 2 + 16] = 5
    channel = {"l:in": np.array(low, np.float16)[:, None]}, {"l:in": np.array(high, np.float16)[:, None]}
    return CalibrationStats("w", (), (), steps, 1.0, 3, "", {}, {}, *channel, {}, {"l:in": counts})


def test_cost_by_hand() -> None:
    """Ranges of 1, 3 and 1 wide: a range's step is that of its widest step, and every step in it pays for it."""
    cost = range_costs(_stats([0, -1, 0], [1, 2, 1]), ["l"], 8, lambda name, steps: np.ones(1))
    unit = (1 / 255) ** 2 / 12 / (3 / (2 * np.log(2)))
    expected = np.array([[1, 18, 27], [np.inf, 9, 18], [np.inf, np.inf, 1]]) * unit
    np.testing.assert_allclose(cost, expected, rtol=1e-6)
    assert choose_ranges(cost, 2).tolist() in ([0, 1, 1], [0, 0, 1])
    assert choose_ranges(cost, 3).tolist() == [0, 1, 2]


def test_smoothing_narrows_what_a_grid_covers_and_widens_what_it_passes() -> None:
    cost = range_costs(_stats([0], [8]), ["l"], 8, lambda name, steps: np.full(1, 4.0))
    plain = range_costs(_stats([0], [8]), ["l"], 8, lambda name, steps: np.ones(1))
    np.testing.assert_allclose(cost, plain)


def test_chosen_ranges_of_a_model() -> None:
    work = get_workload("tiny")
    made = quantize(work.load_model(), work.load_stats(), "tsw_dp", ranges=3)
    assert made.range_of_step.tolist() == [0, 1, 2, 2]  # no equal division makes three of four
