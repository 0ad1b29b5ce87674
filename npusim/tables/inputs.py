"""What all cells share: model, calibration statistics, the float model's clips and the real clips, made once and kept.

Files lie in ``cache/`` of the tables' folder. Each names what it was made of, and is made anew where that has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibrate import collect
from models.clips import ClipSet, load_digits, load_emoji
from models.iddpm import IDDPM
from models.metrics.features import Features, clip_means, frame_features, real_features
from models.metrics.text_sim import HEADS_FILE
from models.prepare import searched_alphas
from models.quantize import get_method
from models.quantize.alpha import AlphaTable
from models.quantize.structure import DEFAULT_ALPHA
from models.sample import ClipBatch, Frames, decode_frames, denoise_clips
from models.stats import CalibrationStats, weights_sha256
from models.stdit import STDiT
from models.store import load_arrays, save_arrays
from models.vae import Autoencoder
from models.workloads import Workload
from npusim.evaluate import real_clips as first_real_clips
from npusim.tables.cells import Cell, calibrated_on_first, clips_of

KIND, VERSION = "float clips", 1
REAL_CLIPS = 363
"""Real clips of each data set that `feature_frechet` compares with, at most: all emoji, as many digits."""


@dataclass(frozen=True)
class Setup:
    """What a folder of tables is made of: the folder, the workload, clips per cell, and the machine files."""

    folder: Path
    workload: Workload
    clips: int
    machine: Path
    dynamic_machine: Path


@dataclass(frozen=True, eq=False)
class FloatClips:
    """The float model's clips of a data set.

    states: (steps + 1, N, 4, T, H, W) float32; eps: (steps, N, 4, T, H, W) float32, guided; frames: (N, T, 8H, 8W, 3)
    uint8; features: (N, T, 1280) float32, of `frame_features`.
    """

    states: NDArray[np.float32]
    eps: NDArray[np.float32]
    frames: Frames
    features: Features


class Inputs:
    """The shared inputs of one `Setup`, each loaded or made when first asked for.

    Raises:
        ModelError: from any member, where a file is missing or damaged.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.work = calibrated_on_first(setup.workload)
        self._float: dict[str, FloatClips] = {}
        self._batches: dict[str, ClipBatch] = {}

    @cached_property
    def model(self) -> STDiT:
        """The float model."""
        return self.work.load_model()

    @cached_property
    def vae(self) -> Autoencoder:
        """The autoencoder."""
        return self.work.load_vae()

    @cached_property
    def sampler(self) -> IDDPM:
        """The sampler."""
        return self.work.sampler()

    @cached_property
    def weights_sha256(self) -> str:
        """Of the float model."""
        return weights_sha256(self.model)

    @cached_property
    def stats(self) -> CalibrationStats:
        """Calibration statistics of data set 1's captions alone."""
        path = self.setup.folder / "cache" / "calibration.safetensors"
        work = self.work
        if path.exists():
            found = CalibrationStats.load(path)
            wanted = (self.weights_sha256, work.calibration_captions, work.calibration_seeds, work.num_steps)
            if (found.weights_sha256, found.captions, found.seeds, found.steps) == wanted:
                return found
        made = collect(self.model, work)
        made.save(path)
        return made

    @cached_property
    def alphas(self) -> AlphaTable | None:
        """The smoothing exponents that were searched for these weights."""
        return searched_alphas(self.work, self.weights_sha256)

    def batch(self, data_set: str) -> ClipBatch:
        """Captions and noise of a data set's clips."""
        if data_set not in self._batches:
            captions, seeds = clips_of(data_set, self.setup.clips)
            null = self.model.y_embedder.y_embedding
            self._batches[data_set] = ClipBatch.of(self.work, captions, seeds, null)
        return self._batches[data_set]

    def decode(self, latents: NDArray[np.float32]) -> Frames:
        """Latent clips (N, 4, T, H, W) as frames (N, T, 8H, 8W, 3) uint8; one by one, which is the fastest."""
        return np.stack([decode_frames(self.vae, latent) for latent in latents])

    def float_clips(self, data_set: str) -> FloatClips:
        """The float model's clips."""
        if data_set not in self._float:
            self._float[data_set] = self._load_or_make(data_set)
        return self._float[data_set]

    def _load_or_make(self, data_set: str) -> FloatClips:
        path = self.setup.folder / "cache" / f"float-{data_set}.safetensors"
        settings = self.clip_settings(data_set)
        if path.exists():
            arrays, found = load_arrays(path, KIND, VERSION)
            if found == settings:
                return FloatClips(**arrays)
        run = denoise_clips(self.model, self.sampler, self.batch(data_set))
        frames = self.decode(run.states[-1])
        made = FloatClips(run.states, run.eps, frames, frame_features(frames))
        save_arrays(path, KIND, VERSION, vars(made), settings)
        return made

    def clip_settings(self, data_set: str) -> dict[str, Any]:
        """What decides the float model's clips, as JSON holds it."""
        captions, seeds = clips_of(data_set, self.setup.clips)
        work = self.work
        return {
            "workload": work.name, "weights_sha256": self.weights_sha256, "autoencoder_sha256": _file_sha256(work.vae),
            "num_steps": work.num_steps, "cfg_scale": work.cfg_scale, "cfg_channels": work.cfg_channels,
            "data_set": data_set, "captions": list(captions), "seeds": list(seeds),
        }  # fmt: skip

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Everything but code that decides a cell's figures, as its file holds it."""
        found = self.clip_settings(cell.data_set) | {
            "method": cell.method,
            "text_heads_sha256": _file_sha256(HEADS_FILE),
        }
        if not cell.quantized:
            return found
        found |= {
            "weight_bits": cell.weight_bits, "act_bits": cell.act_bits, "ranges": cell.ranges,
            "alpha": self.alpha(cell), "calibration_sha256": self.stats.values_sha256(),
        }  # fmt: skip
        if cell.integer:
            found["machine_sha256"] = _file_sha256(self.machine(cell))
        return found

    def alpha(self, cell: Cell) -> float | None:
        """The smoothing exponent of a cell: that which was searched for its method; None without smoothing.

        `dynamic` smooths here as ViDiT-Q does, unless the cell says otherwise. Where nothing was searched for these
        weights, it is the default, and `dynamic` then does not smooth.
        """
        method = get_method(cell.method)
        if method.average is None or not cell.smooth:
            return None
        found = None if self.alphas is None else self.alphas.best(cell.method, cell.weight_bits, cell.act_bits)
        return DEFAULT_ALPHA if found is None and method.smooths_by_default else found

    def machine(self, cell: Cell) -> Path:
        """The machine file that an integer cell runs on: `dynamic` needs one with run-time quantization."""
        return self.setup.dynamic_machine if get_method(cell.method).dynamic else self.setup.machine

    def real(self, data_set: str) -> NDArray[np.float64]:
        """Features of real clips averaged over their frames, (clips, 1280)."""
        clips = real_clips(data_set)
        some = ClipSet(clips.captions[:REAL_CLIPS], clips.frames[:REAL_CLIPS])
        return clip_means(real_features(some))

    def real_frames(self, data_set: str) -> Frames:
        """The first real clip of each of the data set's captions, (N, 8, 64, 64, 3) uint8."""
        first, (captions, _) = first_real_clips(), clips_of(data_set, self.setup.clips)
        return np.stack([first[caption] for caption in captions])


