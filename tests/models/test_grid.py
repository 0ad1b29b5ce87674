"""Properties of the asymmetric grid of Eq. 1, among them the edges: constants, one sign, outliers, zeros, NaN."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.errors import ModelError
from models.grid import MIN_STEP, AsymmetricGrid

BITS = st.sampled_from([2, 4, 6, 8, 16])
VALUES = st.floats(-(2.0**100), 2.0**100, width=32)
TENSORS = hnp.arrays(np.float64, st.integers(1, 40), elements=VALUES)


def _fit(values: np.ndarray, bits: int = 8) -> AsymmetricGrid:
    return AsymmetricGrid.from_min_max(values.min(), values.max(), bits, "layer")


@given(TENSORS, BITS)
def test_every_value_of_the_range_is_within_half_a_step(values: np.ndarray, bits: int) -> None:
    grid = _fit(values, bits)
    indices = grid.quantize(values, "layer")
    assert indices.min() >= 0
    assert indices.max() <= 2**bits - 1
    assert (np.abs(grid.dequantize(indices) - values) <= grid.scale * (0.5 + 1e-9)).all()


@given(TENSORS, BITS)
def test_zero_is_on_the_grid(values: np.ndarray, bits: int) -> None:
    grid = _fit(values, bits)
    index = grid.quantize(np.zeros(1), "layer")
    assert index[0] == grid.zero_point
    assert grid.dequantize(index)[0] == 0.0


@given(TENSORS, BITS)
def test_grid_values_are_fixed_points(values: np.ndarray, bits: int) -> None:
    grid = _fit(values, bits)
    indices = grid.quantize(values, "layer")
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(indices), "layer"), indices)


@given(st.floats(2.0**-20, 2.0**100, width=32), BITS, st.integers(1, 5))
def test_constant_tensors_keep_their_value(constant: float, bits: int, count: int) -> None:
    for value in (constant, -constant):
        values = np.full(count, value)
        grid = _fit(values, bits)
        assert grid.zero_point == (0 if value > 0 else 2**bits - 1)
        np.testing.assert_allclose(grid.dequantize(grid.quantize(values, "layer")), values, rtol=1e-12)


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e6, -1e-3)), BITS)
def test_all_negative_tensors_put_zero_at_the_top(values: np.ndarray, bits: int) -> None:
    grid = _fit(values, bits)
    assert grid.zero_point == 2**bits - 1
    assert (grid.dequantize(grid.quantize(values, "layer")) <= 0).all()


@given(st.floats(1e3, 1e30), st.booleans())
def test_one_huge_outlier_keeps_its_value_and_flattens_the_rest(size: float, negative: bool) -> None:
    outlier = -size if negative else size
    values = np.array([-1.0, 0.5, 1.0, outlier])
    grid = _fit(values)
    found = grid.dequantize(grid.quantize(values, "layer"))
    assert found[3] == pytest.approx(outlier, rel=0.01)
    if size > 1e4:
        np.testing.assert_array_equal(found[:3], 0.0)


def test_zeros_and_tiny_ranges_get_the_smallest_step() -> None:
    for values in (np.zeros(3), np.array([1e-20, -1e-20])):
        grid = _fit(values)
        assert grid.scale == MIN_STEP
        assert grid.zero_point == 0
        np.testing.assert_array_equal(grid.dequantize(grid.quantize(values, "layer")), 0.0)


def test_a_zero_channel_does_not_touch_its_neighbours() -> None:
    low, high = np.array([-1.0, 0.0, -2.0]), np.array([1.0, 0.0, 0.0])
    grid = AsymmetricGrid.from_min_max(low, high, 8, "layer")
    np.testing.assert_array_equal(grid.scale, [2 / 255, MIN_STEP, 2 / 255])


def test_rounds_half_to_even() -> None:
    grid = AsymmetricGrid(8, np.float64(1.0), np.int64(10))
    np.testing.assert_array_equal(grid.quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5]), "layer"), [10, 12, 12, 10, 8])
    np.testing.assert_array_equal(grid.quantize(np.array([1e300, -1e300]), "layer"), [255, 0])


@given(hnp.arrays(np.float32, 6, elements=st.floats(-100, 100, width=32)), BITS)
def test_matches_exact_rational_arithmetic(values: np.ndarray, bits: int) -> None:
    """Eq. 1 in fractions, where nothing rounds but the two `round`s; near-ties may fall either way in float64."""
    grid = _fit(values.astype(np.float64), bits)
    exact = [Fraction(float(value)) for value in values]
    low, high = min(*exact, Fraction(0)), max(*exact, Fraction(0))
    step = max((high - low) / (2**bits - 1), Fraction(MIN_STEP))
    zero = -low / step
    found = grid.quantize(values, "layer")
    if abs(zero % 1 - Fraction(1, 2)) > Fraction(1, 10**6):
        assert grid.zero_point == round(zero)
    for value, index in zip(exact, found.tolist(), strict=True):
        position = value / step
        if abs(position % 1 - Fraction(1, 2)) > Fraction(1, 10**6):
            assert index == min(max(round(position) + int(grid.zero_point), 0), 2**bits - 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.fc1\.weight: NaN or infinity"):
        AsymmetricGrid.from_min_max(np.array([0.0, bad]), np.array([1.0, bad]), 8, "blocks.0.mlp.fc1.weight")
    with pytest.raises(ModelError, match="fc1:in"):
        _fit(np.ones(2)).quantize(np.array([bad]), "fc1:in")


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(ModelError, match="layer: a minimum lies above"):
        AsymmetricGrid.from_min_max(np.array(1.0), np.array(-1.0), 8, "layer")
    with pytest.raises(ModelError, match="layer: the range exceeds float64"):
        AsymmetricGrid.from_min_max(np.array(-1.7e308), np.array(1.7e308), 8, "layer")
