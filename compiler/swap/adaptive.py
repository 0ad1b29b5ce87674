"""``adaptive``: at each boundary the policy that costs least cycles there, of those that the DRAM budget has room for.

The cost of a boundary is that of its steps with its fetches alone. Where boundaries share a step the sum may be
another, so the result is compared with every policy used throughout, and the cheapest is taken.
"""

from __future__ import annotations

from collections.abc import Callable

from compiler.swap import blocking, resident, shadow, streamed
from compiler.swap.kind import Fetches, Kind, Plan, merged

BOUNDARIES: dict[str, tuple[Callable[[Kind, int], Fetches], int]] = {
    "shadow": (shadow.boundary, 2),
    "streamed": (streamed.boundary, 1),
    "blocking": (blocking.boundary, 1),
}
"""Policies that can differ from boundary to boundary, and the places that they need; the first of equals is taken."""


def plan(kind: Kind) -> Plan:
    """The cheapest plan, the prologue included."""
    plans = [shadow.plan(kind)] if kind.most_places >= 2 else []
    plans += [mixed(kind), streamed.plan(kind), blocking.plan(kind)]
    plans += [resident.plan(kind)] if kind.most_places >= len(kind.steps) else []
    return min(plans, key=lambda found: kind.extra(found.fetches))


def mixed(kind: Kind) -> Plan:
    """The best policy of each boundary by itself."""
    place, fetches = [0], kind.at_start()
    for number in range(1, len(kind.steps)):
        fits = {name: make for name, (make, places) in BOUNDARIES.items() if places <= kind.most_places}
        made = {name: make(kind, number) for name, make in fits.items()}
        name = min(made, key=lambda name: kind.extra(made[name]))
        place.append(1 - place[-1] if name == "shadow" else place[-1])
        fetches = merged(fetches, made[name])
    return Plan(tuple(place), fetches)
