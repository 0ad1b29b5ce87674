"""Token insertion: an instruction waits for every earlier one, on another unit, whose bytes it reads or overwrites.

Units run their queues in order, so waiting for one instruction of a unit covers all before it, and a token pair is needed only when no
earlier wait of the same queue has covered it. Tokens between two units are therefore taken in the order they are sent.
"""

from __future__ import annotations

import numpy as np

from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import UNITS, Decoded, Region

MEMORY_IDS = {"dram": 0, "sram": 1, "param": 2}


class Accesses:
    """Byte ranges touched so far, as growing arrays, for vectorised overlap queries."""

    def __init__(self, capacity: int) -> None:
        self.memory, self.unit, self.index = (np.zeros(capacity, np.int64) for _ in range(3))
        self.start, self.end = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self.count = 0

    def add(self, region: Region, unit: int, index: int) -> None:
        at = self.count
        self.memory[at], self.unit[at], self.index[at] = memory_id(region), unit, index
        self.start[at], self.end[at] = region.start, region.end
        self.count += 1

    def latest(self, region: Region, unit: int) -> dict[int, int]:
        """Latest instruction of each other unit that touches ``region``."""
        kept = slice(0, self.count)
        hit = (
            (self.memory[kept] == memory_id(region)) & (self.start[kept] < region.end) & (self.end[kept] > region.start)
        )
        found = {}
        for other in range(len(UNITS)):
            if other != unit:
                mine = hit & (self.unit[kept] == other)
                if mine.any():
                    found[other] = int(self.index[kept][mine].max())
        return found


def memory_id(region: Region) -> int:
    """Memories apart; DRAM behind different base registers never overlaps."""
    return MEMORY_IDS[region.memory] + 8 * region.base


def insert_tokens(instructions: list[Decoded]) -> dict[int, dict[str, int]]:
    """Header fields (wait_raw, wait_war, signal_raw, signal_war) by instruction index."""
    size = 16 * len(instructions) + 1
    writes, reads = Accesses(size), Accesses(size)
    waited = np.full((len(UNITS), len(UNITS)), -1, np.int64)
    headers: dict[int, dict[str, int]] = {i: {} for i in range(len(instructions))}
    for index, ins in enumerate(instructions):
        sources, results = BY_MNEMONIC[ins.op].footprint(ins)
        needs: dict[int, tuple[int, str]] = {}
        for kind, regions, earlier in (("war", results, reads), ("war", results, writes), ("raw", sources, writes)):
            for region in regions:
                for unit, producer in earlier.latest(region, ins.unit).items():
                    if producer >= needs.get(unit, (-1, ""))[0]:
                        needs[unit] = (producer, kind)
        for unit, (producer, kind) in needs.items():
            if producer > waited[ins.unit, unit]:
                waited[ins.unit, unit] = producer
                _set(headers[index], f"wait_{kind}", unit)
                _set(headers[producer], f"signal_{kind}", ins.unit)
        for region in sources:
            reads.add(region, ins.unit, index)
        for region in results:
            writes.add(region, ins.unit, index)
    return headers


def _set(header: dict[str, int], name: str, unit: int) -> None:
    header[name] = header.get(name, 0) | 1 << unit
