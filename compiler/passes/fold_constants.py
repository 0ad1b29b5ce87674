"""Evaluate what depends on constants only: the time-step modulation becomes one vector per step and use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Op, Value
from compiler.semantics import CONST_KINDS, SEMANTICS
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES


def fold_constants(graph: Graph) -> Graph:
    """Replace every operation of ``CONST_KINDS`` by its value. Raises UserError if a result does not fit its type."""
    values, ops = dict(graph.values), []
    for op in graph.step:
        if op.kind in CONST_KINDS:
            values[op.output] = _folded(graph, op, values)
        else:
            ops.append(op)
    return graph.rewritten(values, graph.prologue, ops)


def _folded(graph: Graph, op: Op, values: dict[str, Value]) -> Value:
    inputs = {role: values[name] for role, name in op.inputs.items()}
    per_step = any(value.kind == "step_const" for value in inputs.values())
    data = np.stack([_evaluate(graph, op, inputs, step) for step in range(graph.steps if per_step else 1)])
    dtype, low, high = DTYPES[values[op.output].dtype]
    if data.min() < low or data.max() > high:
        raise UserError(f"{op.layer}: constants {data.min()}..{data.max()} do not fit {values[op.output].dtype}")
    data = data.astype(dtype)
    if per_step:
        return replace(values[op.output], kind="step_const", data=data)
    return replace(values[op.output], kind="const", data=data[0])


def _evaluate(graph: Graph, op: Op, inputs: dict[str, Value], step: int) -> NDArray[Any]:
    arrays = {}
    for role, value in inputs.items():
        assert value.data is not None
        arrays[role] = (value.data[step] if value.kind == "step_const" else value.data).astype(np.int64)
    return SEMANTICS[op.kind](graph, op, arrays)
