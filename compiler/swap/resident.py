"""``resident``: all sets are fetched before the video begins, and stay. As many places in DRAM as there are sets."""

from __future__ import annotations

from compiler.swap.code import Fetch
from compiler.swap.kind import PROLOGUE, Kind, Plan

MOST_BYTES = 1 << 30
"""Of one fetch."""


def plan(kind: Kind) -> Plan:
    """Fetches beside the prologue, whose last barrier waits for them; nothing afterwards."""
    total = kind.set_bytes * len(kind.steps)
    fetches = [
        Fetch(0, 0, 0, start, min(MOST_BYTES, total - start), storage=kind.storage, dram=kind.address)
        for start in range(0, total, MOST_BYTES)
    ]
    return Plan(tuple(range(len(kind.steps))), {PROLOGUE: fetches})
