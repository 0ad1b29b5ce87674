"""Arithmetic wider than TOSA's integers, run on the reference model, against NumPy's 64-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.tosa.emit_attention import exponential
from compiler.tosa.emit_linear import biased
from compiler.tosa.tosa_graph import Rejected, TosaGraph, run_graphs
from compiler.tosa.wide import WideSum, constant_limbs, limb_count, limbs
from npusim import numerics

Array = NDArray[Any]

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""


def spread(bits: int, count: int, rng: np.random.Generator) -> Array:
    """Signed numbers of every size up to ``bits`` bits, and the ends of the range."""
    size = np.exp2(rng.uniform(0, bits - 1, count)).astype(np.int64) * rng.choice([-1, 1], count)
    top = 1 << bits - 1
    return np.concatenate([np.clip(size, -top, top - 1), [-top, top - 1, 0, -1, 1, -32768, 32767]])


@pytest.mark.parametrize(("low", "high", "count"), [
    (0, 0, 1), (-32768, 32767, 1), (0, 65535, 2), (-(1 << 30), (1 << 30) - 1, 2), (-(1 << 31), (1 << 31) - 1, 3),
])  # fmt: skip
def test_limbs_needed(low: int, high: int, count: int) -> None:
    assert limb_count(low, high) == count


def test_sums_of_products_rounded_once(model: Path) -> None:
    rng, graphs, expected = np.random.default_rng(1), [], []
    for shift, a_bits, b_bits, factor_bits in (
        (1, 16, 16, 8), (2, 16, 16, 16), (14, 16, 16, 24), (15, 16, 16, 24), (16, 16, 32, 12), (17, 32, 16, 24),
        (30, 32, 32, 31), (31, 32, 32, 31), (45, 32, 32, 31), (62, 32, 32, 31),
    ):  # fmt: skip
        a, b = spread(a_bits, 2000, rng), spread(b_bits, 2000, rng)
        b = rng.permutation(b)
        factors = rng.integers(-(1 << factor_bits - 1), 1 << factor_bits - 1, 2).tolist()
        bias = int(rng.integers(-(1 << 31), 1 << 31))
        exact = [x * factors[0] + y * factors[1] + bias for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        graph = TosaGraph()
        total = WideSum(graph)
        for values, bits, factor in ((a, a_bits, factors[0]), (b, b_bits, factors[1])):
            count = limb_count(-(1 << bits - 1), (1 << bits - 1) - 1)
            operand = limbs(graph, graph.input(values[None], "i32"), count)
            total.add_product(operand, constant_limbs(graph, np.array([[factor]])))
        total.add(constant_limbs(graph, np.array([[bias]])))
        graph.output(total.rounded(shift))
        graphs.append(graph)
        rounded = np.array([v + (1 << shift - 1) >> shift for v in exact], object)
        expected.append(np.clip(rounded, -(1 << 31), (1 << 31) - 1).astype(np.int64)[None])
    for found, wanted in zip(run_graphs(graphs, model), expected, strict=True):
        assert not isinstance(found, Rejected), found
        np.testing.assert_array_equal(found[0], wanted)


def test_sums_at_the_ends_of_32_bits_saturate(model: Path) -> None:
    """Twice a, by a factor of 2^(shift + 1)."""
    a, graphs = np.array([[-(1 << 30) + d for d in (-1, 0, 1)] + [(1 << 30) + d for d in (-1, 0, 1)]]), []
    shifts = (1, 2, 14, 15, 16, 17, 29, 30, 31, 45)
    for shift in shifts:
        graph = TosaGraph()
        total = WideSum(graph)
        total.add_product(limbs(graph, graph.input(a, "i32"), 3), constant_limbs(graph, np.array([[2 << shift]])))
        graph.output(total.rounded(shift))
        graphs.append(graph)
    for shift, found in zip(shifts, run_graphs(graphs, model), strict=True):
        assert not isinstance(found, Rejected), found
        np.testing.assert_array_equal(found[0], np.clip(2 * a, -(1 << 31), (1 << 31) - 1), f"shift {shift}")


def test_a_bias_behind_two_factors_saturates(model: Path) -> None:
    rng, graph = np.random.default_rng(2), TosaGraph()
    second, bias = spread(32, 400, rng)[:, None], spread(32, 50, rng).astype(np.int32)
    graph.output(biased(graph, graph.input(second, "i32"), bias, 12))
    (found,) = run_graphs([graph], model)
    assert not isinstance(found, Rejected), found
    total = np.clip(second + bias.astype(np.int64), -(1 << 31), (1 << 31) - 1)
    np.testing.assert_array_equal(found[0], (total + 2048) >> 12)


@pytest.mark.parametrize("p_bits", [8, 15])
def test_exponential_of_every_distance(p_bits: int, model: Path) -> None:
    distance, graphs = np.arange(65536)[None], []
    for fraction_bits in (0, 5, 9, 12, 16):
        graph = TosaGraph()
        graph.output(exponential(graph, graph.input(distance, "i32"), fraction_bits, p_bits))
        graphs.append(graph)
    for fraction_bits, found in zip((0, 5, 9, 12, 16), run_graphs(graphs, model), strict=True):
        assert not isinstance(found, Rejected), found
        wanted = numerics.exp2_negative(distance, fraction_bits, p_bits)
        np.testing.assert_array_equal(found[0], wanted, f"{fraction_bits} fraction bits")


def test_the_model_rejects_what_tosa_leaves_undefined(model: Path) -> None:
    """And the graphs before and behind it are run."""
    graphs = []
    for value in (-1, 1 << 30, 5):
        graph = TosaGraph()
        graph.output(graph.add(graph.input([value], "i32"), graph.const([1 << 30], "i32")))
        graphs.append(graph)
    first, undefined, last = run_graphs(graphs, model)
    assert [first, last] == [[[(1 << 30) - 1]], [[(1 << 30) + 5]]]
    assert isinstance(undefined, Rejected)
    assert "REQUIRE() fails" in undefined
