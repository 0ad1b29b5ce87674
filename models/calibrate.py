"""Calibration: run the float model's sampling trajectories and record the range of every calibrated point.

    npusim calibrate --workload emoji --out models/calibration/emoji.safetensors

Each caption is one guided sampling run with its own seeded noise. The branches are evaluated one after the other, so
that each has its own statistics, and on the valid text tokens alone, so that padding never enters a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from models.errors import ModelError
from models.iddpm import IDDPM, draw_noise
from models.moments import InputMoments
from models.sample import Predictor, denoise, require_latent_channels
from models.stats import (
    BRANCHES,
    HISTOGRAM_BINS,
    CalibrationStats,
    block_linears,
    calibrated_points,
    channel_counts,
    executed_linears,
    histogram,
    measured_outputs,
    weights_sha256,
)
from models.stdit import STDiT
from models.workloads import Workload, get_workload

FLOAT16_MAX = float(np.finfo(np.float16).max)

Clips = Sequence[tuple[str, int]]
"""(caption, noise seed) of each sampling run."""


def patches(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The patches (B * patches, C * pt * ph * pw) of clips x (B, C, T, H, W), features in (c, pt, ph, pw) order."""
    for axis, length in enumerate(size):
        x = x.unfold(2 + axis, length, length)
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, x.shape[1] * size[0] * size[1] * size[2])


@dataclass
class Place:
    """Where in the sampling runs the model is being evaluated: the executed step, the branch, the clip's caption."""

    step: int = 0
    branch: int = 0
    caption: str = ""

    def __str__(self) -> str:
        return f"step {self.step}, {BRANCHES[self.branch]} branch, caption '{self.caption}'"


