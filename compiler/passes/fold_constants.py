"""Evaluate what depends on constants only: the time-step modulation becomes one vector per step and use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compiler.graph import Graph, Op, prune
from compiler.semantics import CONST_KINDS, SEMANTICS
from npusim.isa.encoding import DTYPES


def fold_constants(graph: Graph) -> Graph:
    values, ops = dict(graph.values), []
    for op in graph.step:
        if op.kind not in CONST_KINDS:
            ops.append(op)
            continue
        inputs = [values[name] for name in op.inputs.values()]
        per_step = any(v.kind == "step_const" for v in inputs)
        data = np.stack([_evaluate(graph, op, values, step) for step in range(graph.steps if per_step else 1)])
        data = data.astype(DTYPES[values[op.output].dtype][0])
        kind = "step_const" if per_step else "const"
        values[op.output] = replace(values[op.output], kind=kind, data=data if per_step else data[0])
    kept = prune(
        values, [*graph.prologue, *ops], [*graph.outputs, *(n for n, v in values.items() if v.kind == "input")]
    )
    return replace(graph, values=kept, step=tuple(ops))


def _evaluate(graph: Graph, op: Op, values: dict, step: int) -> np.ndarray:  # type: ignore[type-arg]
    arrays = {}
    for role, name in op.inputs.items():
        value = values[name]
        arrays[role] = (value.data[step] if value.kind == "step_const" else value.data).astype(np.int64)
    return SEMANTICS[op.kind](graph, op, arrays)
