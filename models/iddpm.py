"""IDDPM: the noise schedule, its 20-step respacing, classifier-free guidance, and the sampling step.

As Open-Sora v1.0 samples: linear betas over 1000 steps, noise (epsilon) prediction, learned-range variance
(Nichol & Dhariwal 2021, eq. 15), respacing by the stride rule of the same paper, guidance on the first `cfg_channels`
latent channels only. All tables are float64; noise is passed in, so that any run can be repeated exactly.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import ModelError

TRAIN_STEPS = 1000
NOISE_FRACTION_BITS = 12
NOISE_LIMIT = 8.0


def linear_betas(steps: int = TRAIN_STEPS) -> NDArray[np.float64]:
    """Returns the linear schedule 1e-4 .. 0.02 (Ho et al. 2020): (steps,) float64."""
    return np.linspace(1e-4, 0.02, steps, dtype=np.float64)


def spaced_timesteps(count: int, total: int = TRAIN_STEPS) -> list[int]:
    """Returns `count` timesteps from 0 to total - 1 at an even, rounded stride, ascending."""
    if not 2 <= count <= total:
        raise ModelError(f"num_sampling_steps={count}: must be from 2 to {total}")
    stride = (total - 1) / (count - 1)
    return [round(index * stride) for index in range(count)]


@dataclass(frozen=True)
class DiffusionTables:
    """Everything that depends only on the step, for one sequence of betas; all arrays (steps,) float64.

    With a_t = 1 - beta_t and abar_t their running product, the posterior q(x_{t-1} | x_t, x_0) is normal with
    mean posterior_mean_coef1 * x_0 + posterior_mean_coef2 * x_t and variance posterior_variance.
    The log variance at step 0, where the variance is 0, is that of step 1.
    """

    betas: NDArray[np.float64]
    alphas_cumprod: NDArray[np.float64]
    posterior_variance: NDArray[np.float64]
    posterior_log_variance_clipped: NDArray[np.float64]
    posterior_mean_coef1: NDArray[np.float64]
    posterior_mean_coef2: NDArray[np.float64]
    sqrt_recip_alphas_cumprod: NDArray[np.float64]
    sqrt_recipm1_alphas_cumprod: NDArray[np.float64]

    @classmethod
    def of(cls, betas: NDArray[np.float64]) -> "DiffusionTables":
        """Derives the tables from betas (steps,)."""
        alphas = 1.0 - betas
        acp = np.cumprod(alphas).astype(np.float64)
        acp_prev = np.append(1.0, acp[:-1])
        variance = betas * (1.0 - acp_prev) / (1.0 - acp)
        return cls(
            betas=betas,
            alphas_cumprod=acp,
            posterior_variance=variance,
            posterior_log_variance_clipped=np.log(np.append(variance[1], variance[1:])),
            posterior_mean_coef1=betas * np.sqrt(acp_prev) / (1.0 - acp),
            posterior_mean_coef2=(1.0 - acp_prev) * np.sqrt(alphas) / (1.0 - acp),
            sqrt_recip_alphas_cumprod=np.sqrt(1.0 / acp),
            sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / acp - 1.0),
        )


class IDDPM:
    """The respaced sampler. Index k runs num_sampling_steps - 1 .. 0; the model is given timesteps[k].

    Args:
        num_sampling_steps: number of model evaluations per branch.
        cfg_scale: guidance scale s in uncond + s * (cond - uncond).
        cfg_channels: guidance reaches latent channels below this; the others stay conditional (3 as released).

    Attributes:
        timesteps: (steps,) int64, original timesteps 0..999, ascending.
        tables: the respaced DiffusionTables; its arrays are also reachable by name (sampler.betas, ...).

    Raises:
        ModelError: for a number of steps outside 2..1000 or cfg_channels outside 0..4.
    """

    def __init__(self, num_sampling_steps: int = 20, cfg_scale: float = 4.0, cfg_channels: int = 3) -> None:
        if not 0 <= cfg_channels <= 4:
            raise ModelError(f"cfg_channels={cfg_channels}: must be from 0 to 4")
        if not math.isfinite(cfg_scale):
            raise ModelError(f"cfg_scale={cfg_scale}: must be a finite number")
        self.num_sampling_steps = num_sampling_steps
        self.cfg_scale = cfg_scale
        self.cfg_channels = cfg_channels
        self.timesteps = np.asarray(spaced_timesteps(num_sampling_steps), np.int64)
        acp = np.cumprod(1.0 - linear_betas())[self.timesteps]
        self.tables = DiffusionTables.of(1.0 - acp / np.append(1.0, acp[:-1]))
        self.betas = self.tables.betas
        self.alphas_cumprod = self.tables.alphas_cumprod
        self.posterior_variance = self.tables.posterior_variance
        self.posterior_log_variance_clipped = self.tables.posterior_log_variance_clipped
        self.posterior_mean_coef1 = self.tables.posterior_mean_coef1
        self.posterior_mean_coef2 = self.tables.posterior_mean_coef2
        self.sqrt_recip_alphas_cumprod = self.tables.sqrt_recip_alphas_cumprod
        self.sqrt_recipm1_alphas_cumprod = self.tables.sqrt_recipm1_alphas_cumprod

    def guide(self, eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
        """Applies classifier-free guidance.

        Args:
            eps_cond: (B, 4, T, H, W), noise prediction of the conditional branch.
            eps_uncond: the same of the unconditional branch.

        Returns:
            (B, 4, T, H, W): channels below cfg_channels guided, the others conditional.
        """
        guided = eps_cond.clone()
        part = slice(0, self.cfg_channels)
        guided[:, part] = eps_uncond[:, part] + self.cfg_scale * (eps_cond[:, part] - eps_uncond[:, part])
        return guided

    def step(self, k: int, x: Tensor, eps: Tensor, v: Tensor, noise: Tensor) -> Tensor:
        """Takes x_k to x_{k-1}; the predicted clip x_0 is not clipped.

        Args:
            k: respaced step index, steps - 1 .. 0.
            x: (B, 4, T, H, W), the state.
            eps: the guided noise prediction, shaped like x.
            v: the conditional branch's variance channels (-1: posterior variance, 1: beta), shaped like x.
            noise: normal noise, shaped like x; not used at k = 0.

        Returns:
            (B, 4, T, H, W), x's dtype.
        """
        tables = self.tables
        x0 = float(tables.sqrt_recip_alphas_cumprod[k]) * x - float(tables.sqrt_recipm1_alphas_cumprod[k]) * eps
        mean = float(tables.posterior_mean_coef1[k]) * x0 + float(tables.posterior_mean_coef2[k]) * x
        if k == 0:
            return mean
        fraction = (v + 1.0) / 2.0
        log_max = float(np.log(tables.betas[k]))
        log_min = float(tables.posterior_log_variance_clipped[k])
        log_variance = fraction * log_max + (1.0 - fraction) * log_min
        return mean + torch.exp(0.5 * log_variance) * noise


def draw_noise(seed: int, shape: tuple[int, ...], steps: int) -> tuple[Tensor, Tensor]:
    """Draws the noise of one sampling run.

    Every value is a multiple of 2^-12 and smaller than 8 in size, so that a fixed-point run holds the very same noise.

    Args:
        seed: any non-negative integer.
        shape: latent shape, e.g. (4, 8, 8, 8).
        steps: number of sampling steps.

    Returns:
        x_T `shape` float32 and noise (steps, *shape) float32; noise[i] belongs to executed step i (k = steps - 1 - i).
    """
    if seed < 0:
        raise ModelError(f"seed={seed}: must not be negative")
    values = np.random.default_rng(seed).standard_normal((steps + 1, *shape))
    scale = 2.0**NOISE_FRACTION_BITS
    limit = NOISE_LIMIT - 1.0 / scale
    rounded = np.clip(np.rint(values * scale) / scale, -limit, limit).astype(np.float32)
    return torch.from_numpy(rounded[0]), torch.from_numpy(rounded[1:])
