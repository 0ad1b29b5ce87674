"""Caption hits: how often the float model's clip is nearest to a training clip that bears the prompted caption.

    python -m models.hits [--checkpoint models/checkpoints/emoji_stdit.safetensors] [--captions 64]

Generated and training clips are compared as normalised latents by Euclidean distance. A hit means that, of all 1,363
training clips, the nearest one has the prompted caption (403 captions, so chance is about 0.3 %). The digits have about
25 clips to a caption. Captions and noise are fixed by seeds: figures of two checkpoints can be compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.clips import data_sha256, digit_captions, load_digits, load_emoji
from models.errors import ModelError
from models.iddpm import IDDPM, draw_noise
from models.metrics import MeanInterval, mean_interval
from models.objectives import cached_latents
from models.sample import require_latent_channels
from models.stdit import STDiT
from models.text import TextStates
from models.train import STATE_DIR
from models.workloads import Workload, get_workload

CAPTIONS = 64
CAPTION_SEED = 0
EMOJI_PER_DIGIT = 3
FIRST_NOISE_SEED = 4000
BATCH = 8


@dataclass(frozen=True)
class Hit:
    """One caption: that of the nearest training clip, and how far it is (Euclidean, in normalised latents)."""

    caption: str
    nearest: str
    distance: float

    @property
    def hit(self) -> bool:
        """Whether the nearest training clip bears the prompted caption."""
        return self.caption == self.nearest


def hit_captions(count: int = CAPTIONS) -> list[str]:
    """A fixed list of captions, three emoji to one digit as in training.

    Raises:
        ModelError: count is not a multiple of 4 from 4 to 160.
    """
    digits = digit_captions()
    if count % (EMOJI_PER_DIGIT + 1) or not 4 <= count <= len(digits) * (EMOJI_PER_DIGIT + 1):
        raise ModelError(f"captions={count}: allowed are multiples of 4 from 4 to {len(digits) * 4}")
    known = set(digits)
    emoji = [caption for caption in TextStates().captions if caption not in known]
    rng = np.random.default_rng(CAPTION_SEED)
    few = count // (EMOJI_PER_DIGIT + 1)
    chosen = [*rng.choice(emoji, count - few, replace=False), *rng.choice(digits, few, replace=False)]
    return [str(caption) for caption in chosen]


def sample_latents(
    model: STDiT,
    sampler: IDDPM,
    captions: Sequence[str],
    seeds: Sequence[int],
    shape: tuple[int, ...],
    advance: Callable[[], None],
) -> NDArray[np.float32]:
    """Sample one clip per caption in one batch, as `models.sample.denoise` does one at a time.

    Args:
        model: the float model.
        sampler: steps and guidance.
        captions: one clip each.
        seeds: one noise seed per caption.
        shape: latent clip (4, T, H, W).
        advance: called after every step.

    Returns:
        (captions, 4, T, H, W) float32, equal to single clips up to float32 rounding.

    Raises:
        ModelError: an unknown caption, or a model with other latent channels than the sampler.
    """
    require_latent_channels(model)
    states, mask = (torch.from_numpy(array) for array in TextStates().batch(list(captions)))
    null = model.y_embedder.y_embedding.expand_as(states)
    text = torch.cat([states, null])[:, None]
    drawn = [draw_noise(seed, shape, sampler.num_sampling_steps) for seed in seeds]
    x = torch.stack([x_T for x_T, _ in drawn])
    noises = torch.stack([noise for _, noise in drawn], dim=1)
    with torch.inference_mode():
        for step in range(sampler.num_sampling_steps):
            k = sampler.num_sampling_steps - 1 - step
            timestep = torch.full((2 * len(x),), float(sampler.timesteps[k]))
            # The model repeats the mask for the second half of the batch: the null captions are cut like the prompts.
            eps, v = model(torch.cat([x, x]), timestep, text, mask).chunk(2, dim=1)
            eps_cond, eps_uncond = eps.chunk(2)
            x = sampler.step(k, x, sampler.guide(eps_cond, eps_uncond), v[: len(x)], noises[step])
            advance()
    latents: NDArray[np.float32] = x.numpy()
    return latents


def nearest_clip(latents: NDArray[np.float32], training: NDArray[np.float32]) -> tuple[list[int], list[float]]:
    """Index of, and Euclidean distance to, the nearest training clip of each latent clip.

    Args:
        latents: (n, ...) and
        training: (m, ...), float32, of one shape but for the first axis.
    """
    flat = training.reshape(len(training), -1).astype(np.float64)
    squared = [np.square(flat - clip.reshape(-1)).sum(axis=1) for clip in latents]
    return [int(row.argmin()) for row in squared], [float(np.sqrt(row.min())) for row in squared]


def measure_hits(
    model: STDiT,
    workload: Workload,
    captions: Sequence[str],
    cache_dir: Path = STATE_DIR,
    console: Console | None = None,
) -> list[Hit]:
    """Sample a clip of every caption and find its nearest training clip.

    Args:
        model: the float model; any checkpoint of the workload's architecture.
        workload: sampler settings, autoencoder, latent shape.
        captions: caption i is sampled with noise seed 4000 + i.
        cache_dir: keeps the training clips' latents, as `models.train` does.
        console: shows a progress bar where given.

    Raises:
        ModelError: an unknown caption, or a workload without autoencoder.
    """
    if workload.vae is None:
        raise ModelError(f"workload '{workload.name}' has no autoencoder; its training clips have no latents")
    emoji, digits = load_emoji(), load_digits()
    frames, names = np.concatenate([emoji.frames, digits.frames]), emoji.captions + digits.captions
    sampler = workload.sampler()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hits: list[Hit] = []
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("encode training clips (once)", total=None)
        training = cached_latents(workload.vae, frames, data_sha256(), cache_dir, torch.device("cpu")).numpy()
        starts = range(0, len(captions), BATCH)
        progress.update(task, description="sample", total=len(starts) * sampler.num_sampling_steps)
        for start in starts:
            batch = captions[start : start + BATCH]
            seeds = range(FIRST_NOISE_SEED + start, FIRST_NOISE_SEED + start + len(batch))
            latents = sample_latents(
                model, sampler, batch, seeds, workload.latent_shape, lambda: progress.advance(task)
            )
            found = zip(batch, *nearest_clip(latents, training), strict=True)
            hits += [Hit(caption, names[index], distance) for caption, index, distance in found]
    return hits


def share(hits: Sequence[Hit]) -> MeanInterval:
    """Share of hits, 0 to 1, with the bootstrap interval over the captions."""
    return mean_interval([float(hit.hit) for hit in hits])


def _print(hits: Sequence[Hit], console: Console) -> None:
    table = Table("caption", "nearest training clip", "distance", "hit")
    for hit in hits:
        table.add_row(hit.caption, hit.nearest, f"{hit.distance:.2f}", "yes" if hit.hit else "")
    console.print(table)
    digits = set(digit_captions())
    groups = {
        "all": hits,
        "emoji": [hit for hit in hits if hit.caption not in digits],
        "digits": [hit for hit in hits if hit.caption in digits],
    }
    for name, group in groups.items():
        mean, low, high = (100 * value for value in share(group))
        count = sum(hit.hit for hit in group)
        console.print(f"{name}: {mean:.1f} % hits ({count} of {len(group)}; 95 % interval {low:.1f} to {high:.1f} %)")


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code (2 on a user error)."""
    parser = argparse.ArgumentParser(prog="python -m models.hits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", default="emoji")
    parser.add_argument("--checkpoint", type=Path, help="STDiT to measure; by default the workload's")
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="how many, a multiple of 4")
    options = parser.parse_args(arguments)
    errors = Console(stderr=True, soft_wrap=True)
    torch.set_num_threads(1)  # results must not depend on the number of cores
    try:
        workload = get_workload(options.workload)
        captions = hit_captions(options.captions)
        if options.checkpoint:
            workload = dataclasses.replace(workload, checkpoint=options.checkpoint)
        hits = measure_hits(workload.load_model(), workload, captions, console=errors)
    except ModelError as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        return 2
    _print(hits, Console(highlight=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
