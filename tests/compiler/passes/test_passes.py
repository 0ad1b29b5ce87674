"""Each pass computes the same bits as before and leaves what it promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compiler.graph import Graph, Op, Value
from compiler.interpret import Interpreter
from compiler.lower import lower
from compiler.passes import PASSES
from compiler.passes.fold_zero_points import fold_zero_points
from compiler.passes.fuse_modulation import fuse_modulation
from models.quantize import QuantizedModel
from npusim.errors import UserError
from tests.compiler.conftest import BITS
from tests.compiler.runs import Inputs, assert_same_bits, run_graph


def kinds(graph: Graph) -> Counter[str]:
    return Counter(op.kind for op in (*graph.prologue, *graph.step))


@pytest.fixture(scope="module")
def stages(qm: QuantizedModel) -> list[Graph]:
    """The graph as lowered, and after each pass."""
    graphs = [lower(qm)]
    for one_pass in PASSES:
        graphs.append(one_pass(graphs[-1]))
    return graphs


@pytest.mark.parametrize(("act_bits", "attention_bits"), BITS)
def test_every_pass_keeps_the_bits(
    quantized: Callable[[int], QuantizedModel], inputs: Inputs, act_bits: int, attention_bits: int
) -> None:
    graph = lower(quantized(act_bits), attention_bits)
    expected = run_graph(graph, inputs)
    assert np.unique(expected[0]["raw"]).size > 1000  # a run that computes something
    assert not np.array_equal(expected[0]["eps"], expected[1]["eps"])
    for one_pass in PASSES:
        graph = one_pass(graph)
        assert_same_bits(run_graph(graph, inputs), expected)


def test_fold_zero_points_leaves_signed_weights_and_records(stages: list[Graph]) -> None:
    before, after = stages[:2]
    assert kinds(after)["linear"] == kinds(before)["linear_centred"] > 0
    assert kinds(after)["linear_centred"] == 0
    for op in (op for op in after.step if op.kind == "linear"):
        assert after.values[op.inputs["weight"]].dtype == "i8"
        assert after.values[op.inputs["records"]].dtype == "record"
    assert not any(value.dtype in ("u8", "i64") and value.kind == "const" for value in after.values.values())


def test_fuse_modulation_leaves_no_separate_layernorm(stages: list[Graph]) -> None:
    before, after = stages[1:3]
    assert kinds(after)["layernorm_modulate"] == kinds(before)["layernorm"] == kinds(before)["modulate"] > 0
    assert not kinds(after).keys() & {"layernorm", "modulate"}


def norm_graph(readers: int, outputs: tuple[str, ...] = ()) -> Graph:
    """LayerNorm with some modulations that read it."""
    values = {"x": Value("x", (3, 4), "i16", "input"), "n": Value("n", (3, 4), "i16")}
    for name, dtype in (("g", "i16"), ("b", "i32")):
        values[name] = Value(name, (4,), dtype, "const", data=np.array([5, -6, 7, 8]))
    ops = [Op("layernorm", "norm", {"x": "x"}, "n", {"epsilon": 1, "fraction_bits": 10})]
    for index in range(readers):
        values[f"m{index}"] = Value(f"m{index}", (3, 4), "i16")
        ops.append(Op("modulate", "mod", {"x": "n", "g": "g", "b": "b"}, f"m{index}", {"shift": 3, "out_zp": 0}))
    return Graph(values, (), tuple(ops), 1, 1, 1, 3, (*outputs, *(f"m{index}" for index in range(readers))))


@pytest.mark.parametrize(("readers", "outputs", "fused"), [(1, (), 1), (2, (), 0), (1, ("n",), 0)])
def test_fuse_modulation_only_where_nobody_else_reads(readers: int, outputs: tuple[str, ...], fused: int) -> None:
    graph = norm_graph(readers, outputs)
    after = fuse_modulation(graph)
    assert kinds(after)["layernorm_modulate"] == fused
    inputs = {"x": np.arange(12).reshape(3, 4) ** 3, "noise": np.zeros((1, 1))}
    for name in graph.outputs:
        before_bits, after_bits = (_outputs(g, inputs)[name] for g in (graph, after))
        np.testing.assert_array_equal(before_bits, after_bits)


def _outputs(graph: Graph, inputs: Inputs) -> Inputs:
    machine = Interpreter(graph, inputs)
    machine.run("step", 0)
    return machine.tensors


def test_fold_zero_points_refuses_a_bias_beyond_its_record(qm: QuantizedModel) -> None:
    graph = lower(qm)
    name = "blocks.1.mlp.fc1.bias"
    values = {**graph.values, name: replace(graph.values[name], data=graph.values[name].data + (1 << 47))}
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1: a folded bias of \d+ needs more than 48 bits"):
        fold_zero_points(replace(graph, values=values))
