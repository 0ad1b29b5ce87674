"""The units of a machine: five kinds, one or two of each, every one with an in-order queue of its own."""

from __future__ import annotations

KINDS = ("load", "store", "mac", "vector", "storage")
"""Load DMA, store DMA, MAC array, vector unit, storage DMA."""
MOST = 2
"""The most units of one kind."""
UNITS = tuple(kind if not number else f"{kind}{number + 1}" for number in range(MOST) for kind in KINDS)
"""Names of all units that a machine may have: the first of each kind, then the second. The position is the unit's
number."""


def kind_of(number: int) -> str:
    """The kind of the unit ``number``."""
    return KINDS[number % len(KINDS)]


def of_kind(kind: str) -> tuple[int, ...]:
    """The numbers of all units of a kind."""
    return tuple(range(KINDS.index(kind), len(UNITS), len(KINDS)))
