"""FETCH: one run of bytes from storage to DRAM.

Parameter sets that do not fit DRAM all at once lie in storage; a program fetches what its next steps need beside the
computation of the present one. Both addresses are relative to base registers, so that one code serves every step that
fetches: 4, 5, 7 and 8 point into storage, 1, 3, 6 and 9 into DRAM, 0 is absolute in either.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.isa.addressing import BASES, vector
from npusim.isa.encoding import Decoded, Field, Instruction, Region, Rule, at_least_one

FIELDS = (
    Field("storage_addr", 2, 0, 64, doc="first byte in storage, relative to its base register"),
    Field("dram_addr", 4, 0, 64, doc="first byte in DRAM, relative to its base register"),
    Field("storage_base", 6, 0, 8, doc="base register in storage"),
    Field("base", 6, 8, 8, doc="base register in DRAM"),
    Field("bytes", 7, doc="bytes of the run"),
)


def execute(state: Any, ins: Decoded) -> None:
    source = state.vector("storage", state.bases[ins.storage_base] + ins.storage_addr, np.uint8, ins.bytes)
    state.vector("dram", state.bases[ins.base] + ins.dram_addr, np.uint8, ins.bytes)[...] = source


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    source = vector("storage", ins.storage_addr, ins.bytes)
    target = vector("dram", ins.dram_addr, ins.bytes)
    return [Region(source.memory, source.start, source.end, ins.storage_base)], [
        Region(target.memory, target.start, target.end, ins.base)
    ]


def cycles(ins: Decoded, machine: Any) -> int:
    """``dma.setup_cycles`` for the descriptor; the storage and memory models time the requests themselves."""
    return int(machine.dma.setup_cycles)


RULES = (
    *at_least_one("bytes"),
    Rule(("storage_base",), f"0..{BASES - 1}", lambda ins, machine: bool(ins.storage_base < BASES)),
    Rule(("base",), f"0..{BASES - 1}", lambda ins, machine: bool(ins.base < BASES)),
)
FETCH = Instruction(
    "fetch", 0x04, "copy a run of bytes from storage to DRAM", FIELDS, ("storage",),
    execute, RULES, footprint, cycles, __doc__, ("a run that lies outside storage or DRAM",),
)  # fmt: skip
