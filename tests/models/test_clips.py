"""The stored clip sets, the digits made from them, and the captions' text states."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models import clips
from models.clips import DATA_DIR, load_digits, load_emoji, moving_digit
from models.errors import ModelError
from models.text import TextStates


@pytest.fixture
def data_copy(tmp_path: Path) -> Path:
    for name in (clips.EMOJI_FILE, clips.CAPTIONS_FILE, clips.DIGITS_FILE, clips.TEXT_FILE):
        shutil.copy(DATA_DIR / name, tmp_path / name)
    return tmp_path


def test_emoji_set() -> None:
    emoji = load_emoji()
    assert emoji.frames.shape == (363, 8, 64, 64, 3)
    assert emoji.frames.dtype == np.uint8
    assert len(set(emoji.captions)) == 363
    assert all(caption == caption.lower() for caption in emoji.captions)
    corners = emoji.frames[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).mean() > 0.95  # on white
    moving = (emoji.frames[:, 1:] != emoji.frames[:, :-1]).any(axis=(1, 2, 3, 4))
    assert moving.mean() > 0.99


def test_no_skin_tone_variant_is_in_the_set() -> None:
    entries = json.loads((DATA_DIR / clips.CAPTIONS_FILE).read_text())
    assert not [entry for entry in entries if any(f"1f3f{tone}" in entry["file"] for tone in "bcdef")]
    by_file = {entry["file"]: entry["caption"] for entry in entries}
    assert by_file["1f469-200d-1f680"] == "woman with rocket"
    assert by_file["1f3c3-200d-2640-fe0f"] == "female runner"
    assert by_file["1f468-200d-1f469-200d-1f466"] == "family of man and woman and boy"


def test_digit_set() -> None:
    digits = load_digits()
    assert digits.frames.shape == (1000, 8, 64, 64, 3)
    assert set(digits.captions) == set(clips.digit_captions())
    assert "digit seven moving left" in digits.captions
    np.testing.assert_array_equal(digits.frames[:5], load_digits().frames[:5])
    assert (load_digits(seed=1).frames != digits.frames).any()


@pytest.mark.parametrize(
    ("direction", "first", "last"),
    [("left", (9, 36), (9, 0)), ("right", (9, 0), (9, 36)), ("up", (36, 9), (0, 9)), ("down", (0, 9), (36, 9))],
)
def test_digit_moves_as_captioned(direction: str, first: tuple[int, int], last: tuple[int, int]) -> None:
    image = np.full((28, 28), 255, np.uint8)
    clip = moving_digit(image, direction, 9)
    for frame, corner in ((clip[0], first), (clip[-1], last)):
        dark = np.argwhere(frame[:, :, 0] == 0)
        assert tuple(dark.min(axis=0)) == corner
        assert len(dark) == 28 * 28


def test_every_caption_has_text_states() -> None:
    text = TextStates()
    assert set(text.captions) == set(load_emoji().captions) | set(clips.digit_captions())
    states, mask = text.batch(text.captions)
    assert states.shape == (403, 16, 384)
    assert states.dtype == np.float32
    lengths = mask.sum(axis=1)
    assert lengths.min() >= 3  # [CLS], a word, [SEP]
    assert not states[~mask].any()
    assert (mask == (np.arange(16) < lengths[:, None])).all()
    assert len(np.unique(states.reshape(403, -1), axis=0)) == 403


def test_unknown_caption_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown caption 'Rainbows': .*403 captions; nearest: 'rainbow'"):
        TextStates().get("Rainbows")


def test_data_hash_follows_the_files(data_copy: Path) -> None:
    before = clips.data_sha256(data_copy)
    assert before == clips.data_sha256()
    with (data_copy / clips.CAPTIONS_FILE).open("a") as file:
        file.write("\n")
    assert clips.data_sha256(data_copy) != before


def test_missing_file_is_named(data_copy: Path) -> None:
    (data_copy / clips.EMOJI_FILE).unlink()
    with pytest.raises(ModelError, match=r"emoji_clips\.npz: no such file; .*build_data\.py"):
        load_emoji(data_copy)


@pytest.mark.parametrize("name", [clips.EMOJI_FILE, clips.DIGITS_FILE])
def test_truncated_archive_is_named(data_copy: Path, name: str) -> None:
    content = (data_copy / name).read_bytes()
    (data_copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=f"{name}: not a readable archive"):
        (load_emoji if name == clips.EMOJI_FILE else load_digits)(data_copy)


def test_damaged_strip_is_named(data_copy: Path) -> None:
    offsets = np.array([0, 10], np.int64)
    np.savez(data_copy / clips.EMOJI_FILE, data=np.zeros(10, np.uint8), offsets=offsets)
    (data_copy / clips.CAPTIONS_FILE).write_text('[{"file": "a", "caption": "b"}]')
    with pytest.raises(ModelError, match=r"emoji_clips\.npz: not a readable WebP strip"):
        load_emoji(data_copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a list of objects"),
        ('[{"file": "a"}]', "expected a list of objects"),
        ("[]", "0 captions for 363"),
    ],
)
def test_bad_captions_are_named(data_copy: Path, content: str, message: str) -> None:
    (data_copy / clips.CAPTIONS_FILE).write_text(content)
    with pytest.raises(ModelError, match=f"emoji_captions.json: {message}"):
        load_emoji(data_copy)


def test_damaged_text_states_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match=r"text\.safetensors: not a readable file of text states"):
        TextStates(tmp_path / "text.safetensors")
