"""Quantized linears as operations: integer weights, requantization multipliers and biases of each time range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.builder import Builder
from compiler.graph import Value
from compiler.lower.grids import Grid
from compiler.lower.scales import multiplier_shift, multipliers_shifts
from models.quantize import QuantizedLinear, QuantizedWeight

Float64 = NDArray[Any]
Pick = slice | NDArray[np.int64]
"""Output channels in the order they are wanted in."""

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
    build: Builder, layer: str, q: QuantizedLinear, grid: Grid, x: str, out: Value, out_scale: Float64, offset: Float64,
    pick: Pick,
) -> str:  # fmt: skip
    """A linear whose input lies on its calibrated grids. Arguments as of `Lowering.linear`; ``pick`` are the channels.

    Weights stay one array where all ranges share them. The other constants are those of each range if the grid changes,
    or the weights, or what the results or the bias are (``out_scale`` and ``offset``, (1 or R, n)).
    """
    several = len(q.weights) > 1
    ranges = max(len(grid.scale), len(out_scale), len(offset), len(q.set_of_range) if several else 1)
    set_of_range = q.set_of_range[:ranges]
    largest_bias = np.zeros(len(q.bias))
    largest_bias[pick] = np.abs(q.bias[pick] + offset).max(axis=0)
    sets = [
        coarsened(w, largest_bias, float(q.act_scale[q.set_of_range == index].min()))
        for index, w in enumerate(q.weights)
    ]
    step = np.stack([q.act_scale[r] * sets[s][0][pick] for r, s in enumerate(set_of_range)])
    multiplier, shift = multipliers_shifts(step / out_scale, layer)
    zero_point = np.stack([q.weights[s].zero_point[pick] for s in set_of_range]).astype(np.int64)
    weights = [sets[s][1][pick] for s in (set_of_range if several else [0])]
    x_shift = None if q.input_shift is None else q.input_shift[:ranges].astype(np.int64)

    def one(array: NDArray[Any]) -> NDArray[Any]:
        return array if ranges > 1 else np.asarray(array[0])

    return build.linear(
        layer, x, _stacked(build, weights) if several else weights[0], out, multiplier=one(multiplier),
        shift=one(shift), bias=one(np.rint((q.bias[pick] + offset) / step).astype(np.int64)), weight_zp=one(zero_point),
        weight_bits=q.weights[0].bits, x_zp=one(np.resize(grid.zero_point, (ranges, 1))),
        x_shift=0 if x_shift is None else one(x_shift),
    )  # fmt: skip


def _stacked(build: Builder, weights: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The weights of each range in one array; without memory where they mean nothing."""
    return np.stack(weights) if build.contents else np.broadcast_to(weights[0], (len(weights), *weights[0].shape))


def factored_linear(
    build: Builder, layer: str, q: QuantizedLinear, grid: Grid, x: str, out: Value, out_scale: Float64, offset: Float64,
    pick: Pick,
) -> str:  # fmt: skip
    """A linear of one weight set whose input's grid alone changes with the range. Arguments as of `static_linear`."""
    w = q.weights[0]
    gain_of = 1 << (np.zeros(1, np.int64) if q.input_shift is None else q.input_shift.max(axis=0).astype(np.int64))
    levels = (1 << int(q.act_bits[0])) - 1
    parts = two_factors(build, w, levels, gain_of, out_scale[0], q.bias[pick] + offset[0], pick, layer)
    second = multipliers_shifts((q.act_scale * parts.second)[:, None], layer)
    return build.linear_factored(
        layer, x, np.asarray(w.q)[pick], out, multiplier=parts.multiplier, shift=parts.shift, bias=parts.bias,
        weight_zp=w.zero_point[pick].astype(np.int64), weight_bits=w.bits, scale=second,
        x_zp=grid.zero_point[:, None], fraction_bits=ROW_FRACTION_BITS,
        x_shift=0 if q.input_shift is None else q.input_shift.astype(np.int64),
    )  # fmt: skip


@dataclass(frozen=True)
class TwoFactors:
    """Requantization in two factors: (multiplier, shift) and bias per channel, and what the second is, per input step.

    The bias has ``ROW_FRACTION_BITS`` fractional bits of the result's step.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    bias: NDArray[np.int64]
    second: float


def two_factors(
    build: Builder, w: QuantizedWeight, levels: int, gain_of: NDArray[np.int64], out_scale: Float64, bias: Float64,
    pick: Pick, layer: str,
) -> TwoFactors:  # fmt: skip
    """The first factor keeps the largest sum of ``levels`` times weights times ``gain_of`` (K,) within 31 bits."""
    channel = w.scale[pick] / out_scale
    rows = slice(None if build.contents else 1)  # placeholders are the same in all rows
    centred = np.abs(w.q[rows].astype(np.int64) - w.zero_point[rows, None]) * gain_of
    gain = 2.0 ** min(floor(log2(2**30 / (levels * max(int(centred.sum(axis=1).max()), 1)))), 12)
    # 12: a 16-bit multiplier with the least shift is below 2^13.
    multiplier, shift = multipliers_shifts(channel / channel.max() * gain, layer)
    fixed = np.rint(bias / out_scale * 2.0**ROW_FRACTION_BITS).astype(np.int64)
    return TwoFactors(multiplier, shift, fixed, channel.max() / gain * 2.0**ROW_FRACTION_BITS)


def dynamic_linear(
    build: Builder, layer: str, q: QuantizedLinear, grid: Grid, x: str, out: Value, out_scale: Float64, offset: Float64,
    pick: Pick,
) -> str:  # fmt: skip
    """A linear whose input, 16 bits wide, is quantized at run time row by row. Arguments as of `static_linear`.

    One time range serves all: neither the channels' factors nor the rows' depend on it.
    """
    w, act_bits = q.weights[0], int(q.act_bits[0])
    levels = (1 << act_bits) - 1
    one = np.ones(1, np.int64)
    parts = two_factors(build, w, levels, one, out_scale[0], q.bias[pick] + offset[0], pick, layer)
    return build.linear_dynamic(
        layer, x, np.asarray(w.q)[pick], out, bits=act_bits,
        row=multiplier_shift(build.values[x].scale / levels * parts.second, 32, layer), multiplier=parts.multiplier,
        shift=parts.shift, bias=parts.bias, weight_zp=w.zero_point[pick].astype(np.int64), weight_bits=w.bits,
        fraction_bits=ROW_FRACTION_BITS,
    )  # fmt: skip
