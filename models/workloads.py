"""Named workloads: a model, its sampler settings, and the fixed captions and seeds that everything is measured on.

`emoji` is the trained small model in the latent space of the small autoencoder; its results have meaning.
`tiny` is a model of random weights, small enough for tests; it has no autoencoder and no committed calibration.
`stdit-xl2-16x256x256` and `-16x512x512` are Open-Sora v1.0's model at its real size, with random weights and random
text states until the user's own files are given (`with_files`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from models.checkpoint import config_of, read_metadata
from models.errors import ModelError
from models.iddpm import IDDPM
from models.moments import InputMoments
from models.stats import CalibrationStats, weights_sha256
from models.stdit import EMOJI_CONFIG, XL2_256_CONFIG, XL2_512_CONFIG, STDiT, load_checkpoint, load_released
from models.text import TextStates
from models.vae import Autoencoder, load_autoencoder

MODELS_DIR = Path(__file__).parent
MOMENTS_DIR = Path("build") / "calibration"
RELEASED_SUFFIXES = (".pth", ".pt")
RANDOM_TEXT_DEVIATION = 0.15

# The four sets share no caption: ranges and exponents must not be fitted to what is measured or shown.
CALIBRATION_CAPTIONS = (
    "cat face",
    "clock face four oclock",
    "beating heart",
    "racing car",
    "family of man and woman and girl and boy",
    "cloud with lightning",
    "grinning face with smiling eyes",
    "clapping hands sign",
    "digit zero moving right",
    "digit eight moving down",
)
EVALUATION_CAPTIONS = (
    "ghost",
    "honeybee",
    "whale",
    "sun with face",
    "birthday cake",
    "woman with rocket",
    "male police officer",
    "heart with arrow",
    "clock face ten-thirty",
    "face with tears of joy",
    "kissing face with closed eyes",
    "thumbs up sign",
    "roller coaster",
    "digit two moving left",
    "digit five moving up",
    "digit nine moving right",
)
SHEET_CAPTIONS = (
    "fire",
    "rainbow",
    "penguin",
    "turtle",
    "growing heart",
    "smiling face with sunglasses",
    "digit three moving up",
    "digit seven moving left",
)
SEARCH_CAPTIONS = (
    "tiger face",
    "hatching chick",
    "sparkling heart",
    "clock face nine oclock",
    "man with artist palette",
    "smiling face with horns",
    "digit one moving down",
    "digit six moving left",
)


@dataclass(frozen=True)
class Workload:
    """What is run under one name.

    config: constructor arguments of the STDiT.
    blocks: only the first so many of its blocks; None for all.
    checkpoint, vae, calibration: the files; None where the workload has random weights, no autoencoder, or statistics
    that are collected on demand.
    num_steps, cfg_scale, cfg_channels: sampler settings, as `IDDPM` takes them.
    *_captions, *_seeds: the clips of each set, one noise seed per caption.
    search_*: the clips on which smoothing exponents are searched (`models.alpha`).
    checkpoint: also a released `.pth` file, whose tensors must fit `config`.
    alphas: the exponents found by the search; None where none was made.
    text_states: file of text states as `models.text.TextStates` reads it; None takes the stored ones.
    random_text: without a file, make up text states for any caption.
    weights_seed: seed of the random weights where there is no checkpoint.
    quick_calibration: (captions, steps) of the runs that are recorded where there is no file, for networks whose every
    step costs minutes; None for all of them.
    """

    name: str
    config: dict[str, Any]
    checkpoint: Path | None
    vae: Path | None
    calibration: Path | None
    alphas: Path | None = None
    text_states: Path | None = None
    random_text: bool = False
    num_steps: int = 20
    cfg_scale: float = 4.0
    cfg_channels: int = 3
    calibration_captions: tuple[str, ...] = CALIBRATION_CAPTIONS
    calibration_seeds: tuple[int, ...] = tuple(range(1000, 1000 + len(CALIBRATION_CAPTIONS)))
    evaluation_captions: tuple[str, ...] = EVALUATION_CAPTIONS
    evaluation_seeds: tuple[int, ...] = tuple(range(2000, 2000 + len(EVALUATION_CAPTIONS)))
    sheet_captions: tuple[str, ...] = SHEET_CAPTIONS
    sheet_seeds: tuple[int, ...] = tuple(range(3000, 3000 + len(SHEET_CAPTIONS)))
    search_captions: tuple[str, ...] = SEARCH_CAPTIONS
    search_seeds: tuple[int, ...] = tuple(range(4000, 4000 + len(SEARCH_CAPTIONS)))
    weights_seed: int = 0
    quick_calibration: tuple[int, int] | None = None
    blocks: int | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent clip (channels, T, H, W)."""
        frames, height, width = self.config["input_size"]
        return self.config["in_channels"], frames, height, width

    @property
    def network(self) -> dict[str, Any]:
        """Constructor arguments of the network that is run: `config`, with the blocks that are left."""
        return self.config if self.blocks is None else {**self.config, "depth": self.blocks}

    def sampler(self) -> IDDPM:
        """The sampler with this workload's settings."""
        return IDDPM(self.num_steps, self.cfg_scale, self.cfg_channels)

    def text(self, caption: str) -> tuple[Tensor, Tensor]:
        """Token states (L, width) float32 and mask (L,) bool of a known caption.

        Raises:
            ModelError: the caption is unknown; names the nearest ones. Or the file's states are of another width.
        """
        length, width = self.config["model_max_length"], self.config["caption_channels"]
        if self.text_states is None and self.random_text:
            return random_text(caption, length, width)
        states, mask = (TextStates(self.text_states, length) if self.text_states else TextStates()).get(caption)
        if states.shape != (length, width):
            raise ModelError(
                f"{self.text_states}: states are {states.shape[1]} wide, workload '{self.name}' has {width}"
            )
        return torch.from_numpy(states), torch.from_numpy(mask)

    def with_files(
        self,
        checkpoint: Path | None = None,
        calibration: Path | None = None,
        text_states: Path | None = None,
        num_steps: int | None = None,
        prompts: int | None = None,
        blocks: int | None = None,
    ) -> Workload:
        """The workload with the user's own files and sizes in place of its own; None leaves what there is.

        Args:
            checkpoint: float weights; the workload's calibration then no longer fits and is dropped.
            calibration: statistics of these weights.
            text_states: calibration captions are then those of this file.
            num_steps: sampling steps.
            prompts: only the first so many calibration captions.
            blocks: only the first so many blocks; calibration and exponents of the whole network are then dropped.

        Raises:
            ModelError: the file of text states is unreadable, or there are not so many captions or blocks.
        """
        work = self
        if checkpoint is not None:
            work = replace(work, checkpoint=checkpoint, calibration=None)
        if text_states is not None:
            captions = tuple(TextStates(text_states, self.config["model_max_length"]).captions)
            seeds = tuple(range(1000, 1000 + len(captions)))
            work = replace(work, text_states=text_states, calibration_captions=captions, calibration_seeds=seeds)
        if num_steps is not None:
            work = replace(work, num_steps=num_steps, calibration=None)
        if prompts is not None:
            if not 1 <= prompts <= len(work.calibration_captions):
                raise ModelError(f"prompts={prompts}: allowed are 1..{len(work.calibration_captions)}")
            captions, seeds = work.calibration_captions[:prompts], work.calibration_seeds[:prompts]
            work = replace(work, calibration_captions=captions, calibration_seeds=seeds, calibration=None)
        if blocks is not None:
            if not 1 <= blocks <= self.config["depth"]:
                raise ModelError(f"blocks = {blocks}: workload '{self.name}' has 1..{self.config['depth']}")
            work = replace(work, blocks=blocks, calibration=None, alphas=None)
        return work if calibration is None else replace(work, calibration=calibration)

    def load_model(self) -> STDiT:
        """The float model in evaluation mode, without gradients.

        Raises:
            ModelError: the checkpoint is missing, damaged, or of another architecture.
        """
        if self.checkpoint is None:
            return random_stdit(self.network, self.weights_seed)
        if self.checkpoint.suffix in RELEASED_SUFFIXES:
            with torch.random.fork_rng(devices=[]):
                model = STDiT(**self.config)
            load_released(model, self.checkpoint)
            return self._cut(model.eval().requires_grad_(False))
        # Compared before anything is built: the network that the file asks for may be of any size.
        found = config_of(read_metadata(self.checkpoint), self.checkpoint)
        for name, value in json.loads(json.dumps(self.config)).items():
            if found.get(name, value) != value:
                raise ModelError(f"{self.checkpoint}: config {name}={found[name]}, workload '{self.name}' has {value}")
        return self._cut(load_checkpoint(self.checkpoint)[0])

    def _cut(self, model: STDiT) -> STDiT:
        model.blocks = model.blocks[: self.blocks]
        return model

    def load_moments(self, model: STDiT, console: Console | None = None) -> InputMoments:
        """Second moments of the inputs for GPTQ, from their file under build/calibration/, which is made if need be.

        With `console`, making it shows a progress bar.

        Raises:
            ModelError: the file is damaged or cannot be written.
        """
        digest = weights_sha256(model)
        name = f"{self.name}-{digest[:12]}-{self.num_steps}-{len(self.calibration_captions)}.safetensors"
        path = MOMENTS_DIR / name
        if path.exists():
            return InputMoments.load(path)
        from models.calibrate import collect_moments  # `models.calibrate` builds on this module

        moments = collect_moments(model, self, console)
        moments.save(path)
        return moments

    def load_vae(self) -> Autoencoder:
        """The autoencoder whose latents the model makes.

        Raises:
            ModelError: the workload has none, or its file is missing or damaged.
        """
        if self.vae is None:
            raise ModelError(f"workload '{self.name}' has no autoencoder; its latents cannot be shown as frames")
        return load_autoencoder(self.vae)[0]

    def load_stats(self) -> CalibrationStats:
        """The committed calibration statistics, or, where there is no file, freshly collected ones.

        Raises:
            ModelError: the file is missing or damaged, or was made with other sampler settings.
        """
        if self.calibration is None:
            return self.collected_stats(self.load_model())
        stats = CalibrationStats.load(self.calibration)
        for name, found, expected in (
            ("workload", stats.workload, self.name),
            ("steps", stats.steps, self.num_steps),
            ("cfg_scale", stats.cfg_scale, self.cfg_scale),
            ("cfg_channels", stats.cfg_channels, self.cfg_channels),
        ):
            if found != expected:
                raise ModelError(f"{self.calibration}: {name} is {found}, workload '{self.name}' has {expected}")
        return stats

    def collected_stats(
        self, model: STDiT, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> CalibrationStats:
        """Statistics of a model without a file of them; ``tell`` is called with how many steps of how many are done.

        Those of a quick calibration are kept under build/calibration/, by weights and sizes, and taken from there.

        Raises:
            ModelError: as `models.calibrate.collect`; or the kept file is damaged or cannot be written.
        """
        from models.calibrate import collect  # `models.calibrate` builds on this module

        if self.quick_calibration is None:
            return collect(model, self, tell=tell)
        prompts, steps = self.quick_calibration
        prompts = min(prompts, len(self.calibration_captions))
        quick = self.with_files(num_steps=min(steps, self.num_steps), prompts=prompts)
        captions = hashlib.sha256(json.dumps([quick.calibration_seeds, self.cfg_scale, self.cfg_channels]).encode())
        for caption in quick.calibration_captions:
            captions.update(quick.text(caption)[0].numpy().tobytes())
        name = (
            f"{self.name}-{weights_sha256(model)[:12]}-{captions.hexdigest()[:8]}-{quick.num_steps}.stats.safetensors"
        )
        path = MOMENTS_DIR / name
        if not path.exists():
            collect(model, quick, tell=tell).save(path)
        return CalibrationStats.load(path).spread(self.num_steps)


def random_text(caption: str, length: int, width: int) -> tuple[Tensor, Tensor]:
    """Made-up token states (length, width) of T5's usual size for any caption, two tokens more than words, and mask."""
    rng = np.random.default_rng(list(hashlib.sha256(caption.encode()).digest()))
    mask = np.arange(length) < len(caption.split()) + 2
    states = rng.standard_normal((length, width)) * RANDOM_TEXT_DEVIATION * mask[:, None]
    return torch.from_numpy(states.astype(np.float32)), torch.from_numpy(mask)


def random_stdit(config: dict[str, Any], seed: int) -> STDiT:
    """An STDiT with random weights everywhere, also where training starts from zero, so that every path matters.

    Weights are normal with deviation 1 / sqrt(inputs), biases and tables are small; drawn by numpy from `seed` in
    the order of the state dict, so the same on every machine. The patch embedding is 32 times smaller: a random model
    does not hold its states near 1 as a trained one does, they grow to hundreds over the steps, and would make the
    softmax one-hot, where a single rounding decides between two tokens.
    """
    with torch.random.fork_rng(devices=[]):
        model = STDiT(**config)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in ("pos_embed", "pos_embed_temporal"):
                continue
            inputs = tensor[0].numel() if tensor.ndim > 1 and name.endswith("weight") else tensor.shape[-1]
            deviation = 0.05 if name.endswith("bias") else inputs**-0.5
            if name == "x_embedder.proj.weight":
                deviation /= 32.0
            tensor.copy_(torch.from_numpy(rng.standard_normal(tuple(tensor.shape)) * deviation))
    return model.eval().requires_grad_(False)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="emoji",
            config=EMOJI_CONFIG,
            checkpoint=MODELS_DIR / "checkpoints" / "emoji_stdit.safetensors",
            vae=MODELS_DIR / "checkpoints" / "emoji_vae.safetensors",
            calibration=MODELS_DIR / "calibration" / "emoji.safetensors",
            alphas=MODELS_DIR / "calibration" / "emoji_alphas.json",
        ),
        Workload(
            name="tiny",
            config={**EMOJI_CONFIG, "input_size": (4, 8, 8), "hidden_size": 32, "depth": 2, "num_heads": 2},
            checkpoint=None,
            vae=None,
            calibration=None,
            num_steps=4,
            calibration_captions=CALIBRATION_CAPTIONS[:4],
            calibration_seeds=(1000, 1001, 1002, 1003),
        ),
        *(
            Workload(
                name=f"stdit-xl2-16x{side}x{side}",
                config=config,
                checkpoint=None,
                vae=None,
                calibration=None,
                cfg_scale=7.0,
                random_text=True,
                quick_calibration=(1, 3),
            )
            for side, config in ((256, XL2_256_CONFIG), (512, XL2_512_CONFIG))
        ),
    )
}


def get_workload(name: str) -> Workload:
    """The workload of that name.

    Raises:
        ModelError: there is none; names the allowed ones, and one that is spelt much alike.
    """
    if name not in WORKLOADS:
        near = difflib.get_close_matches(name, WORKLOADS, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ModelError(f"workload '{name}' is unknown; allowed: {', '.join(WORKLOADS)}{hint}")
    return WORKLOADS[name]
