"""Graph operations as TOSA graphs, each fed with the simulator's tensors.

Every result is an i32 tensor: TOSA's output zero points end at 8 bits, so the zero point is an ADD, and CLAMP has no
32 bits, so the clamp is a MINIMUM and a MAXIMUM. Linears, attention and LayerNorm are in ``emit_linear.py``,
``emit_attention.py`` and ``emit_layernorm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Op
from compiler.tosa.tosa_graph import Tensor, TosaGraph
from compiler.tosa.wide import WideSum, constant_limbs, limb_count, limbs
from npusim.isa.encoding import DTYPES

Array = NDArray[Any]


class Cut(NamedTuple):
    """A tensor that is not compared: its name and why. What reads it is fed the simulator's own values."""

    tensor: str
    reason: str


@dataclass
class Case:
    """One TOSA graph, and what the simulator holds for each of its outputs, in their order."""

    tosa: TosaGraph = field(default_factory=TosaGraph)
    expected: dict[str, Array] = field(default_factory=dict)

    def compare(self, result: Tensor, name: str, simulated: Array) -> None:
        """Have ``result`` compared with the simulator's tensor ``name`` of the same shape."""
        assert result.shape == simulated.shape, f"{name}: {result.shape} and {simulated.shape}"
        self.tosa.output(result)
        self.expected[name] = simulated


@dataclass(frozen=True)
class Simulated:
    """What the simulator held in one denoising step.

    ``tensors``: by name of a graph value, whole, int64. ``inner``: what lies inside an operation and has no name in the
    graph, by the operation's output and a name of its own (see ``trace.py``).
    """

    graph: Graph
    step: int
    tensors: Mapping[str, Array]
    inner: Mapping[tuple[str, str], Array]

    def whole(self, name: str) -> Array:
        """The tensor that owns the storage of ``name``."""
        owner = self.graph.base(name)
        return self.tensors[owner.name] if owner.data is None else self.graph.constant(owner.name, self.step)

    def part(self, name: str) -> Array:
        """A tensor, or the rows and columns that a view shows."""
        value = self.graph.values[name]
        whole = self.whole(name)
        if value.base is None:
            return whole
        return whole[value.row : value.row + value.shape[0], value.col : value.col + value.shape[1]]

    def feed(self, tosa: TosaGraph, name: str, kind: str, offset: int = 0) -> Tensor:
        """The tensor as an input of ``tosa``, ``offset`` subtracted; a view is a SLICE of its owner."""
        value = self.graph.values[name]
        whole = tosa.input(self.whole(name).astype(np.int64) - offset, kind)
        return tosa.slice(whole, (value.row, value.col), value.shape) if value.base else whole

    def limits(self, op: Op) -> tuple[int, int]:
        _, low, high = DTYPES[self.graph.values[op.output].dtype]
        return low, high

    def finish(self, case: Case, op: Op, scaled: Tensor) -> None:
        """Zero point and clamp, then the comparison with the operation's output."""
        result = finished(case.tosa, scaled, op.attrs["out_zp"], *self.limits(op))
        simulated = self.part(op.output)
        case.compare(case.tosa.reshape(result, simulated.shape), op.output, simulated)


def finished(tosa: TosaGraph, scaled: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """``clamp(scaled + zero_point)``."""
    moved = tosa.add(scaled, tosa.scalar(zero_point, scaled)) if zero_point else scaled
    return tosa.minimum(tosa.maximum(moved, tosa.scalar(low, moved)), tosa.scalar(high, moved))


def elementwise(simulated: Simulated, op: Op) -> Case:
    """``a ma + b mb + bias`` in limbs, rounded once; ``b`` may be a table of rows that broadcasts."""
    case, graph = Case(), simulated.graph
    rows, cols = graph.values[op.inputs["a"]].shape
    shapes = {
        "position": ((-1, graph.positions, 1, cols), (1, graph.positions, 1, cols)),
        "frame": ((-1, graph.frames, graph.positions, cols), (1, graph.frames, 1, cols)),
        "": ((1, 1, rows, cols), (1, 1, rows, cols)),
    }
    total = WideSum(case.tosa)
    for role, shape in zip("ab", shapes[op.attrs.get("b_rows", "")], strict=True):
        if role in op.inputs:
            factor = f"{role}_mul"
            by = simulated.whole(op.inputs[factor]) if factor in op.inputs else op.attrs.get(factor, 0)
            outer = rows * cols // int(np.prod(shape[1:])) if shape[0] < 0 else shape[0]
            operand = _operand(simulated, case.tosa, op.inputs[role], (outer, *shape[1:]))
            total.add_product(operand, constant_limbs(case.tosa, np.reshape(by, (1, 1, 1, -1))))
    if "bias" in op.inputs:
        total.add(constant_limbs(case.tosa, simulated.whole(op.inputs["bias"]).reshape(1, 1, 1, -1)))
    simulated.finish(case, op, total.rounded(op.attrs["shift"]))
    return case


def product(simulated: Simulated, op: Op) -> Case:
    """``a b`` in limbs, rounded once."""
    case, shape = Case(), simulated.graph.values[op.output].shape
    total = WideSum(case.tosa)
    total.add_product(*(_operand(simulated, case.tosa, op.inputs[role], shape) for role in "ab"))
    simulated.finish(case, op, total.rounded(op.attrs["shift"]))
    return case


def _operand(simulated: Simulated, tosa: TosaGraph, name: str, shape: tuple[int, ...]) -> list[Tensor]:
    """A tensor as limbs of 32-bit TOSA tensors, in another shape of the same elements."""
    _, low, high = DTYPES[simulated.graph.values[name].dtype]
    return limbs(tosa, tosa.reshape(simulated.feed(tosa, name, "i32"), shape), limb_count(low, high))


def table(simulated: Simulated, op: Op) -> Case:
    """TABLE, then RESCALE with a 16-bit multiplier, or a 32-bit one where it has 16 bits without a sign."""
    case = Case()
    x = simulated.feed(case.tosa, op.inputs["x"], "i16")
    looked_up = case.tosa.table(x, simulated.whole(op.inputs["table"]))
    multiplier, shift = op.attrs["multiplier"], op.attrs["shift"]
    simulated.finish(case, op, case.tosa.rescale(looked_up, multiplier, shift, scale32=multiplier > 32767))
    return case
