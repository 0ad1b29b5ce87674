"""Static post-training quantization: float STDiT + calibration statistics -> integer weights, scales, zero points.

Weights are quantized per output channel and activations per tensor, both by the asymmetric grid of the paper's Eq. 1
(`models/grid.py`). The bits asked for apply to the linears of the transformer blocks. The paper leaves the rest of the
network in floating point; an integer accelerator cannot, so the patch embedding, the caption projection and the final
linear are quantized too, with 16-bit activations. Everything that depends on the time step only becomes a constant.

Known methods: `cw_tw`, channel-wise weights and one static activation range per layer for all steps, no smoothing.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.errors import ModelError
from models.grid import AsymmetricGrid, Float64, Int64
from models.iddpm import IDDPM
from models.stats import CalibrationStats, calibrated_points, executed_linears, input_channels, weights_sha256
from models.stdit import STDiT, STDiTBlock, skeleton
from models.store import check_array, load_arrays, save_arrays

METHODS = ("cw_tw",)
WEIGHT_BITS = (8,)
ACT_BITS = (8, 16)
SIDE_LINEARS = ("x_embedder.proj", "y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2", "final_layer.linear")
SIDE_ACT_BITS = 16

# A damaged file's numbers end here; the committed model's constants are below 3.
CONSTANT_LIMIT = 1e6

FILE_KIND = "quantized model"
FILE_VERSION = 1

_LINEAR_FIELDS = ("weight_q", "weight_scale", "weight_zp", "bias", "act_scale", "act_zp")
_CONSTANTS = ("t0", "te", "scale_shift_table", "final_table", "pos_embed", "pos_embed_temporal", "y_embedding")
_SETTINGS: dict[str, type] = {
    "method": str,
    "weight_bits": int,
    "act_bits": int,
    "num_steps": int,
    "config": dict,
    "iddpm": dict,
    "workload": str,
    "weights_sha256": str,
}


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear layer y = x W^T + b on integer grids: w^ = (weight_q - weight_zp) * weight_scale per output row.

    The patch embedding is the linear over the patch inputs in (channel, patch row, patch column) order.

    weight_q: (N, K) uint8; weight_scale: (N,) float64; weight_zp: (N,) int64; bias: (N,) float64, not quantized here;
    act_bits: bits of the input grid; act_scale: (R,) float64 and act_zp: (R,) int64, one grid per time range.
    """

    weight_q: NDArray[np.uint8]
    weight_scale: Float64
    weight_zp: Int64
    bias: Float64
    act_bits: int
    act_scale: Float64
    act_zp: Int64

    def weight(self) -> Float64:
        """The weights that the integers stand for, (N, K) float64."""
        return (self.weight_q.astype(np.int64) - self.weight_zp[:, None]) * self.weight_scale[:, None]

    def act_grid(self, time_range: int) -> AsymmetricGrid:
        """The grid of the layer's input in one time range (scalars)."""
        return AsymmetricGrid(self.act_bits, self.act_scale[time_range], self.act_zp[time_range])


