"""Legality of an integer graph: every value defined once and before it is read, operations as their table demands.

The compiler checks the graph after lowering and after each pass; ``compiler/verify.py`` checks the program at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, CONSTANTS, Graph, Op, Value
from compiler.operations import faults
from compiler.semantics import SEMANTICS
from npusim.errors import UserError


def verify_graph(graph: Graph, stage: str = "graph") -> None:
    """Raise UserError naming ``stage``, the operation or value, its layer and the rule if the graph is not legal."""
    for value in graph.values.values():
        for rule in _value_faults(graph, value):
            raise UserError(f"{stage}: value %{value.name}: {rule}")
    written: dict[str, NDArray[np.bool_]] = {}
    for phase, ops in (("prologue", graph.prologue), ("step", graph.step)):
        for index, op in enumerate(ops):
            for rule in chain(_op_faults(graph, op, written), _changing(graph, op) if phase == "prologue" else ()):
                where = f"{phase} operation {index} ({op.kind} of layer {op.layer})"
                raise UserError(f"{stage}: {where}: {rule}")
    for name in graph.outputs:
        if name not in graph.values or not _defined(graph, graph.values[name], written):
            raise UserError(f"{stage}: output %{name} is not computed")


def _changing(graph: Graph, op: Op) -> Iterator[str]:
    """The prologue runs before any step, so it cannot read what changes with the step."""
    for role, name in op.inputs.items():
        if graph.base(name).kind in ("step_const", "range_const"):
            yield f"{role} %{name} changes with the step; allowed in the prologue: what does not"


def _value_faults(graph: Graph, value: Value) -> Iterator[str]:
    if value.dtype not in BITS:
        yield f"type {value.dtype}; allowed: {', '.join(BITS)}"
    if not value.shape or min(value.shape) < 1:
        yield f"shape {value.shape}; allowed: positive sizes"
    if value.kind in CONSTANTS.values() and value.base is None:
        counts = {"step_const": (graph.steps,), "range_const": (graph.ranges,)}
        expected = (*counts.get(value.kind, ()), *value.shape)
        given = None if value.data is None else value.data.shape
        if given != (expected if graph.contents else None):
            yield f"constant data {given}; allowed: {expected if graph.contents else None}"
    if value.base is not None:
        owner = graph.values.get(value.base)
        if owner is None or owner.base is not None:
            yield f"views %{value.base}, which is no tensor of its own"
        elif value.row + value.shape[0] > owner.shape[0] or value.col + value.shape[1] > owner.shape[1]:
            yield f"rows {value.row}.. and columns {value.col}.. reach outside %{owner.name} {owner.shape}"


def _op_faults(graph: Graph, op: Op, written: dict[str, NDArray[np.bool_]]) -> Iterator[str]:
    """Faults of one operation; records in ``written`` what it computes."""
    if op.kind not in SEMANTICS:
        yield f"unknown kind; allowed: {', '.join(SEMANTICS)}"
    for role, name in [*op.inputs.items(), ("output", op.output)]:
        if name not in graph.values:
            yield f"{role} %{name} does not exist"
    for role, name in op.inputs.items():
        if not _defined(graph, graph.values[name], written):
            yield f"{role} %{name} is read before it is computed"
    output = graph.values[op.output]
    if output.kind != "value":
        yield f"writes %{op.output}, which is of kind {output.kind}"
    part = _part(graph, output, written)
    if part.any():
        yield f"writes %{op.output} a second time"
    part[...] = True
    yield from faults(graph, op)


def _part(graph: Graph, value: Value, written: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """The elements of ``value`` in the map of computed elements of its owner."""
    owner = graph.base(value.name)
    whole = written.setdefault(owner.name, np.zeros(owner.shape, np.bool_))
    if value.base is None:
        return whole
    return whole[value.row : value.row + value.shape[0], value.col : value.col + value.shape[1]]


def _defined(graph: Graph, value: Value, written: dict[str, NDArray[np.bool_]]) -> bool:
    return value.kind != "value" or bool(_part(graph, value, written).all())
