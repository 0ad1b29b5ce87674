"""`text_sim`: how well a clip fits its caption, by two heads trained on this repository's clips (extra `metrics`).

The analogue of CLIPSIM: a clip's EfficientNet features and a caption's MiniLM states each go through one linear head
into 64 channels, and the cosine is the score. The heads were trained contrastively, so that a clip lies near its own
caption and away from others (`train_text_heads.py`). They know 1,090 clips, not the world: always print
`TextHeads.describe()`, their accuracy on clips they were not trained on, beside a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.metrics.features import FEATURES
from models.store import check_array, load_arrays, save_arrays
from models.text import TEXT_WIDTH, TextStates

HEADS_FILE = Path(__file__).parent / "text_heads.safetensors"
FILE_KIND = "text_heads"
FILE_VERSION = 1
WIDTH = 64
CLIP_VECTOR = 2 * FEATURES

_SHAPES = {
    "clip_weight": (CLIP_VECTOR, WIDTH),
    "clip_bias": (WIDTH,),
    "text_weight": (TEXT_WIDTH, WIDTH),
    "text_bias": (WIDTH,),
}


@dataclass(frozen=True, eq=False)
class TextHeads:
    """The two linear heads and what is known about them.

    clip_weight (2560, 64), clip_bias (64,), text_weight (384, 64), text_bias (64,): float16.
    metadata: seed, held-out captions and digits, the accuracy on them (see `train_text_heads.py`).
    """

    clip_weight: NDArray[np.float16]
    clip_bias: NDArray[np.float16]
    text_weight: NDArray[np.float16]
    text_bias: NDArray[np.float16]
    metadata: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the heads as one safetensors file; raises ModelError if it cannot be written."""
        save_arrays(path, FILE_KIND, FILE_VERSION, {name: getattr(self, name) for name in _SHAPES}, self.metadata)

    @classmethod
    def load(cls, path: Path = HEADS_FILE) -> TextHeads:
        """Read what `save` wrote; raises ModelError if the file is missing, damaged or of other shapes."""
        arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
        checked = {name: check_array(path, arrays, name, shape, np.float16) for name, shape in _SHAPES.items()}
        if not isinstance(metadata.get("held_out"), dict):
            raise ModelError(f"{path}: metadata field 'held_out' is missing; it must be printed beside every score")
        return cls(**checked, metadata=metadata)

    def describe(self) -> str:
        """One line for people: the accuracy on held-out clips."""
        parts = [
            f"{name} R@1 {100 * found['r_at_1']:.0f} %, R@5 {100 * found['r_at_5']:.0f} % of {found['clips']} clips "
            f"among {found['captions']} captions"
            for name, found in self.metadata["held_out"].items()
        ]
        return f"text_sim heads on held-out clips: {'; '.join(parts)}"

    def embed_clips(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Features (clips, frames, 1280) of `frame_features` to unit vectors (clips, 64)."""
        return _unit(clip_vectors(features) @ self.clip_weight.astype(np.float64) + self.clip_bias)

    def embed_captions(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Known captions to unit vectors (captions, 64); raises ModelError for an unknown one."""
        return _unit(caption_vectors(captions) @ self.text_weight.astype(np.float64) + self.text_bias)


def text_sim(features: NDArray[np.floating], captions: Sequence[str], heads: TextHeads) -> NDArray[np.float64]:
    """Cosine, -1 to 1, between each clip and its own caption in the space of the heads.

    Args:
        features: (clips, frames, 1280), from `frame_features`.
        captions: one known caption per clip.
        heads: `TextHeads.load()`.

    Returns:
        (clips,) float64.

    Raises:
        ModelError: an unknown caption, another shape, another number of captions than clips, or a value not finite.
    """
    if len(captions) != len(features):
        raise ModelError(f"text_sim: {len(captions)} captions for {len(features)} clips")
    scores: NDArray[np.float64] = np.sum(heads.embed_clips(features) * heads.embed_captions(captions), axis=1)
    return scores


def clip_vectors(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """What the clip head sees: the mean over the frames, and how much the later half differs from the earlier one.

    The second part tells a digit moving left from one moving right, which the mean cannot.

    Args:
        features: (clips, frames >= 2, 1280).

    Returns:
        (clips, 2560) float64.

    Raises:
        ModelError: another shape, or a value that is not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 3 or x.shape[0] == 0 or x.shape[1] < 2 or x.shape[2] != FEATURES:
        raise ModelError(f"text_sim: features have shape {x.shape}, allowed is (clips >= 1, frames >= 2, {FEATURES})")
    if not np.isfinite(x).all():
        raise ModelError("text_sim: features hold NaN or infinity")
    half = x.shape[1] // 2
    change = x[:, -half:].mean(axis=1) - x[:, :half].mean(axis=1)
    return np.concatenate([x.mean(axis=1), change], axis=1)


def caption_vectors(captions: Sequence[str]) -> NDArray[np.float64]:
    """What the text head sees: the caption's stored MiniLM token states averaged over its tokens, (captions, 384).

    Raises:
        ModelError: a caption is unknown.
    """
    states, mask = TextStates().batch(list(captions))
    vectors: NDArray[np.float64] = (states.astype(np.float64) * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return vectors


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit
