"""``shadow``: the next set is fetched into a second place in DRAM while the present one is in use."""

from __future__ import annotations

from compiler.swap.code import Fetch
from compiler.swap.kind import Fetches, Kind, Plan, merged
from compiler.swap.spread import by_segment, every_segment, units

ALIGN = 64


def boundary(kind: Kind, number: int) -> Fetches:
    """Fetch set ``number`` in equal parts, one in each step of the set before; a step's last barrier waits for it."""
    r, steps = kind.registers, kind.steps[number - 1]
    if kind.is_cut:
        return {step: _spread(kind, step, index, len(steps)) for index, step in enumerate(steps)}
    piece = -(-kind.set_bytes // (len(steps) * ALIGN)) * ALIGN
    starts = range(0, kind.set_bytes, piece)
    return {
        step: [kind.fetch(0, r.following, r.place, start, min(piece, kind.set_bytes - start))]
        for step, start in zip(steps, starts, strict=False)
    }


def _spread(kind: Kind, step: int, index: int, steps: int) -> list[Fetch]:
    """Part ``index`` of ``steps``, in pieces at the beginnings of segments."""
    r, begins = kind.registers, [begin for begin, _ in kind.coder.segments]
    numbers = range(units(kind) * index // steps, units(kind) * (index + 1) // steps)
    runs = by_segment(kind, step, numbers, [every_segment(kind)] * len(numbers))
    return [kind.fetch(begins[segment], r.following, r.place, start, size) for segment, start, size in runs]


def plan(kind: Kind) -> Plan:
    """Places take turns."""
    sets = range(len(kind.steps))
    fetches = merged(kind.at_start(), *(boundary(kind, number) for number in sets[1:]))
    return Plan(tuple(number % 2 for number in sets), fetches)
