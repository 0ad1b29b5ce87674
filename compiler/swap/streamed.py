"""``streamed``: each part of the set is overwritten by the next set's as soon as its last load is done. One place.

A part that the last step of the old set reads early can be fetched during the rest of that step; one that the first
step of the new set reads late can be fetched during that step before it is needed. So a boundary has two steps to hide
in, but a part in either has only the time behind its last or before its first load. How many parts there are (each
costs the storage's latency) and how many of them are fetched before the boundary is decided by timing.

Where barriers cut a step into segments, a part is fetched in a segment behind that of its last load or in front of that
of its first one, as `compiler.swap.spread` shares them out: the half that is read first before the boundary, the other
one behind it. What nothing follows waits for its last load; what nothing precedes is fetched first of all.
"""

from __future__ import annotations

from bisect import bisect

from compiler.swap.code import Fetch
from compiler.swap.kind import Fetches, Kind, Plan, merged
from compiler.swap.spread import by_segment, every_segment, joined, units

ALIGN = 64
PARTS, MIN_PART = (1, 2, 4, 8), 8192

Choice = tuple[tuple[Fetch, ...], tuple[Fetch, ...]]
"""Fetches before a boundary, and behind it."""


def boundary(kind: Kind, number: int) -> Fetches:
    """Fetch set ``number`` around the boundary in front of it, in the parts that cost least, few rather than many."""
    return min((_around(kind, number, choice) for choice in _choices(kind)), key=kind.extra)


def _around(kind: Kind, number: int, choice: Choice) -> Fetches:
    last, first = kind.steps[number - 1][-1], kind.steps[number][0]
    return {last: list(choice[0]), first: list(choice[1])}


def _choices(kind: Kind) -> list[Choice]:
    if len(kind.steps) == 1:
        return [((), ())]
    found: dict[Choice, None] = {}
    if kind.is_cut:
        return [_cut(kind)]
    for parts in (n for n in PARTS if n == 1 or n * MIN_PART <= kind.set_bytes):
        size = -(-kind.set_bytes // (parts * ALIGN)) * ALIGN
        starts = range(0, kind.set_bytes, size)
        for early in range(0, len(starts) + 1, max(1, parts // 4)):
            found[divided(kind, size, early)] = None
    return list(found)


def divided(kind: Kind, size: int, early: int) -> Choice:
    """Parts of ``size`` bytes; the ``early`` ones whose last load comes first are fetched before the boundary."""
    r = kind.registers
    spans = [(start, min(size, kind.set_bytes - start)) for start in range(0, kind.set_bytes, size)]
    uses = {span: kind.uses(span[0], sum(span)) for span in spans}
    by_last = sorted(spans, key=lambda span: uses[span][1])
    before = (kind.fetch(uses[span][1] + 1, r.following, r.base, *span) for span in by_last[:early])
    late = sorted(by_last[early:], key=lambda span: uses[span][0])
    return tuple(before), tuple(kind.fetch(0, r.present, r.base, *span) for span in late)


def _uses(kind: Kind) -> list[tuple[int, int]]:
    """Indices of the first and last load of each unit; (-1, -1) for one that nothing reads."""
    found = [(-1, -1)] * units(kind)
    for index, start, end in kind.coder.loads(kind.registers.base):
        for number in range(start // kind.unit_bytes, -(-end // kind.unit_bytes)):
            found[number] = found[number][0] if found[number][0] >= 0 else index, index
    return found


def _cut(kind: Kind) -> Choice:
    """The half of the units whose last loads come first is fetched before the boundary."""
    r, begins, uses = kind.registers, [begin for begin, _ in kind.coder.segments], _uses(kind)
    end = every_segment(kind)[1]
    by_last = sorted(range(len(uses)), key=lambda number: uses[number][1])
    early, late = by_last[: len(uses) // 2], by_last[len(uses) // 2 :]
    after = {number: bisect(begins, uses[number][1]) for number in early}
    until = {number: bisect(begins, uses[number][0]) - 1 if uses[number][0] >= 0 else end for number in late}
    late.sort(key=until.__getitem__)
    waiting, first = [n for n in early if after[n] >= end], [n for n in late if until[n] == 0]
    early, late = [n for n in early if after[n] < end], [n for n in late if until[n] > 0]
    last, following = kind.steps[0][-1], kind.steps[1][0]
    before = [
        kind.fetch(begins[segment], r.following, r.base, start, size)
        for segment, start, size in by_segment(kind, last, early, [(after[number], end) for number in early])
    ]
    for start, size in joined(kind, waiting):
        before.append(kind.fetch(kind.uses(start, start + size)[1] + 1, r.following, r.base, start, size))
    behind = [kind.fetch(0, r.present, r.base, *run) for run in joined(kind, first)]
    behind += [
        kind.fetch(begins[segment], r.present, r.base, start, size)
        for segment, start, size in by_segment(kind, following, late, [(0, until[number]) for number in late])
    ]
    return tuple(before), tuple(behind)


def plan(kind: Kind) -> Plan:
    """Every boundary alike; behind a boundary the rest of the old set's fetches come first.

    Boundaries may share a step, so the choice is the one that costs least of all boundaries together.
    """
    sets, start = range(len(kind.steps)), kind.at_start()
    plans = (merged(start, *(_around(kind, n, choice) for n in sets[1:])) for choice in _choices(kind))
    return Plan((0,) * len(sets), min(plans, key=kind.extra))
