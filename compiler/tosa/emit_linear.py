"""Linears: the product with zero points, input shifts and bias; then one factor by channel, or two.

Inputs of 4 and 6 bits are 8-bit tensors here, with values of their own range: TOSA's MATMUL takes no fewer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Op
from compiler.semantics import gains
from compiler.tosa.emit import Array, Case, Cut, Simulated, finished
from compiler.tosa.tosa_graph import Tensor, TosaGraph
from npusim import numerics
from npusim.isa.encoding import ELEMENT_BITS
from npusim.isa.matmul import bias_of

BIAS_UNIT = 1 << 14
MOST_BIAS_COLUMNS = 1024
MOST_NARROW_INPUTS = 1 << 15
"""Inputs of a linear whose products and row sums, times a zero point, stay below 2^31 with certainty."""
ROW_RECIPROCAL = (
    "reciprocal of the row's range by Newton steps in 64 bits, and how far its factor is shifted: TOSA's integers end "
    "at 32 bits"
)


def linear(simulated: Simulated, op: Op) -> Case | Cut:
    """MATMUL, zero points and bias, RESCALE by channel with multipliers of 16 bits, or of 32 where there are any."""
    records = simulated.whole(op.inputs["records"])
    case = Case()
    acc = _accumulator(simulated, op, case.tosa, bias_of(records))
    if isinstance(acc, Cut):
        return acc
    scale32 = bool((records["multiplier"] > 32767).any())
    if scale32 and acc.kind == "i48":
        # RESCALE takes 16 bits there. Machines with 32-bit multipliers have accumulators of at most 32 bits: 4 / 2^2.
        acc = case.tosa.rescale(acc, 4, 2)
    simulated.finish(case, op, case.tosa.rescale(acc, records["multiplier"], records["shift"], scale32=scale32))
    return case


def linear_factored(simulated: Simulated, op: Op) -> Case | Cut:
    """MATMUL, RESCALE by channel, RESCALE of the layer, bias, rounding."""
    records, scalars = simulated.whole(op.inputs["records"]), simulated.whole(op.inputs["scalars"])[0]
    case = Case()
    acc = _accumulator(simulated, op, case.tosa, np.zeros(len(records), np.int64), int(scalars["zero_point"]))
    if isinstance(acc, Cut):
        return acc
    first = case.tosa.rescale(acc, records["multiplier"], records["shift"])
    second = case.tosa.rescale(first, scalars["multiplier"], scalars["shift"])
    simulated.finish(case, op, biased(case.tosa, second, records["bias"], op.attrs["fraction_bits"]))
    return case


def linear_dynamic(simulated: Simulated, op: Op) -> list[Case | Cut]:
    """Quantization of the rows, but for their reciprocals, and the product with RESCALEs by channel and by row."""
    cut = Cut(f"{op.output}: row reciprocals and shifts", ROW_RECIPROCAL)
    return [_quantized_rows(simulated, op), cut, _dynamic_product(simulated, op)]


def _quantized_rows(simulated: Simulated, op: Op) -> Case:
    """Zero points, quantized rows and factors of RTQUANT: RESCALE by row with 32-bit multipliers.

    Reciprocals never reach the machine's memory: they are ``npusim.numerics``'s.
    """
    case, attrs, top = Case(), op.attrs, (1 << op.attrs["bits"]) - 1
    tosa = case.tosa
    x = tosa.transpose(simulated.feed(tosa, op.inputs["x"], "i32"), (1, 0))  # rows as channels: the last axis
    none = tosa.scalar(0, x)
    low = tosa.minimum(tosa.reduce("REDUCE_MIN", x, 0), none)
    high = tosa.maximum(tosa.reduce("REDUCE_MAX", x, 0), none)
    rows = simulated.part(op.inputs["x"])
    reach = np.maximum(rows.max(axis=1), 0) - np.minimum(rows.min(axis=1), 0)
    mantissa, shift = numerics.reciprocal(np.maximum(reach, 1))
    zero_point = tosa.rescale(tosa.times(low, -top), mantissa, shift, scale32=True)
    case.compare(zero_point, f"{op.output}: row zero points", simulated.inner[op.output, "zero_point"][None])
    q = tosa.add(tosa.rescale(tosa.times(x, top), mantissa, shift, scale32=True), zero_point)
    case.compare(finished(tosa, q, 0, 0, top), f"{op.output}: quantized rows", simulated.inner[op.output, "q"].T)
    # The row's factor is range times multiplier, cut to 15 bits; given by how far, this is a RESCALE too.
    down = attrs["row_shift"] - simulated.inner[op.output, "shift"]
    factor = tosa.rescale(tosa.sub(high, low), np.full(len(down), attrs["row_multiplier"]), down, scale32=True)
    case.compare(factor, f"{op.output}: row multipliers", simulated.inner[op.output, "multiplier"][None])
    return case


def _dynamic_product(simulated: Simulated, op: Op) -> Case:
    records, case = simulated.whole(op.inputs["records"]), Case()
    q, zero_point, multiplier, shift = (
        simulated.inner[op.output, name] for name in ("q", "zero_point", "multiplier", "shift")
    )
    tosa = case.tosa
    centred = tosa.sub(tosa.input(q, "i32"), tosa.input(zero_point[:, None], "i32"))
    product = tosa.matmul(
        tosa.reshape(tosa.cast(centred, "i16"), (1, *q.shape)),
        tosa.const(_centred_weight(simulated, op)[None], "i16"),
    )
    first = tosa.reshape(tosa.rescale(product, records["multiplier"], records["shift"]), (len(q), len(records)))
    # A row of zeros has a factor of 0 with a shift of 1, and TOSA's begin at 2.
    second = tosa.rescale(tosa.transpose(first, (1, 0)), multiplier, np.where(multiplier == 0, 2, shift))
    second = tosa.transpose(second, (1, 0))
    simulated.finish(case, op, biased(tosa, second, records["bias"], op.attrs["fraction_bits"]))
    return case


def biased(tosa: TosaGraph, second: Tensor, bias: NDArray[np.int32], fraction_bits: int) -> Tensor:
    """``second`` plus the channel's bias, saturated to 32 bits, without its fractional bits.

    ADD must not overflow: the bias is clamped to what is left for it.
    """
    none = tosa.scalar(0, second)
    room = tosa.sub(tosa.scalar((1 << 31) - 1, second), tosa.maximum(second, none))
    depth = tosa.sub(tosa.scalar(-(1 << 31), second), tosa.minimum(second, none))
    channel = tosa.const(bias.reshape([1] * (len(second.shape) - 1) + [-1]), "i32")
    total = tosa.add(second, tosa.maximum(tosa.minimum(channel, room), depth))
    return tosa.shift_right(total, fraction_bits, rounded=True)


def _accumulator(simulated: Simulated, op: Op, tosa: TosaGraph, bias: Array, zero_point: int = 0) -> Tensor | Cut:
    """``((x - zero_point) 2^shifts) (w - weight's zero point)^T + bias``: i32, or i48 where it may need more."""
    dtype, k = simulated.graph.values[op.inputs["x"]].dtype, simulated.graph.values[op.inputs["x"]].shape[1]
    small = ELEMENT_BITS[dtype] <= 8 and k <= MOST_NARROW_INPUTS and np.abs(bias).max() < 1 << 31
    if small and "shifts" not in op.inputs:
        return _narrow_product(simulated, op, tosa, bias, zero_point)
    gain = gains(simulated.whole(op.inputs["shifts"]) if "shifts" in op.inputs else None, k)
    bias = bias - zero_point * (gain @ _centred_weight(simulated, op))
    if np.abs(bias).max() >= MOST_BIAS_COLUMNS * BIAS_UNIT * 32767:
        return Cut(op.output, f"a bias of {np.abs(bias).max()}: no TOSA product holds it")
    return _wide_product(simulated, op, tosa, bias, gain)


def _narrow_product(simulated: Simulated, op: Op, tosa: TosaGraph, bias: Array, zero_point: int) -> Tensor:
    """i8 x i8 to i32; the weight zero points through the row sums, which are a product with ones."""
    weight, records = simulated.whole(op.inputs["weight"]), simulated.whole(op.inputs["records"])
    offset = 128 if simulated.graph.values[op.inputs["x"]].dtype == "u8" else 0
    x = simulated.feed(tosa, op.inputs["x"], "i8", offset)
    x = tosa.reshape(x, (1, *x.shape))
    product = tosa.matmul(x, tosa.const(weight.T[None], "i8"), zero_point - offset)
    row_sum = tosa.matmul(x, tosa.const(np.ones((1, weight.shape[1], 1)), "i8"), zero_point - offset)
    weight_zero = records["zero_point"][None, None].astype(np.int64)
    correction = tosa.mul(row_sum, tosa.const(weight_zero, "i32"))
    return tosa.add(tosa.sub(product, correction), tosa.const(bias[None, None], "i32"))


def _wide_product(simulated: Simulated, op: Op, tosa: TosaGraph, bias: Array, gain: Array) -> Tensor:
    """i16 x i16 to i48, which has no ADD: zero points go into the weights, biases into further rows of them.

    Beside x, by channel times ``gain``, stand columns of ``BIAS_UNIT`` and one of 1; their weights add up to the bias.
    """
    high, low = np.divmod(bias, BIAS_UNIT)
    columns = max(1, -(-int(np.abs(high).max()) // 32767))
    share = np.abs(high) // columns + (np.arange(columns)[:, None] < np.abs(high) % columns)
    rows = np.concatenate([np.sign(high) * share, low[None]])
    if (gain > 1).any():
        x = simulated.feed(tosa, op.inputs["x"], "i32")
        x = tosa.cast(tosa.mul(x, tosa.const(gain[None], "i32")), "i16")
    else:
        x = simulated.feed(tosa, op.inputs["x"], "i16")
    ones = np.broadcast_to([BIAS_UNIT] * columns + [1], (x.shape[0], columns + 1))
    left = tosa.concat([x, tosa.const(ones, "i16")], 1)
    right = tosa.const(np.concatenate([_centred_weight(simulated, op), rows])[None], "i16")
    return tosa.matmul(tosa.reshape(left, (1, *left.shape)), right)


def _centred_weight(simulated: Simulated, op: Op) -> Array:
    """Weights (k, n) without their zero points, int64."""
    weight, records = simulated.whole(op.inputs["weight"]), simulated.whole(op.inputs["records"])
    return np.asarray(weight.T.astype(np.int64) - records["zero_point"])
