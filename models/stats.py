"""Calibration statistics: which points of an STDiT are measured, and the file that holds what was measured.

A point is "<module path>:in" (input of a linear or of the patch embedding) or "<module path>:out" (output of those, of
a LayerNorm, or of one of the model's taps). Time embedding layers are left out: their values are constants of the step.

Histograms have 64 fixed bins, in ascending order: one per octave of the magnitude and sign. Of each sign, the outermost
bin begins at 2^15, the innermost holds all below 2^-15, zero lies in the innermost positive one. Fixed bins need no
second pass, and histograms of different clips can be added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import ModelError
from models.grid import Float64
from models.store import check_array, load_arrays, save_arrays

BRANCHES = ("conditional", "unconditional")

FILE_KIND = "calibration"
FILE_VERSION = 2

HISTOGRAM_BINS = 64
_OCTAVES = HISTOGRAM_BINS // 2
_FIRST_EXPONENT = -15

_TIME_ONLY = ("t_embedder.", "t_block.")
_NORMS = ("norm1", "norm2", "norm_final")
_KINDS = ("minimum", "maximum", "channel_min", "channel_max", "channel_absmax", "histogram")
_SETTINGS: dict[str, type] = {
    "workload": str,
    "captions": list,
    "seeds": list,
    "steps": int,
    "cfg_scale": float,
    "cfg_channels": int,
    "weights_sha256": str,
}


def executed_linears(model: nn.Module) -> dict[str, nn.Linear | nn.Conv3d]:
    """The linears that run per step or per prompt, by module path, the patch embedding (Conv3d) among them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv3d) and not name.startswith(_TIME_ONLY)
    }


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of the transformer blocks, by module path: those whose bits and method a user chooses."""
    linears = executed_linears(model).items()
    return {name: module for name, module in linears if name.startswith("blocks.") and isinstance(module, nn.Linear)}


def measured_outputs(model: nn.Module) -> dict[str, nn.Module]:
    """The other modules whose output is a calibrated point: LayerNorms and taps, by module path."""
    return {
        name: module
        for name, module in model.named_modules()
        if (leaf := name.rpartition(".")[2]).startswith("tap_") or leaf in _NORMS
    }


def calibrated_points(model: nn.Module) -> list[str]:
    """The names of all points, inputs of linears first."""
    inputs = [f"{name}:in" for name in executed_linears(model)]
    return inputs + [f"{name}:out" for name in (*executed_linears(model), *measured_outputs(model))]


def value_points(model: nn.Module) -> list[str]:
    """The attention values' points: their ranges are kept per channel, as the next projection's smoothing needs."""
    return [f"{name}:out" for name in measured_outputs(model) if name.endswith(".tap_v")]


def channel_counts(model: nn.Module) -> dict[str, int]:
    """Channels of every point that is measured per channel: the inputs of linears, and `value_points`."""
    counts = {f"{name}:in": input_channels(module) for name, module in executed_linears(model).items()}
    for point in value_points(model):
        counts[point] = counts[f"{point.removesuffix('tap_v:out')}proj:in"]
    return counts


def histogram(values: Tensor) -> NDArray[np.float64]:
    """Counts (64,) of a tensor's values in the bins that the module describes."""
    flat = values.detach().reshape(-1)
    mantissa, exponent = torch.frexp(flat)
    octave = torch.where(mantissa == 0, 0, (exponent - _FIRST_EXPONENT).clamp(0, _OCTAVES - 1))
    bins = torch.where(mantissa < 0, _OCTAVES - 1 - octave, _OCTAVES + octave)
    return torch.bincount(bins, minlength=HISTOGRAM_BINS).double().numpy()


def mean_square(counts: NDArray[np.floating]) -> Float64:
    """Mean square of the values behind histograms (..., 64), their logarithms taken as even in each octave; 0 if empty.

    Real densities fall within an octave, so this is up to a third too much; between steps that nearly cancels.
    """
    upper = 2.0 ** (np.arange(_OCTAVES) + _FIRST_EXPONENT)
    of_bin = upper**2 * (3 / (8 * np.log(2)))
    wide = counts.astype(np.float64)
    total = wide.sum(axis=-1)
    return np.asarray(wide @ np.concatenate([of_bin[::-1], of_bin]) / np.maximum(total, 1.0))


def input_channels(module: nn.Linear | nn.Conv3d) -> int:
    """K of the layer seen as a linear: for the patch embedding, the values of one patch in all channels."""
    return int(module.weight[0].numel())


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 (hex) over the state dict's names, shapes and float32 values, in name order.

    So it identifies the weights themselves, whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


