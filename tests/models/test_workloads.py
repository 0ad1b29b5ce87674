"""Workloads: fixed caption sets, random weights, and files that must fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.clips import load_digits, load_emoji
from models.errors import ModelError
from models.stats import weights_sha256
from models.stdit import STDiT
from models.text import TextStates
from models.workloads import WORKLOADS, Workload, get_workload, random_stdit

EMOJI, TINY = get_workload("emoji"), get_workload("tiny")


def test_caption_sets_are_known_disjoint_and_mixed() -> None:
    sets = (EMOJI.calibration_captions, EMOJI.evaluation_captions, EMOJI.sheet_captions, EMOJI.search_captions)
    assert [len(captions) for captions in sets] == [10, 16, 8, 8]
    together = [caption for captions in sets for caption in captions]
    assert len(set(together)) == len(together)
    assert set(together) <= set(TextStates().captions)
    emoji = set(load_emoji().captions)
    digits = set(load_digits().captions)
    for captions in sets:
        assert 2 <= len(digits & set(captions)) <= 3
        assert len(emoji & set(captions)) == len(captions) - len(digits & set(captions))


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_every_caption_has_a_seed_of_its_own(workload: Workload) -> None:
    seeds = []
    for kind in ("calibration", "evaluation", "sheet", "search"):
        assert len(getattr(workload, f"{kind}_seeds")) == len(getattr(workload, f"{kind}_captions"))
        seeds += getattr(workload, f"{kind}_seeds")
    assert len(set(seeds)) == len(seeds)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"workload 'emojis' is unknown; allowed: emoji, tiny, .*; nearest: emoji"):
        get_workload("emojis")
    with pytest.raises(ModelError, match="allowed: emoji, tiny"):
        get_workload("")


def test_shapes_and_text() -> None:
    assert EMOJI.latent_shape == (4, 8, 8, 8)
    assert TINY.latent_shape == (4, 4, 8, 8)
    states, mask = EMOJI.text("fire")
    assert states.shape == (16, 384)
    assert mask.dtype == torch.bool
    assert (EMOJI.sampler().num_sampling_steps, EMOJI.sampler().cfg_scale, EMOJI.sampler().cfg_channels) == (20, 4.0, 3)


def test_random_weights_repeat_are_nowhere_zero_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    model = random_stdit(TINY.config, 7)
    assert torch.rand(1) == expected
    assert weights_sha256(model) == weights_sha256(random_stdit(TINY.config, 7))
    assert weights_sha256(model) != weights_sha256(random_stdit(TINY.config, 8))
    assert not model.training
    for parameter in model.parameters():
        assert (parameter != 0).all()
        assert not parameter.requires_grad


def _never(*_: object, **__: object) -> None:
    raise AssertionError("a network was built before its configuration was compared")


def test_files_that_are_missing_or_of_another_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(
        EMOJI, checkpoint=tmp_path / "a", vae=tmp_path / "b", calibration=tmp_path / "c.safetensors"
    )
    for load, name in ((absent.load_model, "a"), (absent.load_vae, "b"), (absent.load_stats, r"c\.safetensors")):
        with pytest.raises(ModelError, match=name):
            load()
    with pytest.raises(ModelError, match="'tiny' has no autoencoder"):
        TINY.load_vae()
    model = random_stdit(TINY.config, 0)
    path = tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), path, metadata={"config": json.dumps(TINY.config)})
    with pytest.raises(ModelError, match=r"tiny\.safetensors: config input_size=\[4, 8, 8\], workload 'emoji' has"):
        dataclasses.replace(EMOJI, checkpoint=path).load_model()
    huge = {**TINY.config, "hidden_size": 16_384, "depth": 256}
    save_file(model.state_dict(), tmp_path / "huge.safetensors", metadata={"config": json.dumps(huge)})
    with monkeypatch.context() as patch:
        patch.setattr(STDiT, "__init__", _never)
        with pytest.raises(ModelError, match=r"huge\.safetensors: config hidden_size=16384, workload 'tiny' has 32"):
            dataclasses.replace(TINY, checkpoint=tmp_path / "huge.safetensors").load_model()
    loaded = dataclasses.replace(TINY, checkpoint=path).load_model()
    assert weights_sha256(loaded) == weights_sha256(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "emoji"}, "workload is tiny, workload 'emoji' has emoji"),
        ({"num_steps": 5}, "steps is 4, workload 'tiny' has 5"),
        ({"cfg_scale": 7.0}, r"cfg_scale is 4\.0, workload 'tiny' has 7\.0"),
        ({"cfg_channels": 4}, "cfg_channels is 3, workload 'tiny' has 4"),
    ],
)
def test_statistics_of_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "stats.safetensors"
    TINY.load_stats().save(path)
    with pytest.raises(ModelError, match=rf"stats\.safetensors: {message}"):
        dataclasses.replace(TINY, calibration=path, **change).load_stats()
    assert dataclasses.replace(TINY, calibration=path).load_stats().weights_sha256 == weights_sha256(TINY.load_model())


def test_stored_calibration_belongs_to_the_stored_checkpoint() -> None:
    assert EMOJI.calibration is not None
    assert EMOJI.calibration.is_file(), "missing; npusim calibrate makes it (models/calibration/README.md)"
    stats, model = EMOJI.load_stats(), EMOJI.load_model()
    stats.require_weights(weights_sha256(model))
    stats.require_points(model)
    assert (stats.captions, stats.seeds) == (EMOJI.calibration_captions, EMOJI.calibration_seeds)
    assert EMOJI.calibration.stat().st_size < 6_000_000
