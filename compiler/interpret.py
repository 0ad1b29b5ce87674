"""The graph interpreter: runs a graph on whole tensors, for proving passes and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import OUTPUT_BUFFERS, Graph, Op
from compiler.semantics import SEMANTICS
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES

Array = NDArray[Any]


def run_graph(graph: Graph, inputs: Mapping[str, Array], steps: Sequence[int] = (0,)) -> list[dict[str, Array]]:
    """Run the prologue and each of ``steps``; return the graph's outputs, int64 by name, after each step.

    ``inputs`` by name, integers of the inputs' shapes; "noise" has the steps in front. What a step leaves in
    "state.next" the next one finds in "state". Raises UserError for an input that is missing, unknown, misshapen, or
    out of its type's range.
    """
    _check_inputs(graph, inputs)
    machine = Interpreter(graph, {name: values for name, values in inputs.items() if name != "noise"})
    machine.run("prologue", 0)
    results = []
    for step in steps:
        if "noise" in inputs:
            machine.tensors["noise"] = np.asarray(inputs["noise"][step], np.int64)
        machine.run("step", step)
        results.append({name: machine.tensors[name].copy() for name in graph.outputs})
        for output, name in OUTPUT_BUFFERS.items():
            if output in graph.outputs:
                machine.tensors[name] = machine.tensors[output].copy()
    return results


def _check_inputs(graph: Graph, inputs: Mapping[str, Array]) -> None:
    declared = {v.name: v for v in graph.values.values() if v.kind == "input" and v.base is None}
    for name in (*declared, *inputs):
        if name not in inputs or name not in declared:
            what = "missing" if name in declared else "unknown"
            raise UserError(f"input {name!r} is {what}; the graph takes {', '.join(declared)}")
        value, array = declared[name], np.asarray(inputs[name])
        shape = (graph.steps, *value.shape) if name == "noise" else value.shape
        _, low, high = DTYPES[value.dtype]
        if array.shape != shape or array.dtype.kind not in "iu":
            raise UserError(f"input {name!r}: given {array.dtype}{list(array.shape)}, allowed integers {list(shape)}")
        if array.min() < low or array.max() > high:
            raise UserError(f"input {name!r}: values {array.min()}..{array.max()} do not fit {value.dtype}")


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
            array = self.graph.constant(name, step)
            return array if array.dtype.names else array.astype(np.int64)
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
