"""Every quantization method and width on TOSA's model, and faults in what each of them adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.graph import Graph
from compiler.pipeline import integer_graph
from compiler.schedule.build import build_program
from compiler.schedule.place import ALIGN
from compiler.tosa import trace, validate
from compiler.tosa.emit_attention import DIVISION
from compiler.tosa.emit_layernorm import ROOT
from compiler.tosa.emit_linear import ROW_RECIPROCAL
from compiler.tosa.validate import Report
from models.quantize import quantize
from models.workloads import get_workload
from npusim import engine
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.isa.matmul import SCALARS
from npusim.isa.runtime_quantization import operands
from npusim.program import Program
from npusim.translation import random_inputs
from tests.compiler.runs import altered, machine_like

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""

Array = NDArray[Any]
Case = tuple[str, int, int, int | None, bool, int]
"""Method, weight bits, activation bits, time ranges (None: the method's own), factored, denoising step."""

CUTS = {("layernorm_modulate", ROOT), ("attention", DIVISION)}
WORK = get_workload("tiny")


@cache
def graph_of(method: str, weight_bits: int, act_bits: int, ranges: int | None = None, factored: bool = False) -> Graph:
    model = quantize(WORK.load_model(), WORK.load_stats(), method, weight_bits, act_bits, ranges=ranges)
    return integer_graph(model, factored=factored)


@pytest.fixture
def machine(tiny_machine: Machine) -> Machine:
    """`tiny_8x8`, able to quantize at run time."""
    return machine_like(
        tiny_machine, vector_unit={"runtime_quantization": True}, param_memory={"capacity_bytes": 16384}
    )


def assert_all_compared(graph: Graph, report: Report) -> None:
    """Everything equal; cut is only what TOSA cannot express."""
    assert {row.tensor: row.difference for row in report.rows if row.difference} == {}
    assert report.ops == (len(graph.prologue) + len(graph.step),) * 2
    assert report.macs[0] == report.macs[1] > 0
    dynamic = any(op.kind == "linear_dynamic" for op in graph.step)
    cuts = {(row.kind, row.cut) for row in report.rows if row.cut}
    assert cuts == CUTS | ({("linear_dynamic", ROW_RECIPROCAL)} if dynamic else set())


@pytest.mark.parametrize("case", [
    ("asq", 4, 4, None, False, 0), ("asq", 8, 16, 2, True, 3), ("tsq", 6, 6, None, False, 2),
    ("tsq_pot", 8, 8, None, False, 1), ("tsq_pot", 4, 6, 2, True, 3), ("dynamic", 4, 6, None, False, 0),
], ids=lambda case: "-".join(map(str, case)))  # fmt: skip
def test_the_whole_network(case: Case, machine: Machine, model: Path) -> None:
    *which, step = case
    graph = graph_of(*which)
    report = validate(graph, machine, random_inputs(graph), build_program(graph, machine), step=step)
    assert_all_compared(graph, report)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4), (6, 6)])
@pytest.mark.parametrize(("method", "factored"), [
    ("cw_tw", False), ("tsw", False), ("tsw", True), ("asq", False), ("ssq", False), ("tsq", False), ("tsq", True),
    ("tsq_pot", False), ("tsq_pot", True), ("dynamic", False),
])  # fmt: skip
def test_methods_and_widths(method: str, factored: bool, bits: tuple[int, int], machine: Machine, model: Path) -> None:
    graph = graph_of(method, *bits, None, factored)
    report = validate(graph, machine, random_inputs(graph), build_program(graph, machine), step=graph.steps - 1)
    assert_all_compared(graph, report)


Plant = Callable[[Program], Program]


def differing(graph: Graph, machine: Machine, plant: Plant, monkeypatch: pytest.MonkeyPatch, step: int = 0) -> set[str]:
    """Tensors of block 0 that differ where ``plant`` altered the program that is looked into."""
    monkeypatch.setattr(trace, "build_program", lambda graph, machine: plant(build_program(graph, machine)))
    report = validate(graph, machine, random_inputs(graph), block=0, step=step)
    return {row.tensor for row in report.rows if row.difference}


def of_layer(layer: str, mnemonic: str, **changes: int) -> Plant:
    """Fields of the first such instruction of a layer, by how much they change."""

    def plant(program: Program) -> Program:
        code = decode(program.step)
        index = next(i for i, ins in enumerate(code) if (program.layers[ins.layer], ins.op) == (layer, mnemonic))
        new = {name: getattr(code[index], name) + change for name, change in changes.items()}
        return altered(program, "step", index, **new)

    return plant


def written(area: str, index: int | None, old: Array, new: Array) -> Plant:
    """Bytes of a constant (in ``range_sets``: of one range) that change, at the first place where they stand."""

    def plant(program: Program) -> Program:
        whole = getattr(program, area).copy()
        part = whole if index is None else whole[index]
        at = next(at for at in range(0, part.size, ALIGN) if bytes(part[at : at + old.nbytes]) == old.tobytes())
        part[at : at + old.nbytes] = np.frombuffer(new.tobytes(), np.uint8)
        return replace(program, **{area: whole})

    return plant


