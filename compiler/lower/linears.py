"""Quantized linears as operations: integer weights, requantization multipliers and biases of each time range."""

from __future__ import annotations

from math import floor, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Builder, Value
from compiler.lower.grids import same_bits
from compiler.lower.scales import multiplier_shift, multipliers_shifts
from models.quantize import QuantizedLinear, QuantizedWeight

Float64 = NDArray[Any]

BIAS_BITS = 32
"""A bias, in steps of its channel's accumulator, fits this many signed bits: see ``coarsened``."""
ROW_FRACTION_BITS = 12
"""Fractional bits of the result's step behind the row's multiplier, where inputs are quantized at run time."""


def coarsened(w: QuantizedWeight, bias: Float64, in_scale: float) -> tuple[Float64, NDArray[np.uint8]]:
    """Weight steps (n,) and weights on their unsigned grid (n, k), with every bias within ``BIAS_BITS``.

    A channel without weights has a step as small as float64 allows (``models.grid.MIN_STEP``), in which its bias would
    be a number that no accumulator holds. Such a channel gets the step that its bias needs; its weights are rounded to
    it, to nothing in general. All other channels stay as they are.
    """
    most = (1 << (BIAS_BITS - 1)) - 1
    needed = np.abs(bias) / (most * in_scale)
    small = needed > w.scale
    step = np.where(small, needed, w.scale)
    weight = np.asarray(w.q)
    if small.any():
        weight = weight.copy()
        zero_point = w.zero_point[small, None]
        ratio = (w.scale / step)[small, None]
        weight[small] = np.rint((weight[small] - zero_point) * ratio).astype(np.int64) + zero_point
    return step, weight


def static_linear(
    build: Builder, layer: str, q: QuantizedLinear, x: str, out: Value, out_scale: Float64, offset: Float64,
    pick: NDArray[np.int64],
) -> str:  # fmt: skip
    """A linear whose input lies on its calibrated grids. Arguments as of `Lowering.linear`; ``pick`` are the channels.

    Weights stay one array where all ranges share them; what is equal in all ranges becomes a constant.
    """
    same_bits(layer, q)
    ranges = len(q.set_of_range)
    out_scale, offset = (np.broadcast_to(a, (ranges, len(pick))) for a in (out_scale, offset))
    largest_bias = np.zeros_like(q.bias)
    largest_bias[pick] = np.abs(q.bias[pick] + offset).max(axis=0)
    sets = [
        coarsened(w, largest_bias, float(q.act_scale[q.set_of_range == index].min()))
        for index, w in enumerate(q.weights)
    ]
    step = np.stack([q.act_scale[r] * sets[s][0][pick] for r, s in enumerate(q.set_of_range)])
    multiplier, shift = multipliers_shifts(step / out_scale, layer)
    bits = q.weights[0].bits
    weights = [sets[s][1][pick] for s in (q.set_of_range if len(sets) > 1 else [0])]
    zero_points = [q.weights[s].zero_point[pick].astype(np.int64) for s in q.set_of_range]
    return build.linear(
        layer, x, np.stack(weights) if len(sets) > 1 else weights[0], out, multiplier=multiplier, shift=shift,
        bias=np.rint((q.bias[pick] + offset) / step).astype(np.int64), weight_zp=np.stack(zero_points),
        weight_bits=bits, x_zp=(q.act_zp - (32768 if q.act_bits[0] == 16 else 0))[:, None],
        x_shift=0 if q.input_shift is None else q.input_shift.astype(np.int64),
    )  # fmt: skip


def dynamic_linear(
    build: Builder, layer: str, q: QuantizedLinear, x: str, out: Value, out_scale: Float64, offset: Float64,
    pick: NDArray[np.int64],
) -> str:  # fmt: skip
    """A linear whose input, 16 bits wide, is quantized at run time row by row. Arguments as of `static_linear`.

    The sum is brought to 31 bits by a multiplier per channel, then to the result by the row's own. One time range
    serves all: neither of them depends on it.
    """
    same_bits(layer, q)
    w, act_bits = q.weights[0], int(q.act_bits[0])
    levels = (1 << act_bits) - 1
    scale = np.broadcast_to(out_scale, (len(q.set_of_range), len(pick)))[0]
    channel = w.scale[pick] / scale
    centred = np.abs(w.q.astype(np.int64) - w.zero_point[:, None])
    most = levels * max(int(centred.sum(axis=1).max()), 1)
    gain = 2.0 ** min(floor(log2(2**30 / most)), 12)  # a 16-bit multiplier with the least shift is below 2^13
    multiplier, shift = multipliers_shifts((channel / channel.max() * gain)[None], layer)
    row = build.values[x].scale / levels * channel.max() / gain * 2.0**ROW_FRACTION_BITS
    bias = np.rint((q.bias[pick] + offset) / scale * 2.0**ROW_FRACTION_BITS).astype(np.int64)
    return build.linear_dynamic(
        layer, x, np.asarray(w.q)[pick], out, bits=act_bits, row=multiplier_shift(row, 32, layer),
        multiplier=multiplier[0], shift=shift[0], bias=bias.reshape(-1), weight_zp=w.zero_point[pick].astype(np.int64),
        weight_bits=w.bits, fraction_bits=ROW_FRACTION_BITS,
    )  # fmt: skip
