"""Caption hits: the batched sampler against single clips, the nearest clip by hand, and the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models import hits
from models.clips import ClipSet, digit_captions, load_digits, load_emoji
from models.errors import ModelError
from models.hits import Hit, hit_captions, main, measure_hits, nearest_clip, sample_latents, share
from models.iddpm import draw_noise
from models.sample import denoise, float_predictor
from models.workloads import get_workload

TINY = get_workload("tiny")
EMOJI = get_workload("emoji")


def test_a_batch_gives_the_clips_that_the_sampler_gives_one_by_one() -> None:
    model, sampler = TINY.load_model(), TINY.sampler()
    captions, seeds = ["fire", "family of man and woman and girl and boy", "digit two moving left"], [5, 6, 7]
    steps = []
    found = sample_latents(model, sampler, captions, seeds, TINY.latent_shape, lambda: steps.append(1))
    assert len(steps) == TINY.num_steps
    for caption, seed, latent in zip(captions, seeds, found, strict=True):
        base = float_predictor(model, sampler, *TINY.text(caption), model.y_embedder.y_embedding)
        alone = denoise(base, *draw_noise(seed, TINY.latent_shape, TINY.num_steps), sampler).states[-1]
        np.testing.assert_allclose(latent, alone, atol=1e-3, rtol=1e-3)


def test_nearest_clip_is_the_nearest() -> None:
    training = np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]], np.float32).reshape(3, 1, 2)
    latents = np.array([[3.0, 3.0], [0.0, 0.0], [6.0, 12.0]], np.float32).reshape(3, 1, 2)
    index, distance = nearest_clip(latents, training)
    assert index == [1, 0, 2]
    assert distance == pytest.approx([1.0, 0.0, 18.0**0.5])


def test_the_list_is_fixed_without_repeats_and_of_both_sets() -> None:
    captions = hit_captions()
    digits = set(digit_captions())
    assert len(set(captions)) == 64
    assert sum(caption in digits for caption in captions) == 16
    assert captions == hit_captions(64)
    for count in (0, 3, 6, 164):
        with pytest.raises(ModelError, match="multiples of 4 from 4 to 160"):
            hit_captions(count)


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
def test_a_model_that_returns_training_clips_hits_always(
    shift: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = load_emoji().captions + load_digits().captions
    training = np.random.default_rng(0).normal(size=(len(names), 4, 2, 2, 2)).astype(np.float32)
    asked = []

    def copies(model: object, sampler: object, captions: list[str], seeds: range, *_: object) -> np.ndarray:
        asked.extend(seeds)
        return training[[names.index(caption) + shift for caption in captions]] + np.float32(0.01)

    monkeypatch.setattr(hits, "cached_latents", lambda *_: torch.from_numpy(training))
    monkeypatch.setattr(hits, "sample_latents", copies)
    captions = hit_captions()[:12]
    found = measure_hits(TINY.load_model(), dataclasses.replace(EMOJI), captions)
    assert [hit.caption for hit in found] == captions
    assert share(found).mean == expected
    assert asked == list(range(4000, 4012))


def test_users_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--checkpoint", str(tmp_path / "absent.safetensors")]) == 2
    assert "absent.safetensors" in capsys.readouterr().err
    assert main(["--captions", "5"]) == 2
    assert "captions=5: allowed are multiples of 4" in capsys.readouterr().err
    assert main(["--workload", "tiny"]) == 2
    assert "workload 'tiny' has no autoencoder" in capsys.readouterr().err


def test_the_command_prints_table_and_shares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Hit(caption, caption if caption == "digit zero moving up" else "fire", 2.5) for caption in hit_captions()]
    monkeypatch.setattr(hits, "measure_hits", lambda *_, **__: made)
    assert main(["--checkpoint", str(EMOJI.checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert "all: 1.6 % hits (1 of 64; 95 % interval 0.0 to 4.7 %)" in printed
    assert "digits: 6.2 % hits (1 of 16" in printed
    assert "emoji: 0.0 % hits (0 of 48" in printed
    assert "2.50" in printed


@pytest.mark.slow
def test_the_committed_model_hits_more_often_than_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_digits()
    monkeypatch.setattr(hits, "load_digits", lambda: ClipSet(digits.captions[:40], digits.frames[:40]))  # to save time
    captions = ["waving white flag", "princess", "crystal ball", "haircut"]
    found = measure_hits(EMOJI.load_model(), EMOJI, captions, tmp_path)
    assert any(hit.hit for hit in found)  # chance is 1 %
