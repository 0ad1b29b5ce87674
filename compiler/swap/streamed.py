"""``streamed``: each part of the set is overwritten by the next set's as soon as its last load is done. One place.

A part that the last step of the old set reads early can be fetched during the rest of that step; one that the first
step of the new set reads late can be fetched during that step before it is needed. So a boundary has two steps to hide
in, but a part in either has only the time behind its last or before its first load. How many parts there are (each
costs the storage's latency) and how many of them are fetched before the boundary is decided by timing.
"""

from __future__ import annotations

from compiler.swap.code import Fetch
from compiler.swap.kind import Fetches, Kind, Plan, merged

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
    found: dict[Choice, None] = {}
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


def plan(kind: Kind) -> Plan:
    """Every boundary alike; behind a boundary the rest of the old set's fetches come first.

    Boundaries may share a step, so the choice is the one that costs least of all boundaries together.
    """
    sets, start = range(len(kind.steps)), kind.at_start()
    plans = (merged(start, *(_around(kind, n, choice) for n in sets[1:])) for choice in _choices(kind))
    return Plan((0,) * len(sets), min(plans, key=kind.extra))
