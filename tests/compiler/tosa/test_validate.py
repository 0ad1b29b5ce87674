"""The command's core: a compiled block against TOSA's reference model, and faults that it must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.graph import Graph, Op
from compiler.pipeline import integer_graph
from compiler.schedule.build import build_program
from compiler.tosa import trace, validate
from compiler.tosa.emit import Case, Cut, Simulated
from compiler.tosa.emit_attention import DIVISION
from compiler.tosa.emit_layernorm import ROOT
from compiler.tosa.tosa_graph import Rejected
from compiler.tosa.validate import Difference, Report, chosen, compared_rows, emitted_of, first_difference
from models.quantize import quantize
from models.workloads import get_workload
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.program import Program
from npusim.translation import random_inputs
from tests.compiler.runs import altered

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""

GraphOf = Callable[[int, int], Graph]


def assert_all_compared(report: Report) -> None:
    """Everything equal; cut are the two things that TOSA cannot express, and nothing for another reason."""
    assert {row.tensor: row.difference for row in report.rows if row.difference} == {}
    assert report.ops[0] == report.ops[1]
    assert report.macs[0] == report.macs[1] > 0
    cuts = {(row.kind, row.cut) for row in report.rows if row.cut}
    assert cuts == {("layernorm_modulate", ROOT), ("attention", DIVISION)}


@pytest.mark.parametrize(("act_bits", "attention_bits"), [(8, 16), (16, 8)])
def test_a_block_of_tiny(
    act_bits: int, attention_bits: int, graph_of: GraphOf, tiny_machine: Machine, model: Path
) -> None:
    graph = graph_of(act_bits, attention_bits)
    inputs = random_inputs(graph)
    report = validate(graph, tiny_machine, inputs, build_program(graph, tiny_machine), block=0)
    assert_all_compared(report)
    compared = {row.tensor: row.elements for row in report.rows if not row.cut}
    # 128 rows of 32 channels; 2 branches x 4 frames x 2 heads with 16 x 16 scores each.
    assert compared["blocks.0.attn.qkv"] == 128 * 96
    assert compared["blocks.0.attn.out: scores"] == 16 * 16 * 16
    assert compared["blocks.0.mlp.in: row sums"] == 128


@pytest.mark.slow
@pytest.mark.parametrize(("act_bits", "attention_bits"), [(8, 16), (16, 16), (8, 8)])
def test_the_whole_network_of_tiny(
    act_bits: int, attention_bits: int, graph_of: GraphOf, tiny_machine: Machine, model: Path
) -> None:
    graph = graph_of(act_bits, attention_bits)
    report = validate(graph, tiny_machine, random_inputs(graph))
    assert_all_compared(report)
    assert report.ops[1] == len(graph.prologue) + len(graph.step)


@pytest.mark.slow
@pytest.mark.parametrize("act_bits", [8, 16])
def test_a_block_of_emoji(act_bits: int, edge_machine: Machine, model: Path) -> None:
    workload = get_workload("emoji")
    graph = integer_graph(quantize(workload.load_model(), workload.load_stats(), act_bits=act_bits))
    report = validate(graph, edge_machine, random_inputs(graph), build_program(graph, edge_machine), block=3)
    assert_all_compared(report)


FAULTS: tuple[tuple[str, str, int, dict[str, int], str], ...] = (
    # layer, mnemonic, which of them, fields by how much they change, the tensor that must be named
    ("blocks.0.attn.qkv", "matmul", 0, {"out_zp": 1}, "blocks.0.attn.qkv"),
    ("blocks.0.attn", "smexp", 0, {"fraction_bits": 1}, "blocks.0.attn.out: probabilities"),
    ("blocks.0.attn_temp", "matmul", 0, {"out_zp": 1}, "blocks.0.attn_temp.out: scores"),
    ("blocks.0.cross_attn", "matmul", 1, {"out_zp": 1}, "blocks.0.cross_attn.out"),
    ("blocks.0.norm1", "lnapply", 0, {"shift": 1}, "blocks.0.attn.in"),
    ("blocks.0.norm2", "lnapply", 0, {"fraction_bits": -1}, "blocks.0.mlp.in"),
    ("blocks.0.mlp.gelu", "table", 0, {"multiplier": 1}, "blocks.0.mlp.gelu"),
    ("blocks.0.cross_attn", "ewlin", 0, {"a_mul": 64}, "blocks.0.tap_cross"),
)
UNSEEN = ("blocks.0.attn_temp", "recip", 0, {"multiplier": 1 << 20})
"""A fault inside a cut: whoever computes the multipliers, TOSA is given them."""


def faulty(program: Program) -> Program:
    """The program with all the faults above at once."""
    for layer, op, which, changes, *_ in (*FAULTS, UNSEEN):
        code = decode(program.step)
        found = [i for i, ins in enumerate(code) if (program.layers[ins.layer], ins.op) == (layer, op)]
        ins = code[found[which]]
        new = {field: getattr(ins, field) + change for field, change in changes.items()}
        program = altered(program, "step", found[which], **new)
    return program


def test_faults_in_the_program_are_named_each_by_its_tensor(
    graph_of: GraphOf, tiny_machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(8, 16)
    monkeypatch.setattr(trace, "build_program", lambda graph, machine: faulty(build_program(graph, machine)))
    report = validate(graph, tiny_machine, random_inputs(graph), block=0)
    assert not report.equal
    assert {row.tensor for row in report.rows if row.difference} == {tensor for *_, tensor in FAULTS}


def test_a_wrong_constant_in_memory_is_named_with_element_and_values(
    graph_of: GraphOf, tiny_machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one weight."""
    graph = graph_of(8, 16)
    weight = graph.values["blocks.1.mlp.fc2.signed"].data
    assert weight is not None

    def built(graph: Graph, machine: Machine) -> Program:
        program = build_program(graph, machine)
        constants = program.constants.copy()
        at = bytes(constants).index(weight.tobytes())
        constants[at + 3 * weight.shape[1]] ^= 64  # channel 3, input 0
        return replace(program, constants=constants)

    monkeypatch.setattr(trace, "build_program", built)
    report = validate(graph, tiny_machine, random_inputs(graph), block=1)
    (row,) = (row for row in report.rows if row.difference)
    assert (row.layer, row.tensor) == ("blocks.1.mlp.fc2", "blocks.1.mlp.fc2.out")
    assert row.difference is not None
    assert row.difference.at[1] == 3
    assert row.difference.simulator != row.difference.tosa


