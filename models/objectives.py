"""What the two training stages minimise: data, batches, loss and exported tensors of each."""

import hashlib
import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from models.checkpoint import read_tensors
from models.clips import data_sha256, load_digits, load_emoji
from models.iddpm import TRAIN_STEPS, DiffusionTables, linear_betas
from models.stdit import EMOJI_CONFIG, POSITION_BUFFERS, STDiT
from models.store import write_atomically
from models.text import TextStates
from models.vae import Autoencoder, load_autoencoder

EMOJI_SHARE = 0.75
MIN_SNR_GAMMA = 5.0


class Objective(Protocol):
    """One training stage.

    Attributes:
        name: base name of the exported files.
        data_sha256: hash of the data trained on.
    """

    name: str
    data_sha256: str

    def build(self) -> nn.Module:
        """Returns the model with fresh weights."""
        ...

    def config(self) -> dict[str, object]:
        """Returns the model's constructor arguments."""
        ...

    def loss(self, model: nn.Module, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Draws a batch with `generator` (on the CPU) and returns the scalar loss."""
        ...

    def export(self, ema: nn.Module) -> dict[str, Tensor]:
        """Returns the tensors of the checkpoint file."""
        ...


def draw_mixed(count_emoji: int, count_digits: int, batch: int, generator: torch.Generator) -> Tensor:
    """Draws indices into [emoji | digits], each from the emoji set with probability 3/4: (batch,) int64."""
    from_emoji = torch.rand(batch, generator=generator) < EMOJI_SHARE
    emoji = torch.randint(count_emoji, (batch,), generator=generator)
    digits = torch.randint(count_digits, (batch,), generator=generator) + count_emoji
    return torch.where(from_emoji, emoji, digits)


def noise_weight(snr: Tensor) -> Tensor:
    """Weight of the noise's squared error: min-SNR-5 (Hang et al. 2023), raised by snr^-1/2 where snr < 1.

    At high noise levels, which settle a clip's layout, even a tiny error of the noise is a large one of the clip;
    with plain min-SNR weights those levels hardly count beside the others, and small models stay blotchy for long.
    """
    return snr.clamp(max=MIN_SNR_GAMMA) / snr * snr.clamp(max=1.0).rsqrt()


class VaeObjective:
    """Reconstruction of single frames."""

    name = "emoji_vae"

    def __init__(self) -> None:
        emoji, digits = load_emoji().frames, load_digits().frames
        self.data_sha256 = data_sha256()
        self._frames = torch.from_numpy(np.concatenate([emoji, digits]).reshape(-1, *emoji.shape[2:]))
        self._count_emoji = emoji.shape[0] * emoji.shape[1]

    def build(self) -> nn.Module:
        """Returns a fresh autoencoder."""
        return Autoencoder()

    def config(self) -> dict[str, object]:
        """The autoencoder has no constructor arguments."""
        return {}

    def loss(self, model: nn.Module, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Loss of `batch` frames."""
        assert isinstance(model, Autoencoder)
        index = draw_mixed(self._count_emoji, len(self._frames) - self._count_emoji, batch, generator)
        frames = self._frames[index].permute(0, 3, 1, 2).to(device).float() / 127.5 - 1.0
        noise = torch.randn(batch, 4, 8, 8, generator=generator).to(device)
        return model.loss(frames, noise)

    def export(self, ema: nn.Module) -> dict[str, Tensor]:
        """Measures the latent statistics over both sets, 3 : 1, and returns fp16 weights and float32 statistics."""
        assert isinstance(ema, Autoencoder)
        generator = torch.Generator().manual_seed(0)
        index = draw_mixed(self._count_emoji, len(self._frames) - self._count_emoji, 2048, generator)
        device = ema.latent_mean.device
        raws = []
        with torch.inference_mode():
            for part in torch.split(index, 64):
                frames = self._frames[part].permute(0, 3, 1, 2).to(device).float() / 127.5 - 1.0
                raws.append(ema.encoder(frames))
            raw = torch.cat(raws)
            ema.latent_mean.copy_(raw.mean(dim=(0, 2, 3)))
            ema.latent_std.copy_(raw.std(dim=(0, 2, 3)))
        tensors = ema.state_dict()
        return {
            name: tensor.cpu().contiguous() if name.startswith("latent_") else tensor.cpu().half().contiguous()
            for name, tensor in tensors.items()
        }


class StditObjective:
    """Denoising of whole clips: noise prediction (min-SNR weighted) plus the learned variance's bound."""

    name = "emoji_stdit"

    def __init__(self, checkpoint_dir: Path, cache_dir: Path, device: torch.device) -> None:
        """Prepares text states and latents; raises ModelError where the autoencoder's checkpoint is missing."""
        emoji, digits = load_emoji(), load_digits()
        self.data_sha256 = data_sha256()
        self._count_emoji = len(emoji.captions)
        frames = np.concatenate([emoji.frames, digits.frames])
        vae_path = checkpoint_dir / f"{VaeObjective.name}.safetensors"
        self._latents = cached_latents(vae_path, frames, self.data_sha256, cache_dir, device)
        states, mask = TextStates().batch(list(emoji.captions + digits.captions))
        self._states, self._mask = torch.from_numpy(states), torch.from_numpy(mask)
        self._tables = DiffusionTables.of(linear_betas())

    def build(self) -> nn.Module:
        """Returns a fresh model."""
        return STDiT(**EMOJI_CONFIG)  # type: ignore[arg-type]

    def config(self) -> dict[str, object]:
        """Returns the small model's constructor arguments."""
        return dict(EMOJI_CONFIG)

    def loss(self, model: nn.Module, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Loss of `batch` clips at random timesteps."""
        assert isinstance(model, STDiT)
        index = draw_mixed(self._count_emoji, len(self._latents) - self._count_emoji, batch, generator)
        # Stratified timesteps: one uniform draw shifted evenly over the batch, for a loss of less variance.
        offset = torch.rand(1, generator=generator) + torch.arange(batch) / batch
        t = (offset % 1.0 * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
        noise = torch.randn(batch, *self._latents.shape[1:], generator=generator).to(device)
        drop = torch.rand(batch, generator=generator) < model.class_dropout_prob
        x0 = self._latents[index].to(device)
        states, mask = self._states[index][:, None].to(device), self._mask[index].to(device)
        acp = self._of_step(self._tables.alphas_cumprod, t, device)
        x_t = acp.sqrt() * x0 + (1.0 - acp).sqrt() * noise
        eps, v = model(x_t, t.to(device), states, mask, drop.to(device)).chunk(2, dim=1)
        simple: Tensor = (noise_weight(acp / (1.0 - acp)) * (eps - noise).square()).mean()
        return simple + self._variance_bound(x0, x_t, eps.detach(), v, t)

    def _variance_bound(self, x0: Tensor, x_t: Tensor, eps: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """KL divergence (bits per value) of the model's step from the true posterior; trains v alone.

        At t = 0 the posterior's clipped log variance stands in for the discretised likelihood that is used for pixels.
        """
        tables, device = self._tables, x0.device
        coef1 = self._of_step(tables.posterior_mean_coef1, t, device)
        recip = self._of_step(tables.sqrt_recip_alphas_cumprod, t, device)
        recipm1 = self._of_step(tables.sqrt_recipm1_alphas_cumprod, t, device)
        mean_error = coef1 * (recip * x_t - recipm1 * eps - x0)  # the x_t terms of both means are equal
        log_true = self._of_step(tables.posterior_log_variance_clipped, t, device)
        log_max = self._of_step(np.log(tables.betas), t, device)
        fraction = (v + 1.0) / 2.0
        log_model = fraction * log_max + (1.0 - fraction) * log_true
        ratio = torch.exp(log_true - log_model) + mean_error.square() * torch.exp(-log_model)
        return (0.5 * (log_model - log_true - 1.0 + ratio)).mean() / math.log(2.0)

    @staticmethod
    def _of_step(table: NDArray[np.float64], t: Tensor, device: torch.device) -> Tensor:
        return torch.from_numpy(table)[t].float().to(device)[:, None, None, None, None]

    def export(self, ema: nn.Module) -> dict[str, Tensor]:
        """Returns fp16 weights; the position tables stay float32."""
        return {
            name: tensor.cpu().contiguous() if name in POSITION_BUFFERS else tensor.cpu().half().contiguous()
            for name, tensor in ema.state_dict().items()
        }


def cached_latents(
    vae_path: Path, frames: NDArray[np.uint8], data_hash: str, cache_dir: Path, device: torch.device
) -> Tensor:
    """Encodes all clips, or reads them from `cache_dir` if the same autoencoder encoded the same data before."""
    vae, _ = load_autoencoder(vae_path)
    key = hashlib.sha256(vae_path.read_bytes() + data_hash.encode()).hexdigest()
    cache = cache_dir / f"latents-{key[:16]}.safetensors"
    if cache.exists():
        return read_tensors(cache)[0]["latents"]
    latents = encode_all(vae.to(device), frames, device)
    write_atomically(cache, save({"latents": latents}))
    return latents


@torch.inference_mode()
def encode_all(vae: Autoencoder, frames: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Encodes clips (n, 8, 64, 64, 3) uint8 to normalised latents (n, 4, 8, 8, 8) float32 on the CPU."""
    parts = torch.split(torch.from_numpy(frames), 16)
    latents = torch.cat([vae.encode(part.to(device)).cpu() for part in parts])
    return latents.clone()
