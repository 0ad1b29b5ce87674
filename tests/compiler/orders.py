"""Hazards by definition: which instructions conflict, and what the queues and tokens order, as plain sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy

import numpy as np

from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import Decoded
from npusim.orders import Token


def without(instructions: Sequence[Decoded], token: Token) -> list[Decoded]:
    """The program without one token: neither sent nor taken."""
    changed = list(instructions)
    sender, taker = copy(changed[token.sender]), copy(changed[token.taker])
    setattr(sender, f"signal_{token.kind}", getattr(sender, f"signal_{token.kind}") & ~(1 << taker.unit))
    setattr(taker, f"wait_{token.kind}", getattr(taker, f"wait_{token.kind}") & ~(1 << sender.unit))
    changed[token.sender], changed[token.taker] = sender, taker
    return changed


def ordered_before(instructions: Sequence[Decoded], order: Sequence[Token]) -> list[int]:
    """For each instruction, as a bit mask, all that are complete when it starts."""
    into: dict[int, list[int]] = defaultdict(list)
    for token in order:
        into[token.taker].append(token.sender)
    last: dict[int, int] = {}
    barrier = -1
    before: list[int] = []
    for index, ins in enumerate(instructions):
        if ins.op == "barrier":
            before.append((1 << index) - 1)
            barrier = index
            continue
        mask = 0
        for earlier in [*into[index], *([last[ins.unit]] if ins.unit in last else []), *([barrier] * (barrier >= 0))]:
            mask |= before[earlier] | 1 << earlier
        before.append(mask)
        last[ins.unit] = index
    return before


def conflicts(instructions: Sequence[Decoded]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) that touch a common byte, at least one of them writing it."""
    rows: list[tuple[int, int, int, int, int]] = []  # memory, start, end, written, instruction
    memories: dict[tuple[str, int], int] = {}
    for index, ins in enumerate(instructions):
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        for written, region in [(0, r) for r in reads] + [(1, r) for r in writes]:
            memory = memories.setdefault((region.memory, region.base), len(memories))
            rows.append((memory, region.start, region.end, written, index))
    memory, start, end, written, instruction = np.array(rows).T
    found = set()
    for m, s, e, w, later in rows:
        meets = (memory == m) & (start < e) & (end > s) & (written + w > 0) & (instruction < later)
        found |= {(earlier, later) for earlier in instruction[meets].tolist()}
    return sorted(found)
