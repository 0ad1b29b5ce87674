"""What every part of the lowering shares: the quantized model, the graph being built, and the common operations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Builder, Value
from compiler.lower.scales import (
    Activation,
    common_shift,
    fraction_bits,
    multiplier_shift,
    multipliers_shifts,
    spline_knots,
)
from models.quantize import QuantizedLinear, QuantizedModel
from npusim.errors import UserError
from npusim.isa.table import ENTRIES as TABLE_ENTRIES

BRANCHES = 2
CONST_FRACTION_BITS = 24
"""Time-embedding constants are int32 with this many fractional bits."""
IMMEDIATE_BITS = 24
"""Width of immediate multipliers: a 16-bit one would itself cost up to one step of a 16-bit result."""
BIAS_BITS = 32
"""A bias, in steps of its channel's accumulator, fits this many signed bits: see ``coarsened``."""


def gelu_tanh(x: NDArray[Any]) -> NDArray[Any]:
    """GELU, tanh form, as the model's MLPs use it."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


def coarsened(q: QuantizedLinear, in_scale: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weight steps (n,) and weights on their unsigned grid (n, k), with every bias within ``BIAS_BITS``.

    A channel without weights has a step as small as float64 allows (``models.grid.MIN_STEP``), in which its bias would
    be a number that no accumulator holds. Such a channel gets the step that its bias needs; its weights are rounded to
    it, to nothing in general. All other channels stay as they are.
    """
    w = q.weights[0]
    most = (1 << (BIAS_BITS - 1)) - 1
    needed = np.abs(q.bias) / (most * in_scale)
    small = needed > w.scale
    step = np.where(small, needed, w.scale)
    weight = w.q.astype(np.int64)
    ratio = (w.scale / step)[small, None]
    zero_point = w.zero_point[small, None]
    weight[small] = np.rint((weight[small] - zero_point) * ratio).astype(np.int64) + zero_point
    return step, weight


def check_linears(qm: QuantizedModel) -> None:
    """Refuse linears that no lowering exists for yet. Raises UserError with the method, the layer and the reason."""
    for name, q in qm.linears.items():
        bits, act_bits = q.weights[0].bits, int(q.act_bits[0])
        reasons = {
            "quantizes activations at run time": q.dynamic,
            "smooths its input": q.smoothed,
            f"has {bits}-bit weights, not 8": bits != 8,
            f"has {act_bits}-bit inputs, not 8 or 16": act_bits not in (8, 16),
        }
        for reason, holds in reasons.items():
            if holds:
                raise UserError(f"method {qm.method!r}: {name} {reason}; {COMPILED}")


COMPILED = "the compiler takes cw_tw and cw_tw_gptq with 8-bit weights, 8- or 16-bit activations, one time range"


