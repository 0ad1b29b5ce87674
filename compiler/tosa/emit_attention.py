"""Attention in three graphs: scores; exponential and its sums; weighted sum. Between the last two the division is cut.

Tensors inside have the shape (batches, query tokens, ...); a batch is a group (frame, position or branch) and a head.
"""

from __future__ import annotations

import numpy as np

from compiler.graph import Graph, Op
from compiler.tosa.emit import Case, Cut, Simulated, finished
from compiler.tosa.tosa_graph import Tensor, TosaGraph
from npusim.numerics import EXP2_KNOTS

DIVISION = "reciprocal of the row sum by Newton steps in 64 bits: TOSA's integers end at 32 bits"
SEGMENT_BITS, KNOT_BITS, WIDE_BITS = 9, 30, 16
"""Of the exponential in ``npusim/numerics.py``: bits inside a segment, of a knot, of a distance's fraction."""


def attention(simulated: Simulated, op: Op) -> list[Case | Cut]:
    division = Cut(f"{op.output}: row multipliers and shifts", DIVISION)
    return [scores(simulated, op), probabilities(simulated, op), division, weighted_sum(simulated, op)]


def by_head(simulated: Simulated, op: Op, tosa: TosaGraph, role: str, kind: str, offset: int = 0) -> Tensor:
    """Rows of q, k or v (rows, heads * width) as (batches, tokens, width)."""
    rows = simulated.feed(tosa, op.inputs[role], kind, offset)
    split, order = _walk(simulated.graph, op, rows.shape)
    cut = tosa.transpose(tosa.reshape(rows, split), order)
    return tosa.reshape(cut, (int(np.prod(cut.shape[:3])), *cut.shape[3:]))


