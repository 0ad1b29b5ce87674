"""Guidance and the IDDPM update in integers: the state has 32 bits, the coefficients are per-step constants."""

from __future__ import annotations

from collections.abc import Callable
from math import floor, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Value
from compiler.lower.context import Lowering
from compiler.lower.scales import ceil_power, spline_knots
from models.iddpm import IDDPM, NOISE_FRACTION_BITS
from npusim.isa.table import ENTRIES as TABLE_ENTRIES

Float64 = NDArray[Any]

STATE_FRACTION_BITS = 24
SIGMA_FRACTION_BITS = 14
CHANNEL_VALUES = 4
"""Values of one latent channel in a token: a 2 x 2 patch."""


def lower_sampler(low: Lowering, sampler: IDDPM, raw: str, eps_bits: int, v_bits: int) -> dict[str, int]:
    """Add guidance, noise and update; ``raw`` is (branches * tokens, 32): eps then v, each (c, ph, pw).

    One branch alone is not guided. Returns the host's map of fractional bits.
    """
    build, tokens = low.build, low.tokens
    width = 4 * CHANNEL_VALUES
    cond = build.view("raw.eps_cond", raw, (0, tokens), (0, width), 2.0**-eps_bits)
    both = len(low.branches) == 2
    uncond = build.view("raw.eps_uncond", raw, (tokens, 2 * tokens), (0, width), 2.0**-eps_bits) if both else cond
    v = build.view("raw.v_cond", raw, (0, tokens), (width, 2 * width), 2.0**-v_bits)
    guided = np.arange(width) < sampler.cfg_channels * CHANNEL_VALUES
    scale = sampler.cfg_scale if both else 1.0
    factor_bits = floor(log2(32767 / max(abs(scale), abs(1 - scale), 1.0)))
    factors = np.where(guided, scale, 1.0), np.where(guided, 1 - scale, 0.0)
    names = [
        build.const(f"guide.{n}", np.rint(f * 2.0**factor_bits).astype(np.int64), "i16")
        for n, f in zip("ab", factors, strict=True)
    ]
    bits = eps_bits + factor_bits - 1
    eps = Value("eps", (tokens, width), "i32", scale=2.0**-bits)
    build.sum("guidance", cond, uncond, eps, a_mul=names[0], b_mul=names[1], shift=1)

    keep, drop, sigma = _coefficients(sampler)
    room = max(ceil_power(np.abs(keep).max()), ceil_power(np.abs(drop).max()) + STATE_FRACTION_BITS - bits)
    shift = 30 - room
    a_mul = np.rint(keep * 2.0**shift).astype(np.int64)
    b_mul = np.rint(drop * 2.0 ** (shift + STATE_FRACTION_BITS - bits)).astype(np.int64)
    vectors = [
        build.const(f"update.{n}", np.repeat(values[:, None], width, axis=1), "i32", per="step")
        for n, values in (("a", a_mul), ("b", b_mul))
    ]
    mean = Value("state.mean", (tokens, width), "i32", scale=2.0**-STATE_FRACTION_BITS)
    build.sum("update", "state", "eps", mean, a_mul=vectors[0], b_mul=vectors[1], shift=shift)

    samples = (np.arange(-1, TABLE_ENTRIES + 1) * 128.0 - 32768.0) * 2.0**-v_bits
    table = np.clip(np.rint(spline_knots(sigma(samples)) * 2.0**SIGMA_FRACTION_BITS), 0, 32767).astype(np.int64)
    name = build.const("sigma.table", table, "i16", 2.0**-SIGMA_FRACTION_BITS, per="step")
    deviation = Value("sigma", (tokens, width), "i16", scale=2.0**-SIGMA_FRACTION_BITS)
    build.table("deviation", v, name, deviation, multiplier=1 << 14, shift=21)
    noise_scaled = Value("noise.scaled", (tokens, width), "i32", scale=2.0**-STATE_FRACTION_BITS)
    product_bits = SIGMA_FRACTION_BITS + NOISE_FRACTION_BITS - STATE_FRACTION_BITS
    build.product("noise", "sigma", "noise", noise_scaled, shift=product_bits)
    after = Value("state.next", (tokens, width), "i32", scale=2.0**-STATE_FRACTION_BITS)
    build.sum("update", "state.mean", "noise.scaled", after, a_mul=2, b_mul=2, shift=1)
    return {
        "state_fraction_bits": STATE_FRACTION_BITS,
        "noise_fraction_bits": NOISE_FRACTION_BITS,
        "eps_fraction_bits": bits,
        "raw_eps_fraction_bits": eps_bits,
        "v_fraction_bits": v_bits,
    }


def _coefficients(sampler: IDDPM) -> tuple[Float64, Float64, Callable[[Float64], Float64]]:
    """In order of execution: factors (steps,) of state and eps in the posterior mean; sigma(v) -> (steps, len(v))."""
    order = np.arange(sampler.num_sampling_steps)[::-1]
    t = sampler.tables
    mean1, mean2 = t.posterior_mean_coef1[order], t.posterior_mean_coef2[order]
    keep = mean1 * t.sqrt_recip_alphas_cumprod[order] + mean2
    drop = -mean1 * t.sqrt_recipm1_alphas_cumprod[order]
    log_max, log_min = np.log(t.betas[order]), t.posterior_log_variance_clipped[order]
    draws = (order > 0)[:, None].astype(np.float64)

    def sigma(v: Float64) -> Float64:
        fraction = (v[None] + 1) / 2
        deviation: Float64 = draws * np.exp(0.5 * (fraction * log_max[:, None] + (1 - fraction) * log_min[:, None]))
        return deviation

    return keep, drop, sigma
