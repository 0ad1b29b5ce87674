"""A TOSA graph under construction, and the reference model that runs it.

The methods are TOSA's operators, with shapes and types worked out from the operands. Types go by the ISA's names, and
``i48`` and ``bool``; TOSA has unsigned tensors only as the input or output of RESCALE, stored as signed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.tosa.environment import cache_folder, python_of, work

Array = NDArray[Any]
WORKER = Path(__file__).with_name("worker.py")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
"""Exact pins of the reference model's environment."""
TYPES = {
    "i8": "INT8", "u8": "INT8", "i16": "INT16", "u16": "INT16", "i32": "INT32", "i48": "INT48", "bool": "BOOL",
    "shape": "SHAPE",
}  # fmt: skip
JOBS_AT_ONCE = 24
"""Graphs that one process of the model's environment runs; progress is told after each such batch."""


class Tensor(NamedTuple):
    """One tensor of a graph: name, shape, type."""

    name: str
    shape: tuple[int, ...]
    kind: str


class TosaGraph:
    """One graph. Element-wise operands broadcast: equal ranks, sizes equal or 1."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.job: dict[str, Any] = {"inputs": [], "constants": [], "operators": [], "outputs": []}

    def _array(self, role: str, values: ArrayLike, kind: str) -> Tensor:
        array, name = np.ascontiguousarray(values), f"a{len(self.arrays)}"
        self.arrays[name] = array
        self.job[role].append([name, TYPES[kind]])
        return Tensor(name, array.shape, kind)

    def input(self, values: ArrayLike, kind: str) -> Tensor:
        """A tensor that the graph is run on."""
        return self._array("inputs", values, kind)

    def const(self, values: ArrayLike, kind: str) -> Tensor:
        """A constant; a scalar has the shape (1,)."""
        return self._array("constants", np.atleast_1d(values), kind)

    def scalar(self, value: int, like: Tensor) -> Tensor:
        """A constant i32 that broadcasts against ``like``."""
        return self.const(np.full([1] * len(like.shape), value), "i32")

    def output(self, tensor: Tensor) -> None:
        """Have ``run`` return this tensor."""
        self.job["outputs"].append(tensor.name)

    def op(self, operator: str, inputs: Sequence[Tensor], shape: Sequence[int], kind: str, *arguments: Any) -> Tensor:
        """Append an operator; ``arguments`` are its attribute's."""
        operators, shape = self.job["operators"], tuple(int(size) for size in shape)
        operators.append([operator, [t.name for t in inputs], list(shape), TYPES[kind], list(arguments)])
        return Tensor(f"t{len(operators) - 1}", shape, kind)

    def _both(self, operator: str, a: Tensor, b: Tensor, *arguments: Any) -> Tensor:
        return self.op(operator, [a, b], np.broadcast_shapes(a.shape, b.shape), a.kind, *arguments)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._both("ADD", a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self._both("SUB", a, b)

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return self._both("MAXIMUM", a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return self._both("MINIMUM", a, b)

    def bits(self, a: Tensor, mask: int) -> Tensor:
        """BITWISE_AND with a constant."""
        return self._both("BITWISE_AND", a, self.scalar(mask, a))

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return self.op("GREATER", [a, b], np.broadcast_shapes(a.shape, b.shape), "bool")

    def mul(self, a: Tensor, b: Tensor, shift: int = 0) -> Tensor:
        """MUL to i32: the low 32 bits of the product; with a shift the 64-bit product is rounded."""
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.op("MUL", [a, b, self.const(shift, "i8")], shape, "i32")

    def times(self, a: Tensor, factor: int) -> Tensor:
        return self.mul(a, self.scalar(factor, a))

    def shift_right(self, a: Tensor, by: int | Tensor, rounded: bool = False) -> Tensor:
        """ARITHMETIC_RIGHT_SHIFT."""
        if isinstance(by, int):
            by = self.scalar(by, a)
        return self._both("ARITHMETIC_RIGHT_SHIFT", a, by, rounded)

    def select(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return self.op("SELECT", [condition, a, b], shape, a.kind)

    def cast(self, a: Tensor, kind: str) -> Tensor:
        return self.op("CAST", [a], a.shape, kind)

    def reduce(self, operator: str, a: Tensor, axis: int) -> Tensor:
        """REDUCE_SUM, REDUCE_MAX or REDUCE_MIN; the axis stays with size 1."""
        return self.op(operator, [a], (*a.shape[:axis], 1, *a.shape[axis + 1 :]), a.kind, axis)

    def reshape(self, a: Tensor, shape: Sequence[int]) -> Tensor:
        return self.op("RESHAPE", [a, self.const(shape, "shape")], shape, a.kind)

    def transpose(self, a: Tensor, order: Sequence[int]) -> Tensor:
        return self.op("TRANSPOSE", [a], [a.shape[i] for i in order], a.kind, list(order))

    def slice(self, a: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
        return self.op("SLICE", [a, self.const(start, "shape"), self.const(size, "shape")], size, a.kind)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.op("CONCAT", parts, shape, parts[0].kind, axis)

    def lookup(self, entries: Array, index: Tensor) -> Tensor:
        """GATHER of i32 constants by an i32 index of any shape."""
        flat = self.reshape(index, (1, int(np.prod(index.shape))))
        found = self.op("GATHER", [self.const(entries[None, :, None], "i32"), flat], (*flat.shape, 1), "i32")
        return self.reshape(found, index.shape)

    def table(self, x: Tensor, entries: Array) -> Tensor:
        """TABLE: 256 entries for i8 to i8, 513 for i16 to i32."""
        return self.op("TABLE", [x, self.const(entries, x.kind)], x.shape, "i8" if x.kind == "i8" else "i32")

    def matmul(self, a: Tensor, b: Tensor, a_zp: int = 0, b_zp: int = 0) -> Tensor:
        """MATMUL of (batch, m, k) by (batch, k, n): i8 to i32, i16 to i48."""
        zero_points = [self.const(zp, a.kind) for zp in (a_zp, b_zp)]
        shape = (*a.shape[:2], b.shape[2])
        return self.op("MATMUL", [a, b, *zero_points], shape, "i32" if a.kind == "i8" else "i48")

    def rescale(
        self, x: Tensor, multiplier: ArrayLike, shift: ArrayLike, out: str = "i32", out_zp: int = 0,
        scale32: bool = False, double: bool = False, in_zp: int = 0,
    ) -> Tensor:  # fmt: skip
        """RESCALE, per channel of the last axis where there is more than one multiplier."""
        scales = [np.atleast_1d(multiplier), np.atleast_1d(shift)]
        constants = [self.const(scales[0], "i32" if scale32 else "i16"), self.const(scales[1], "i8")]
        constants += [self.const(in_zp, x.kind), self.const(out_zp, out)]
        rounding = "DOUBLE_ROUND" if double else "SINGLE_ROUND"
        arguments = scale32, rounding, scales[0].size > 1, x.kind[0] == "u", out[0] == "u"
        return self.op("RESCALE", [x, *constants], x.shape, out, *arguments)


class Rejected(str):
    """In place of a graph's outputs: what the model says to a graph whose values lie outside TOSA's domain."""


Told = Callable[[int], None]
"""Called with the number of graphs that have been run."""


def model_python() -> Path:
    """The interpreter of the reference model's environment, made if it is not there. Raises UserError."""
    return python_of("tosa", REQUIREMENTS, cache_folder())


def run_graphs(graphs: Sequence[TosaGraph], python: Path, told: Told | None = None) -> list[list[Array] | Rejected]:
    """Outputs of each graph in the order of its ``output`` calls. Raises UserError if the model cannot be run."""
    results: list[list[Array] | Rejected] = []
    for first in range(0, len(graphs), JOBS_AT_ONCE):
        batch = graphs[first : first + JOBS_AT_ONCE]
        arrays = {f"{n}/{name}": values for n, graph in enumerate(batch) for name, values in graph.arrays.items()}
        found = work(python, WORKER, [graph.job for graph in batch], arrays)
        for number, graph in enumerate(batch):
            rejected = found.get(f"{number}/rejected")
            if rejected is not None:
                results.append(Rejected(rejected.tobytes().decode()))
            else:
                results.append([found[f"{number}/{name}"] for name in graph.job["outputs"]])
        if told:
            told(len(results))
    return results
