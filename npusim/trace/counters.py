"""Curves over time: bytes per cycle on a memory's port, and bytes that a memory holds.

A curve is (cycles, values): from ``cycles[i]`` on the value is ``values[i]``; int64 and float64.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import Decoded
from npusim.timing.cost import TRAFFIC
from npusim.trace.part import Int64, Part

Curve = tuple[Int64, NDArray[np.float64]]

SRAM = "sram"
RATES = {
    "DRAM read": "dram_read_bytes",
    "DRAM write": "dram_write_bytes",
    "SRAM read": "sram_read_bytes",
    "SRAM write": "sram_write_bytes",
}
"""Curves of bytes per cycle, and the column of `npusim.timing.cost.TRAFFIC` that each spreads."""


def rate(part: Part, column: str) -> Curve:
    """Bytes per cycle of one column of the traffic, each instruction's spread evenly from its start to its end."""
    amount = part.cost.traffic[:, TRAFFIC.index(column)]
    moved = np.flatnonzero((amount > 0) & (part.end > part.start))
    start, end = part.start[moved], part.end[moved]
    return _summed(start, end, amount[moved] / (end - start))


def occupancy(part: Part, memory: str = SRAM) -> Curve:
    """Bytes of an on-chip memory that hold something still needed.

    A byte is needed from the start of the instruction that writes it to the end of the last one that reads it before
    another writes it. What is read and was not written in this part is needed from its beginning; and if the part's own
    code finds it again in its next execution, what is left at the end is needed to the end. Gaps between an operand's
    rows count as its bytes.
    """
    lives = _lives(part.instructions, part.start, part.end, part.timing.total_cycles, memory)
    table = np.array(lives, np.int64).reshape(-1, 3)
    return _summed(table[:, 0], table[:, 1], table[:, 2].astype(float))


def mean_by_bin(curve: Curve, edges: Int64) -> NDArray[np.float64]:
    """Mean of a curve between neighbouring ``edges``, which are at least one cycle apart."""
    return _binned(curve, edges, lambda area, most, width: area / width)


def most_by_bin(curve: Curve, edges: Int64) -> NDArray[np.float64]:
    """Greatest value of a curve between neighbouring ``edges``."""
    return _binned(curve, edges, lambda area, most, width: most)


def _binned(curve: Curve, edges: Int64, choose: Callable[..., NDArray[np.float64]]) -> NDArray[np.float64]:
    cycles, values = curve
    points = np.unique(np.concatenate([edges, cycles[(cycles > edges[0]) & (cycles < edges[-1])]]))
    at = np.searchsorted(cycles, points[:-1], side="right") - 1
    held = np.where(at >= 0, values[at], 0.0) if len(values) else np.zeros(len(at))
    first = np.searchsorted(points, edges[:-1])
    area = np.add.reduceat(held * np.diff(points), first)
    return choose(area, np.maximum.reduceat(held, first), np.diff(edges))


def _summed(start: Int64, end: Int64, height: NDArray[np.float64]) -> Curve:
    """The sum of rectangles, with 0 where none is. Rounding is wiped away where the number of them is 0."""
    cycles, inverse = np.unique(np.concatenate([start, end]), return_inverse=True)
    change, count = np.zeros(len(cycles)), np.zeros(len(cycles), np.int64)
    np.add.at(change, inverse, np.concatenate([height, -height]))
    np.add.at(count, inverse, np.repeat([1, -1], len(start)))
    values = np.cumsum(change)
    values[np.cumsum(count) == 0] = 0.0
    return cycles, values


def _lives(
    instructions: list[Decoded], start: Int64, end: Int64, total: int, memory: str
) -> list[tuple[int, int, int]]:
    """(first cycle, last cycle, bytes) of everything that the memory holds."""
    pieces, done, inherited = _Pieces(), list[tuple[int, int, int]](), list[tuple[int, int]]()
    for index, ins in enumerate(instructions):
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        first, last = int(start[index]), int(end[index])
        for region in (r for r in reads if r.memory == memory):
            inherited += pieces.read(region.start, region.end, last)
        for region in (r for r in writes if r.memory == memory):
            done += pieces.write(region.start, region.end, first, last)
    for low, high in inherited:
        pieces.read(low, high, total)
    return done + pieces.rest()


class _Pieces:
    """A memory in pieces that do not overlap: low byte, high byte, cycle of birth, cycle of the last use."""

    def __init__(self) -> None:
        self.low: list[int] = []
        self.rows: list[tuple[int, int, int, int]] = []

    def _cut(self, low: int, high: int) -> tuple[int, int]:
        """Cut pieces at both bytes; positions of those between them."""
        for at in (low, high):
            i = bisect_right(self.low, at) - 1
            if i >= 0 and self.rows[i][0] < at < self.rows[i][1]:
                a, b, birth, use = self.rows[i]
                self.rows[i : i + 1] = [(a, at, birth, use), (at, b, birth, use)]
                self.low[i : i + 1] = [a, at]
        return bisect_left(self.low, low), bisect_left(self.low, high)

    def read(self, low: int, high: int, use: int) -> list[tuple[int, int]]:
        """Use the bytes until a cycle; those that nobody wrote are there from cycle 0. Returns the latter."""
        i, j = self._cut(low, high)
        fresh, at, rows = [], low, []
        for a, b, birth, before in self.rows[i:j]:
            if a > at:
                fresh.append((at, a))
                rows.append((at, a, 0, use))
            rows.append((a, b, birth, max(before, use)))
            at = b
        if at < high:
            fresh.append((at, high))
            rows.append((at, high, 0, use))
        self._put(i, j, rows)
        return fresh

    def write(self, low: int, high: int, birth: int, use: int) -> list[tuple[int, int, int]]:
        """Bytes written anew; what they replace has ended."""
        i, j = self._cut(low, high)
        ended = [(a, b, c) for a, b, c in map(_life, self.rows[i:j])]
        self._put(i, j, [(low, high, birth, use)])
        return ended

    def _put(self, i: int, j: int, rows: list[tuple[int, int, int, int]]) -> None:
        self.rows[i:j] = rows
        self.low[i:j] = [row[0] for row in rows]

    def rest(self) -> list[tuple[int, int, int]]:
        return [_life(row) for row in self.rows]


def _life(row: tuple[int, int, int, int]) -> tuple[int, int, int]:
    low, high, birth, use = row
    return birth, use, high - low