@dataclass(frozen=True)
class CalibrationStats:
    """Ranges of every calibrated point over clips and tokens, kept apart by step and guidance branch.

    workload: name of the workload; captions, seeds: one sampling run each; steps, cfg_scale, cfg_channels: the sampler;
    weights_sha256: of the float model that was run.
    minimum, maximum: by point, (steps, 2) float32; axis 0 in order of execution (0 is the noisiest step), axis 1:
    conditional, unconditional branch. Text-side points depend on the prompt only; their values repeat per step.
    channel_min, channel_max: by point that is measured per channel, (steps, channels) float16, over both branches.
    channel_absmax: by ":in" point, (steps, 2, channels) float16: each clip's largest magnitude per channel, averaged
    over the clips: the max|X_j| of the paper's Eq. 2. (11 significant bits are plenty, and halve the file.)
    histogram: by ":in" point, (steps, 2, 64) float32, how many input values fell in each bin.
    """

    workload: str
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    cfg_scale: float
    cfg_channels: int
    weights_sha256: str
    minimum: dict[str, NDArray[np.float32]]
    maximum: dict[str, NDArray[np.float32]]
    channel_min: dict[str, NDArray[np.float16]]
    channel_max: dict[str, NDArray[np.float16]]
    channel_absmax: dict[str, NDArray[np.float16]]
    histogram: dict[str, NDArray[np.float32]]

    def values_sha256(self) -> str:
        """SHA-256 (hex) over the points' names, shapes, dtypes and values, in name order, whatever file holds them."""
        digest = hashlib.sha256()
        for name, values in sorted(self._arrays().items()):
            digest.update(f"{name}{values.dtype}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {f"{kind}/{point}": values for kind in _KINDS for point, values in getattr(self, kind).items()}

    def save(self, path: Path) -> None:
        """Write the statistics as one safetensors file, atomically.

        Raises:
            ModelError: the file cannot be written.
        """
        metadata = {name: getattr(self, name) for name in _SETTINGS}
        metadata["points"] = list(self.minimum)
        metadata["channels"] = {point: values.shape[1] for point, values in self.channel_min.items()}
        save_arrays(path, FILE_KIND, FILE_VERSION, self._arrays(), metadata)

    @classmethod
    def load(cls, path: Path) -> CalibrationStats:
        """Read what `save` wrote, checking every name, shape and dtype, and that values are finite and ordered.

        Raises:
            ModelError: the file is missing, truncated, of another kind or version, or inconsistent; names the point.
        """
        arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
        for name, kind in {**_SETTINGS, "points": list, "channels": dict}.items():
            if not isinstance(metadata.get(name), kind):
                raise ModelError(f"{path}: metadata field '{name}' is missing or not of type {kind.__name__}")
        steps, branches = metadata["steps"], len(BRANCHES)
        points, channels = metadata["points"], metadata["channels"]
        inputs = [point for point in channels if str(point).endswith(":in")]
        layout: dict[str, tuple[list[str], Callable[[str], tuple[int, ...]], type[np.generic]]] = {
            "minimum": (points, lambda _: (steps, branches), np.float32),
            "maximum": (points, lambda _: (steps, branches), np.float32),
            "channel_min": (list(channels), lambda point: (steps, channels[point]), np.float16),
            "channel_max": (list(channels), lambda point: (steps, channels[point]), np.float16),
            "channel_absmax": (inputs, lambda point: (steps, branches, channels[point]), np.float16),
            "histogram": (inputs, lambda _: (steps, branches, HISTOGRAM_BINS), np.float32),
        }
        found: dict[str, Any] = {
            kind: {point: check_array(path, arrays, f"{kind}/{point}", shape(point), dtype) for point in names}
            for kind, (names, shape, dtype) in layout.items()
        }
        for low, high in (("minimum", "maximum"), ("channel_min", "channel_max")):
            for point, values in found[low].items():
                if (values > found[high][point]).any():
                    raise ModelError(f"{path}: point '{point}' has a minimum above its maximum")
        expected = {f"{kind}/{point}" for kind, by_point in found.items() for point in by_point}
        if unknown := sorted(set(arrays) - expected):
            raise ModelError(f"{path}: unknown tensor '{unknown[0]}'")
        settings = {name: metadata[name] for name in _SETTINGS}
        settings |= {"captions": tuple(settings["captions"]), "seeds": tuple(settings["seeds"])}
        return cls(**found, **settings)

    def require_weights(self, sha256: str, source: str = "calibration statistics") -> None:
        """Check that the statistics were collected with the weights of this digest.

        Raises:
            ModelError: they were not.
        """
        if sha256 != self.weights_sha256:
            raise ModelError(
                f"{source}: collected with weights sha256 {self.weights_sha256[:12]}, the model has {sha256[:12]}; "
                f"calibrate again: npusim calibrate --workload {self.workload} --out FILE"
            )

    def require_points(self, model: nn.Module) -> None:
        """Check that exactly this model's points were measured, with its channel counts.

        Raises:
            ModelError: a point is missing, unknown, or has another number of channels.
        """
        expected = set(calibrated_points(model))
        for message, points in (("lack", expected - set(self.minimum)), ("have unknown", set(self.minimum) - expected)):
            if points:
                raise ModelError(f"calibration statistics {message} point '{min(points)}' ({len(points)} in all)")
        for point, count in channel_counts(model).items():
            found = self.channel_min[point].shape[1] if point in self.channel_min else 0
            if found != count:
                raise ModelError(
                    f"calibration statistics of point '{point}' have {found} channels, the model has {count}"
                )