@dataclass(frozen=True)
class QuantizedModel:
    """All that a compiler needs of a quantized STDiT; a file of its own (`save`, `load`).

    method, weight_bits, act_bits: as asked for (the linears in `SIDE_LINEARS` have 16-bit activations always).
    range_of_step: (num_steps,) int64, the time range (0..R-1) of each step, in order of execution (step 0 is noisiest).
    linears: by module path, every linear that is executed per step or per prompt.
    point_absmax: by calibrated point, (R,) float64, the largest magnitude over the range's steps and both branches.
    t0: (num_steps, 6, C), te: (num_steps, C) float64, the time embedding's values at each executed step.
    scale_shift_table: (depth, 6, C); final_table: (2, C); pos_embed: (S, C); pos_embed_temporal: (T, C);
    y_embedding: (L, caption channels), the null caption; all float64.
    config: constructor arguments of the STDiT, without those for training and for the (stored) position tables.
    iddpm: sampler settings (num_sampling_steps, cfg_scale, cfg_channels).
    workload, weights_sha256: where it came from, copied from the calibration statistics.
    """

    method: str
    weight_bits: int
    act_bits: int
    num_steps: int
    range_of_step: Int64
    linears: dict[str, QuantizedLinear]
    point_absmax: dict[str, Float64]
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

    @property
    def num_ranges(self) -> int:
        """Number of time ranges, R."""
        return int(self.range_of_step.max()) + 1

    def save(self, path: Path) -> None:
        """Write the model as one safetensors file, atomically.

        Raises:
            ModelError: the file cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _CONSTANTS}
        arrays["range_of_step"] = self.range_of_step
        for name, linear in self.linears.items():
            for field in _LINEAR_FIELDS:
                arrays[f"linears/{name}/{field}"] = getattr(linear, field)
        for point, values in self.point_absmax.items():
            arrays[f"point_absmax/{point}"] = values
        metadata = {name: getattr(self, name) for name in _SETTINGS}
        metadata["linears"] = {name: linear.act_bits for name, linear in self.linears.items()}
        metadata["points"] = list(self.point_absmax)
        save_arrays(path, FILE_KIND, FILE_VERSION, arrays, metadata)

    @classmethod
    def load(cls, path: Path) -> QuantizedModel:
        """Read what `save` wrote, checking every name, shape, dtype and value range.

        Raises:
            ModelError: the file is missing, truncated, of another kind or version, or inconsistent; names the tensor.
        """
        arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
        for name, kind in {**_SETTINGS, "linears": dict, "points": list}.items():
            if not isinstance(metadata.get(name), kind):
                raise ModelError(f"{path}: metadata field '{name}' is missing or not of type {kind.__name__}")
        steps = metadata["num_steps"]
        _check_sampler(path, metadata["iddpm"], steps)
        range_of_step = check_array(path, arrays, "range_of_step", (steps,), np.int64)
        ranges = int(range_of_step.max(initial=-1)) + 1
        if sorted(set(range_of_step.tolist())) != list(range(ranges)):
            raise ModelError(
                f"{path}: 'range_of_step' is {range_of_step.tolist()}, allowed are ranges 0..R-1, all used"
            )
        outline = _skeleton(path, metadata["config"])
        shapes = {
            name: (len(module.weight), input_channels(module)) for name, module in executed_linears(outline).items()
        }
        for field, listed, known in (
            ("linears", metadata["linears"], shapes),
            ("points", metadata["points"], calibrated_points(outline)),
        ):
            if different := sorted({str(name) for name in listed} ^ set(known)):
                raise ModelError(f"{path}: metadata field '{field}' lacks or adds '{different[0]}'")
        linears = {
            name: _load_linear(path, arrays, name, shapes[name], act_bits, ranges)
            for name, act_bits in metadata["linears"].items()
        }
        absmax = {
            point: check_array(path, arrays, f"point_absmax/{point}", (ranges,), np.float64)
            for point in metadata["points"]
        }
        constants: dict[str, Any] = {
            name: check_array(path, arrays, name, shape, np.float64)
            for name, shape in _constant_shapes(outline, steps).items()
        }
        for name, values in constants.items():
            if (largest := np.abs(values).max()) >= CONSTANT_LIMIT:
                raise ModelError(
                    f"{path}: tensor '{name}' holds magnitude {largest:.3g}; allowed is < {CONSTANT_LIMIT:g}"
                )
        expected = {"range_of_step", *constants, *(f"point_absmax/{point}" for point in absmax)}
        expected.update(f"linears/{name}/{field}" for name in linears for field in _LINEAR_FIELDS)
        if unknown := sorted(set(arrays) - expected):
            raise ModelError(f"{path}: unknown tensor '{unknown[0]}'")
        settings = {name: metadata[name] for name in _SETTINGS}
        return cls(range_of_step=range_of_step, linears=linears, point_absmax=absmax, **constants, **settings)


def quantize(
    model: STDiT, stats: CalibrationStats, method: str = "cw_tw", weight_bits: int = 8, act_bits: int = 8
) -> QuantizedModel:
    """Quantize a float model by its calibration statistics; deterministic, the model is not changed.

    Raises:
        ModelError: unknown method or bits, statistics that were collected with other weights or lack a point of this
            model, or a weight or range that is not finite (named by layer).
    """
    _check_request(method, weight_bits, act_bits)
    stats.require_weights(weights_sha256(model))
    stats.require_points(model)
    range_of_step = np.zeros(stats.steps, np.int64)
    linears = {
        name: _quantize_linear(name, module, stats, range_of_step, weight_bits, _act_bits(name, act_bits))
        for name, module in executed_linears(model).items()
    }
    sampler = IDDPM(stats.steps, stats.cfg_scale, stats.cfg_channels)
    t0, te = time_embeddings(model, sampler)
    return QuantizedModel(
        method=method,
        weight_bits=weight_bits,
        act_bits=act_bits,
        num_steps=stats.steps,
        range_of_step=range_of_step,
        linears=linears,
        point_absmax={point: _range_absmax(stats, point, range_of_step) for point in stats.minimum},
        t0=t0,
        te=te,
        scale_shift_table=np.stack([_float64(block.scale_shift_table) for block in _blocks(model)]),
        final_table=_float64(model.final_layer.scale_shift_table),
        pos_embed=_float64(model.pos_embed)[0],
        pos_embed_temporal=_float64(model.pos_embed_temporal)[0],
        y_embedding=_float64(model.y_embedder.y_embedding),
        config=model_config(model),
        iddpm={
            "num_sampling_steps": stats.steps,
            "cfg_scale": stats.cfg_scale,
            "cfg_channels": stats.cfg_channels,
        },
        workload=stats.workload,
        weights_sha256=stats.weights_sha256,
    )


def model_config(model: STDiT) -> dict[str, Any]:
    """The constructor arguments that the network's shape shows."""
    block = _blocks(model)[0]
    tokens, channels = model.y_embedder.y_embedding.shape
    return {
        "input_size": list(model.input_size),
        "in_channels": model.in_channels,
        "patch_size": list(model.patch_size),
        "hidden_size": model.hidden_size,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.hidden_size,
        "pred_sigma": model.out_channels != model.in_channels,
        "caption_channels": channels,
        "model_max_length": tokens,
    }