def constant(graph: Graph, name: str, time_range: int) -> Array:
    value = graph.values[name]
    assert (value.kind, value.data is None) == ("range_const", False), f"%{name} does not change with the range"
    assert value.data is not None
    return np.asarray(value.data[time_range])


def test_a_result_of_4_bits(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modulation into a packed tensor, and the weight of a product with it."""
    graph = graph_of("asq", 4, 4)
    assert graph.values["blocks.0.attn.in"].dtype == "u4"
    plant = of_layer("blocks.0.norm1", "lnapply", out_zp=1)
    assert differing(graph, machine, plant, monkeypatch) == {"blocks.0.attn.in"}


def test_constants_of_the_range_that_the_step_lies_in(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of("tsq", 8, 8)
    step = graph.steps - 1
    index = graph.range_of_step[step]
    assert index > 0
    old = constant(graph, "blocks.0.attn.qkv.records", index)
    new = old.copy()
    new["multiplier"][3] += 1
    plant = written("range_sets", index, old, new)
    assert differing(graph, machine, plant, monkeypatch, step) == {"blocks.0.attn.qkv"}
    assert differing(graph, machine, plant, monkeypatch) == set()


def test_input_shifts(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("tsq_pot", 8, 8)
    layer = "blocks.0.mlp.fc1"
    (op,) = (op for op in graph.step if op.kind == "linear" and op.layer == layer)
    old = graph.constant(op.inputs["shifts"], 0)
    by_range = graph.values[op.inputs["shifts"]].kind == "range_const"
    new = old.copy()
    new[2] ^= 3
    plant = written("range_sets" if by_range else "constants", 0 if by_range else None, old, new)
    assert differing(graph, machine, plant, monkeypatch) == {op.output}


@pytest.mark.parametrize("field", ["zero_point", "multiplier"])
def test_the_second_factor(field: str, machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("tsq_pot", 4, 6, 2, True)
    (op,) = (op for op in graph.step if op.layer == "blocks.0.mlp.fc1")
    old = constant(graph, op.inputs["scalars"], 0)
    assert old.dtype == SCALARS
    new = old.copy()
    new[field] += 1 if field == "zero_point" else 256
    plant = written("range_sets", 0, old, new)
    assert differing(graph, machine, plant, monkeypatch) == {op.output}


def test_the_bias_behind_two_factors(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("tsq_pot", 4, 6, 2, True)
    (op,) = (op for op in graph.step if op.layer == "blocks.0.mlp.fc1")
    old = graph.constant(op.inputs["records"], 0)
    new = old.copy()
    new["bias"][5] += 1 << op.attrs["fraction_bits"]
    assert differing(graph, machine, written("constants", None, old, new), monkeypatch) == {op.output}


@pytest.mark.parametrize("role", ["a_mul", "bias"])
def test_numbers_shared_by_all_columns(
    role: str, machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An element-wise operation whose one 32-bit factor and one offset change with the range."""
    graph = graph_of("tsw", 8, 8)
    (op,) = (op for op in graph.step if op.kind == "elementwise" and op.layer == "blocks.0.cross_attn.q_linear")
    old = constant(graph, op.inputs[role], 0)
    assert old.shape == (1,)
    plant = written("range_sets", 0, old, old - (1 << op.attrs["shift"]))
    assert differing(graph, machine, plant, monkeypatch) == {op.output}


def test_factors_of_run_time_grids(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("dynamic", 4, 6)
    plant = of_layer("blocks.0.mlp.fc1", "rtquant", multiplier=1 << 18)
    (op,) = (op for op in graph.step if op.layer == "blocks.0.mlp.fc1")
    assert differing(graph, machine, plant, monkeypatch) == {f"{op.output}: row multipliers"}


@pytest.mark.parametrize("named", ["quantized rows", "row zero points"])
def test_run_time_grids(named: str, machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose rows are wrong in one element or zero point of each tile."""
    graph, exact = graph_of("dynamic", 4, 6), engine.EXECUTORS["rtquant"]

    def wrong(state, ins) -> None:  # type: ignore[no-untyped-def]
        exact(state, ins)
        _, out, scalars = operands(state, ins)
        if named == "row zero points":
            scalars["zero_point"][0] ^= 1
        else:
            values = out.values()
            values[0, 0] ^= 1
            out.assign(values)

    monkeypatch.setitem(engine.EXECUTORS, "rtquant", wrong)
    ops = (op for op in (*graph.prologue, *graph.step) if op.layer.startswith("blocks.0."))
    expected = {f"{op.output}: {named}" for op in ops if op.kind == "linear_dynamic"}
    assert differing(graph, machine, lambda program: program, monkeypatch) == expected


def test_steps(machine: Machine, model: Path) -> None:
    graph = graph_of("tsq", 8, 8)
    with pytest.raises(UserError, match=r"step = 4: allowed 0\.\.3"):
        validate(graph, machine, random_inputs(graph), block=0, step=4)