def test_a_program_with_other_results_than_the_one_looked_into_is_refused(
    graph_of: GraphOf, tiny_machine: Machine, model: Path
) -> None:
    graph = graph_of(8, 16)
    program = build_program(graph, tiny_machine)
    index = next(i for i, ins in enumerate(decode(program.step)) if ins.op == "table")
    with pytest.raises(UserError, match=r"differ in \w+ after step 0"):
        validate(graph, tiny_machine, random_inputs(graph), altered(program, "step", index, out_zp=0), block=0)


def test_blocks(graph_of: GraphOf) -> None:
    graph = graph_of(8, 16)
    assert len(chosen(graph, None)) == len(graph.prologue) + len(graph.step)
    assert {op.layer.split(".")[1] for op in chosen(graph, 1)} == {"1"}
    with pytest.raises(UserError, match=r"block = 2: allowed 0\.\.1"):
        chosen(graph, 2)


@pytest.mark.parametrize("op", [
    Op("linear", "l", {"x": "x", "weight": "w", "records": "r", "smooth": "s"}, "y", {}),
    Op("convolution", "l", {"x": "x"}, "y", {}),
])  # fmt: skip
def test_what_the_emitter_does_not_know_is_cut_and_said(op: Op, graph_of: GraphOf) -> None:
    (cut,) = emitted_of(Simulated(graph_of(8, 16), 0, {}, {}), op)
    assert isinstance(cut, Cut)
    assert cut.tensor == "y"
    assert "is not emitted as TOSA" in cut.reason


def test_first_difference() -> None:
    left, right = np.array([[1, 2], [3, 4]]), np.array([[1, 2], [5, 6]])
    assert first_difference(left, left.astype(np.int32)) is None
    assert first_difference(left, right) == Difference((1, 0), 3, 5)


def test_what_the_model_rejects_counts_as_cut() -> None:
    case = Case(expected={"y": np.zeros(3)})
    (row,) = compared_rows(Op("table", "l", {}, "y", {}), case, Rejected("status 1: REQUIRE() fails"))
    assert (row.tensor, row.elements, row.cut) == ("y", 0, "outside TOSA's domain: status 1: REQUIRE() fails")


def test_blocks_of_attention_are_joined_where_they_belong() -> None:
    """2 branches, 3 groups, 2 heads, 5 rows, in blocks of 2 groups, 1 head, 3 rows with ends that are cut off."""
    whole: Any = np.arange(2 * 3 * 2 * 5 * 4).reshape(2, 3, 2, 5, 4)
    blocks = [
        whole[branch, group : group + 2, head : head + 1, row : row + 3]
        for branch in range(2) for group in (0, 2) for head in (0, 1) for row in (0, 3)
    ]  # fmt: skip
    np.testing.assert_array_equal(trace.joined(blocks, (2, 3, 2, 5)), whole.reshape(12, 5, 4))