def time_embeddings(model: STDiT, sampler: IDDPM) -> tuple[Float64, Float64]:
    """t0 (steps, 6, C) and te (steps, C) of the steps in order of execution, evaluated in float64.

    te is the time embedding before `t_block` (the final layer uses it), t0 the six modulation vectors after it.
    """
    timesteps = torch.from_numpy(sampler.timesteps[::-1].copy())
    t_embedder, t_block = copy.deepcopy(model.t_embedder).double(), copy.deepcopy(model.t_block).double()
    with torch.inference_mode():
        te = t_embedder(timesteps, torch.float64)
        t0 = t_block(te)
    return t0.numpy().reshape(len(timesteps), 6, -1), te.numpy()


def _check_request(method: str, weight_bits: int, act_bits: int) -> None:
    if method not in METHODS:
        nearest = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.0)[0]
        raise ModelError(f"method '{method}' is unknown; allowed: {', '.join(METHODS)}; nearest: {nearest}")
    for name, bits, allowed in (("weight_bits", weight_bits, WEIGHT_BITS), ("act_bits", act_bits, ACT_BITS)):
        if bits not in allowed:
            nearest_bits = min(allowed, key=lambda candidate: abs(candidate - bits))
            raise ModelError(f"{name}={bits}: allowed: {', '.join(map(str, allowed))}; nearest: {nearest_bits}")


def _act_bits(name: str, act_bits: int) -> int:
    return SIDE_ACT_BITS if name in SIDE_LINEARS else act_bits


def _blocks(model: STDiT) -> list[STDiTBlock]:
    return [block for block in model.blocks if isinstance(block, STDiTBlock)]


def _float64(tensor: torch.Tensor) -> Float64:
    return tensor.detach().to(torch.float64).numpy()


def _range_extremes(stats: CalibrationStats, point: str, range_of_step: Int64) -> tuple[Float64, Float64]:
    """Per time range, the least minimum and the largest maximum of a point over the range's steps and branches."""
    ranges = [range_of_step == index for index in range(int(range_of_step.max()) + 1)]
    minimum, maximum = stats.minimum[point].astype(np.float64), stats.maximum[point].astype(np.float64)
    return (
        np.array([minimum[steps].min() for steps in ranges]),
        np.array([maximum[steps].max() for steps in ranges]),
    )


def _range_absmax(stats: CalibrationStats, point: str, range_of_step: Int64) -> Float64:
    minimum, maximum = _range_extremes(stats, point, range_of_step)
    return np.maximum(np.abs(minimum), np.abs(maximum))


