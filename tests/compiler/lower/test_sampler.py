"""Guidance and update in integers against ``models.iddpm.IDDPM`` in float64, within the bound of their fixed point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compiler.graph import Graph
from compiler.interpret import Interpreter
from compiler.lower import lower
from compiler.lower.sampler import SIGMA_FRACTION_BITS
from models.iddpm import IDDPM
from models.quantize import QuantizedModel
from tests.compiler.runs import Array

LAYERS = ("guidance", "update", "deviation", "noise")
TOKENS = 64


def tail(qm: QuantizedModel, sampler: IDDPM) -> Graph:
    """Only what follows the network's output "raw"."""
    settings = {"cfg_scale": sampler.cfg_scale, "cfg_channels": sampler.cfg_channels}
    graph = lower(replace(qm, iddpm={**qm.iddpm, **settings}))
    return graph.rewritten(graph.values, (), [op for op in graph.step if op.layer in LAYERS])


def clip(tokens: Array) -> torch.Tensor:
    """(N, 16) tokens as (1, 4, N, 2, 2): the sampler's formulas look at the channel only."""
    return torch.from_numpy(tokens.astype(np.float64)).reshape(-1, 4, 2, 2).movedim(0, 1)[None]


def numbers(value: torch.Tensor) -> Array:
    return value[0].movedim(1, 0).reshape(-1, 16).numpy()


@pytest.mark.parametrize(("cfg_scale", "cfg_channels"), [(4.0, 3), (7.5, 4), (1.0, 3), (0.0, 2), (-2.0, 1), (4.0, 0)])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_guidance_and_update_against_float64(
    qm: QuantizedModel, cfg_scale: float, cfg_channels: int, step: int
) -> None:
    sampler = IDDPM(qm.num_steps, cfg_scale, cfg_channels)
    graph = tail(qm, sampler)
    scale = {name: value.scale for name, value in graph.values.items()}
    rng = np.random.default_rng(step)
    raw = np.rint(rng.normal(0, 0.25 / scale["raw.eps_cond"], (2 * TOKENS, 32))).astype(np.int64)
    raw[:4] = rng.integers(-32768, 32768, (4, 32))
    raw[:, 16:] = rng.integers(-32768, 32768, (2 * TOKENS, 16))  # v beyond [-1, 1] too
    state = np.rint(rng.normal(0, 0.5 / scale["state"], (TOKENS, 16))).astype(np.int64)
    noise = np.clip(rng.normal(0, 4096, (TOKENS, 16)), -32767, 32767).astype(np.int64)
    machine = Interpreter(graph, {"raw": raw, "state": state, "noise": noise})
    machine.run("step", step)

    cond, uncond = (clip(rows * scale["raw.eps_cond"]) for rows in (raw[:TOKENS, :16], raw[TOKENS:, :16]))
    guided = numbers(sampler.guide(cond, uncond))
    eps = machine.tensors["eps"]
    # Two factors rounded to their own grid, each times a 16-bit value, and the last rounding.
    factor_step = 2.0 ** (np.log2(scale["raw.eps_cond"] / scale["eps"]) + 1)
    bound = 0.5 + (np.abs(raw[:TOKENS, :16]) + np.abs(raw[TOKENS:, :16])) * 0.5 / 2
    assert factor_step >= 2**11  # factors have at least 11 fractional bits at these scales
    assert (np.abs(eps - guided / scale["eps"]) <= bound).all()
    untouched = np.arange(16) >= 4 * cfg_channels
    np.testing.assert_array_equal(
        (eps * scale["eps"])[:, untouched], (raw[:TOKENS, :16] * scale["raw.eps_cond"])[:, untouched]
    )

    k = sampler.num_sampling_steps - 1 - step
    v, drawn = raw[:TOKENS, 16:] * scale["raw.v_cond"], noise * scale["noise"]
    expected = numbers(sampler.step(k, *(clip(a) for a in (state * scale["state"], eps * scale["eps"], v, drawn))))
    shift = next(op.attrs["shift"] for op in graph.step if op.output == "state.mean")
    mean_error = 0.5 + (np.abs(state) + np.abs(eps)) * 0.5 * 2.0**-shift
    # The deviation: half a step in the table, half a step after interpolating, and the chord above a convex curve.
    deviation_error = 2.0**-SIGMA_FRACTION_BITS + 2.0**-16
    noise_error = np.abs(drawn) * deviation_error + (0.5 * scale["state"])
    bound = mean_error * scale["state"] + (noise_error if k else 0)
    found = machine.tensors["state.next"] * scale["state"]
    inside = np.abs(expected) < 127
    assert inside.mean() > 0.5
    assert (np.abs(found - expected) <= bound)[inside].all()
    if k:
        assert np.abs(machine.tensors["noise.scaled"]).max() > 2**20
    else:
        assert not machine.tensors["noise.scaled"].any()  # the last step draws no noise
