"""text_sim against hand-made heads, its training on clips whose captions can be read off, and the committed heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.clips import digit_captions, load_emoji
from models.errors import ModelError
from models.metrics import train_text_heads as training
from models.metrics.text_sim import TextHeads, caption_vectors, clip_vectors, text_sim
from models.metrics.train_text_heads import RealClips, contrastive_loss, retrieval, split_clips, train_heads
from models.store import save_arrays
from models.text import TextStates
from models.workloads import EVALUATION_CAPTIONS, SHEET_CAPTIONS

METADATA = {"held_out": {"emoji": {"r_at_1": 0.25, "r_at_5": 0.5, "clips": 8, "captions": 8}}}


def _heads(**change: np.ndarray) -> TextHeads:
    arrays = {
        "clip_weight": np.zeros((2560, 64), np.float16),
        "clip_bias": np.zeros(64, np.float16),
        "text_weight": np.zeros((384, 64), np.float16),
        "text_bias": np.zeros(64, np.float16),
    }
    return TextHeads(**{**arrays, **change}, metadata=METADATA)


def test_the_score_is_the_cosine_of_both_heads_outputs() -> None:
    weight = np.zeros((2560, 64), np.float16)
    weight[7, 0] = 2.0  # the mean of feature 7
    weight[1280 + 9, 1] = 1.0  # how feature 9 changes from the first half to the second
    text_bias = np.zeros(64, np.float16)
    text_bias[:2] = (3.0, 4.0)
    features = np.zeros((2, 4, 1280))
    features[0, :, 7] = 0.5
    features[1, :, 9] = (1.0, 1.0, 5.0, 7.0)
    scores = text_sim(features, ["fire", "ghost"], _heads(clip_weight=weight, text_bias=text_bias))
    assert scores.tolist() == pytest.approx([0.6, 0.8])
    assert clip_vectors(features)[1, [9, 1289]].tolist() == [3.5, 5.0]


def test_a_caption_is_the_mean_over_its_tokens() -> None:
    states, mask = TextStates().get("beating heart")
    vector = caption_vectors(["fire", "beating heart"])[1]
    assert vector == pytest.approx(sum(states[i] for i in range(16) if mask[i]) / mask.sum(), abs=1e-6)


def test_the_loss_is_cross_entropy_and_shares_the_target_of_equal_captions() -> None:
    rng = torch.Generator().manual_seed(0)
    clips, captions = torch.randn(4, 64, generator=rng), torch.randn(4, 64, generator=rng)
    logits = F.normalize(clips) @ F.normalize(captions).T / 0.1
    own = torch.arange(4)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(clips, captions, own), expected)
    # All one caption and all one clip: every pair is right and none is better than another, log 4 whatever one does.
    same = torch.ones(4, 64)
    torch.testing.assert_close(contrastive_loss(same, same, torch.zeros(4)), torch.log(torch.tensor(4.0)))


def test_retrieval_counts_ranks() -> None:
    captions = np.eye(6)
    clips = np.array([[1.0, 0, 0, 0, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    found = retrieval(clips, captions, np.array([0, 4, 5]))  # ranks 1, 5 and 6
    assert found == {"r_at_1": pytest.approx(1 / 3), "r_at_5": pytest.approx(2 / 3), "clips": 3, "captions": 6}


def test_the_split_is_disjoint_whole_and_holds_out_what_is_shown() -> None:
    captions = load_emoji().captions
    split = split_clips(captions, 1000, seed=3)
    assert sorted([*split.train_emoji, *split.held_emoji]) == list(range(363))
    assert sorted([*split.train_digits, *split.held_digits]) == list(range(1000))
    assert (len(split.held_emoji), len(split.held_digits)) == (73, 200)
    shown = set(EVALUATION_CAPTIONS + SHEET_CAPTIONS) - set(digit_captions())
    assert shown <= {captions[i] for i in split.held_emoji}
    assert not np.array_equal(split.held_digits, split_clips(captions, 1000, seed=4).held_digits)


def test_standardising_is_folded_into_the_stored_weights() -> None:
    rng = np.random.default_rng(0)
    rows, head = rng.normal(5.0, 3.0, size=(20, 6)), torch.from_numpy(rng.normal(size=(6, 64))).float()
    standard = training._Standard(rows)
    assert standard.values.mean(0).numpy() == pytest.approx(np.zeros(6), abs=1e-6)
    weight, bias = standard.fold(head)
    np.testing.assert_allclose(rows @ weight + bias, (standard.values @ head).numpy(), atol=0.02)  # float16


def test_training_finds_a_planted_relation_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS", 60)
    rng = np.random.default_rng(0)
    relation = rng.normal(size=(384, 1280))

    def clips(captions: tuple[str, ...]) -> RealClips:
        features = (caption_vectors(captions) @ relation)[:, None].repeat(2, axis=1)
        return RealClips(captions, (features + rng.normal(size=features.shape)).astype(np.float32))

    emoji, digits = clips(load_emoji().captions), clips(tuple(digit_captions() * 2))
    heads = train_heads(emoji, digits, seed=1)
    assert heads.metadata["held_out"]["emoji"]["r_at_1"] > 0.5  # chance is 1 in 73
    again = train_heads(emoji, digits, seed=1)
    assert np.array_equal(heads.clip_weight, again.clip_weight)
    assert not np.array_equal(heads.clip_weight, train_heads(emoji, digits, seed=2).clip_weight)


def test_the_committed_heads_state_their_accuracy_on_the_split_of_their_seed() -> None:
    heads = TextHeads.load()
    captions = load_emoji().captions
    split = split_clips(captions, 1000, heads.metadata["seed"])
    assert heads.metadata["held_out_captions"] == [captions[i] for i in split.held_emoji]
    assert heads.metadata["held_out_digits"] == split.held_digits.tolist()
    emoji = heads.metadata["held_out"]["emoji"]
    assert f"emoji R@1 {100 * emoji['r_at_1']:.0f} %" in heads.describe()
    assert "of 200 clips among 40 captions" in heads.describe()


def test_heads_come_back_from_their_file_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    heads = _heads(text_bias=np.arange(64, dtype=np.float16))
    heads.save(path)
    assert np.array_equal(TextHeads.load(path).text_bias, heads.text_bias)
    assert "R@1 25 %, R@5 50 % of 8 clips among 8 captions" in TextHeads.load(path).describe()
    arrays = {name: getattr(heads, name) for name in ("clip_weight", "clip_bias", "text_weight", "text_bias")}
    save_arrays(path, "text_heads", 1, arrays, {})
    with pytest.raises(ModelError, match="'held_out' is missing"):
        TextHeads.load(path)
    save_arrays(path, "text_heads", 1, {**arrays, "text_bias": np.zeros(3, np.float16)}, METADATA)
    with pytest.raises(ModelError, match=r"'text_bias' is float16\[3\], allowed is float16\[64\]"):
        TextHeads.load(path)


@pytest.mark.parametrize(
    ("shape", "captions", "message"),
    [
        ((2, 8, 1280), ["fire"], "1 captions for 2 clips"),
        ((1, 1, 1280), ["fire"], "frames >= 2"),
        ((1, 8, 640), ["fire"], "1280"),
        ((1, 8, 1280), ["fier"], "unknown caption 'fier'.*'fire'"),
    ],
)
def test_bad_input_is_refused(shape: tuple[int, ...], captions: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        text_sim(np.ones(shape), captions, TextHeads.load())
    with pytest.raises(ModelError, match="NaN"):
        text_sim(np.full((1, 8, 1280), np.nan), ["fire"], TextHeads.load())
