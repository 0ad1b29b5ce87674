"""Static post-training quantization: float STDiT + calibration statistics -> integer weights, scales, zero points.

Weights are quantized per output channel and activations per tensor, both by the asymmetric grid of the paper's Eq. 1
(`models/grid.py`), and smoothed by its Eq. 2. Method, bits and time ranges apply to the linears of the transformer
blocks. The paper leaves the rest of the network in floating point; an integer accelerator cannot, so the patch
embedding, the caption projection and the final linear are quantized too, with 8-bit weights, 16-bit activations and
one grid for all steps. Everything that depends on the time step only becomes a constant.

Linears that run once per prompt (caption projection, keys and values of cross-attention) cannot change with the step:
they have one set of parameters, from the statistics of all steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.errors import ModelError
from models.grid import AsymmetricGrid, Float64, Int64
from models.moments import InputMoments
from models.quantize.constants import constants, float64
from models.quantize.files import attentions, write_model
from models.quantize.methods import Average, Method
from models.quantize.model import QuantizedLinear, QuantizedModel
from models.quantize.overrides import Override
from models.quantize.pot import input_shifts
from models.quantize.ranges import Ranges, choose_ranges, range_costs, range_of_step
from models.quantize.smoothing import running_average, salience_average, smoothing_scales
from models.quantize.structure import Structure, checked_settings, follows_ranges, refined, runs_per_prompt
from models.quantize.weights import quantize_weight
from models.stats import CalibrationStats, block_linears, executed_linears, weights_sha256
from models.stdit import STDiT


def quantize(
    model: STDiT,
    stats: CalibrationStats,
    method: str = "cw_tw",
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    ranges: Ranges | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    moments: InputMoments | None = None,
    out: Path | None = None,
) -> QuantizedModel:
    """Quantize a float model by its calibration statistics; deterministic, the model is not changed.

    Args:
        model: the float model.
        stats: its calibration statistics.
        method: a name of `METHODS`.
        weight_bits: 4, 6 or 8, of the block linears.
        act_bits: 4, 6, 8 or 16, of the block linears.
        ranges: number of equal time ranges, or the first executed step of each; by default the method's own. For a
            method with one smoothing (`cw_tw`, `asq`, `ssq`) only the activation grids follow the ranges.
        alpha: smoothing exponent in (0, 1]; by default `DEFAULT_ALPHA`, and none for `dynamic`.
        overrides: exceptions to the bits, by layer class and step.
        moments: second moments of the inputs; needed by the `_gptq` methods.
        out: write the model there as it is made, and return it memory-mapped. For models whose weight sets together
            exceed memory.

    Raises:
        ModelError: unknown method, or bits, ranges or alpha that are not allowed; statistics that were collected with
            other weights or lack a point of this model; a weight or range that is not finite (named by layer).
    """
    stats.require_weights(weights_sha256(model))
    stats.require_points(model)
    plan = _Plan.of(model, stats, method, (weight_bits, act_bits), ranges, alpha, tuple(overrides), moments)
    made = QuantizedModel(
        method=method,
        weight_bits=weight_bits,
        act_bits=act_bits,
        alpha=plan.alpha,
        linears={},
        num_steps=stats.steps,
        range_of_step=plan.range_of_step,
        point_absmax={point: _absmax(stats, point, plan.range_of_step) for point in stats.minimum} | plan.divided(),
        value_absmax={name: _value_absmax(stats, name, plan.range_of_step) for name in attentions(model)},
        **constants(model, stats),
    )
    if out is None:
        made.linears.update(plan.linears())
        return made
    write_model(out, made, {name: len(plan.sets(name)[0]) for name in executed_linears(model)}, plan.linears())
    return QuantizedModel.load(out)


@dataclass(frozen=True)
class _Plan(Structure):
    """What is decided before the first weight is quantized, and what it is decided from."""

    model: STDiT
    stats: CalibrationStats
    moments: InputMoments | None

    @classmethod
    def of(
        cls,
        model: STDiT,
        stats: CalibrationStats,
        name: str,
        bits: tuple[int, int],
        ranges: Ranges | None,
        alpha: float | None,
        overrides: tuple[Override, ...],
        moments: InputMoments | None,
    ) -> _Plan:
        method, ranges, alpha = checked_settings(name, bits, ranges, alpha, overrides, stats.steps)
        if method.gptq:
            _check_moments(method, moments, model, stats)
        if method.chosen_ranges:
            assert isinstance(ranges, int)
            coarse = choose_ranges(_costs(model, stats, method, alpha, bits[1]), ranges)
        else:
            coarse = range_of_step(ranges, stats.steps)
        fine, coarse_of_range = refined(coarse, overrides)
        return cls(
            method, bits, alpha, overrides, coarse, fine, coarse_of_range, model, stats,
            moments if method.gptq else None,
        )  # fmt: skip

    def linears(self) -> Iterator[tuple[str, QuantizedLinear]]:
        """Every executed linear, quantized, one by one."""
        for name, module in executed_linears(self.model).items():
            yield name, self._linear(name, module)

    def divided(self) -> dict[str, Float64]:
        """By NAME:divided, the largest magnitude of a smoothed input that is quantized at run time: (R,)."""
        found = {}
        for name, module in executed_linears(self.model).items():
            if not self.finds_grids(name):
                continue
            point, weight = f"{name}:in", float64(module.weight).reshape(module.weight.shape[0], -1)
            reach = np.maximum(np.abs(self.stats.channel_min[point]), np.abs(self.stats.channel_max[point]))
            found[f"{name}:divided"] = _by_range(
                (reach / self._smoothing(name, weight)[0]).max(axis=-1), self.range_of_step
            )
        return found

    def _smoothing(self, name: str, weight: Float64) -> Float64:
        """Smoothing scales of the weight sets, one row per coarse range or one in all: (..., K)."""
        if not self.smooths(name):
            return np.ones((1, weight.shape[1]))
        assert self.alpha is not None
        coarse = np.zeros_like(self.coarse) if self.one_smoothing(name) else self.coarse
        return _scales(self.stats, name, np.abs(weight).max(axis=0), self.method, self.alpha, coarse)

    def _steps(self, name: str, time_range: int) -> NDArray[np.bool_]:
        """The steps (steps,) whose statistics make a linear's parameters in a range: those of the method's range.

        All steps where 16 bits leave nothing to gain, and where the layer runs once for all of them.
        """
        if not follows_ranges(name):
            return np.ones(self.stats.steps, bool)
        return np.asarray(self.coarse == self.coarse_of_range[time_range])

    def _shifts(self, name: str, weight: Float64, smoothing: Float64) -> NDArray[np.uint8] | None:
        """Input shifts (R, K) of a method that has them, for smoothing (K,)."""
        if not self.shifts(name):
            return None
        square = np.square(weight * smoothing).sum(axis=0)
        found = []
        for time_range in range(len(self.coarse_of_range)):
            steps = self._steps(name, time_range)
            low = self.stats.channel_min[f"{name}:in"][steps].astype(np.float64).min(axis=0) / smoothing
            high = self.stats.channel_max[f"{name}:in"][steps].astype(np.float64).max(axis=0) / smoothing
            found.append(input_shifts(low, high, square))
        return np.stack(found)

    def _linear(self, name: str, module: nn.Linear | nn.Conv3d) -> QuantizedLinear:
        assert module.bias is not None  # every STDiT linear has one
        # A patch embedding's kernel, flattened, is a linear over (channel, patch row, patch column).
        weight = float64(module.weight).reshape(module.weight.shape[0], -1)
        bias = float64(module.bias)
        for kind, values in (("weight", weight), ("bias", bias)):
            if not np.isfinite(values).all():
                raise ModelError(f"{name}.{kind}: NaN or infinity; only finite values can be quantized")
        smoothing = self._smoothing(name, weight)
        sets, set_of_range = self.sets(name)
        moment = self.moments.moments.get(name) if self.moments else None
        weights = tuple(quantize_weight(weight, smoothing[i], bits, moment, f"{name}.weight") for i, bits in sets)
        linear = QuantizedLinear(
            weights=weights,
            set_of_range=set_of_range,
            bias=bias,
            act_bits=np.array([self.layer_bits(name, r)[1] for r in range(len(set_of_range))], np.int64),
            act_scale=np.empty(0),
            act_zp=np.empty(0, np.int64),
            input_shift=self._shifts(name, weight, smoothing[0]),
        )
        if self.finds_grids(name):
            return linear
        grids = [self._act_grid(name, linear, time_range) for time_range in range(len(set_of_range))]
        act_scale, act_zp = (np.array([getattr(grid, field) for grid in grids]) for field in ("scale", "zero_point"))
        return dataclasses.replace(linear, act_scale=act_scale, act_zp=act_zp)

    def _act_grid(self, name: str, linear: QuantizedLinear, time_range: int) -> AsymmetricGrid:
        """The grid of a linear's divided input, over all steps of the method's range that `time_range` lies in."""
        stats, point = self.stats, f"{name}:in"
        steps = self._steps(name, time_range)
        if linear.smoothed:
            divisor = linear.divisor(time_range)
            low = (stats.channel_min[point][steps].astype(np.float64) / divisor).min()
            high = (stats.channel_max[point][steps].astype(np.float64) / divisor).max()
        else:
            low, high = (values[point][steps].astype(np.float64) for values in (stats.minimum, stats.maximum))
            low, high = low.min(), high.max()
        return AsymmetricGrid.from_min_max(low, high, int(linear.act_bits[time_range]), point)


def _check_moments(method: Method, moments: InputMoments | None, model: STDiT, stats: CalibrationStats) -> None:
    if moments is None:
        raise ModelError(f"method '{method.name}' needs the inputs' second moments (Workload.load_moments)")
    if moments.weights_sha256 != stats.weights_sha256:
        raise ModelError(
            f"input moments: collected with weights sha256 {moments.weights_sha256[:12]}, "
            f"the model has {stats.weights_sha256[:12]}"
        )
    for name, linear in block_linears(model).items():
        shape = moments.moments[name].shape if name in moments.moments else None
        if shape != (linear.in_features, linear.in_features):
            raise ModelError(f"input moments: '{name}' has shape {shape}, the model has {linear.in_features} inputs")


def _scales(
    stats: CalibrationStats, name: str, weight_absmax: Float64, method: Method, alpha: float, coarse: Int64
) -> Float64:
    """Smoothing scales of a linear, one row per range of `coarse` (steps,): (ranges, K)."""
    absmax = stats.channel_absmax[f"{name}:in"].astype(np.float64).mean(axis=1)
    parts = [absmax[coarse == time_range] for time_range in np.unique(coarse)]
    if method.average is Average.SALIENCE:
        averages = [salience_average(part, weight_absmax) for part in parts]
    else:
        averages = [running_average(part) for part in parts]
    return smoothing_scales(np.stack(averages), weight_absmax, alpha)


def _costs(model: STDiT, stats: CalibrationStats, method: Method, alpha: float | None, act_bits: int) -> Float64:
    """What `range_costs` gives for a method, over the block linears that run in every step."""
    weight_absmax = {
        name: np.abs(float64(linear.weight)).max(axis=0)
        for name, linear in block_linears(model).items()
        if not runs_per_prompt(name)
    }

    def scales(name: str, steps: slice) -> Float64:
        if alpha is None:
            return np.ones_like(weight_absmax[name])
        absmax = stats.channel_absmax[f"{name}:in"][steps].astype(np.float64).mean(axis=1)
        return smoothing_scales(running_average(absmax), weight_absmax[name], alpha)

    return range_costs(stats, weight_absmax, act_bits, scales)


def _absmax(stats: CalibrationStats, point: str, ranges: Int64) -> Float64:
    """Per time range, the largest magnitude of a point over the range's steps and both branches: (R,)."""
    largest = np.maximum(np.abs(stats.minimum[point]), np.abs(stats.maximum[point])).max(axis=1)
    return _by_range(largest, ranges)


def _value_absmax(stats: CalibrationStats, attention: str, ranges: Int64) -> Float64:
    """The same of an attention's values, per channel: (R, channels)."""
    point = f"{attention}.tap_v:out"
    return _by_range(np.maximum(np.abs(stats.channel_min[point]), np.abs(stats.channel_max[point])), ranges)


def _by_range(largest: NDArray[np.floating], ranges: Int64) -> Float64:
    return np.stack([largest[ranges == index].max(axis=0) for index in range(int(ranges.max()) + 1)]).astype(np.float64)
