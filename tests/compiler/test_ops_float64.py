"""Every operation, fed the integer run's own inputs, against float64.

Linear ones are within one output step, nonlinear ones at least 60 dB at 16 bits.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from compiler.lower import lower
from models.calibrate import collect
from models.iddpm import IDDPM, draw_noise
from models.quantize import quantize
from models.sample import denoise, float_predictor
from models.workloads import Workload, get_workload
from tests.compiler.float64_ops import Finding, audit

NONLINEAR = {"table", "attention", "layernorm", "modulate"}  # LayerNorm and modulation are one operation in the program
SAMPLER = {"deviation", "update", "noise"}


def tokens(latent: np.ndarray) -> np.ndarray:
    """Latents (4, T, H, W) as tokens (T * H/2 * W/2, 16), each (channel, patch row, patch column)."""
    c, t, h, w = latent.shape
    return latent.reshape(c, t, h // 2, 2, w // 2, 2).transpose(1, 2, 4, 0, 3, 5).reshape(-1, 16)


class FreshNoise(IDDPM):
    """Every state is new noise: random weights predict no noise, and real sampling with them diverges."""

    def step(self, k, x, eps, v, noise):
        return noise.to(x.dtype)


class Stationary(Workload):
    def sampler(self):
        return FreshNoise(self.num_steps, self.cfg_scale, self.cfg_channels)


@pytest.fixture(scope="module")
def calibrated():
    tiny = get_workload("tiny")
    workload = Stationary(**{field.name: getattr(tiny, field.name) for field in fields(tiny)})
    model = workload.load_model()
    return workload, model, collect(model, workload)


def check(findings: list[Finding], attention_bits: int, sampler_clips: bool = False, exact: bool = True) -> None:
    """``exact``: multipliers are as wide as needed; smoothing folded into 16-bit factors costs up to a step of 16."""
    assert {f.kind for f in findings} >= NONLINEAR | {"linear_centred", "elementwise", "product", "modulate"}
    for f in findings:
        assert f.clipped <= 0.02 or (sampler_clips and f.layer in SAMPLER), f
        if f.kind == "attention" and attention_bits == 8:
            continue  # With 8-bit queries, keys and probabilities the products inside are 8-bit, whatever the output.
        if f.dtype == "i32":  # The sampler's state: a step is 2^-24, beside values that may be large.
            assert f.largest_lsb <= 1.0 or f.sqnr_db >= 130, f
        elif f.dtype == "i16" and (f.kind in NONLINEAR or not exact):
            assert f.sqnr_db >= 60.0, f
        elif f.dtype == "i16" and f.kind.startswith("linear"):
            # A multiplier of 15 bits is off by at most 2^-15 of itself: the largest i16 by a step. Rounding adds half.
            assert f.largest_lsb <= 1.5, f
        else:
            assert f.largest_lsb <= 1.0 + 1e-6, f


def audited(workload, model, stats, state_of, quantization, attention_bits: int, steps) -> list[Finding]:
    """Findings over ``steps``; ``state_of(step)`` is the latent (4, T, H, W) that enters a step."""
    qm = quantize(model, stats, *quantization)
    graph = lower(qm, attention_bits)
    states, mask = workload.text(workload.calibration_captions[0])
    _, noise = draw_noise(workload.calibration_seeds[0], workload.latent_shape, workload.num_steps)
    text = {
        "text": np.clip(np.rint(states.numpy() * 2.0 ** graph.host["text_fraction_bits"]), -32768, 32767),
        "text_len": np.array([[int(mask.sum())]]),
    }
    findings = []
    for step in steps:
        state = np.rint(tokens(np.asarray(state_of(step), float)) * 2**24)
        inputs = {**text, "state": state, "noise": np.rint(tokens(noise[step].numpy()) * 4096)}
        findings += audit(graph, qm, workload.sampler(), inputs, step)
    return findings


@pytest.mark.parametrize(
    ("quantization", "attention_bits"),
    [
        (("cw_tw", 8, 8), 16), (("cw_tw", 8, 16), 16), (("cw_tw", 8, 8), 8), (("tsw", 8, 8), 16), (("asq", 4, 8), 16),
        (("tsq", 8, 8), 16), (("tsq", 8, 16), 16), (("tsq_pot", 6, 6), 16), (("dynamic", 8, 8), 16),
    ],
)  # fmt: skip
def test_every_op_against_float64(calibrated, quantization: tuple[str, int, int], attention_bits: int) -> None:
    workload, model, stats = calibrated
    start, noise = draw_noise(workload.calibration_seeds[0], workload.latent_shape, workload.num_steps)
    states_in = [start, *noise]
    steps = (0, workload.num_steps // 2, workload.num_steps - 1)
    findings = audited(workload, model, stats, lambda i: states_in[i], quantization, attention_bits, steps)
    check(
        findings, attention_bits, sampler_clips=True, exact=quantization[0] == "cw_tw"
    )  # Random weights drive the sampler out of its range.


@pytest.mark.slow
@pytest.mark.parametrize("act_bits", [8, 16])
def test_every_op_of_the_trained_model_against_float64(act_bits: int) -> None:
    workload = get_workload("emoji")
    model, sampler = workload.load_model(), workload.sampler()
    states, mask = workload.text(workload.calibration_captions[0])
    predict = float_predictor(model, sampler, states, mask, model.y_embedder.y_embedding)
    start, noise = draw_noise(workload.calibration_seeds[0], workload.latent_shape, workload.num_steps)
    trajectory = denoise(predict, start, noise, sampler)
    stats = workload.load_stats()
    quantization = "cw_tw", 8, act_bits
    check(audited(workload, model, stats, trajectory.states.__getitem__, quantization, 16, (0, 10, 19)), 16)
