"""Fake quantization against integer arithmetic, range selection, and the untouched float model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.calibrate import patches
from models.errors import ModelError
from models.fakequant import FakeQuantLayer, FakeQuantSTDiT
from models.grid import AsymmetricGrid
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.quantize import QuantizedLinear, QuantizedModel, quantize
from models.sample import denoise, fakequant_predictor, float_predictor, replay
from models.stats import CalibrationStats, executed_linears, weights_sha256
from models.stdit import STDiT
from models.workloads import get_workload

TINY = get_workload("tiny")


def _integer_linear(x: np.ndarray, linear: QuantizedLinear, time_range: int = 0) -> np.ndarray:
    """y = (sum over k of ((q_x - z_x) << shift)(q_w - z_w)) * step_x * step_w + bias, the sum in int64."""
    step, zero, bits = linear.act_scale[time_range], linear.act_zp[time_range], int(linear.act_bits[time_range])
    weight, divided = linear.weight(time_range), x.astype(np.float64) / linear.divisor(time_range)
    q = np.clip(np.rint(divided / step) + zero, 0, 2**bits - 1).astype(np.int64) - zero
    if linear.input_shift is not None:
        q <<= linear.input_shift[time_range]
    accumulator = q @ (weight.q.astype(np.int64) - weight.zero_point[:, None]).T
    return accumulator * (step * weight.scale) + linear.bias


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv", "blocks.1.mlp.fc2", "y_embedder.y_proj.fc1", "final_layer.linear", "x_embedder.proj"]
)
def test_layers_equal_integer_arithmetic(model: STDiT, stats: CalibrationStats, name: str, act_bits: int) -> None:
    quantized = quantize(model, stats, act_bits=act_bits)
    layer = executed_linears(model)[name]
    # Values beyond the calibrated range too: they must saturate alike.
    reach = 1.2 * float(quantized.point_absmax[f"{name}:in"][0])
    shape = (2, *TINY.latent_shape) if name == "x_embedder.proj" else (2, 5, layer.in_features)
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach
    found = FakeQuantLayer(layer, quantized.linears[name])(x)
    rows = x
    if isinstance(layer, torch.nn.Conv3d):
        rows, found = patches(x, layer.kernel_size), found.flatten(2).transpose(1, 2)
    expected = _integer_linear(rows.reshape(-1, rows.shape[-1]).numpy(), quantized.linears[name])
    assert sqnr_db(expected, found.reshape(expected.shape).numpy()) > 110


METHOD_BITS = [("tsw", 8, 4), ("asq", 6, 8), ("ssq", 8, 6), ("tsq", 4, 8), ("tsq_pot", 4, 8), ("tsq_pot", 8, 16)]


@pytest.mark.parametrize(("method", "weight_bits", "act_bits"), METHOD_BITS)
@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "blocks.1.cross_attn.kv_linear", "blocks.1.mlp.fc2"])
def test_every_methods_layers_equal_integer_arithmetic_in_every_range(
    model: STDiT, stats: CalibrationStats, name: str, method: str, weight_bits: int, act_bits: int
) -> None:
    linear = quantize(model, stats, method, weight_bits, act_bits, ranges=2).linears[name]
    layer, fake = executed_linears(model)[name], FakeQuantLayer(executed_linears(model)[name], linear)
    reach = float(np.abs(stats.maximum[f"{name}:in"]).max())
    x = (torch.rand(7, layer.in_features, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 1.2 * reach
    for time_range in (1, 0, 1):  # back again: what is held must follow
        fake.set_range(time_range)
        assert sqnr_db(_integer_linear(x.numpy(), linear, time_range), fake(x).numpy()) > 100


def test_dynamic_grids_belong_to_single_tokens(model: STDiT, stats: CalibrationStats) -> None:
    """Eq. 1 with each row's own range; so what the other branch or other tokens hold changes nothing."""
    linear = quantize(model, stats, "dynamic").linears["blocks.1.attn_temp.qkv"]
    assert linear.dynamic
    fake = FakeQuantLayer(executed_linears(model)["blocks.1.attn_temp.qkv"], linear)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 50.0])[:, None, None]
    x[0, 0] = 0.0
    found = fake.quantize_input(x)
    for row, rounded in zip(x.reshape(-1, 32).double().numpy(), found.reshape(-1, 32).numpy(), strict=True):
        grid = AsymmetricGrid.from_min_max(row.min(), row.max(), 8, "row")
        np.testing.assert_allclose(rounded, grid.dequantize(grid.quantize(row, "row")), rtol=1e-6)
    assert not found[0, 0].any()
    torch.testing.assert_close(fake.quantize_input(x[1:]), found[1:], rtol=0, atol=0)


