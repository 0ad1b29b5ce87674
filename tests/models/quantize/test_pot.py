"""Shifts against all shifts there are, and the integers they stand for."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.quantize.pot import MAX_SHIFT, input_shifts

MAGNITUDES = hnp.arrays(np.float64, 4, elements=st.floats(1e-3, 1e3))


def _noise(low: np.ndarray, high: np.ndarray, square: np.ndarray, shifts: np.ndarray) -> float:
    factor = 2.0 ** np.asarray(shifts)
    return float(((high / factor).max() - (low / factor).min()) ** 2 * (factor**2 @ square))


@given(MAGNITUDES, MAGNITUDES)
def test_near_the_best_of_all_shifts(magnitude: np.ndarray, square: np.ndarray) -> None:
    """Bounds are an eighth of an octave apart, so that the width is at most 2^(1/8) too large."""
    found = input_shifts(-magnitude, magnitude, square)
    best = min(_noise(-magnitude, magnitude, square, np.array(s)) for s in product(range(MAX_SHIFT + 1), repeat=4))
    assert _noise(-magnitude, magnitude, square, found) <= 2**0.25 * best * (1 + 1e-9)


@given(MAGNITUDES, MAGNITUDES, MAGNITUDES)
def test_never_worse_than_no_shifts(low: np.ndarray, high: np.ndarray, square: np.ndarray) -> None:
    found = input_shifts(-low, high, square)
    assert found.dtype == np.uint8
    assert found.max() <= MAX_SHIFT
    assert _noise(-low, high, square, found) <= _noise(-low, high, square, np.zeros(4)) * (1 + 1e-9)


def test_one_outlier_alone_is_shifted() -> None:
    found = input_shifts(-np.array([1.0, 8.0, 1.0, 0.0]), np.array([1.0, 8.0, 1.0, 0.0]), np.ones(4))
    assert found.tolist() == [0, 3, 0, 0]


def test_even_channels_and_silence_are_left_alone() -> None:
    for magnitude in (np.ones(3), np.zeros(3)):
        assert input_shifts(-magnitude, magnitude, np.ones(3)).tolist() == [0, 0, 0]
