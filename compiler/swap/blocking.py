"""``blocking``: at a boundary everything stops until the whole set has been fetched. One place in DRAM."""

from __future__ import annotations

from compiler.swap.code import Fetch
from compiler.swap.kind import Fetches, Kind, Plan, merged


def boundary(kind: Kind, number: int) -> Fetches:
    """Fetch set ``number`` in front of its first step, and wait."""
    r = kind.registers
    make = kind.fetch if number else Fetch
    return {kind.steps[number][0]: [make(0, r.present, r.base, 0, kind.set_bytes, join=True)]}


def plan(kind: Kind) -> Plan:
    """The first set too is fetched in front of its first step."""
    sets = range(len(kind.steps))
    return Plan((0,) * len(sets), merged(*(boundary(kind, number) for number in sets)))
