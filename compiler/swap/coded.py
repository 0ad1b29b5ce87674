"""Time ranges' sets in storage as differences to the set before, piece by piece as the plan fetches them.

A piece has the same place and room in the coded set of every boundary, that of its longest code, so that one step code
serves boundaries that fetch alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from compiler.swap.code import Fetch
from npusim.delta import encode

Bytes = NDArray[np.uint8]
Piece = tuple[int, int]
"""First byte in the set, and bytes."""


class Codes:
    """Codes of pieces of ``sets``, uint8 (count, bytes): of each set but the first, against the one before."""

    def __init__(self, sets: Bytes) -> None:
        self.sets = sets
        self._known: dict[Piece, list[Bytes]] = {}

    def of(self, start: int, size: int) -> list[Bytes]:
        """The codes of a piece, by set from the second on."""
        if (start, size) not in self._known:
            parts = self.sets[:, start : start + size]
            self._known[start, size] = [encode(new, old) for old, new in pairwise(parts)]
        return self._known[start, size]

    def room(self, start: int, size: int) -> int:
        """Bytes of the longest code of a piece."""
        return max(code.size for code in self.of(start, size))

    def laid_out(self, pieces: Iterable[Piece]) -> tuple[dict[Piece, int], Bytes]:
        """(offset of each piece in a coded set, coded sets (count - 1, bytes))."""
        offsets, size = dict[Piece, int](), 0
        for piece in sorted(set(pieces)):
            offsets[piece] = size
            size += self.room(*piece)
        coded = np.zeros((len(self.sets) - 1, size), np.uint8)
        for piece, offset in offsets.items():
            for row, code in zip(coded, self.of(*piece), strict=True):
                row[offset : offset + code.size] = code
        return offsets, coded


def placed(fetches: Mapping[int, Sequence[Fetch]], codes: Codes) -> tuple[dict[int, tuple[Fetch, ...]], Bytes]:
    """(fetches that know where their codes lie in the coded set, coded sets)."""
    offsets, coded = codes.laid_out((f.start, f.size) for found in fetches.values() for f in found if f.coded)
    out = {
        step: tuple(f._replace(storage=offsets[f.start, f.size] - f.start) if f.coded else f for f in found)
        for step, found in fetches.items()
    }
    return out, coded
