"""Graph operations as TOSA graphs, each fed with the simulator's tensors.

Every result is an i32 tensor: TOSA's output zero points end at 8 bits, so the zero point is an ADD, and CLAMP has no
32 bits, so the clamp is a MINIMUM and a MAXIMUM. Attention and LayerNorm are in ``emit_attention.py`` and
``emit_layernorm.py``.
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
from npusim.isa.matmul import bias_of

Array = NDArray[Any]
BIAS_UNIT = 1 << 14
MOST_BIAS_COLUMNS = 1024
MOST_NARROW_INPUTS = 1 << 15
"""Inputs of a linear whose products and row sums, times a zero point, stay below 2^31 with certainty."""


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
        if owner.data is None:
            return self.tensors[owner.name]
        return owner.data[self.step] if owner.kind == "step_const" else owner.data

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


def linear(simulated: Simulated, op: Op) -> Case | Cut:
    """MATMUL, zero points and bias, RESCALE by channel with 16-bit multipliers."""
    records = simulated.whole(op.inputs["records"])
    dtype = simulated.graph.values[op.inputs["x"]].dtype
    bias, weight = bias_of(records), simulated.whole(op.inputs["weight"])
    case = Case()
    if dtype in ("u8", "i8") and np.abs(bias).max() < 1 << 31 and weight.shape[1] <= MOST_NARROW_INPUTS:
        acc = _narrow_product(simulated, op, case.tosa, bias, 128 if dtype == "u8" else 0)
    elif dtype in ("u8", "i8", "i16") and np.abs(bias).max() < MOST_BIAS_COLUMNS * BIAS_UNIT * 32767:
        acc = _wide_product(simulated, op, case.tosa, bias)
    else:
        return Cut(op.output, f"a product of {dtype}, or a bias of {np.abs(bias).max()}: no TOSA product holds it")
    simulated.finish(case, op, case.tosa.rescale(acc, records["multiplier"], records["shift"]))
    return case


def _narrow_product(simulated: Simulated, op: Op, tosa: TosaGraph, bias: Array, offset: int) -> Tensor:
    """i8 x i8 to i32; the weight zero points through the row sums, which are a product with ones."""
    weight, records = simulated.whole(op.inputs["weight"]), simulated.whole(op.inputs["records"])
    x = simulated.feed(tosa, op.inputs["x"], "i8", offset)
    x = tosa.reshape(x, (1, *x.shape))
    product = tosa.matmul(x, tosa.const(weight.T[None], "i8"), -offset)
    row_sum = tosa.matmul(x, tosa.const(np.ones((1, weight.shape[1], 1)), "i8"), -offset)
    zero_point = records["zero_point"][None, None].astype(np.int64)
    correction = tosa.mul(row_sum, tosa.const(zero_point, "i32"))
    return tosa.add(tosa.sub(product, correction), tosa.const(bias[None, None], "i32"))


def _wide_product(simulated: Simulated, op: Op, tosa: TosaGraph, bias: Array) -> Tensor:
    """i16 x i16 to i48, which has no ADD: zero points go into the weights, biases into further rows of them.

    Beside x stand columns of ``BIAS_UNIT`` and one of 1; their weights add up to the bias.
    """
    weight, records = simulated.whole(op.inputs["weight"]), simulated.whole(op.inputs["records"])
    high, low = np.divmod(bias, BIAS_UNIT)
    columns = max(1, -(-int(np.abs(high).max()) // 32767))
    share = np.abs(high) // columns + (np.arange(columns)[:, None] < np.abs(high) % columns)
    rows = np.concatenate([np.sign(high) * share, low[None]])
    centred = weight.T.astype(np.int64) - records["zero_point"]
    x = simulated.feed(tosa, op.inputs["x"], "i16")
    ones = np.broadcast_to([BIAS_UNIT] * columns + [1], (x.shape[0], columns + 1))
    left = tosa.concat([x, tosa.const(ones, "i16")], 1)
    right = tosa.const(np.concatenate([centred, rows])[None], "i16")
    return tosa.matmul(tosa.reshape(left, (1, *left.shape)), right)


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
    """TABLE, then RESCALE with a 16-bit multiplier."""
    case = Case()
    x = simulated.feed(case.tosa, op.inputs["x"], "i16")
    looked_up = case.tosa.table(x, simulated.whole(op.inputs["table"]))
    simulated.finish(case, op, case.tosa.rescale(looked_up, op.attrs["multiplier"], op.attrs["shift"]))
    return case