class Recorder:
    """Running statistics of a model's points over `clips` clips, filled by forward hooks; fields as `CalibrationStats`.

    A layer must run once per step, branch and clip: `channel_absmax` is the sum of what each run saw, over `clips`.
    """

    def __init__(self, model: nn.Module, steps: int, clips: int, place: Place) -> None:
        self._clips = clips
        self._place = place
        self._linears = executed_linears(model)
        self._outputs = measured_outputs(model)
        shape = (steps, len(BRANCHES))
        points, channels = calibrated_points(model), channel_counts(model)
        inputs = {f"{name}:in": channels[f"{name}:in"] for name in self._linears}
        self.minimum = {point: np.full(shape, np.inf, np.float32) for point in points}
        self.maximum = {point: np.full(shape, -np.inf, np.float32) for point in points}
        self.channel_min = {point: np.full((steps, count), np.inf, np.float32) for point, count in channels.items()}
        self.channel_max = {point: np.full((steps, count), -np.inf, np.float32) for point, count in channels.items()}
        self.channel_absmax = {point: np.zeros((*shape, count), np.float32) for point, count in inputs.items()}
        self.histogram = {point: np.zeros((*shape, HISTOGRAM_BINS)) for point in inputs}

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
                self._observe_input(f"{name}:in", args[0], linear)
            self._observe(f"{name}:out", output)
            if name.endswith(".tap_v"):
                self._observe_channels(f"{name}:out", output.transpose(1, 2).flatten(2))

        return hook

    def _observe(self, point: str, values: Tensor) -> float:
        """Note the range; returns the largest magnitude."""
        low, high = (float(bound) for bound in torch.aminmax(values.detach()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(f"{point}: NaN or infinity at {self._place}; the float model cannot be calibrated")
        at = (self._place.step, self._place.branch)
        self.minimum[point][at] = min(self.minimum[point][at], low)
        self.maximum[point][at] = max(self.maximum[point][at], high)
        return max(-low, high)

    def _observe_channels(self, point: str, values: Tensor) -> NDArray[np.float32]:
        """Note the range of each channel of values (..., channels); returns the largest magnitudes (channels,)."""
        rows = values.detach().reshape(-1, values.shape[-1])
        low, high = (bound.numpy() for bound in torch.aminmax(rows, dim=0))
        largest: NDArray[np.float32] = np.maximum(-low, high)
        if largest.max() > FLOAT16_MAX:
            raise ModelError(f"{point}: magnitude {largest.max():.3g} at {self._place} exceeds {FLOAT16_MAX}")
        step = self._place.step
        np.minimum(self.channel_min[point][step], low, out=self.channel_min[point][step])
        np.maximum(self.channel_max[point][step], high, out=self.channel_max[point][step])
        return largest

    def _observe_input(self, point: str, values: Tensor, linear: nn.Linear | nn.Conv3d) -> None:
        self._observe(point, values)
        rows = patches(values, linear.kernel_size) if isinstance(linear, nn.Conv3d) else values
        at = (self._place.step, self._place.branch)
        self.channel_absmax[point][at] += self._observe_channels(point, rows) / self._clips
        self.histogram[point][at] += histogram(values)


def _placed_predictor(
    model: STDiT, sampler: IDDPM, place: Place, states: Tensor, mask: Tensor, null: Tensor
) -> Predictor:
    """As `models.sample.float_predictor`, but one branch at a time, with `place` kept, and on the valid tokens only.

    Attention with padding masked out and attention without padding are the same function.
    """
    captions = [text[mask][None, None] for text in (states, null)]

    def branch(step: int, index: int, x: Tensor) -> Tensor:
        place.step, place.branch = step, index
        timestep = torch.full((1,), float(sampler.timesteps[sampler.num_sampling_steps - 1 - step]))
        out: Tensor = model(x[None], timestep, captions[index])
        return out[0]

    def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode():
            eps_cond, v_cond = branch(step, 0, x).chunk(2)
            eps_uncond, _ = branch(step, 1, x).chunk(2)
        return eps_cond, eps_uncond, v_cond

    return predict


def run_clips(model: STDiT, workload: Workload, place: Place, clips: Clips, console: Console | None = None) -> None:
    """Sample one clip per (caption, seed), so that hooks on the model see what calibration is to see.

    Raises:
        ModelError: an unknown caption, or a model with other latent channels than the sampler.
    """
    require_latent_channels(model)
    sampler = workload.sampler()
    steps = sampler.num_sampling_steps
    null = model.y_embedder.y_embedding.detach()
    columns = (TextColumn("calibrate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("calibrate", total=len(clips) * steps)
        for caption, seed in clips:
            place.caption = caption
            states, mask = workload.text(caption)
            base = _placed_predictor(model, sampler, place, states, mask, null)

            def predict(step: int, x: Tensor, base: Predictor = base) -> tuple[Tensor, Tensor, Tensor]:
                progress.advance(task)
                return base(step, x)

            denoise(predict, *draw_noise(seed, workload.latent_shape, steps), sampler)


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
    captions = workload.calibration_captions if captions is None else tuple(captions)
    seeds = workload.calibration_seeds if seeds is None else tuple(seeds)
    if not captions or len(captions) != len(seeds):
        raise ModelError(
            f"calibration needs one seed per caption and at least one, got {len(captions)} and {len(seeds)}"
        )
    sampler, place = workload.sampler(), Place()
    recorder = Recorder(model, sampler.num_sampling_steps, len(captions), place)
    with recorder.attached():
        run_clips(model, workload, place, list(zip(captions, seeds, strict=True)), console)
    return CalibrationStats(
        workload=workload.name,
        captions=captions,
        seeds=seeds,
        steps=sampler.num_sampling_steps,
        cfg_scale=float(sampler.cfg_scale),
        cfg_channels=sampler.cfg_channels,
        weights_sha256=weights_sha256(model),
        minimum=recorder.minimum,
        maximum=recorder.maximum,
        channel_min=_narrow(recorder.channel_min),
        channel_max=_narrow(recorder.channel_max),
        channel_absmax=_narrow(recorder.channel_absmax),
        histogram={point: counts.astype(np.float32) for point, counts in recorder.histogram.items()},
    )


def _narrow(by_point: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float16]]:
    return {point: values.astype(np.float16) for point, values in by_point.items()}


@contextmanager
def _summing(linears: dict[str, nn.Linear], sums: dict[str, Tensor]) -> Iterator[None]:
    """While active, every input of these linears adds its X^T X to `sums`."""

    def adder(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name].addmm_(rows.T, rows)

        return hook

    handles = [linear.register_forward_hook(adder(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect_moments(model: STDiT, workload: Workload, console: Console | None = None) -> InputMoments:
    """Run the workload's calibration clips through the float model and sum its inputs' products.

    Raises:
        ModelError: a sum is not finite, named by layer, or the workload does not fit the model.
    """
    linears = block_linears(model)
    sums = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}
    clips = list(zip(workload.calibration_captions, workload.calibration_seeds, strict=True))
    with _summing(linears, sums), torch.inference_mode():
        run_clips(model, workload, Place(), clips, console)
    for name, values in sums.items():
        if not torch.isfinite(values).all():
            raise ModelError(f"{name}:in: NaN or infinity; the float model cannot be calibrated")
    return InputMoments(weights_sha256(model), {name: values.numpy() for name, values in sums.items()})


def calibrate(
    workload: str,
    out: Path,
    *,
    checkpoint: Path | None = None,
    text_states: Path | None = None,
    prompts: int | None = None,
    num_steps: int | None = None,
    moments: bool = False,
    console: Console | None = None,
) -> CalibrationStats:
    """Calibrate a workload's float model and write the statistics to ``out``.

    Args:
        workload: a workload's name.
        out: safetensors file to write.
        checkpoint: float weights other than the workload's.
        text_states: file of text states of captions of your own.
        prompts: only the first so many captions.
        num_steps: sampling steps other than the workload's.
        moments: also collect what GPTQ needs, under build/calibration/.
        console: shows a progress bar where given.

    Raises:
        ModelError: as `Workload.with_files` and `collect`, or ``out`` cannot be written.
    """
    work = get_workload(workload).with_files(checkpoint, None, text_states, num_steps, prompts)
    model = work.load_model()
    stats = collect(model, work, console=console)
    stats.save(out)
    if moments:
        work.load_moments(model, console)
    return stats
