"""Calibration against an independent measurement, and what must never enter the statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.calibrate import calibrate, collect, collect_moments, patches
from models.errors import ModelError
from models.iddpm import draw_noise
from models.sample import denoise, float_predictor
from models.stats import CalibrationStats, block_linears, mean_square, weights_sha256
from models.stdit import STDiT
from models.workloads import Workload, get_workload

TINY = get_workload("tiny")


@pytest.fixture(scope="module")
def stats(model: STDiT) -> CalibrationStats:
    return collect(model, TINY)


def test_every_point_of_the_model_is_measured(model: STDiT, stats: CalibrationStats) -> None:
    stats.require_points(model)
    assert set(stats.maximum) == set(stats.minimum)
    assert len(stats.minimum) == 2 * 36 + 8 + 2  # per block 9 linears x 2, 2 norms, 4 + 12 taps; 4 linears x 2, 2 more
    for point in ("blocks.1.cross_attn.tap_logits:out", "x_embedder.proj:in", "y_embedder.y_proj.fc2:in"):
        assert stats.minimum[point].shape == (4, 2)
    for values in (*stats.minimum.values(), *stats.maximum.values(), *stats.channel_absmax.values()):
        assert np.isfinite(values).all()


def test_ranges_equal_an_independent_measurement(model: STDiT, stats: CalibrationStats) -> None:
    """The same clips sampled as one guided batch with padded text; the inputs of three layers read directly."""
    names = ("blocks.0.attn_temp.qkv", "blocks.1.cross_attn.proj", "blocks.1.mlp.fc2")
    sampler = TINY.sampler()
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def reader(name: str) -> object:
        return lambda module, args, output: seen[name].append(args[0].reshape(2, -1, args[0].shape[-1]))

    handles = [model.get_submodule(name).register_forward_hook(reader(name)) for name in names]
    for caption, seed in zip(TINY.calibration_captions, TINY.calibration_seeds, strict=True):
        predict = float_predictor(model, sampler, *TINY.text(caption), model.y_embedder.y_embedding)
        denoise(predict, *draw_noise(seed, TINY.latent_shape, 4), sampler)
    for handle in handles:
        handle.remove()
    for name in names:
        clips = torch.stack(seen[name]).view(len(TINY.calibration_captions), 4, 2, -1, seen[name][0].shape[-1])
        point = f"{name}:in"
        np.testing.assert_allclose(stats.minimum[point], clips.amin((0, 3, 4)), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stats.maximum[point], clips.amax((0, 3, 4)), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stats.channel_min[point], clips.amin((0, 2, 3)), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(stats.channel_max[point], clips.amax((0, 2, 3)), rtol=2e-3, atol=1e-3)
        absmax = clips.abs().amax(3).mean(0)
        np.testing.assert_allclose(stats.channel_absmax[point], absmax, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(mean_square(stats.histogram[point]), clips.square().mean((0, 3, 4)), rtol=0.35)
        counted = np.full((4, 2), clips[:, 0, 0].numel())
        np.testing.assert_array_equal(stats.histogram[point].sum(axis=2), counted)


def test_channels_agree_with_the_range(stats: CalibrationStats) -> None:
    for point, low in stats.channel_min.items():
        np.testing.assert_allclose(low.min(axis=1), stats.minimum[point].min(axis=1), rtol=2**-10)
        np.testing.assert_allclose(stats.channel_max[point].max(axis=1), stats.maximum[point].max(axis=1), rtol=2**-10)


def test_values_are_measured_per_channel_of_their_projection(model: STDiT, stats: CalibrationStats) -> None:
    """An attention's output is a mean of values, so no channel of the projection's input leaves their range."""
    for name in ("blocks.0.attn", "blocks.1.attn_temp", "blocks.1.cross_attn"):
        for kind, sign in ((stats.channel_max, 1), (stats.channel_min, -1)):
            values, mixed = (sign * kind[f"{name}.{point}"] for point in ("tap_v:out", "proj:in"))
            assert values.shape == mixed.shape == (4, 32)
            assert (mixed <= values + 1e-3 * np.abs(values)).all()


def test_moments_equal_an_independent_sum(model: STDiT) -> None:
    work = dataclasses.replace(TINY, calibration_captions=TINY.calibration_captions[:1], calibration_seeds=(5,))
    name, seen = "blocks.1.mlp.fc2", []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, args, _o: seen.append(args[0].flatten(0, 1)))
    sampler = TINY.sampler()
    caption = work.calibration_captions[0]
    predict = float_predictor(model, sampler, *TINY.text(caption), model.y_embedder.y_embedding)
    denoise(predict, *draw_noise(5, TINY.latent_shape, 4), sampler)
    handle.remove()
    rows = torch.cat(seen).double()
    moments = collect_moments(model, work)
    np.testing.assert_allclose(moments.moments[name], rows.T @ rows, rtol=1e-3, atol=1e-3)
    assert moments.weights_sha256 == weights_sha256(model)
    assert set(moments.moments) == set(block_linears(model))
    assert not any(module._forward_hooks for module in model.modules())


def test_branches_differ_and_text_points_repeat_per_step(stats: CalibrationStats) -> None:
    assert (stats.maximum["blocks.0.tap_cross:out"][:, 0] != stats.maximum["blocks.0.tap_cross:out"][:, 1]).all()
    for point in ("y_embedder.y_proj.fc1:in", "blocks.1.cross_attn.kv_linear:in", "blocks.0.cross_attn.kv_linear:out"):
        assert (stats.maximum[point] == stats.maximum[point][0]).all()


def test_padding_never_enters(model: STDiT, stats: CalibrationStats, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Workload.text

    def padded(self: Workload, caption: str) -> tuple[Tensor, Tensor]:
        states, mask = plain(self, caption)
        return torch.where(mask[:, None], states, 1e6), mask

    monkeypatch.setattr(Workload, "text", padded)
    dirty = TINY.load_model()
    longest = max(int(plain(TINY, caption)[1].sum()) for caption in TINY.calibration_captions)
    assert longest < 16
    dirty.y_embedder.y_embedding[longest:] = 1e6
    found = collect(dirty, TINY)
    for point in stats.minimum:
        np.testing.assert_array_equal(found.minimum[point], stats.minimum[point])
        np.testing.assert_array_equal(found.maximum[point], stats.maximum[point])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_refused_by_layer_and_step(bad: float) -> None:
    broken = TINY.load_model()
    layer = broken.get_submodule("blocks.1.mlp.fc1")
    assert isinstance(layer, nn.Linear)
    layer.bias[7] = bad
    with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.fc1:out: NaN or infinity at step 0, conditional branch"):
        collect(broken, TINY)
    assert not any(module._forward_hooks for module in broken.modules())


def test_magnitudes_beyond_the_file_format_are_refused() -> None:
    broken = TINY.load_model()
    layer = broken.get_submodule("x_embedder.proj")
    assert isinstance(layer, nn.Conv3d)
    layer.bias.fill_(1e9)
    with pytest.raises(ModelError, match=r"blocks\.0\.attn_temp\.qkv:in: magnitude .* at step 0, .* exceeds 65504"):
        collect(broken, TINY)


def test_the_model_is_left_as_it_was(model: STDiT, stats: CalibrationStats) -> None:
    assert not any(module._forward_hooks for module in model.modules())


def test_runs_repeat_byte_for_byte(stats: CalibrationStats, tmp_path: Path) -> None:
    calibrate("tiny", tmp_path / "a")
    stats.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert CalibrationStats.load(tmp_path / "a").workload == "tiny"


def test_lists_must_match(model: STDiT) -> None:
    for captions, seeds in ((["fire"], [1, 2]), ([], [])):
        with pytest.raises(ModelError, match="one seed per caption"):
            collect(model, TINY, captions, seeds)
    with pytest.raises(ModelError, match="unknown caption"):
        collect(model, TINY, ["fyre"], [1])


def test_patches_make_the_patch_embedding_a_linear(model: STDiT) -> None:
    conv = model.get_submodule("x_embedder.proj")
    assert isinstance(conv, nn.Conv3d)
    x = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    columns = patches(x, conv.kernel_size)
    expected = conv(x).flatten(2).transpose(1, 2).reshape(-1, conv.out_channels)
    torch.testing.assert_close(columns @ conv.weight.flatten(1).T + conv.bias, expected)


def test_statistics_on_demand_are_the_collected_ones(stats: CalibrationStats) -> None:
    assert dataclasses.asdict(TINY.load_stats()).keys() == dataclasses.asdict(stats).keys()
    np.testing.assert_array_equal(TINY.load_stats().maximum["tap_embed:out"], stats.maximum["tap_embed:out"])
