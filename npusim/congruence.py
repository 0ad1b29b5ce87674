"""When two pieces of code differ in nothing but where in DRAM they work.

Pieces end in barriers, behind which nothing of what came before is left. If two of them touch DRAM in intervals that
overlap in the same way, whatever depends on overlaps alone is equal for both: which rows two bursts share, which tokens
order two copies. `places` gives such intervals numbers that are equal exactly where they overlap in the same way.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def pieces(joins: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[begin, end) of the instructions up to each barrier or halt, itself included; then of those behind the last."""
    cuts = [0, *(np.flatnonzero(joins) + 1).tolist()]
    if cuts[-1] < len(joins):
        cuts.append(len(joins))
    return list(pairwise(cuts))


def places(space: Int64, first: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Where each of the intervals [first, end) lies in its `space`, but for shifts of all that overlap.

    Intervals of a space that overlap, directly or through others, form a cluster. Returns the number of each interval's
    cluster, in the order of their first members, and where the cluster begins. All arrays are (count,), no interval is
    empty. Moving a whole cluster, to where it still meets no other, changes neither the numbers nor `first` less the
    beginning; and intervals with the same of both have the same overlaps, to the unit.
    """
    order = np.lexsort((first, space))
    space, begin, end = space[order], first[order], end[order]
    new = np.ones(len(order), np.bool_)
    bounds = [0, *(np.flatnonzero(np.diff(space)) + 1).tolist(), len(order)]
    for low, high in pairwise(bounds):
        new[low + 1 : high] = begin[low + 1 : high] >= np.maximum.accumulate(end[low:high])[:-1]
    cluster = np.cumsum(new) - 1
    found = np.empty(len(order), np.int64)
    found[order] = cluster
    # Numbered anew, by first appearance.
    _, seen, number = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(seen), np.int64)
    rank[np.argsort(seen, kind="stable")] = np.arange(len(seen))
    return rank[number], begin[new][found]
