"""Sampling: the guided denoising loop over any predictor, its replay on equal inputs, and pictures of the result.

A predictor is a function of the executed step i (0 is the noisiest) and the state x (4, T, H, W) float32 that returns
(eps_cond, eps_uncond, v_cond), each (4, T, H, W): the noise predictions of both guidance branches and the conditional
branch's variance channels. The float model, its fake-quantized copy and an integer machine all fit.

    python -m models.sample --workload emoji --prompt "rocket" --out DIR
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.iddpm import IDDPM, draw_noise
from models.stats import BRANCHES
from models.stdit import STDiT
from models.store import write_atomically
from models.vae import Autoencoder
from models.workloads import Workload, get_workload

Predictor = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor]]
Frames = NDArray[np.uint8]

FRAME_MS = 125
LATENT_CHANNELS = 4
BATCH = 8


@dataclass(frozen=True)
class Trajectory:
    """One sampling run: every state and every guided noise prediction.

    states: (steps + 1, 4, T, H, W) float32; states[i] enters step i, states[-1] is the finished latent clip.
    eps: (steps, 4, T, H, W) float32, the guided noise prediction of step i.
    """

    states: NDArray[np.float32]
    eps: NDArray[np.float32]


def require_latent_channels(model: nn.Module) -> None:
    """Check that the network predicts noise and variance of 4 latent channels, which the sampler and guidance assume.

    Raises:
        ModelError: it does not.
    """
    network = model.model if isinstance(model, FakeQuantSTDiT) else model
    if not isinstance(network, STDiT):
        return
    channels = (network.in_channels, network.out_channels)
    if channels != (LATENT_CHANNELS, 2 * LATENT_CHANNELS):
        raise ModelError(
            f"model: in_channels={channels[0]}, pred_sigma={channels[0] != channels[1]}; "
            f"sampling needs in_channels={LATENT_CHANNELS} and pred_sigma=True"
        )


def float_predictor(
    model: nn.Module, sampler: IDDPM, states: Tensor, mask: Tensor, null: Tensor, branch: str | None = None
) -> Predictor:
    """The float model as a predictor; both branches run as one batch [conditional, unconditional].

    Args:
        model: STDiT (or anything called like it); its output has 8 channels, noise prediction first.
        sampler: gives each executed step its original timestep.
        states: (L, caption channels) float32, token states of the prompt.
        mask: (L,) bool, the valid tokens.
        null: (L, caption channels) float32, the null caption, cut to the prompt's length by the same mask.
        branch: one of `BRANCHES`, to run that one alone and take it for both: guidance then leaves it as it is.

    Raises:
        ModelError: the model has other latent channels than the sampler.
    """
    require_latent_channels(model)
    texts = [states, null] if branch is None else [(states, null)[BRANCHES.index(branch)]]
    captions, count = torch.stack(texts)[:, None], len(texts)
    masks = mask[None].expand(count, -1)

    def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        timestep = torch.full((count,), float(sampler.timesteps[sampler.num_sampling_steps - 1 - step]))
        with torch.inference_mode():
            out = model(x.expand(count, *x.shape), timestep, captions, masks)
        eps, v = out.chunk(2, dim=1)
        return eps[0], eps[-1], v[0]

    return predict


def fakequant_predictor(
    model: FakeQuantSTDiT, sampler: IDDPM, states: Tensor, mask: Tensor, null: Tensor, branch: str | None = None
) -> Predictor:
    """The fake-quantized model as a predictor: `float_predictor` with each step's quantization range selected."""
    base = float_predictor(model, sampler, states, mask, null, branch)

    def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model.set_step(step)
        return base(step, x)

    return predict


