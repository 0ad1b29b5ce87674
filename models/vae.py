"""A small convolutional autoencoder: 64 x 64 RGB frames to 8 x 8 latents of 4 channels and back.

It stands in for the Stable Diffusion VAE that Open-Sora v1.0 uses (8x down, 4 latent channels, each frame on its own)
and, as there, runs in floating point on the host: only the diffusion transformer runs on the NPU.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import copy_into, read_tensors

LATENT_CHANNELS = 4
WIDTHS = (32, 64, 128)
LATENT_NOISE = 0.05


class ResidualBlock(nn.Module):
    """x + Conv(SiLU(GN(Conv(SiLU(GN(x)))))), width unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return out


class Autoencoder(nn.Module):
    """Frames to normalised latents and back.

    Buffers `latent_mean` and `latent_std` (4,) hold the statistics of the training set's raw latents, so that
    the latents the diffusion model sees have mean 0 and deviation 1 per channel.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        w1, w2, w3 = WIDTHS
        self.encoder = nn.Sequential(
            nn.Conv2d(3, w1, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(w1, w2, 3, stride=2, padding=1),
            ResidualBlock(w2),
            nn.Conv2d(w2, w3, 3, stride=2, padding=1),
            ResidualBlock(w3),
            nn.Conv2d(w3, w3, 3, stride=2, padding=1),
            ResidualBlock(w3),
            nn.GroupNorm(8, w3),
            nn.SiLU(),
            nn.Conv2d(w3, LATENT_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, w3, 3, padding=1),
            ResidualBlock(w3),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(w3, w3, 3, padding=1),
            ResidualBlock(w3),
            nn.Conv2d(w3, w2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="nearest"),
            ResidualBlock(w2),
            nn.Conv2d(w2, w1, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="nearest"),
            ResidualBlock(w1),
            nn.GroupNorm(8, w1),
            nn.SiLU(),
            nn.Conv2d(w1, 3, 3, padding=1),
        )
        self.register_buffer("latent_mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("latent_std", torch.ones(LATENT_CHANNELS))

    def loss(self, frames: Tensor, noise: Tensor) -> Tensor:
        """L1 + L2 reconstruction error of frames (B, 3, 64, 64) in [-1, 1], with noise (B, 4, 8, 8) on raw latents.

        The noise makes the decoder smooth, so that small errors of generated latents do not show; the weak pull
        on the latents' size keeps them from growing to escape the noise.
        """
        raw = self.encoder(frames)
        out = self.decoder(raw + LATENT_NOISE * noise)
        error = out.float() - frames
        loss: Tensor = error.abs().mean() + error.square().mean() + 1e-4 * raw.float().square().mean()
        return loss

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes a batch of clips.

        Args:
            frames: (B, T, H, W, 3) uint8.

        Returns:
            (B, 4, T, H/8, W/8) float32, normalised per channel.
        """
        batch, time, height, width, _ = frames.shape
        x = frames.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        raw: Tensor = self.encoder(x)
        z = (raw - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]
        return z.view(batch, time, LATENT_CHANNELS, height // 8, width // 8).transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes a batch of clips.

        Args:
            latents: (B, 4, T, h, w) float32, normalised per channel.

        Returns:
            (B, T, 8h, 8w, 3) uint8.
        """
        batch, channels, time, height, width = latents.shape
        z = latents.transpose(1, 2).reshape(-1, channels, height, width)
        x: Tensor = self.decoder(z * self.latent_std[:, None, None] + self.latent_mean[:, None, None])
        pixels = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).reshape(batch, time, 8 * height, 8 * width, 3)


def load_autoencoder(path: Path) -> tuple[Autoencoder, dict[str, str]]:
    """Loads a checkpoint written by `models.train` (fp16 weights, float32 statistics).

    Returns:
        the autoencoder in float32, in evaluation mode, without gradients; and the file's metadata.

    Raises:
        ModelError: if the file is unreadable, or a tensor is missing, unknown or misshapen.
    """
    model = Autoencoder()
    tensors, metadata = read_tensors(path)
    copy_into(model, tensors, path)
    return model.eval().requires_grad_(False), metadata