def test_the_whole_copy_is_quantized_and_the_model_is_not(model: STDiT, stats: CalibrationStats) -> None:
    before, modules = weights_sha256(model), dict(model.named_modules())
    fake = FakeQuantSTDiT(model, quantize(model, stats))
    assert weights_sha256(model) == before
    assert dict(model.named_modules()) == modules
    assert not any(isinstance(module, FakeQuantLayer) for module in modules.values())
    assert set(executed_linears(fake.model)) == set()
    replaced = {name for name, module in fake.model.named_modules() if isinstance(module, FakeQuantLayer)}
    assert replaced == set(executed_linears(model))
    fake.model.blocks[0].scale_shift_table.fill_(1.0)
    assert weights_sha256(model) == before


def test_more_bits_come_closer_to_float(model: STDiT, stats: CalibrationStats) -> None:
    sampler = TINY.sampler()
    text = (*TINY.text("fire"), model.y_embedder.y_embedding)
    clip = denoise(float_predictor(model, sampler, *text), *draw_noise(3, TINY.latent_shape, 4), sampler)
    ratio_db = {}
    for act_bits in (8, 16):
        fake = FakeQuantSTDiT(model, quantize(model, stats, act_bits=act_bits))
        eps = replay(fakequant_predictor(fake, sampler, *text), clip, sampler)
        ratio_db[act_bits] = sqnr_db(clip.eps, eps)
    assert ratio_db[8] > 12
    assert ratio_db[16] > ratio_db[8] + 10


def test_finest_grids_give_the_float_model(model: STDiT, stats: CalibrationStats) -> None:
    """With the float weights put back and 16-bit inputs, what is left is the copy's wiring: it must be the model's."""
    fake = FakeQuantSTDiT(model, quantize(model, stats, act_bits=16))
    for name, layer in executed_linears(model).items():
        fake.model.get_submodule(name).weight.copy_(layer.weight)
    sampler = TINY.sampler()
    text = (*TINY.text("fire"), model.y_embedder.y_embedding)
    clip = denoise(float_predictor(model, sampler, *text), *draw_noise(3, TINY.latent_shape, 4), sampler)
    eps = replay(fakequant_predictor(fake, sampler, *text), clip, sampler)
    assert sqnr_db(clip.eps[-1], eps[-1]) > 60


def _two_ranges(quantized: QuantizedModel) -> QuantizedModel:
    """The first range as calibrated, the second with steps ten times as coarse."""
    linears = {
        name: dataclasses.replace(
            linear,
            set_of_range=np.repeat(linear.set_of_range, 2),
            act_bits=np.repeat(linear.act_bits, 2),
            act_scale=np.array([linear.act_scale[0], 10 * linear.act_scale[0]]),
            act_zp=np.repeat(linear.act_zp, 2),
        )
        for name, linear in quantized.linears.items()
    }
    return dataclasses.replace(quantized, linears=linears, range_of_step=np.array([0, 0, 1, 1]))


def test_set_step_selects_the_range(model: STDiT, stats: CalibrationStats) -> None:
    fake = FakeQuantSTDiT(model, _two_ranges(quantize(model, stats)))
    layer = fake.model.get_submodule("blocks.1.attn_temp.proj")
    assert isinstance(layer, FakeQuantLayer)
    x = torch.linspace(-1, 1, 32)[None]
    fine = layer.quantize_input(x)
    fake.set_step(1)
    torch.testing.assert_close(layer.quantize_input(x), fine, rtol=0, atol=0)
    fake.set_step(2)
    assert len(layer.quantize_input(x).unique()) < len(fine.unique())
    fake.set_step(0)
    torch.testing.assert_close(layer.quantize_input(x), fine, rtol=0, atol=0)
    for step in (-1, 4):
        with pytest.raises(ModelError, match=rf"step {step}: allowed are 0\.\.3"):
            fake.set_step(step)


def test_a_quantized_model_of_other_weights_is_refused(model: STDiT, stats: CalibrationStats) -> None:
    quantized = dataclasses.replace(quantize(model, stats), weights_sha256="0" * 64)
    with pytest.raises(ModelError, match="made from weights sha256"):
        FakeQuantSTDiT(model, quantized)
