"""Calibration: run the float model's sampling trajectories and record the range of every calibrated point.

    python -m models.calibrate --workload emoji --out models/calibration/emoji.safetensors

Each caption is one guided sampling run with its own seeded noise. The branches are evaluated one after the other, so
that each has its own statistics, and on the valid text tokens alone, so that padding never enters a range.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from models.errors import ModelError
from models.iddpm import IDDPM, draw_noise
from models.sample import Predictor, denoise, require_latent_channels
from models.stats import (
    BRANCHES,
    CalibrationStats,
    calibrated_points,
    executed_linears,
    input_channels,
    measured_outputs,
    weights_sha256,
)
from models.stdit import STDiT
from models.workloads import Workload, get_workload

FLOAT16_MAX = float(np.finfo(np.float16).max)


def patches(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The patches (B * patches, C * pt * ph * pw) of clips x (B, C, T, H, W), features in (c, pt, ph, pw) order."""
    for axis, length in enumerate(size):
        x = x.unfold(2 + axis, length, length)
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, x.shape[1] * size[0] * size[1] * size[2])


class Recorder:
    """Running minima, maxima and per-channel magnitudes of a model's points, filled by forward hooks.

    Attributes:
        step, branch: where the next observations belong.
        caption: named in error messages.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.step = 0
        self.branch = 0
        self.caption = ""
        self._linears = executed_linears(model)
        self._outputs = measured_outputs(model)
        points = calibrated_points(model)
        self.minimum = {point: np.full((steps, len(BRANCHES)), np.inf, np.float32) for point in points}
        self.maximum = {point: np.full((steps, len(BRANCHES)), -np.inf, np.float32) for point in points}
        self.absmax = {
            f"{name}:in": np.zeros((steps, len(BRANCHES), input_channels(module)), np.float32)
            for name, module in self._linears.items()
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While active, every forward pass of the model is recorded."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._all_modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _all_modules(self) -> list[tuple[str, nn.Module]]:
        return [*self._linears.items(), *self._outputs.items()]

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        linear = self._linears.get(name)

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if linear is not None:
                self._observe(f"{name}:in", args[0], linear)
            self._observe(f"{name}:out", output, None)

        return hook

    def _observe(self, point: str, values: Tensor, linear: nn.Linear | nn.Conv3d | None) -> None:
        low, high = (float(bound) for bound in torch.aminmax(values.detach()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(
                f"{point}: NaN or infinity at step {self.step}, {BRANCHES[self.branch]} branch, "
                f"caption '{self.caption}'; the float model cannot be calibrated"
            )
        at = (self.step, self.branch)
        self.minimum[point][at] = min(self.minimum[point][at], low)
        self.maximum[point][at] = max(self.maximum[point][at], high)
        if linear is not None:
            if isinstance(linear, nn.Conv3d):
                rows = patches(values, linear.kernel_size)
            else:
                rows = values.reshape(-1, values.shape[-1])
            if max(-low, high) > FLOAT16_MAX:
                raise ModelError(f"{point}: magnitude {max(-low, high):.3g} at step {self.step} exceeds {FLOAT16_MAX}")
            np.maximum(self.absmax[point][at], rows.abs().amax(dim=0).numpy(), out=self.absmax[point][at])


def _recording_predictor(
    model: STDiT, sampler: IDDPM, recorder: Recorder, states: Tensor, mask: Tensor, null: Tensor
) -> Predictor:
    """As `models.sample.float_predictor`, but one branch at a time, told to the recorder, and on the valid tokens only.

    Attention with padding masked out and attention without padding are the same function.
    """
    captions = [text[mask][None, None] for text in (states, null)]

    def branch(step: int, index: int, x: Tensor) -> Tensor:
        recorder.step, recorder.branch = step, index
        timestep = torch.full((1,), float(sampler.timesteps[sampler.num_sampling_steps - 1 - step]))
        out: Tensor = model(x[None], timestep, captions[index])
        return out[0]

    def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode():
            eps_cond, v_cond = branch(step, 0, x).chunk(2)
            eps_uncond, _ = branch(step, 1, x).chunk(2)
        return eps_cond, eps_uncond, v_cond

    return predict


def collect(
    model: STDiT,
    workload: Workload,
    captions: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    console: Console | None = None,
) -> CalibrationStats:
    """Sample one clip per caption with the float model and return the ranges seen; the model is left as it was.

    Args:
        model: the float model, in evaluation mode.
        workload: sampler settings, text states and latent shape.
        captions: at least one; by default the workload's calibration set.
        seeds: one noise seed per caption; by default the workload's.
        console: shows a progress bar where given.

    Raises:
        ModelError: a NaN or infinity (named by point, step, branch and caption), an unknown caption, lists of
            unequal or zero length, or a model with other latent channels than the sampler.
    """
    require_latent_channels(model)
    captions = workload.calibration_captions if captions is None else tuple(captions)
    seeds = workload.calibration_seeds if seeds is None else tuple(seeds)
    if not captions or len(captions) != len(seeds):
        raise ModelError(
            f"calibration needs one seed per caption and at least one, got {len(captions)} and {len(seeds)}"
        )
    sampler = workload.sampler()
    steps = sampler.num_sampling_steps
    recorder = Recorder(model, steps)
    null = model.y_embedder.y_embedding.detach()
    columns = (TextColumn("calibrate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with recorder.attached(), Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("calibrate", total=len(captions) * steps)
        for caption, seed in zip(captions, seeds, strict=True):
            recorder.caption = caption
            states, mask = workload.text(caption)
            base = _recording_predictor(model, sampler, recorder, states, mask, null)

            def predict(step: int, x: Tensor, base: Predictor = base) -> tuple[Tensor, Tensor, Tensor]:
                progress.advance(task)
                return base(step, x)

            denoise(predict, *draw_noise(seed, workload.latent_shape, steps), sampler)
    return CalibrationStats(
        workload=workload.name,
        captions=captions,
        seeds=seeds,
        steps=steps,
        cfg_scale=float(sampler.cfg_scale),
        cfg_channels=sampler.cfg_channels,
        weights_sha256=weights_sha256(model),
        minimum=recorder.minimum,
        maximum=recorder.maximum,
        absmax={point: values.astype(np.float16) for point, values in recorder.absmax.items()},
    )


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code (2 on a user error)."""
    parser = argparse.ArgumentParser(prog="python -m models.calibrate", description="Collect calibration statistics.")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        workload = get_workload(options.workload)
        stats = collect(workload.load_model(), workload, console=console)
        stats.save(options.out)
    except ModelError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 2
    console.print(f"{options.out}: {len(stats.minimum)} points, {len(stats.captions)} captions, {stats.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
