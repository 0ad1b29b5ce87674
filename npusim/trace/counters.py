"""Curves over time: bytes per cycle on a memory's port, and bytes that a memory holds.

A curve is (cycles, values): from ``cycles[i]`` on the value is ``values[i]``; int64 and float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from npusim.timing.cost import TRAFFIC
from npusim.trace.part import Int64, Part

Curve = tuple[Int64, NDArray[np.float64]]

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
    return summed(start, end, amount[moved] / (end - start))


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


def summed(start: Int64, end: Int64, height: NDArray[np.float64]) -> Curve:
    """The sum of rectangles, with 0 where none is. Rounding is wiped away where the number of them is 0."""
    cycles, inverse = np.unique(np.concatenate([start, end]), return_inverse=True)
    change, count = np.zeros(len(cycles)), np.zeros(len(cycles), np.int64)
    np.add.at(change, inverse, np.concatenate([height, -height]))
    np.add.at(count, inverse, np.repeat([1, -1], len(start)))
    values = np.cumsum(change)
    values[np.cumsum(count) == 0] = 0.0
    return cycles, values
