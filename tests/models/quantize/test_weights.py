"""Weight quantization at the edges, and GPTQ against its own promise and a dense reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.errors import ModelError
from models.grid import AsymmetricGrid
from models.quantize.weights import DAMPING, gptq, output_error, quantize_weight

BITS = st.sampled_from([4, 6, 8])
WEIGHTS = hnp.arrays(np.float64, (3, 6), elements=st.floats(-100, 100, width=32))
ONES = np.ones(6)


@given(WEIGHTS, BITS)
def test_every_weight_is_within_half_a_step(weight: np.ndarray, bits: int) -> None:
    made = quantize_weight(weight, ONES, bits, None, "layer")
    assert made.q.dtype == np.uint8
    assert made.q.max() < 2**bits
    assert (np.abs(made.values() - weight) <= made.scale[:, None] * (0.5 + 1e-9)).all()


@given(WEIGHTS, BITS, hnp.arrays(np.float64, 6, elements=st.floats(0.01, 100)))
def test_smoothing_is_a_change_of_the_weights_alone(weight: np.ndarray, bits: int, smoothing: np.ndarray) -> None:
    made, plain = (quantize_weight(w, s, bits, None, "l") for w, s in ((weight, smoothing), (weight * smoothing, ONES)))
    np.testing.assert_array_equal(made.q, plain.q)
    np.testing.assert_array_equal(made.smoothing, smoothing)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(
    "row",
    [np.full(6, 0.7), np.full(6, -0.7), np.zeros(6), -np.arange(1.0, 7.0)],
    ids=["constant", "negative constant", "zeros", "all negative"],
)
def test_rows_at_the_edges_do_not_touch_their_neighbours(row: np.ndarray, bits: int) -> None:
    other = np.linspace(-1, 2, 6)
    made = quantize_weight(np.stack([row, other]), ONES, bits, None, "layer")
    alone = quantize_weight(other[None], ONES, bits, None, "layer")
    np.testing.assert_array_equal(made.q[1], alone.q[0])
    np.testing.assert_allclose(made.values()[0], row, atol=made.scale[0] / 2 * (1 + 1e-9))
    if np.ptp(row) == 0:
        np.testing.assert_allclose(made.values()[0], row, rtol=1e-12)


def test_one_huge_outlier_costs_its_own_row_only() -> None:
    weight = np.full((2, 6), 0.1)
    weight[0, 3] = 1e6
    made = quantize_weight(weight, ONES, 8, None, "layer")
    assert made.values()[0, 3] == pytest.approx(1e6)
    assert made.values()[0, 0] == 0.0
    np.testing.assert_allclose(made.values()[1], 0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    weight, moment = np.ones((2, 6)), np.eye(6)
    weight[1, 2] = moment[1, 2] = bad
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.fc1\.weight: NaN or infinity"):
        quantize_weight(weight, ONES, 8, None, "blocks.0.mlp.fc1.weight")
    with pytest.raises(ModelError, match=r"fc1\.weight: NaN or infinity in the inputs' second moments"):
        quantize_weight(np.ones((2, 6)), ONES, 8, moment, "fc1.weight")


def _problem(seed: int, rows: int, columns: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), rng.normal(size=(samples, columns)) @ mixing


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1, 3, 60]), BITS)
def test_gptq_is_never_worse_than_nearest_on_its_inputs(seed: int, columns: int, samples: int, bits: int) -> None:
    weight, inputs = _problem(seed, 5, columns, samples)
    ones = np.ones(columns)
    exact = inputs @ weight.T
    error = {}
    for name, moment in (("nearest", None), ("gptq", inputs.T @ inputs)):
        made = quantize_weight(weight, ones, bits, moment, "layer")
        assert made.q.max() < 2**bits
        error[name] = np.square(inputs @ made.values().T - exact).sum(axis=0)
    assert (error["gptq"] <= error["nearest"] * (1 + 1e-6) + 1e-9).all()


def test_gptq_gains_much_on_correlated_inputs() -> None:
    weight, inputs = _problem(0, 64, 200, 800)  # two blocks of columns
    exact = inputs @ weight.T
    error = [
        np.square(inputs @ quantize_weight(weight, np.ones(200), 4, moment, "l").values().T - exact).sum()
        for moment in (None, inputs.T @ inputs)
    ]
    assert error[1] < 0.7 * error[0]


def test_gptq_sees_the_smoothed_inputs() -> None:
    """Smoothing weights and inputs against each other poses the same problem as smoothed ones without smoothing."""
    weight, inputs = _problem(1, 4, 20, 100)
    smoothing = np.exp(np.random.default_rng(2).normal(size=20))
    made = quantize_weight(weight, smoothing, 4, inputs.T @ inputs, "layer")
    scaled = inputs / smoothing
    plain = quantize_weight(weight * smoothing, np.ones(20), 4, scaled.T @ scaled, "layer")
    np.testing.assert_array_equal(made.q, plain.q)


def test_gptq_equals_the_dense_recursion() -> None:
    """The method as its paper derives it: after each column, the inverse of what is left of H, found anew."""
    weight, inputs = _problem(3, 3, 12, 50)
    moment = inputs.T @ inputs
    made = AsymmetricGrid.from_min_max(weight.min(1), weight.max(1), 4, "w")
    grid = AsymmetricGrid(4, made.scale[:, None], made.zero_point[:, None])
    nearest = grid.quantize(weight, "w")
    damped = moment + np.eye(12) * DAMPING * np.trace(moment) / 12
    left, expected = weight.copy(), np.zeros_like(nearest)
    for k in range(12):
        inverse = np.linalg.inv(damped[k:, k:])
        expected[:, k] = grid.quantize(left, "w")[:, k]
        error = (left[:, k] - grid.dequantize(expected)[:, k]) / inverse[0, 0]
        left[:, k:] -= np.outer(error, inverse[0])
    better = output_error(weight, grid, expected, moment) < output_error(weight, grid, nearest, moment)
    np.testing.assert_array_equal(gptq(weight, grid, nearest, moment), np.where(better[:, None], expected, nearest))


def test_gptq_of_inputs_that_are_silent_is_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(2, 6))
    made = quantize_weight(weight, ONES, 4, np.zeros((6, 6)), "layer")
    np.testing.assert_array_equal(made.q, quantize_weight(weight, ONES, 4, None, "layer").q)
