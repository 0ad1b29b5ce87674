"""Text states of the known captions, computed once with MiniLM-L6 and stored (models/data/text_states.safetensors).

The states are the last hidden states of every token, [CLS] and [SEP] included: the same kind of conditioning as
Open-Sora's T5 states, 384 wide instead of 4096.
"""

import difflib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from models.clips import DATA_DIR, TEXT_FILE
from models.errors import ModelError

MAX_TOKENS = 16
TEXT_WIDTH = 384


class TextStates:
    """Token states by caption.

    Args:
        path: the safetensors file: `states` (tokens of all captions, width) float16, `offsets` (captions + 1,) int64,
            metadata `captions` as a JSON list.
        length: rows that `get` returns; no caption may have more tokens.

    Raises:
        ModelError: if the file is missing or damaged.
    """

    def __init__(self, path: Path = DATA_DIR / TEXT_FILE, length: int = MAX_TOKENS) -> None:
        try:
            with safe_open(path, framework="np") as file:
                captions: list[str] = json.loads(file.metadata()["captions"])
                self._states: NDArray[np.float16] = file.get_tensor("states")
                self._offsets: NDArray[np.int64] = file.get_tensor("offsets")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: not a readable file of text states: {error}") from error
        if not isinstance(captions, list) or self._offsets.ndim != 1 or self._offsets.dtype != np.int64:
            raise ModelError(f"{path}: captions are no list, or offsets no int64 numbers")
        self._index = {str(caption): index for index, caption in enumerate(captions)}
        self._length = length
        ends = self._offsets.tolist()
        sound = (
            self._states.ndim == 2 and len(ends) == len(captions) + 1 and [ends[0], ends[-1]] == [0, len(self._states)]
        )
        if not sound or any(not 0 < end - start <= length for start, end in pairwise(ends)):
            raise ModelError(
                f"{path}: offsets do not divide states into {len(captions)} captions of 1..{length} tokens"
            )

    @property
    def captions(self) -> list[str]:
        """All known captions, in file order."""
        return list(self._index)

    def get(self, caption: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns the token states of one caption.

        Returns:
            states: (length, width) float32, rows past the last token zero.
            mask: (length,) bool, True where there is a token.

        Raises:
            ModelError: if the caption is unknown; the message names the nearest known ones.
        """
        if caption not in self._index:
            nearest = difflib.get_close_matches(caption.lower(), self._index, n=3, cutoff=0.0)
            raise ModelError(
                f"unknown caption {caption!r}: text states are stored for {len(self._index)} captions; "
                f"nearest: {', '.join(repr(name) for name in nearest)}"
            )
        index = self._index[caption]
        tokens = self._states[self._offsets[index] : self._offsets[index + 1]]
        states = np.zeros((self._length, tokens.shape[1]), np.float32)
        states[: len(tokens)] = tokens
        return states, np.arange(self._length) < len(tokens)

    def batch(self, captions: list[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns states (captions, length, width) float32, masks (captions, length) bool; errors as in `get`."""
        pairs = [self.get(caption) for caption in captions]
        return np.stack([states for states, _ in pairs]), np.stack([mask for _, mask in pairs])
