"""The two clip sets: 363 animated emoji (stored) and moving handwritten digits (made from 1,000 stored digits).

Every clip has 8 frames of 64 x 64 RGB pixels on a white ground and one caption. `models/data/build_data.py` makes the
stored files from public packages; nothing here needs them.
"""

import hashlib
import io
import itertools
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import ModelError

DATA_DIR = Path(__file__).parent / "data"
EMOJI_FILE = "emoji_clips.npz"
CAPTIONS_FILE = "emoji_captions.json"
DIGITS_FILE = "mnist_digits.npz"
TEXT_FILE = "text_states.safetensors"

FRAMES = 8
FRAME_SIZE = 64
DIGIT_SIZE = 28
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("left", "right", "up", "down")
DIGITS_SEED = 0


@dataclass(frozen=True)
class ClipSet:
    """Clips with their captions.

    Attributes:
        captions: one caption per clip (several clips may share one).
        frames: (clips, 8, 64, 64, 3) uint8 RGB.
    """

    captions: tuple[str, ...]
    frames: NDArray[np.uint8]


def load_emoji(data_dir: Path = DATA_DIR) -> ClipSet:
    """Returns the 363 emoji clips, each with a caption of its own.

    Raises:
        ModelError: if a file is missing, damaged, or the captions do not match the clips.
    """
    data, offsets = _load_arrays(data_dir / EMOJI_FILE, ("data", "offsets"))
    captions = _load_captions(data_dir / CAPTIONS_FILE)
    if len(captions) != len(offsets) - 1:
        raise ModelError(f"{data_dir / CAPTIONS_FILE}: {len(captions)} captions for {len(offsets) - 1} clips")
    strips = [data[start:end].tobytes() for start, end in itertools.pairwise(offsets)]
    return ClipSet(captions, np.stack([decode_strip(strip, data_dir / EMOJI_FILE) for strip in strips]))


def decode_strip(webp: bytes, source: Path) -> NDArray[np.uint8]:
    """Returns the frames (8, 64, 64, 3) uint8 of one clip stored as a lossless WebP strip, frames side by side."""
    try:
        strip = np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"))
    except OSError as error:
        raise ModelError(f"{source}: not a readable WebP strip: {error}") from error
    if strip.shape != (FRAME_SIZE, FRAMES * FRAME_SIZE, 3):
        raise ModelError(f"{source}: strip of {strip.shape}, expected {(FRAME_SIZE, FRAMES * FRAME_SIZE, 3)}")
    return strip.reshape(FRAME_SIZE, FRAMES, FRAME_SIZE, 3).transpose(1, 0, 2, 3)


def load_digits(data_dir: Path = DATA_DIR, seed: int = DIGITS_SEED) -> ClipSet:
    """Returns one clip per stored digit: image i moves in direction i % 4, on a line drawn with `seed`.

    Raises:
        ModelError: if the digit file is missing or damaged.
    """
    images, labels = _load_arrays(data_dir / DIGITS_FILE, ("images", "labels"))
    lines = np.random.default_rng(seed).integers(0, FRAME_SIZE - DIGIT_SIZE + 1, size=len(images))
    captions = []
    clips = []
    for index, (image, label, line) in enumerate(zip(images, labels, lines, strict=True)):
        direction = DIRECTIONS[index % len(DIRECTIONS)]
        captions.append(digit_caption(int(label), direction))
        clips.append(moving_digit(image, direction, int(line)))
    return ClipSet(tuple(captions), np.stack(clips))


def digit_caption(digit: int, direction: str) -> str:
    """Returns the caption of a moving digit, e.g. "digit seven moving left"."""
    return f"digit {DIGIT_NAMES[digit]} moving {direction}"


def digit_captions() -> list[str]:
    """Returns the 40 captions of the digit set."""
    return [digit_caption(digit, direction) for digit in range(10) for direction in DIRECTIONS]


def moving_digit(image: NDArray[np.uint8], direction: str, line_px: int) -> NDArray[np.uint8]:
    """Draws a dark digit that crosses a white frame from edge to edge in 8 frames.

    Args:
        image: (28, 28) uint8, ink bright on black as in MNIST.
        direction: one of DIRECTIONS.
        line_px: offset of the digit across its direction of travel, 0..36.

    Returns:
        (8, 64, 64, 3) uint8.
    """
    clip = np.full((FRAMES, FRAME_SIZE, FRAME_SIZE, 3), 255, np.uint8)
    travel_px = FRAME_SIZE - DIGIT_SIZE
    for frame in range(FRAMES):
        along_px = round(travel_px * frame / (FRAMES - 1))
        if direction in ("left", "up"):
            along_px = travel_px - along_px
        top, left = (line_px, along_px) if direction in ("left", "right") else (along_px, line_px)
        clip[frame, top : top + DIGIT_SIZE, left : left + DIGIT_SIZE] = 255 - image[:, :, None]
    return clip


def data_sha256(data_dir: Path = DATA_DIR) -> str:
    """Returns the SHA-256 over the stored data files (hex); it goes into every checkpoint trained on them."""
    digest = hashlib.sha256()
    for name in (EMOJI_FILE, CAPTIONS_FILE, DIGITS_FILE, TEXT_FILE):
        digest.update(_existing(data_dir / name).read_bytes())
    return digest.hexdigest()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; models/data/build_data.py makes it")
    return path


def _load_arrays(path: Path, names: tuple[str, str]) -> list[NDArray[np.uint8]]:
    try:
        with np.load(io.BytesIO(_existing(path).read_bytes()), allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a readable archive of {', '.join(names)}: {error}") from error


def _load_captions(path: Path) -> tuple[str, ...]:
    try:
        entries = json.loads(_existing(path).read_text(encoding="utf-8"))
        return tuple(cast(str, entry["caption"]) for entry in entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: expected a list of objects with 'file' and 'caption': {error}") from error