class Lowering:
    """The graph builder with the quantized model's scales at hand. ``attention_bits``: 8 or 16, width of q, k, v."""

    def __init__(self, qm: QuantizedModel, attention_bits: int) -> None:
        if qm.num_ranges != 1:
            raise UserError(f"method {qm.method!r}: {qm.num_ranges} time ranges; {COMPILED}")
        check_linears(qm)
        self.qm, self.attention_bits = qm, attention_bits
        config = qm.config
        self.frames, height, width = (int(n) for n in config["input_size"])
        patch = config["patch_size"]
        if list(patch) != [1, 2, 2]:
            raise UserError(f"patch_size {list(patch)}: the compiler takes [1, 2, 2]")
        if int(config["in_channels"]) != 4:
            raise UserError(f"in_channels {config['in_channels']}: the compiler takes 4")
        if not config["pred_sigma"]:
            raise UserError(f"pred_sigma {config['pred_sigma']}: the compiler takes True")
        for key in ("num_sampling_steps", "cfg_scale", "cfg_channels"):
            if key not in qm.iddpm:
                raise UserError(f"quantized model has no sampler setting {key!r}")
        self.positions = (height // 2) * (width // 2)
        self.tokens = self.frames * self.positions
        self.hidden, self.heads, self.depth = int(config["hidden_size"]), int(config["num_heads"]), int(config["depth"])
        self.text_length = int(config["model_max_length"])
        self.build = Builder(qm.num_steps, BRANCHES, self.frames, self.positions)

    def absmax(self, point: str) -> float:
        """Largest calibrated magnitude at a point."""
        if point not in self.qm.point_absmax:
            raise UserError(f"quantized model has no calibrated point {point!r}")
        return float(self.qm.point_absmax[point].max())

    def linear_input(self, layer: str) -> Activation:
        """The grid of a linear's input: unsigned for 8 bits, shifted to the signed range for 16."""
        q = self.qm.linears[layer]
        if q.act_bits[0] == 8:
            return Activation("u8", float(q.act_scale[0]), int(q.act_zp[0]))
        return Activation("i16", float(q.act_scale[0]), int(q.act_zp[0]) - 32768)

    def value(self, name: str, rows: int, cols: int, kind: Activation) -> Value:
        return Value(name, (rows, cols), kind.dtype, scale=kind.scale, zero_point=kind.zero_point)

    def linear(
        self, layer: str, x: str, out: str, kind: Activation, channel_scale: NDArray[np.float64] | None = None,
        order: NDArray[np.int64] | None = None,
    ) -> str:  # fmt: skip
        """Add a quantized linear.

        ``channel_scale`` gives each output channel its own scale, ``order`` permutes the output channels. Channels
        whose weights are next to nothing beside their bias get coarser weights (``coarsened``).
        """
        q: QuantizedLinear = self.qm.linears[layer]
        pick = np.arange(len(q.bias)) if order is None else order
        source = self.build.values[x]
        out_scale = np.full(len(pick), kind.scale) if channel_scale is None else channel_scale
        weight_step, weight = coarsened(q, source.scale)
        step = source.scale * weight_step[pick]
        multiplier, shift = multipliers_shifts(step / out_scale, layer)
        bias = np.rint(q.bias[pick] / step).astype(np.int64)
        return self.build.linear(
            layer, x, weight[pick].astype(np.uint8), self.value(out, source.shape[0], len(pick), kind),
            multiplier=multiplier, shift=shift, bias=bias, weight_zp=q.weights[0].zero_point[pick].astype(np.int64),
        )  # fmt: skip

    def convert(self, layer: str, a: str, out: str | Value) -> str:
        """Change of scale, zero point and type of one symmetric tensor."""
        source = self.build.values[a]
        target = self.build.values[out] if isinstance(out, str) else out
        bits = 31 if source.dtype == "i32" else IMMEDIATE_BITS
        multiplier, shift = multiplier_shift(source.scale / target.scale, bits, layer)
        return self.build.rescale(layer, a, out, multiplier=multiplier, shift=shift)

    def add(self, layer: str, a: str, b: str, out: str | Value, b_rows: str = "") -> str:
        """Sum of two symmetric tensors of any scales, with one rounding."""
        target = self.build.values[out] if isinstance(out, str) else out
        factors = [self.build.values[name].scale / target.scale for name in (a, b)]
        shift = common_shift(max(factors), IMMEDIATE_BITS)
        a_mul, b_mul = (round(f * 2.0**shift) for f in factors)
        return self.build.sum(layer, a, b, out, a_mul=a_mul, b_mul=b_mul, shift=shift, b_rows=b_rows)

    def gated_add(self, layer: str, x: str, branch: str, gate: tuple[str, int], largest_gate: float, out: Value) -> str:
        """``x + branch * gate`` with the gate's channels from a table of per-step constants (see ``time_vector``)."""
        factor = self.build.values[branch].scale / out.scale
        ratio = self.build.values[x].scale / out.scale
        shift = max(common_shift(factor * largest_gate), 4)  # 4: the ratio is a number of sixteenths
        name = self.time_vector(f"{out.name}.gate", gate, factor * 2.0**shift, "i16")
        return self.build.sum(layer, x, branch, out, a_mul=round(ratio * 2.0**shift), b_mul=name, shift=shift)

    def time_vector(self, name: str, source: tuple[str, int], factor: float, dtype: str, offset: float = 0.0) -> str:
        """``(row + offset) * factor`` as an integer per channel; ``source``: a fixed-point table and its row."""
        table, row = source
        multiplier, shift = multiplier_shift(factor * 2.0**-CONST_FRACTION_BITS, 31, name)
        attrs = {
            "row": row,
            "offset": round(offset * 2**CONST_FRACTION_BITS),
            "multiplier": multiplier,
            "shift": shift,
        }
        value = Value(name, (self.hidden,), dtype, scale=1 / factor)
        return self.build.op("const_scale", name, {"a": table}, value, **attrs)

    def time_table(
        self, name: str, fixed: NDArray[np.float64], per_step: NDArray[np.float64]
    ) -> tuple[str, NDArray[np.float64]]:
        """Sum of a learned table (rows, C) and per-step values (steps, rows, C), as fixed point.

        Returns the name and the real sum (steps, rows, C).
        """
        scale = 2.0**-CONST_FRACTION_BITS
        learned = self.build.const(f"{name}.learned", np.rint(fixed / scale).astype(np.int64), "i32", scale)
        stepwise = f"{name.split('.')[-1]}.time"
        if stepwise not in self.build.values:
            self.build.const(stepwise, np.rint(per_step / scale).astype(np.int64), "i32", scale, per_step=True)
        table = Value(name, fixed.shape, "i32", scale=scale)
        self.build.op("const_add", name, {"a": learned, "b": stepwise}, table)
        return name, fixed[None] + per_step

    def norm_modulate(
        self, layer: str, x: str, out: str, kind: Activation, table: str, rows: tuple[int, int],
        real: NDArray[np.float64],
    ) -> str:  # fmt: skip
        """LayerNorm, then ``* (1 + scale) + shift``; ``rows`` are those of (shift, scale) in ``table`` = ``real``."""
        source = self.build.values[x]
        bits = min(15, fraction_bits(self.absmax(f"{layer}:out")))
        columns = source.shape[1]
        epsilon = max(1, round(1e-6 * columns**2 / source.scale**2))
        g_factor = 2.0**-bits / kind.scale
        largest = float(np.abs(1 + real[:, rows[1]]).max()) * g_factor
        offset = float(np.abs(real[:, rows[0]]).max()) / kind.scale
        shift = min(common_shift(largest), common_shift(offset, bits=31))
        g = self.time_vector(f"{out}.g", (table, rows[1]), g_factor * 2.0**shift, "i16", offset=1.0)
        b = self.time_vector(f"{out}.b", (table, rows[0]), 2.0**shift / kind.scale, "i32")
        value = self.value(out, source.shape[0], columns, kind)
        return self.build.layernorm(layer, x, g, b, value, epsilon=epsilon, fraction_bits=bits, shift=shift)

    def gelu(self, layer: str, x: str, out: str, kind: Activation) -> str:
        """GELU (tanh form) by the 513-entry interpolating table."""
        source = self.build.values[x]
        samples = np.arange(-1, TABLE_ENTRIES + 1) * 128.0 - 32768.0
        knots = spline_knots(gelu_tanh((samples - source.zero_point) * source.scale))
        # GELU is nearly all positive: entries count from the middle of its range, by whole steps of the output.
        centre = round((knots.max() + knots.min()) / 2 / kind.scale)
        knots = knots - centre * kind.scale
        # The entries' step follows from the multiplier, not the other way round: so the multiplier is exact.
        multiplier, shift = multiplier_shift(np.abs(knots).max() / 32700 / 128 / kind.scale, 16, layer)
        step = multiplier * 2.0**-shift * 128 * kind.scale
        table = self.build.const(f"{out}.table", np.rint(knots / step).astype(np.int64), "i16", step)
        value = self.value(out, source.shape[0], source.shape[1], kind)
        return self.build.table(layer, x, table, value, multiplier=multiplier, shift=shift, offset=centre)
