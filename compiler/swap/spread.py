"""Spreads fetches over the segments of a step that barriers cut: a barrier waits for what was fetched in front of it.

A set is counted in units of one turn of the DRAM's address mapping, so equal segments that fetch as many units are
still equal pieces of code (`npusim.timing.reuse`). Every unit goes to the segment, of those that it may go to, that is
then least loaded: most cycles for each of its units, the storage's latency left out. So slow storage hides them, too.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.swap.kind import Kind

Window = tuple[int, int]
"""Segments [low, high)."""
Run = tuple[int, int, int]
"""Segment, first byte of the set, bytes."""


def units(kind: Kind) -> int:
    """How many units a set has."""
    return -(-kind.set_bytes // kind.unit_bytes)


def every_segment(kind: Kind) -> Window:
    """All but the last, which is HALT alone."""
    return 0, len(kind.coder.segments) - 1


def by_segment(kind: Kind, step: int, numbers: Sequence[int], windows: Sequence[Window]) -> list[Run]:
    """Which segment of ``step`` fetches which of the units ``numbers``, each in its window.

    Windows are not empty, and neither their lows nor their highs fall.
    """
    left = iter(numbers)
    runs = list[Run]()
    for segment, count in enumerate(_counts(kind, step, windows)):
        runs += [(segment, *run) for run in joined(kind, [next(left) for _ in range(count)])]
    return runs


def joined(kind: Kind, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """(first byte, bytes) of the runs that units ``numbers`` make up in the order given."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    found = []
    for low, high in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        if low < high:
            start, end = numbers[low] * kind.unit_bytes, (numbers[high - 1] + 1) * kind.unit_bytes
            found.append((start, min(end, kind.set_bytes) - start))
    return found


def _counts(kind: Kind, step: int, windows: Sequence[Window]) -> list[int]:
    """Units of each segment: those with least choice first, each where the load is then least."""
    room = np.maximum(np.array(kind.segment_cycles[:-1], float) - kind.latency_cycles, 1e-9)
    load, counts = (1 + _given_units(kind, step)) / room, np.zeros(len(room), np.int64)
    for low, high in sorted(windows, key=lambda window: window[1] - window[0]):
        at = low + int(np.argmin(load[low:high]))
        counts[at] += 1
        load[at] += 1 / room[at]
    return [int(count) for count in counts]


def _given_units(kind: Kind, step: int) -> NDArray[np.float64]:
    """What the other kind of sets fetches in each segment."""
    begins = [begin for begin, _ in kind.coder.segments]
    given = np.zeros(len(begins) - 1)
    for fetch in kind.given.get(step, ()):
        given[min(bisect(begins, fetch.at) - 1, len(given) - 1)] += fetch.size / kind.unit_bytes
    return given