def _quantize_linear(
    name: str,
    module: nn.Linear | nn.Conv3d,
    stats: CalibrationStats,
    range_of_step: Int64,
    weight_bits: int,
    act_bits: int,
) -> QuantizedLinear:
    assert module.bias is not None  # every STDiT linear has one
    # A patch embedding's kernel, flattened, is a linear over (channel, patch row, patch column).
    weight = _float64(module.weight).reshape(module.weight.shape[0], -1)
    bias = _float64(module.bias)
    if not np.isfinite(bias).all():
        raise ModelError(f"{name}.bias: NaN or infinity; only finite values can be quantized")
    grid = AsymmetricGrid.from_min_max(weight.min(axis=1), weight.max(axis=1), weight_bits, f"{name}.weight")
    columns = AsymmetricGrid(weight_bits, grid.scale[:, None], grid.zero_point[:, None])
    act = AsymmetricGrid.from_min_max(*_range_extremes(stats, f"{name}:in", range_of_step), act_bits, f"{name}:in")
    return QuantizedLinear(
        weight_q=columns.quantize(weight, f"{name}.weight").astype(np.uint8),
        weight_scale=grid.scale,
        weight_zp=grid.zero_point,
        bias=bias,
        act_bits=act_bits,
        act_scale=act.scale,
        act_zp=act.zero_point,
    )


def _load_linear(
    path: Path, arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, int], act_bits: int, ranges: int
) -> QuantizedLinear:
    if act_bits not in ACT_BITS:
        raise ModelError(f"{path}: linear '{name}' has act_bits={act_bits}, allowed: {', '.join(map(str, ACT_BITS))}")
    prefix, rows = f"linears/{name}", shape[0]
    linear = QuantizedLinear(
        weight_q=check_array(path, arrays, f"{prefix}/weight_q", shape, np.uint8),
        weight_scale=check_array(path, arrays, f"{prefix}/weight_scale", (rows,), np.float64),
        weight_zp=check_array(path, arrays, f"{prefix}/weight_zp", (rows,), np.int64),
        bias=check_array(path, arrays, f"{prefix}/bias", (rows,), np.float64),
        act_bits=act_bits,
        act_scale=check_array(path, arrays, f"{prefix}/act_scale", (ranges,), np.float64),
        act_zp=check_array(path, arrays, f"{prefix}/act_zp", (ranges,), np.int64),
    )
    for field, bits in (("weight", 8), ("act", act_bits)):
        scale, zero_point = getattr(linear, f"{field}_scale"), getattr(linear, f"{field}_zp")
        if (scale <= 0).any():
            raise ModelError(f"{path}: '{prefix}/{field}_scale' must be positive")
        if ((zero_point < 0) | (zero_point >= 2**bits)).any():
            raise ModelError(f"{path}: '{prefix}/{field}_zp' must lie in 0..{2**bits - 1}")
    return linear


def _check_sampler(path: Path, iddpm: Mapping[str, Any], steps: object) -> None:
    types = {"num_sampling_steps": int, "cfg_scale": float, "cfg_channels": int}
    for name in sorted(set(iddpm) ^ set(types)):
        raise ModelError(f"{path}: metadata field 'iddpm' lacks or adds '{name}'")
    for name, kind in types.items():
        if type(iddpm[name]) is not kind:
            raise ModelError(f"{path}: metadata field 'iddpm.{name}' is not of type {kind.__name__}")
    count = iddpm["num_sampling_steps"]
    if type(steps) is not int or count != steps:
        raise ModelError(f"{path}: metadata field 'iddpm.num_sampling_steps' is {count}, 'num_steps' is {steps}")
    try:
        IDDPM(**iddpm)
    except ModelError as error:
        raise ModelError(f"{path}: metadata field 'iddpm': {error}") from error


def _skeleton(path: Path, config: Mapping[str, Any]) -> STDiT:
    """`models.stdit.skeleton`, naming the file and field in its ModelError."""
    try:
        return skeleton(config)
    except ModelError as error:
        raise ModelError(f"{path}: metadata field 'config' does not describe an STDiT ({error})") from error


def _constant_shapes(model: STDiT, steps: int) -> dict[str, tuple[int, ...]]:
    hidden = model.hidden_size
    return {
        "t0": (steps, 6, hidden),
        "te": (steps, hidden),
        "scale_shift_table": (len(model.blocks), 6, hidden),
        "final_table": (2, hidden),
        "pos_embed": (model.num_spatial, hidden),
        "pos_embed_temporal": (model.num_temporal, hidden),
        "y_embedding": tuple(model.y_embedder.y_embedding.shape),
    }
