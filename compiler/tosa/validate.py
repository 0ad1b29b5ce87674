"""Translation validation: each operation of a graph on Arm's TOSA reference model, against the simulator's tensors.

Each operation is fed the simulator's tensors. If all results are equal, then so is the chain of them from the graph's
inputs; and a difference names the operation that is wrong, not all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Op
from compiler.tosa import emit, emit_attention, emit_layernorm, emit_linear
from compiler.tosa.emit import Case, Cut, Simulated
from compiler.tosa.tosa_graph import Rejected, model_python, run_graphs
from compiler.tosa.trace import check_same_results, execute
from npusim.config import Machine
from npusim.errors import UserError
from npusim.program import Program

Array = NDArray[Any]
Emitter = Callable[[Simulated, Op], "Case | Cut | list[Case | Cut]"]
Notify = Callable[[str, int, int], None]

EMITTERS: dict[str, tuple[Emitter, set[str]]] = {
    "linear": (emit_linear.linear, {"x", "weight", "records", "shifts", "out_zp"}),
    "linear_factored": (
        emit_linear.linear_factored, {"x", "weight", "records", "scalars", "shifts", "fraction_bits", "out_zp"},
    ),
    "linear_dynamic": (
        emit_linear.linear_dynamic,
        {"x", "weight", "records", "bits", "row_multiplier", "row_shift", "fraction_bits", "out_zp"},
    ),
    "elementwise": (
        emit.elementwise, {"a", "b", "a_mul", "b_mul", "bias", "shift", "out_zp", "b_rows"},
    ),
    "product": (emit.product, {"a", "b", "shift", "out_zp"}),
    "table": (emit.table, {"x", "table", "multiplier", "shift", "out_zp"}),
    "layernorm_modulate": (
        emit_layernorm.layernorm_modulate, {"x", "g", "b", "epsilon", "fraction_bits", "shift", "out_zp"},
    ),
    "attention": (
        emit_attention.attention,
        {
            "q", "k", "v", "valid", "over", "heads", "fraction_bits", "p_bits", "logit_multiplier", "logit_shift",
            "out_multiplier", "out_shift", "out_zp",
        },
    ),
}  # fmt: skip
"""For each kind of operation its emitter, and the operands and attributes that the emitter knows."""


class Difference(NamedTuple):
    """The first element that differs: where it is, and its value on each side."""

    at: tuple[int, ...]
    simulator: int
    tosa: int


@dataclass(frozen=True)
class Row:
    """One tensor: ``elements`` compared (0 if cut), the first ``difference`` if any, or the reason of a ``cut``."""

    layer: str
    kind: str
    tensor: str
    elements: int
    difference: Difference | None = None
    cut: str = ""


@dataclass(frozen=True)
class Report:
    """What was compared. ``ops`` and ``macs``: (compared to the end, all that were asked for)."""

    rows: tuple[Row, ...]
    ops: tuple[int, int]
    macs: tuple[int, int]

    @property
    def equal(self) -> bool:
        """Whether every tensor that was compared is equal; cuts do not count."""
        return not any(row.difference for row in self.rows)


def validate(
    graph: Graph,
    machine: Machine,
    inputs: Mapping[str, Array],
    program: Program | None = None,
    block: int | None = None,
    notify: Notify | None = None,
    step: int = 0,
) -> Report:
    """Compare prologue and one denoising step of ``graph``, as ``machine`` computes them, with TOSA.

    ``inputs``: contents of the program's input buffers, in their types and shapes. ``program``: the graph's program,
    which must give the same results as the one that is compiled here to be looked into. ``block``: only this block.
    ``step``: the denoising step, after those before it. Raises UserError for a block or step that does not exist, and
    if the reference model cannot be installed.
    """
    ops = chosen(graph, block)
    if not 0 <= step < graph.steps:
        raise UserError(f"step = {step}: allowed 0..{graph.steps - 1}")
    tell: Notify = notify or (lambda stage, done, total: None)
    tell("TOSA model", 0, 1)
    python = model_python()
    tell("TOSA model", 1, 1)
    tell("simulate", 0, 1)
    simulated = execute(graph, machine, inputs, ops, step)
    if program is not None:
        check_same_results(simulated, program, inputs, graph.outputs)
    tell("simulate", 1, 1)
    emitted = [(op, item) for op in ops for item in emitted_of(simulated, op)]
    graphs = [item.tosa for _, item in emitted if isinstance(item, Case)]
    results = iter(run_graphs(graphs, python, lambda done: tell("compare", done, len(graphs))))
    rows = []
    for op, item in emitted:
        rows += [_cut(op, item)] if isinstance(item, Cut) else compared_rows(op, item, next(results))
    return _report(graph, ops, tuple(rows))


def chosen(graph: Graph, block: int | None) -> tuple[Op, ...]:
    """Operations of one block, or all. Raises UserError for a block that does not exist."""
    ops = (*graph.prologue, *graph.step)
    if block is None:
        return ops
    found = tuple(op for op in ops if op.layer.startswith(f"blocks.{block}."))
    if not found:
        count = len({op.layer.split(".")[1] for op in ops if op.layer.startswith("blocks.")})
        raise UserError(f"block = {block}: allowed 0..{count - 1}")
    return found


def emitted_of(simulated: Simulated, op: Op) -> list[Case | Cut]:
    """Graphs and cuts of one operation; all of it is cut where the emitter does not know it."""
    emitter, known = EMITTERS.get(op.kind, (None, set()))
    unknown = sorted({*op.inputs, *op.attrs} - known)
    if emitter is None or unknown:
        what = f"{op.kind} with {', '.join(unknown)}" if emitter else op.kind
        return [Cut(op.output, f"{what} is not emitted as TOSA")]
    items = emitter(simulated, op)
    return items if isinstance(items, list) else [items]


def _cut(op: Op, cut: Cut) -> Row:
    return Row(op.layer, op.kind, cut.tensor, 0, cut=cut.reason)


def compared_rows(op: Op, case: Case, results: list[Array] | Rejected) -> list[Row]:
    """One row for each tensor of a graph; all of them are cut if the model rejected it."""
    if isinstance(results, Rejected):
        return [_cut(op, Cut(name, f"outside TOSA's domain: {results}")) for name in case.expected]
    rows = []
    for (name, expected), got in zip(case.expected.items(), results, strict=True):
        rows.append(Row(op.layer, op.kind, name, expected.size, first_difference(expected, got)))
    return rows


def first_difference(simulated: Array, tosa: Array) -> Difference | None:
    """The first element in which two arrays of one shape differ."""
    if np.array_equal(simulated, tosa):
        return None
    index = tuple(int(i) for i in np.argwhere(simulated != tosa)[0])
    return Difference(index, int(simulated[index]), int(tosa[index]))


def macs_of(graph: Graph, op: Op) -> int:
    """Products of a linear or of an attention's two matrix products."""
    shapes = {role: graph.values[name].shape for role, name in op.inputs.items()}
    if op.kind.startswith("linear"):
        return shapes["x"][0] * shapes["weight"][0] * shapes["weight"][1]
    if op.kind != "attention":
        return 0
    keys = {"spatial": graph.positions, "temporal": graph.frames, "cross": shapes["k"][0] // graph.branches}
    return 2 * shapes["q"][0] * shapes["q"][1] * keys[op.attrs["over"]]


def _report(graph: Graph, ops: tuple[Op, ...], rows: tuple[Row, ...]) -> Report:
    """An operation counts as compared if its output is."""
    reached = {row.tensor for row in rows if not row.cut}
    compared = [op for op in ops if op.output in reached]
    macs = [sum(macs_of(graph, op) for op in some) for some in (compared, ops)]
    return Report(rows, (len(compared), len(ops)), (macs[0], macs[1]))
