"""The road from a released checkpoint to a quantized model on disk, at full width and reduced depth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from models.calibrate import calibrate
from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.prepare import quantize_for
from models.quantize import QuantizedModel, quantize, set_path
from models.stats import CalibrationStats, weights_sha256
from models.stdit import POSITION_BUFFERS, STDiT
from models.workloads import WORKLOADS, Workload, get_workload, random_stdit

XL = get_workload("stdit-xl2-16x256x256")
# Two frames of 8 x 8 latents and one block: the released widths, in seconds.
CUT = dataclasses.replace(XL, name="xl-cut", config={**XL.config, "depth": 1, "input_size": (2, 8, 8)})


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as Open-Sora v1.0 released them: half precision, position buffers of its own resolution."""
    state = random_stdit(CUT.config, 3).state_dict()
    state |= {"pos_embed": torch.ones(1, 256, 1152), "pos_embed_temporal": torch.ones(1, 16, 1152)}
    path = tmp_path_factory.mktemp("released") / "OpenSora-v1-cut.pth"
    torch.save({name: value.half() for name, value in state.items()}, path)
    return path


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Workload:
    monkeypatch.setitem(WORKLOADS, CUT.name, CUT)
    return CUT


def test_workloads_have_the_released_sizes() -> None:
    for name, spatial, scale in (("stdit-xl2-16x256x256", 256, 0.5), ("stdit-xl2-16x512x512", 1024, 1.0)):
        work = get_workload(name)
        with torch.device("meta"):
            model = STDiT(**work.config)
        assert sum(parameter.numel() for parameter in model.parameters()) == 759_620_768
        assert (model.num_temporal, model.num_spatial) == (16, spatial)
        assert (work.config["space_scale"], work.cfg_scale, work.cfg_channels) == (scale, 7.0, 3)


def test_released_checkpoint_to_mapped_weight_sets(released: Path, registered: Workload, tmp_path: Path) -> None:
    stats_file, out = tmp_path / "stats.safetensors", tmp_path / "model.safetensors"
    calibrate(registered.name, stats_file, checkpoint=released, prompts=2, num_steps=2)
    stats = CalibrationStats.load(stats_file)
    assert (len(stats.captions), stats.steps, stats.cfg_scale) == (2, 2, 7.0)
    work = registered.with_files(checkpoint=released, num_steps=2, calibration=stats_file)
    model = work.load_model()
    expected = random_stdit(CUT.config, 3)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        target = expected.state_dict()[name]
        torch.testing.assert_close(value, target if name in POSITION_BUFFERS else target.half().float(), rtol=0, atol=0)
    assert stats.weights_sha256 == weights_sha256(model)

    written = quantize_for(work, model, work.load_stats(), "tsq", 4, 8, out=out)
    weight = written.linears["blocks.0.mlp.fc2"].weights[1]
    assert weight.q.shape == (1152, 4608)
    assert not weight.q.flags.owndata
    block_weights = 20 * 1152**2 - 2304 * 1152  # kv_linear runs once per prompt and lies in the main file
    for index in range(2):
        size = set_path(out, index).stat().st_size
        assert block_weights <= size < 1.02 * block_weights
    in_memory = quantize(model, stats, "tsq", 4, 8)
    for name, linear in in_memory.linears.items():
        for one, other in zip(linear.weights, written.linears[name].weights, strict=True):
            np.testing.assert_array_equal(one.q, other.q)
    fake = FakeQuantSTDiT(model, QuantizedModel.load(out))
    fake.set_step(1)
    x, (text, _) = torch.randn(1, *work.latent_shape, generator=torch.Generator().manual_seed(0)), work.text("a b")
    with torch.inference_mode():
        assert torch.isfinite(fake(x, torch.zeros(1), text[None, None])).all()


def test_a_checkpoint_of_another_size_is_refused(released: Path, registered: Workload) -> None:
    deeper = dataclasses.replace(registered, config={**CUT.config, "depth": 2})
    with pytest.raises(ModelError, match=r"OpenSora-v1-cut\.pth: tensor 'blocks\.1\.scale_shift_table' is missing"):
        deeper.with_files(checkpoint=released).load_model()


def test_random_weights_are_nowhere_zero() -> None:
    model = random_stdit(CUT.config, 0)
    for name in ("blocks.0.attn_temp.proj.weight", "blocks.0.cross_attn.proj.weight", "final_layer.linear.weight"):
        assert (model.get_parameter(name) != 0).all()


def test_text_states_are_made_up_or_the_users(tmp_path: Path) -> None:
    states, mask = XL.text("a red fox")
    assert states.shape == (120, 4096)
    assert mask.sum() == 5
    assert not states[5:].any()
    assert states[:5].std() == pytest.approx(0.15, rel=0.05)
    torch.testing.assert_close(XL.text("a red fox")[0], states, rtol=0, atol=0)
    assert not torch.equal(XL.text("a blue fox")[0], states)

    tokens = np.random.default_rng(0).normal(size=(7, 4096)).astype(np.float16)
    offsets = np.array([0, 4, 7])
    path = tmp_path / "t5.safetensors"
    captions = {"captions": json.dumps(["a red fox", "rain"])}
    save_file({"states": tokens, "offsets": offsets}, path, metadata=captions)
    work = XL.with_files(text_states=path)
    assert (work.calibration_captions, work.calibration_seeds) == (("a red fox", "rain"), (1000, 1001))
    states, mask = work.text("rain")
    np.testing.assert_array_equal(states[:3], tokens[4:].astype(np.float32))
    assert mask.sum() == 3
    with pytest.raises(ModelError, match="unknown caption 'fire'"):
        work.text("fire")
    with pytest.raises(ModelError, match=r"prompts=3: allowed are 1\.\.2"):
        XL.with_files(text_states=path, prompts=3)

    save_file({"states": tokens[:, :9], "offsets": offsets}, path, metadata=captions)
    with pytest.raises(
        ModelError, match=r"t5\.safetensors: states are 9 wide, workload 'stdit-xl2-16x256x256' has 4096"
    ):
        work.text("rain")
    long = np.zeros((130, 4096), np.float16)
    for states, ends in ((tokens, [0, 4, 9]), (tokens, [0, 7, 7]), (tokens, [0, 7]), (long, [0, 4, 130])):
        save_file({"states": states, "offsets": np.array(ends)}, path, metadata=captions)
        with pytest.raises(ModelError, match=r"t5\.safetensors: offsets do not divide states into 2 captions of"):
            work.text("rain")
