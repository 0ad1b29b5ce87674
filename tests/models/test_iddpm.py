"""IDDPM's tables and step against formulas computed another way."""

import numpy as np
import pytest
import torch

from models.errors import ModelError
from models.iddpm import IDDPM, DiffusionTables, draw_noise, linear_betas

TWENTY = [0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946, 999]


def test_twenty_timesteps() -> None:
    assert IDDPM(20).timesteps.tolist() == TWENTY


def test_respaced_steps_keep_the_original_noise_levels() -> None:
    sampler = IDDPM(20)
    original = np.cumprod(1.0 - linear_betas())
    np.testing.assert_allclose(sampler.alphas_cumprod, original[TWENTY], rtol=1e-12)
    np.testing.assert_allclose(np.cumprod(1.0 - sampler.betas), original[TWENTY], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 7, 19])
def test_posterior_by_multiplying_two_normals(k: int) -> None:
    """q(x_{k-1} | x_k, x_0) is proportional to q(x_k | x_{k-1}) q(x_{k-1} | x_0): precisions add."""
    sampler = IDDPM(20)
    beta, acp_before = sampler.betas[k], sampler.alphas_cumprod[k - 1]
    x0, x_k = 0.7, -1.3
    from_next = (1 - beta) / beta  # precision of x_{k-1} given x_k alone
    from_start = 1 / (1 - acp_before)
    variance = 1 / (from_next + from_start)
    mean = variance * (from_next * x_k / np.sqrt(1 - beta) + from_start * np.sqrt(acp_before) * x0)
    np.testing.assert_allclose(sampler.posterior_variance[k], variance, rtol=1e-9)
    given = sampler.posterior_mean_coef1[k] * x0 + sampler.posterior_mean_coef2[k] * x_k
    np.testing.assert_allclose(given, mean, rtol=1e-9)
    np.testing.assert_allclose(sampler.posterior_log_variance_clipped[k], np.log(variance), rtol=1e-9)


def test_clipped_log_variance_at_step_0_is_that_of_step_1() -> None:
    tables = DiffusionTables.of(linear_betas())
    assert tables.posterior_variance[0] == 0.0
    assert tables.posterior_log_variance_clipped[0] == tables.posterior_log_variance_clipped[1]


@pytest.mark.parametrize("k", [0, 1, 12, 19])
@pytest.mark.parametrize("v", [-1.0, 0.25, 1.0])
def test_step(k: int, v: float) -> None:
    sampler = IDDPM(20)
    x, eps, noise = 0.8, -0.4, 1.7
    acp = sampler.alphas_cumprod[k]
    x0 = (x - np.sqrt(1 - acp) * eps) / np.sqrt(acp)
    mean = sampler.posterior_mean_coef1[k] * x0 + sampler.posterior_mean_coef2[k] * x
    low, high = np.exp(sampler.posterior_log_variance_clipped[k]), sampler.betas[k]
    sigma = np.sqrt(high ** ((v + 1) / 2) * low ** ((1 - v) / 2))
    expected = mean + (sigma * noise if k else 0.0)
    values = [torch.full((1, 4, 1, 1, 1), value, dtype=torch.float64) for value in (x, eps, v, noise)]
    np.testing.assert_allclose(sampler.step(k, *values).numpy(), expected, rtol=1e-9)


def test_true_noise_leads_back_to_the_clip() -> None:
    """With the exact noise as prediction, the last step returns x_0."""
    sampler = IDDPM(20)
    x0, eps = torch.randn(2, 1, 4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    acp = float(sampler.alphas_cumprod[0])
    x = acp**0.5 * x0 + (1 - acp) ** 0.5 * eps
    torch.testing.assert_close(sampler.step(0, x, eps, eps, eps), x0)


def test_guidance_reaches_the_first_channels_only() -> None:
    cond, uncond = torch.full((1, 4, 1, 1, 1), 2.0), torch.full((1, 4, 1, 1, 1), 1.0)
    assert IDDPM(20, cfg_scale=7.0).guide(cond, uncond).flatten().tolist() == [8.0, 8.0, 8.0, 2.0]
    assert IDDPM(20, cfg_scale=7.0, cfg_channels=4).guide(cond, uncond).flatten().tolist() == [8.0] * 4
    assert cond.unique().tolist() == [2.0]


def test_noise_is_seeded_and_on_the_fixed_point_grid() -> None:
    x, noise = draw_noise(3, (4, 8, 8, 8), 20)
    assert x.shape == (4, 8, 8, 8)
    assert noise.shape == (20, 4, 8, 8, 8)
    assert noise.dtype == torch.float32
    again = draw_noise(3, (4, 8, 8, 8), 20)
    assert torch.equal(x, again[0])
    assert torch.equal(noise, again[1])
    assert not torch.equal(x, draw_noise(4, (4, 8, 8, 8), 20)[0])
    scaled = noise.double() * 4096
    assert torch.equal(scaled, scaled.round())
    assert noise.abs().max() < 8
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_noise_of_fewer_steps_is_a_prefix() -> None:
    assert torch.equal(draw_noise(3, (4, 2, 2, 2), 5)[1], draw_noise(3, (4, 2, 2, 2), 9)[1][:5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_sampling_steps": 1}, "num_sampling_steps=1: must be from 2 to 1000"),
        ({"num_sampling_steps": 1001}, "num_sampling_steps=1001"),
        ({"cfg_channels": 5}, "cfg_channels=5: must be from 0 to 4"),
        ({"cfg_scale": float("nan")}, "cfg_scale=nan: must be a finite number"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        IDDPM(**arguments)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ModelError, match="seed=-1: must not be negative"):
        draw_noise(-1, (4, 2, 2, 2), 2)