def _walk(graph: Graph, op: Op, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape (5 axes) of rows split up, and the order (outer, inner group, head, token, channel) of its axes."""
    heads = op.attrs["heads"]
    width = shape[1] // heads
    if op.attrs["over"] == "cross":
        return (graph.branches, 1, shape[0] // graph.branches, heads, width), (0, 1, 3, 2, 4)
    split = (graph.branches, graph.frames, graph.positions, heads, width)
    return split, ((0, 1, 3, 2, 4) if op.attrs["over"] == "spatial" else (0, 2, 3, 1, 4))


def scores(simulated: Simulated, op: Op) -> Case:
    """MATMUL of queries and transposed keys, RESCALE per tensor, clamp to 16 bits."""
    case, kind = Case(), simulated.graph.values[op.inputs["q"]].dtype
    q, k = (by_head(simulated, op, case.tosa, role, kind) for role in "qk")
    product = case.tosa.matmul(q, case.tosa.transpose(k, (0, 2, 1)))
    scaled = case.tosa.rescale(product, op.attrs["logit_multiplier"], op.attrs["logit_shift"])
    result = finished(case.tosa, scaled, 0, -32768, 32767)
    case.compare(result, f"{op.output}: scores", simulated.inner[op.output, "scores"])
    return case


def probabilities(simulated: Simulated, op: Op) -> Case:
    """Row maximum, exponential of the distance to it, row sum; only the tokens that count, where text is padded."""
    case = Case()
    tosa = case.tosa
    logits = tosa.input(simulated.inner[op.output, "scores"], "i32")
    counts = None
    if "valid" in op.inputs:
        valid = tosa.reshape(simulated.feed(tosa, op.inputs["valid"], "i32"), (1, 1, 1))
        valid = tosa.maximum(valid, tosa.scalar(1, valid))
        counts = tosa.greater(valid, tosa.const(np.arange(logits.shape[2])[None, None], "i32"))
        logits = tosa.select(counts, logits, tosa.scalar(-32768, logits))
    distance = tosa.sub(tosa.reduce("REDUCE_MAX", logits, 2), logits)
    p = exponential(tosa, distance, op.attrs["fraction_bits"], op.attrs["p_bits"])
    if counts is not None:
        p = tosa.select(counts, p, tosa.scalar(0, p))
    case.compare(p, f"{op.output}: probabilities", simulated.inner[op.output, "p"])
    sums = tosa.reduce("REDUCE_SUM", tosa.input(simulated.inner[op.output, "p"], "i32"), 2)
    case.compare(sums, f"{op.output}: row sums", simulated.inner[op.output, "sums"][..., None])
    return case


def exponential(tosa: TosaGraph, distance: Tensor, fraction_bits: int, p_bits: int) -> Tensor:
    """``numerics.exp2_negative`` with no number beyond 32 bits: a product that has more is cut in two."""
    whole = tosa.shift_right(distance, fraction_bits) if fraction_bits else distance
    fraction = tosa.times(tosa.bits(distance, (1 << fraction_bits) - 1), 1 << (WIDE_BITS - fraction_bits))
    segment, rest = tosa.shift_right(fraction, SEGMENT_BITS), tosa.bits(fraction, (1 << SEGMENT_BITS) - 1)
    knot = tosa.lookup(EXP2_KNOTS, segment)
    fall = tosa.lookup(EXP2_KNOTS[:-1] - EXP2_KNOTS[1:], segment)
    # (fall * rest) >> 9 and (value * most) >> 16, each as high part times factor plus the shifted rest.
    value = tosa.sub(knot, _scaled_down(tosa, fall, rest, SEGMENT_BITS))
    most = tosa.scalar((1 << p_bits) - 1, value)
    scaled = _scaled_down(tosa, value, most, WIDE_BITS)
    # Beyond 31 bits the result is 0 in any case: ``scaled`` has at most 30.
    drop = tosa.add(whole, tosa.scalar(KNOT_BITS - WIDE_BITS, whole))
    return tosa.shift_right(scaled, tosa.minimum(drop, tosa.scalar(31, drop)), rounded=True)


def _scaled_down(tosa: TosaGraph, value: Tensor, factor: Tensor, shift: int) -> Tensor:
    """``(value * factor) >> shift`` of numbers that are not negative; ``factor`` at most 2^(31 - shift)."""
    low = tosa.mul(tosa.bits(value, (1 << shift) - 1), factor)
    return tosa.add(tosa.mul(tosa.shift_right(value, shift), factor), tosa.shift_right(low, shift))


def weighted_sum(simulated: Simulated, op: Op) -> Case:
    """MATMUL with the values, each batch RESCALEd by row with the simulator's multipliers, zero point, clamp.

    Both sides are transposed, because RESCALE scales the last axis: values (width, keys) by p (keys, query tokens).
    """
    case, attrs = Case(), op.attrs
    tosa, kind = case.tosa, "i8" if attrs["p_bits"] == 8 else "i16"
    p, multiplier, shift = (simulated.inner[op.output, name] for name in ("p", "multiplier", "shift"))
    offset = 128 if kind == "i8" else 0  # an unsigned byte, as a signed one with a zero point
    right = tosa.transpose(tosa.input(p - offset, kind), (0, 2, 1))
    left = tosa.transpose(by_head(simulated, op, tosa, "v", kind), (0, 2, 1))
    parts = []
    for batch in range(len(p)):
        a, b = (tosa.slice(t, (batch, 0, 0), (1, *t.shape[1:])) for t in (left, right))
        parts.append(tosa.rescale(tosa.matmul(a, b, b_zp=-offset), multiplier[batch], shift[batch]))
    out = tosa.transpose(tosa.concat(parts, 0), (0, 2, 1))
    split, order = _walk(simulated.graph, op, simulated.graph.values[op.output].shape)
    out = tosa.reshape(out, [split[axis] for axis in order])
    out = tosa.transpose(out, np.argsort(order).tolist())
    out = finished(tosa, out, attrs["out_zp"], *simulated.limits(op))
    simulated_out = simulated.part(op.output)
    case.compare(tosa.reshape(out, simulated_out.shape), op.output, simulated_out)
    return case
