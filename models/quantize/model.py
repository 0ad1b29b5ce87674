"""What quantization makes: integer linears and the constants of a quantized STDiT, all that a compiler needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.grid import AsymmetricGrid, Float64, Int64
from models.quantize.weights import QuantizedWeight


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear layer y = x W^T + b on integer grids, with parameters that may differ by time range (R of them).

    In range r, with the weights w = `weight(r)`:

        x' = x / divisor(r)                                 per input channel; divisor = w.smoothing * 2^input_shift
        q  = grid index of x' on act_grid(r)                one grid for the whole tensor
        y  = sum over k of ((q - act_zp) << input_shift) * act_scale * (w.q - w.zero_point) * w.scale + bias

    A dynamic layer has no activation grids: every row of x' gets one when it runs, by its least and largest value.
    The patch embedding is the linear over the patch inputs in (channel, patch row, patch column) order.

    weights: the different weight sets, each once; set_of_range: (R,) int64, which of them a range uses.
    bias: (N,) float64, not quantized here.
    act_bits: (R,) int64, bits of the input grid.
    act_scale: (R,) float64 and act_zp: (R,) int64, the input grids; (0,) if dynamic.
    input_shift: (R, K) uint8 in 0..3, the left shift of each input channel before the multiplier; None without.
    """

    weights: tuple[QuantizedWeight, ...]
    set_of_range: Int64
    bias: Float64
    act_bits: Int64
    act_scale: Float64
    act_zp: Int64
    input_shift: NDArray[np.uint8] | None = None

    @property
    def dynamic(self) -> bool:
        """Whether the input grids are found at run time, per token."""
        return len(self.act_scale) == 0

    @property
    def smoothed(self) -> bool:
        """Whether any range divides the input channels."""
        return self.input_shift is not None or any((weight.smoothing != 1.0).any() for weight in self.weights)

    def weight(self, time_range: int) -> QuantizedWeight:
        """The weight set of a time range."""
        return self.weights[int(self.set_of_range[time_range])]

    def divisor(self, time_range: int) -> Float64:
        """What the input channels are divided by in a time range, (K,)."""
        smoothing = self.weight(time_range).smoothing
        return smoothing if self.input_shift is None else np.ldexp(smoothing, self.input_shift[time_range])

    def act_grid(self, time_range: int) -> AsymmetricGrid:
        """The grid of the divided input in a time range (scalars); not of a dynamic layer."""
        return AsymmetricGrid(int(self.act_bits[time_range]), self.act_scale[time_range], self.act_zp[time_range])


@dataclass(frozen=True)
class QuantizedModel:
    """All that a compiler needs of a quantized STDiT; a file of its own (`save`, `load`).

    method, weight_bits, act_bits: as asked for, of the block linears; single layers may differ (`overrides`), and the
    linears in `SIDE_LINEARS` have 8-bit weights and 16-bit activations always.
    alpha: smoothing exponent of Eq. 2; None without smoothing.
    range_of_step: (num_steps,) int64, the time range (0..R-1) of each step, in order of execution (step 0 is noisiest).
    linears: by module path, every linear that is executed per step or per prompt. Those that run per prompt have the
    same parameters in every range.
    point_absmax: by calibrated point, (R,) float64, the largest magnitude over the range's steps and both branches.
    value_absmax: by attention, (R, C) float64, the same of the attention values per channel: smoothing in front of the
    next projection folds into the rows that make them.
    t0: (num_steps, 6, C), te: (num_steps, C) float64, the time embedding's values at each executed step.
    scale_shift_table: (depth, 6, C); final_table: (2, C); pos_embed: (S, C); pos_embed_temporal: (T, C);
    y_embedding: (L, caption channels), the null caption; all float64.
    config: constructor arguments of the STDiT, without those for training and for the (stored) position tables.
    iddpm: sampler settings (num_sampling_steps, cfg_scale, cfg_channels).
    workload, weights_sha256: where it came from, copied from the calibration statistics.
    contents: False if arrays have their shapes but mean nothing, and weights no memory; see `models.quantize.outline`.
    """

    method: str
    weight_bits: int
    act_bits: int
    alpha: float | None
    num_steps: int
    range_of_step: Int64
    linears: dict[str, QuantizedLinear]
    point_absmax: dict[str, Float64]
    value_absmax: dict[str, Float64]
    t0: Float64
    te: Float64
    scale_shift_table: Float64
    final_table: Float64
    pos_embed: Float64
    pos_embed_temporal: Float64
    y_embedding: Float64
    config: dict[str, Any]
    iddpm: dict[str, Any]
    workload: str
    weights_sha256: str
    contents: bool = True

    @property
    def num_ranges(self) -> int:
        """Number of time ranges, R."""
        return int(self.range_of_step.max()) + 1

    def save(self, path: Path) -> None:
        """Write the model; see `models.quantize.files`.

        Raises:
            ModelError: a file cannot be written, or the model is an outline.
        """
        from models.quantize.files import write_model  # files.py builds on this module

        if not self.contents:
            raise ModelError(f"{path}: an outline holds no weights; allowed: a model made from weights and statistics")
        sets = {name: len(linear.weights) for name, linear in self.linears.items()}
        write_model(path, self, sets, self.linears.items())

    @classmethod
    def load(cls, path: Path) -> QuantizedModel:
        """Read what `save` wrote; weight sets that lie in files of their own are memory-mapped.

        Raises:
            ModelError: a file is missing, truncated, altered, of another kind or version, or inconsistent; names the
                tensor.
        """
        from models.quantize.files import read_model

        return read_model(path)
