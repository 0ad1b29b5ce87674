"""Calibration statistics: which points of an STDiT are measured, and the file that holds what was measured.

A point is "<module path>:in" (input of a linear or of the patch embedding) or "<module path>:out" (output of those, of
a LayerNorm, or of one of the model's taps). Time embedding layers are left out: their values are constants of the step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.errors import ModelError
from models.store import check_array, load_arrays, save_arrays

BRANCHES = ("conditional", "unconditional")

FILE_KIND = "calibration"
FILE_VERSION = 1

_TIME_ONLY = ("t_embedder.", "t_block.")
_NORMS = ("norm1", "norm2", "norm_final")
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
    """Ranges of every calibrated point over prompts and tokens, kept apart by step and guidance branch.

    workload: name of the workload; captions, seeds: one sampling run each; steps, cfg_scale, cfg_channels: the sampler;
    weights_sha256: of the float model that was run.
    minimum, maximum: by point, (steps, 2) float32; axis 0 in order of execution (0 is the noisiest step), axis 1:
    conditional, unconditional branch. Text-side points depend on the prompt only; their values repeat per step.
    absmax: by ":in" point, (steps, 2, channels) float16, the largest magnitude per input channel (11 significant bits
    are plenty for the smoothing factors that are made of it, and halve the file).
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
    absmax: dict[str, NDArray[np.float16]]

    def values_sha256(self) -> str:
        """SHA-256 (hex) over the points' names, shapes, dtypes and values, in name order, whatever file holds them."""
        digest = hashlib.sha256()
        for name, values in sorted(self._arrays().items()):
            digest.update(f"{name}{values.dtype}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for point in self.minimum:
            arrays[f"min/{point}"] = self.minimum[point]
            arrays[f"max/{point}"] = self.maximum[point]
        return arrays | {f"absmax/{point}": values for point, values in self.absmax.items()}

    def save(self, path: Path) -> None:
        """Write the statistics as one safetensors file, atomically.

        Raises:
            ModelError: the file cannot be written.
        """
        metadata = {name: getattr(self, name) for name in _SETTINGS}
        metadata["points"] = list(self.minimum)
        metadata["channels"] = {point: values.shape[2] for point, values in self.absmax.items()}
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
        shape = (metadata["steps"], len(BRANCHES))
        points, channels = metadata["points"], metadata["channels"]
        minimum = {point: check_array(path, arrays, f"min/{point}", shape, np.float32) for point in points}
        maximum = {point: check_array(path, arrays, f"max/{point}", shape, np.float32) for point in points}
        absmax = {
            point: check_array(path, arrays, f"absmax/{point}", (*shape, count), np.float16)
            for point, count in channels.items()
        }
        for point in points:
            if (minimum[point] > maximum[point]).any():
                raise ModelError(f"{path}: point '{point}' has a minimum above its maximum")
        expected = {f"{kind}/{point}" for kind in ("min", "max") for point in points}
        expected |= {f"absmax/{point}" for point in absmax}
        if unknown := sorted(set(arrays) - expected):
            raise ModelError(f"{path}: unknown tensor '{unknown[0]}'")
        settings = {name: metadata[name] for name in _SETTINGS}
        settings |= {"captions": tuple(settings["captions"]), "seeds": tuple(settings["seeds"])}
        return cls(minimum=minimum, maximum=maximum, absmax=absmax, **settings)

    def require_weights(self, sha256: str, source: str = "calibration statistics") -> None:
        """Check that the statistics were collected with the weights of this digest.

        Raises:
            ModelError: they were not.
        """
        if sha256 != self.weights_sha256:
            raise ModelError(
                f"{source}: collected with weights sha256 {self.weights_sha256[:12]}, the model has {sha256[:12]}; "
                f"calibrate again: python -m models.calibrate --workload {self.workload} --out FILE"
            )

    def require_points(self, model: nn.Module) -> None:
        """Check that exactly this model's points were measured, with its channel counts.

        Raises:
            ModelError: a point is missing, unknown, or has another number of channels.
        """
        linears = executed_linears(model)
        expected = set(calibrated_points(model))
        for message, points in (("lack", expected - set(self.minimum)), ("have unknown", set(self.minimum) - expected)):
            if points:
                raise ModelError(f"calibration statistics {message} point '{min(points)}' ({len(points)} in all)")
        for name, module in linears.items():
            found = self.absmax[f"{name}:in"].shape[2] if f"{name}:in" in self.absmax else 0
            if found != input_channels(module):
                raise ModelError(
                    f"calibration statistics of point '{name}:in' have {found} channels, "
                    f"the model has {input_channels(module)}"
                )
