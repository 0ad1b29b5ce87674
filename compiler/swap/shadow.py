"""``shadow``: the next set is fetched into a second place in DRAM while the present one is in use."""

from __future__ import annotations

from compiler.swap.kind import Fetches, Kind, Plan, merged

ALIGN = 64


def boundary(kind: Kind, number: int) -> Fetches:
    """Fetch set ``number`` in equal pieces, one in each step of the set before; a step's last barrier waits for it."""
    r, steps = kind.registers, kind.steps[number - 1]
    piece = -(-kind.set_bytes // (len(steps) * ALIGN)) * ALIGN
    starts = range(0, kind.set_bytes, piece)
    return {
        step: [kind.fetch(0, r.following, r.place, start, min(piece, kind.set_bytes - start))]
        for step, start in zip(steps, starts, strict=False)
    }


def plan(kind: Kind) -> Plan:
    """Places take turns."""
    sets = range(len(kind.steps))
    fetches = merged(kind.at_start(), *(boundary(kind, number) for number in sets[1:]))
    return Plan(tuple(number % 2 for number in sets), fetches)