def denoise(
    predict: Predictor, x_T: Tensor, noises: Tensor, sampler: IDDPM, steps: int | None = None,
    begun: Trajectory | None = None, keep: Callable[[Trajectory], None] = lambda trajectory: None,
) -> Trajectory:  # fmt: skip
    """Run all steps from x_T, each on the state that the one before left ("free running").

    Args:
        predict: the predictor.
        x_T: (4, T, H, W) float32, the state that enters step 0.
        noises: (steps, 4, T, H, W) float32, the noise that each step adds; both as `draw_noise` gives them.
        sampler: guidance and update rule.
        steps: only the first so many.
        begun: the first steps of the same run, from which it goes on.
        keep: called after each step with all that is done.
    """
    states, guided = ([x_T.numpy()], []) if begun is None else (list(begun.states), list(begun.eps))
    for step in range(len(guided), sampler.num_sampling_steps if steps is None else steps):
        x = torch.from_numpy(states[-1])
        eps_cond, eps_uncond, v = predict(step, x)
        eps = sampler.guide(eps_cond[None], eps_uncond[None])
        after = sampler.step(sampler.num_sampling_steps - 1 - step, x[None], eps, v[None], noises[step][None])[0]
        guided.append(eps[0].numpy())
        states.append(after.numpy())
        keep(Trajectory(np.stack(states), np.stack(guided)))
    return Trajectory(np.stack(states), np.stack(guided))


def replay(
    predict: Predictor, trajectory: Trajectory, sampler: IDDPM, begun: Sequence[NDArray[np.float32]] = (),
    keep: Callable[[NDArray[np.float32]], None] = lambda guided: None,
) -> NDArray[np.float32]:  # fmt: skip
    """Guided noise predictions (steps, 4, T, H, W) of a predictor fed the states of another's run ("teacher forced").

    So each step is compared with `trajectory.eps` on equal inputs, free of what earlier steps did. ``begun`` and
    ``keep`` as of `denoise`.
    """
    guided = list(begun)
    for step in range(len(guided), len(trajectory.eps)):
        eps_cond, eps_uncond, _ = predict(step, torch.from_numpy(trajectory.states[step]))
        guided.append(sampler.guide(eps_cond[None], eps_uncond[None])[0].numpy())
        keep(np.stack(guided))
    return np.stack(guided)


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """Captions and noise of N clips that are sampled together.

    captions: (2N, 1, L, width) float32, the prompts' token states, then the null caption N times.
    masks: (2N, L) bool, the prompts' valid tokens, twice.
    x_T: (N, 4, T, H, W) and noises: (steps, N, 4, T, H, W), as `draw_noise` gives them.
    """

    captions: Tensor
    masks: Tensor
    x_T: Tensor  # noqa: N815
    noises: Tensor

    @classmethod
    def of(cls, workload: Workload, captions: Sequence[str], seeds: Sequence[int], null: Tensor) -> ClipBatch:
        """One clip per caption and noise seed; ``null`` (L, width). Raises ModelError for an unknown caption."""
        texts, masks = zip(*(workload.text(caption) for caption in captions), strict=True)
        drawn = [draw_noise(seed, workload.latent_shape, workload.num_steps) for seed in seeds]
        return cls(
            torch.stack([*texts, *[null] * len(texts)])[:, None],
            torch.stack([*masks, *masks]),
            torch.stack([x_T for x_T, _ in drawn]),
            torch.stack([noises for _, noises in drawn], dim=1),
        )

    def first(self, count: int) -> ClipBatch:
        """The first ``count`` clips."""
        return self._part(slice(count))

    def _part(self, clips: slice) -> ClipBatch:
        (captions, null), (masks, _) = self.captions.chunk(2), self.masks.chunk(2)
        return ClipBatch(
            torch.cat([captions[clips], null[clips]]), masks[clips].repeat(2, 1), self.x_T[clips], self.noises[:, clips]
        )

    def _pieces(self) -> list[tuple[slice, ClipBatch]]:
        pieces = [slice(start, start + BATCH) for start in range(0, len(self.x_T), BATCH)]
        return [(piece, self._part(piece)) for piece in pieces]


