"""What every part of the lowering shares: the quantized model, the graph being built, and the common operations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.builder import Builder
from compiler.graph import Value
from compiler.lower.grids import Grid, grid_of
from compiler.lower.linears import dynamic_linear, factored_linear, static_linear
from compiler.lower.scales import (
    Activation,
    common_shift,
    fraction_bits,
    multiplier_shift,
    spline_knots,
    symmetric,
)
from models.quantize import QuantizedModel
from npusim.errors import UserError
from npusim.isa.table import ENTRIES as TABLE_ENTRIES

Float64 = NDArray[Any]

BRANCHES = ("conditional", "unconditional")
IMMEDIATE_BITS = 24
"""Width of multipliers that are immediate or per channel: 16 bits would cost up to one step of a 16-bit result."""


def gelu_tanh(x: Float64) -> Float64:
    """GELU, tanh form, as the model's MLPs use it."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


class Lowering:
    """The graph builder with the quantized model's scales at hand.

    ``attention_bits``: 8 or 16, width of q, k, v. ``factored``: requantize in two factors what changes with the time
    range by one number only. ``branches``: names of the guidance branches, in the order of their rows.
    """

    def __init__(self, qm: QuantizedModel, attention_bits: int, factored: bool, branch: str | None = None) -> None:
        if branch not in (None, *BRANCHES):
            raise UserError(f"branch = {branch!r}: allowed {', '.join(BRANCHES)}, or both where it is not given")
        self.branches = BRANCHES if branch is None else (branch,)
        self.qm, self.attention_bits, self.factored = qm, attention_bits, factored and qm.num_ranges > 1
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
        ranges = qm.range_of_step.tolist()
        self.build = Builder(qm.num_steps, len(self.branches), self.frames, self.positions, ranges, qm.contents)

    def absmax(self, point: str) -> float:
        """Largest calibrated magnitude at a point."""
        if point not in self.qm.point_absmax:
            raise UserError(f"quantized model has no calibrated point {point!r}")
        return float(self.qm.point_absmax[point].max())

    def linear_input(self, layer: str) -> Grid:
        """The grid of a linear's input."""
        q = self.qm.linears[layer]
        return grid_of(layer, q, self.absmax(f"{layer}:{'divided' if q.dynamic else 'in'}"))

    def value(self, name: str, rows: int, cols: int, kind: Activation | Grid) -> Value:
        """A tensor that is still to be added to the graph."""
        if isinstance(kind, Grid):
            return Value(name, (rows, cols), kind.dtype, scale=float(kind.scale[0]), zero_point=kind.common)
        return Value(name, (rows, cols), kind.dtype, scale=kind.scale, zero_point=kind.zero_point)

    def linear(
        self, layer: str, x: str, out: str, kind: Activation, channel_scale: Float64 | None = None,
        offset: Float64 | None = None, order: NDArray[np.int64] | None = None,
    ) -> str:  # fmt: skip
        """Add a quantized linear.

        ``channel_scale``, (n,) or (1 or R, n), gives each output channel its own scale, ``offset`` likewise a real
        number beside the bias; ``order`` permutes the output channels.
        """
        q = self.qm.linears[layer]
        pick = slice(None) if order is None else order
        count = len(q.bias[pick])
        target = self.value(out, self.build.values[x].shape[0], count, kind)
        scale = np.atleast_2d(np.full(count, kind.scale) if channel_scale is None else channel_scale)
        added = np.zeros((1, count)) if offset is None else offset
        make = dynamic_linear if q.dynamic else factored_linear if self.factors(layer) else static_linear
        return make(self.build, layer, q, self.linear_input(layer), x, target, scale, added, pick)

    def factors(self, layer: str) -> bool:
        """Whether a linear is requantized in two factors: its input's grid changes, its weights do not."""
        q = self.qm.linears[layer]
        return self.factored and not q.dynamic and len(q.weights) == 1 and self.linear_input(layer).changes

    def quantized(self, layer: str, a: str, out: str | Value) -> str:
        """A symmetric tensor as the input of the linear ``layer``, in a new tensor or a view ``out``.

        A linear that quantizes its input at run time takes a 16-bit tensor as it is, unless it is smoothed.
        """
        q, grid = self.qm.linears[layer], self.linear_input(layer)
        if q.dynamic and not q.smoothed and isinstance(out, Value):
            return a
        factors = self.build.values[a].scale / grid.units
        if not grid.changes and not grid.smoothed:
            bits = 31 if self.build.values[a].dtype == "i32" else IMMEDIATE_BITS
            multiplier, shift = multiplier_shift(float(factors[0, 0]), bits, layer)
            return self.build.rescale(layer, a, out, multiplier=multiplier, shift=shift)
        shift = shared_shift(factors, grid)
        a_mul = self.multipliers(out, "a_mul", factors, grid, shift)
        return self.build.rescale(layer, a, out, multiplier=a_mul, shift=shift, bias=bias_of(grid, shift))

    def quantized_sum(self, layer: str, a: str, b: str, out: Value, b_rows: str) -> str:
        """The sum of two symmetric tensors as the input of the linear ``layer``, with one rounding."""
        grid = self.linear_input(layer)
        factors = [self.build.values[name].scale / grid.units for name in (a, b)]
        if not grid.changes and not grid.smoothed:
            return self.add(layer, a, b, out, b_rows)
        shift = shared_shift(np.stack(factors), grid)
        a_mul, b_mul = (self.multipliers(out, f"{r}_mul", f, grid, shift) for r, f in zip("ab", factors, strict=True))
        bias = bias_of(grid, shift)
        return self.build.sum(layer, a, b, out, a_mul=a_mul, b_mul=b_mul, shift=shift, bias=bias, b_rows=b_rows)

    def multipliers(self, out: str | Value, role: str, factors: Float64, grid: Grid, shift: int) -> str:
        """A constant of 32-bit multipliers, of each range or of all: one for each channel, or for all channels."""
        name = out if isinstance(out, str) else out.name
        numbers = np.rint((factors if grid.smoothed else factors[:, :1]) * 2.0**shift).astype(np.int64)
        return self.by_range(f"{name}.{role}", numbers, "i32", grid)

    def by_range(self, name: str, numbers: NDArray[np.int64], dtype: str, grid: Grid) -> str:
        """A constant (R, ..) of each time range where the grid changes, else (1, ..) of all."""
        if grid.changes:
            return self.build.const(name, numbers, dtype, per="range")
        return self.build.const(name, numbers[0], dtype)

    def add(self, layer: str, a: str, b: str, out: str | Value, b_rows: str = "") -> str:
        """Sum of two symmetric tensors of any scales, with one rounding."""
        target = self.build.values[out] if isinstance(out, str) else out
        factors = [self.build.values[name].scale / target.scale for name in (a, b)]
        shift = common_shift(max(factors), IMMEDIATE_BITS)
        a_mul, b_mul = (round(f * 2.0**shift) for f in factors)
        return self.build.sum(layer, a, b, out, a_mul=a_mul, b_mul=b_mul, shift=shift, b_rows=b_rows)

    def gated_add(self, layer: str, x: str, branch: str, gate: Float64, out: Value) -> str:
        """``x + branch * gate``; ``gate``: (steps, C)."""
        factor = self.build.values[branch].scale / out.scale
        ratio = self.build.values[x].scale / out.scale
        shift = max(common_shift(factor * float(np.abs(gate).max())), 12)  # 12: the ratio is a number of 4096ths
        name = self.by_step(f"{out.name}.gate", gate * factor * 2.0**shift, "i16", 2.0**-shift / factor)
        return self.build.sum(layer, x, branch, out, a_mul=round(ratio * 2.0**shift), b_mul=name, shift=shift)

    def by_step(self, name: str, numbers: Float64, dtype: str, scale: float = 1.0) -> str:
        """A vector for each step, rounded to integers."""
        return self.build.const(name, np.rint(numbers).astype(np.int64), dtype, scale, per="step")

    def norm_modulate(self, layer: str, x: str, out: str, linear: str, add: Float64, scale: Float64) -> str:
        """LayerNorm, then ``* (1 + scale) + add``, both (steps, C), as the input of the layer ``linear``."""
        source, grid = self.build.values[x], self.linear_input(linear)
        bits = min(15, fraction_bits(self.absmax(f"{layer}:out")))
        columns = source.shape[1]
        epsilon = max(1, round(1e-6 * columns**2 / source.scale**2))
        rows = grid.by_step(self.qm.range_of_step)
        units = grid.units[rows]
        g, b = (1 + scale) * 2.0**-bits / units, add / units + grid.offset[rows]
        shift = min(common_shift(float(np.abs(g).max())), common_shift(float(np.abs(b).max()), bits=31))
        g_name, b_name = (
            self.by_step(f"{out}.g", g * 2.0**shift, "i16"),
            self.by_step(f"{out}.b", b * 2.0**shift, "i32"),
        )
        value = self.value(out, source.shape[0], columns, grid)
        return self.build.layernorm(layer, x, g_name, b_name, value, epsilon=epsilon, fraction_bits=bits, shift=shift)

    def gelu(self, layer: str, x: str, out: str, linear: str) -> str:
        """GELU (tanh form) by the 513-entry interpolating table, as the input of the layer ``linear``.

        A table knows no channels: where that input is smoothed, it becomes a 16-bit tensor first.
        """
        grid = self.linear_input(linear)
        if self.qm.linears[linear].smoothed:
            kind = symmetric(self.absmax(f"{linear}:in"))
            whole = Grid(kind.dtype, np.array([kind.scale]), np.zeros(1, np.int64), np.ones((1, 1)), False)
            name = self._gelu_table(layer, x, f"{out}.whole", whole)
            rows, cols = self.build.values[x].shape
            return self.quantized(linear, name, self.value(out, rows, cols, grid))
        return self._gelu_table(layer, x, out, grid)

    def _gelu_table(self, layer: str, x: str, out: str, grid: Grid) -> str:
        source = self.build.values[x]
        samples = np.arange(-1, TABLE_ENTRIES + 1) * 128.0 - 32768.0
        # One step of the result, and what lies above the common zero point, in each range: entries follow the range.
        knots = spline_knots(gelu_tanh((samples - source.zero_point) * source.scale)) / grid.units[:, :1] + grid.offset
        # GELU is nearly all positive: entries count from the middle of its range, by whole steps of the output.
        centre = round((knots.max() + knots.min()) / 2)
        knots = knots - centre
        # The entries' step follows from the multiplier, not the other way round: so the multiplier is exact.
        multiplier, shift = multiplier_shift(np.abs(knots).max() / 32700 / 128, 16, layer)
        entries = np.rint(knots / (multiplier * 2.0**-shift * 128)).astype(np.int64)
        table = self.by_range(f"{out}.table", entries, "i16", grid)
        value = self.value(out, source.shape[0], source.shape[1], grid)
        return self.build.table(layer, x, table, value, multiplier=multiplier, shift=shift, offset=centre)


def bias_of(grid: Grid, shift: int) -> NDArray[np.int64] | int:
    """The bias (R, 1) of a conversion to a grid whose zero point changes with the range; 0 if none does."""
    return grid.offset << shift if grid.changes else 0


def shared_shift(factors: Float64, grid: Grid) -> int:
    """The right shift with which all factors have up to ``IMMEDIATE_BITS``, and the zero points fit a 32-bit bias."""
    largest = float(np.abs(grid.offset).max())
    return min(common_shift(float(factors.max()), IMMEDIATE_BITS, most=40), common_shift(largest, bits=31, most=40))
