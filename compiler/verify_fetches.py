"""Legality of FETCH in a program: it fills places of sets only, and nothing reaches these through another register.

Behind this, DRAM behind different base registers can be taken for different memories, as the hazard check does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import Decoded
from npusim.program import Program


class Fault(NamedTuple):
    """A broken rule and the index of the instruction that breaks it."""

    at: int
    rule: str


def fetch_faults(program: Program, part: str, instructions: list[Decoded]) -> list[Fault]:
    """What the fetches of ``part`` must not do, with the base registers of any step that runs it."""
    found = [
        (index, region.start, region.end, region.base, written)
        for index, ins in enumerate(instructions)
        for written, regions in enumerate(BY_MNEMONIC[ins.op].footprint(ins))
        for region in regions
        if region.memory == "dram"
    ]
    fetches = [i for i, (index, *_, written) in enumerate(found) if written and instructions[index].op == "fetch"]
    if not fetches:
        return []
    at, start, end, base, _ = np.array(found, np.int64).T
    faults = []
    for step in program.runs(part):
        registers = np.array(program.prologue_bases if step < 0 else program.bases(step), np.int64)
        first, last = start + registers[base], end + registers[base]
        for i in fetches:
            where = f"dram bytes {first[i]}..{last[i]} in {'the prologue' if step < 0 else f'step {step}'}"
            if not any(low <= first[i] and last[i] <= high for low, high in program.places.values()):
                faults.append(Fault(int(at[i]), f"fills {where}; allowed: {_text(program)}"))
            clash = np.flatnonzero((first < last[i]) & (last > first[i]) & (base != base[i]))
            if clash.size:
                other = f"instruction {at[clash[0]]} reaches through base {base[clash[0]]}"
                faults.append(Fault(int(at[i]), f"fills {where} through base {base[i]}, which {other}"))
    return faults


def _text(program: Program) -> str:
    spans = (f"{name} at {start}..{end}" for name, (start, end) in program.places.items())
    return ", ".join(spans) or "no places, the program does not swap"