PREPARED: Mapping[str, str] = {
    "calibration": "statistics of the calibration clips",
    "moments": "second moments of the calibration clips, for GPTQ",
    "float-emoji": "float clips of the emoji",
    "float-digits": "float clips of the digits",
    "real-emoji": "features of the real emoji",
    "real-digits": "features of the real digits",
}
"""Shared inputs that are made before the cells, each in a job of its own."""


def prepare(inputs: Inputs, name: str) -> None:
    """Make one of `PREPARED`, unless its file is there."""
    kind, _, data_set = name.partition("-")
    if kind == "calibration":
        _ = inputs.stats
    elif kind == "moments":
        inputs.work.load_moments(inputs.model)
    elif kind == "float":
        inputs.float_clips(data_set)
    else:
        inputs.real(data_set)


def prepared_for(cells: Sequence[Cell]) -> tuple[str, ...]:
    """The `PREPARED` that these cells need."""
    quantized = [cell for cell in cells if cell.quantized]
    needed = {"calibration"}  # its ranges are plotted, too
    needed |= {"moments"} if any(get_method(cell.method).gptq for cell in quantized) else set()
    needed |= {f"float-{cell.data_set}" for cell in cells} | {f"real-{c.data_set}" for c in cells if not c.integer}
    return tuple(name for name in PREPARED if name in needed)


def real_clips(data_set: str) -> ClipSet:
    """All real clips of a data set."""
    return load_emoji() if data_set == "emoji" else load_digits()


def _file_sha256(path: Path | None) -> str | None:
    """Of a file's bytes; None where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None
