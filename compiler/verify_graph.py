"""Legality of an integer graph: every value defined once and before it is read, operations as their table demands.

The compiler checks the graph after lowering and after each pass; ``compiler/verify.py`` checks the program at the end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, CONSTANTS, Graph, Op, Value
from compiler.operations import faults
from compiler.semantics import SEMANTICS
from npusim.errors import UserError


class Written:
    """Which elements are computed so far, as a map of each tensor cut wherever a view of it begins or ends."""

    def __init__(self, graph: Graph) -> None:
        cuts: dict[str, tuple[set[int], set[int]]] = {}
        for value in graph.values.values():
            if value.base is not None and len(value.shape) == 2:
                rows, cols = cuts.setdefault(value.base, (set(), set()))
                rows |= {value.row, value.row + value.shape[0]}
                cols |= {value.col, value.col + value.shape[1]}
        # Where pieces begin; a view that ends with its owner begins none behind it.
        self._cuts = {
            name: [
                [0, *sorted(cut for cut in of_axis if 0 < cut < size)]
                for of_axis, size in zip(cut, graph.values[name].shape, strict=True)
            ]
            for name, cut in cuts.items()
        }
        self._maps: dict[str, NDArray[np.bool_]] = {}

    def part(self, value: Value) -> NDArray[np.bool_]:
        """The part of its owner's map that a value is."""
        name = value.base or value.name
        cuts = self._cuts.get(name, [[0], [0]])
        whole = self._maps.setdefault(name, np.zeros([len(of_axis) for of_axis in cuts], np.bool_))
        if value.base is None:
            return whole
        starts = value.row, value.col
        pieces = zip(cuts, starts, value.shape, strict=True)
        return whole[tuple(slice(bisect_left(cut, at), bisect_left(cut, at + size)) for cut, at, size in pieces)]


def verify_graph(graph: Graph, stage: str = "graph") -> None:
    """Raise UserError naming ``stage``, the operation or value, its layer and the rule if the graph is not legal."""
    for value in graph.values.values():
        for rule in _value_faults(graph, value):
            raise UserError(f"{stage}: value %{value.name}: {rule}")
    written = Written(graph)
    for phase, ops in (("prologue", graph.prologue), ("step", graph.step)):
        for index, op in enumerate(ops):
            for rule in chain(_op_faults(graph, op, written), _changing(graph, op) if phase == "prologue" else ()):
                where = f"{phase} operation {index} ({op.kind} of layer {op.layer})"
                raise UserError(f"{stage}: {where}: {rule}")
    for name in graph.outputs:
        if name not in graph.values or not _defined(graph.values[name], written):
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


def _op_faults(graph: Graph, op: Op, written: Written) -> Iterator[str]:
    """Faults of one operation; records in ``written`` what it computes."""
    if op.kind not in SEMANTICS:
        yield f"unknown kind; allowed: {', '.join(SEMANTICS)}"
    for role, name in [*op.inputs.items(), ("output", op.output)]:
        if name not in graph.values:
            yield f"{role} %{name} does not exist"
    for role, name in op.inputs.items():
        if not _defined(graph.values[name], written):
            yield f"{role} %{name} is read before it is computed"
    output = graph.values[op.output]
    if output.kind != "value":
        yield f"writes %{op.output}, which is of kind {output.kind}"
    part = written.part(output)
    if part.any():
        yield f"writes %{op.output} a second time"
    part[...] = True
    yield from faults(graph, op)


def _defined(value: Value, written: Written) -> bool:
    return value.kind != "value" or bool(written.part(value).all())
