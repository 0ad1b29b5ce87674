"""The graph interpreter: runs a graph on whole tensors, for proving passes and for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Op
from compiler.semantics import SEMANTICS

Array = NDArray[Any]


class Interpreter:
    """Runs ``graph``; tensors live in ``tensors`` by name as int64 (records as they are).

    ``inputs`` are the graph's inputs by name. Call ``run("prologue", 0)`` once, then ``run("step", i)`` for each
    denoising step. ``on_op(op, inputs, output)`` is called after each operation when given.
    """

    def __init__(self, graph: Graph, inputs: dict[str, Array]) -> None:
        self.graph = graph
        self.tensors: dict[str, Array] = {name: np.asarray(array, np.int64) for name, array in inputs.items()}
        self.on_op: Callable[[Op, dict[str, Array], Array], None] | None = None

    def read(self, name: str, step: int) -> Array:
        value = self.graph.values[name]
        if value.base:
            whole = self.read(value.base, step)
            return whole[value.row : value.row + value.shape[0], value.col : value.col + value.shape[1]]
        if value.data is not None:
            array = value.data[step] if value.kind == "step_const" else value.data
            return array if value.dtype == "record" else array.astype(np.int64)
        return self.tensors[name]

    def write(self, name: str, array: Array) -> None:
        value = self.graph.values[name]
        if value.base is None:
            self.tensors[name] = array
            return
        owner = self.graph.values[value.base]
        whole = self.tensors.setdefault(owner.name, np.zeros(owner.shape, np.int64))
        whole[value.row : value.row + value.shape[0], value.col : value.col + value.shape[1]] = array

    def run(self, phase: str, step: int) -> None:
        for op in getattr(self.graph, phase):
            self._run_op(op, step)

    def _run_op(self, op: Op, step: int) -> None:
        inputs = {role: self.read(name, step) for role, name in op.inputs.items()}
        output = SEMANTICS[op.kind](self.graph, op, inputs)
        if output.shape != self.graph.values[op.output].shape:
            raise AssertionError(
                f"{op.layer}: {op.kind} gives {output.shape}, declared {self.graph.values[op.output].shape}"
            )
        self.write(op.output, output)
        if self.on_op is not None:
            self.on_op(op, inputs, output)
