"""Who touched which bytes last: the question behind token insertion and behind the check of its result."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from npusim.isa.encoding import UNITS, Region

READ, WRITE = 0, 1
NEVER = -1


class Accesses:
    """Byte ranges touched so far, all memories. DRAM behind different base registers counts as different memories."""

    def __init__(self) -> None:
        self._memories: defaultdict[tuple[str, int], _Segments] = defaultdict(_Segments)

    def add(self, region: Region, access: int, unit: int, number: int) -> None:
        """Instruction ``number`` of ``unit`` reads or writes ``region``; numbers of one unit never fall."""
        segments = self._memories[region.memory, region.base]
        covered = segments.cut(region)
        segments.latest[covered, access, unit] = number

    def latest(self, region: Region) -> NDArray[np.int64]:
        """(2, units): the latest number of each unit that read and that wrote any byte of ``region``, or NEVER."""
        segments = self._memories[region.memory, region.base]
        covered = segments.cut(region)
        found: NDArray[np.int64] = segments.latest[covered].max(axis=0)
        return found


class _Segments:
    """One memory cut into segments wherever an access began or ended; ``latest`` is (segments, 2, units)."""

    def __init__(self) -> None:
        self.starts = np.zeros(1, np.int64)
        self.latest = np.full((1, 2, len(UNITS)), NEVER, np.int64)

    def cut(self, region: Region) -> slice:
        """The segments that make up ``region``, after cutting at its ends."""
        return slice(self._boundary(region.start), self._boundary(region.end))

    def _boundary(self, address: int) -> int:
        at = int(np.searchsorted(self.starts, address))
        if at == len(self.starts) or self.starts[at] != address:
            self.starts = np.insert(self.starts, at, address)
            self.latest = np.insert(self.latest, at, self.latest[at - 1], axis=0)
        return at
