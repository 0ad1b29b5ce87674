"""Who touched which bytes last: the question behind token insertion and behind the check of its result."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npusim.isa.encoding import Decoded, Region
from npusim.units import UNITS

READ, WRITE = 0, 1
NEVER = -1


def units_used(instructions: Sequence[Decoded]) -> int:
    """One past the highest number of a unit that executes one of these."""
    return 1 + max((ins.unit for ins in instructions), default=0)


class Accesses:
    """Byte ranges touched so far, all memories. DRAM behind different base registers counts as different memories."""

    def __init__(self, units: int = len(UNITS)) -> None:
        """``units``: one past the highest number of a unit."""
        self._memories: defaultdict[tuple[str, int], _Segments] = defaultdict(lambda: _Segments(units))

    def add(self, region: Region, access: int, unit: int, number: int) -> None:
        """Instruction ``number`` of ``unit`` reads or writes ``region``; numbers of one unit never fall."""
        segments = self._memories[region.memory, region.base]
        segments.table[segments.cut(region), access, unit] = number

    def latest(self, region: Region) -> NDArray[np.int64]:
        """(2, units): the latest number of each unit that read and that wrote any byte of ``region``, or NEVER."""
        segments = self._memories[region.memory, region.base]
        return segments.latest(segments.cut(region))


class _Segments:
    """One memory cut into segments wherever an access began or ended; the first ``len(starts)`` of ``table`` are used.

    ``table``: (capacity, 2, units). Starts are a list, because bisection and insertion in one are fast.
    """

    def __init__(self, units: int) -> None:
        self.starts = [0]
        self.table = np.full((64, 2, units), NEVER, np.int64)

    def cut(self, region: Region) -> slice:
        """The segments that make up ``region``, after cutting at its ends."""
        return slice(self._boundary(region.start), self._boundary(region.end))

    def latest(self, covered: slice) -> NDArray[np.int64]:
        """(2, units): the latest numbers of these segments."""
        if covered.stop - covered.start == 1:
            return np.asarray(self.table[covered.start].copy())
        return np.asarray(self.table[covered].max(axis=0))

    def _boundary(self, address: int) -> int:
        starts = self.starts
        at = bisect_left(starts, address)
        if at == len(starts) or starts[at] != address:
            used = len(starts)
            if used == len(self.table):
                self.table = np.concatenate([self.table, np.full_like(self.table, NEVER)])
            self.table[at + 1 : used + 1] = self.table[at:used].copy()
            self.table[at] = self.table[at - 1]
            starts.insert(at, address)
        return at
