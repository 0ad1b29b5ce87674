"""Per-layer SQNR against a layer computed by hand, its cause, and what it must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.metrics.layers import layer_sqnr_db
from models.quantize import quantize
from models.sample import Trajectory, denoise, float_predictor
from models.stats import executed_linears
from models.stdit import STDiT
from models.workloads import get_workload

TINY = get_workload("tiny")
SAMPLER = TINY.sampler()
LAST = "final_layer.linear"


@pytest.fixture(scope="module")
def trajectory(model: STDiT) -> Trajectory:
    base = float_predictor(model, SAMPLER, *TINY.text("fire"), model.y_embedder.y_embedding)
    return denoise(base, *draw_noise(0, TINY.latent_shape, TINY.num_steps), SAMPLER)


def _measure(model: STDiT, fakequant: FakeQuantSTDiT, trajectory: Trajectory) -> dict[str, np.ndarray]:
    null = model.y_embedder.y_embedding
    return layer_sqnr_db(model, fakequant, SAMPLER, *TINY.text("fire"), null, trajectory)


def test_figures_match_layers_computed_by_hand(model: STDiT, trajectory: Trajectory) -> None:
    quantized = quantize(model, TINY.load_stats())
    fakequant = FakeQuantSTDiT(model, quantized)
    found = _measure(model, fakequant, trajectory)
    assert set(found) == set(executed_linears(model))
    assert all(values.shape == (TINY.num_steps,) for values in found.values())
    # The patch embedding sees the state itself, so one layer tells its whole figure; so does the caption's first layer.
    layer = executed_linears(model)["x_embedder.proj"]
    for step in range(TINY.num_steps):
        x = torch.from_numpy(trajectory.states[step])[None]
        fakequant.set_step(step)
        expected = sqnr_db(layer(x).numpy(), fakequant.model.x_embedder.proj(x).numpy())
        assert found["x_embedder.proj"][step] == pytest.approx(expected, abs=1e-3)
    states, mask = TINY.text("fire")
    rows = torch.stack([states[mask], model.y_embedder.y_embedding[mask]])
    pair = [network.y_embedder.y_proj.fc1(rows).numpy() for network in (model, fakequant.model)]
    assert found["y_embedder.y_proj.fc1"] == pytest.approx(sqnr_db(*pair), abs=1e-3)
    # The last layer makes the prediction: its error is the prediction's, rearranged.
    x = torch.from_numpy(trajectory.states[0])
    fakequant.set_step(0)
    text = (rows[:, None], mask[mask][None].expand(2, -1))
    timestep = torch.full((2,), float(SAMPLER.timesteps[-1]))
    outputs = [network(x.expand(2, *x.shape), timestep, *text).numpy() for network in (model, fakequant)]
    assert found[LAST][0] == pytest.approx(sqnr_db(*outputs), abs=1e-3)


def test_only_layers_after_a_broken_one_suffer_and_hooks_are_gone(model: STDiT, trajectory: Trajectory) -> None:
    fakequant = FakeQuantSTDiT(model, quantize(model, TINY.load_stats()))
    before = _measure(model, fakequant, trajectory)
    with torch.no_grad():
        fakequant.model.get_submodule("blocks.1.attn.proj").weight.mul_(0.5)
    after = _measure(model, fakequant, trajectory)
    assert np.array_equal(after["blocks.0.mlp.fc2"], before["blocks.0.mlp.fc2"])
    assert (after["blocks.1.attn.proj"] < 10.0).all()
    assert (after[LAST] < before[LAST]).all()
    assert math.isfinite(after[LAST].sum())
    assert not any(module._forward_hooks for network in (model, fakequant) for module in network.modules())