def denoise_clips(network: nn.Module, sampler: IDDPM, batch: ClipBatch) -> Trajectory:
    """`denoise` of many clips with one network, `BATCH` at a time; a fake-quantized one is told of each step.

    Returns:
        states (steps + 1, N, 4, T, H, W) and eps (steps, N, 4, T, H, W), equal to single clips up to float32 rounding.

    Raises:
        ModelError: the network has other latent channels than the sampler.
    """
    require_latent_channels(network)
    x, pieces = batch.x_T, batch._pieces()
    states, guided = [x.numpy()], []
    for step in range(sampler.num_sampling_steps):
        predicted = [_predict_clips(network, sampler, part, step, x[piece]) for piece, part in pieces]
        eps, v = (torch.cat(parts) for parts in zip(*predicted, strict=True))
        x = sampler.step(sampler.num_sampling_steps - 1 - step, x, eps, v, batch.noises[step])
        guided.append(eps.numpy())
        states.append(x.numpy())
    return Trajectory(np.stack(states), np.stack(guided))


def replay_clips(
    network: nn.Module, sampler: IDDPM, batch: ClipBatch, states: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`replay` of many clips: guided noise predictions (steps, N, 4, T, H, W) for the ``states`` of another's run.

    ``states``: (steps or more, N, 4, T, H, W), as in `denoise_clips`. Raises ModelError as it does.
    """
    require_latent_channels(network)
    pieces = batch._pieces()
    guided = []
    for step in range(sampler.num_sampling_steps):
        x = torch.from_numpy(states[step])
        predicted = [_predict_clips(network, sampler, part, step, x[piece])[0] for piece, part in pieces]
        guided.append(torch.cat(predicted).numpy())
    return np.stack(guided)


def _predict_clips(network: nn.Module, sampler: IDDPM, batch: ClipBatch, step: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Guided noise prediction and the conditional branch's variance channels of clips x (n, 4, T, H, W)."""
    if isinstance(network, FakeQuantSTDiT):
        network.set_step(step)
    timestep = torch.full((2 * len(x),), float(sampler.timesteps[sampler.num_sampling_steps - 1 - step]))
    with torch.inference_mode():
        eps, v = network(torch.cat([x, x]), timestep, batch.captions, batch.masks).chunk(2, dim=1)
        return sampler.guide(*eps.chunk(2)), v[: len(x)]


def decode_frames(vae: Autoencoder, latent: NDArray[np.float32]) -> Frames:
    """A latent clip (4, T, H, W) float32 as frames (T, 8H, 8W, 3) uint8."""
    with torch.inference_mode():
        frames: Frames = vae.decode(torch.from_numpy(latent)[None])[0].numpy()
    return frames


def save_gif(frames: Frames, path: Path) -> None:
    """Write frames (T, H, W, 3) as an endless animated GIF of 8 frames a second; raises ModelError if it cannot."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
    write_atomically(path, data.getvalue())


def save_strip(frames: Frames, path: Path) -> None:
    """Write frames (T, H, W, 3) side by side as one PNG; raises ModelError if it cannot."""
    data = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(data, "PNG")
    write_atomically(path, data.getvalue())


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code (2 on a user error)."""
    parser = argparse.ArgumentParser(
        prog="python -m models.sample", description="Sample one clip with the float model."
    )
    parser.add_argument("--workload", required=True)
    parser.add_argument("--prompt", required=True, help="one of the known captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for clip.gif and clip.png")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        workload = get_workload(options.workload)
        states, mask = workload.text(options.prompt)
        model, vae, sampler = workload.load_model(), workload.load_vae(), workload.sampler()
        noise = draw_noise(options.seed, workload.latent_shape, sampler.num_sampling_steps)
        base = float_predictor(model, sampler, states, mask, model.y_embedder.y_embedding)
        with Progress(console=console) as progress:
            task = progress.add_task("sample", total=sampler.num_sampling_steps)

            def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                progress.advance(task)
                return base(step, x)

            trajectory = denoise(predict, *noise, sampler)
        frames = decode_frames(vae, trajectory.states[-1])
        save_gif(frames, options.out / "clip.gif")
        save_strip(frames, options.out / "clip.png")
    except ModelError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 2
    console.print(f"{options.out / 'clip.gif'}, {options.out / 'clip.png'}: '{options.prompt}', seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
