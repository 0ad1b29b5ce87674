"""Legality of a program: every instruction defined, every address inside its memory, no hazard left without a token.

The hazard check does not trust the token pass: it follows the tokens through the queues (the k-th wait takes the k-th token sent) to
learn what is certainly finished when an instruction starts, and then demands that of every earlier instruction whose bytes overlap.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, decode, violations
from npusim.isa.encoding import UNITS, Decoded, Region
from npusim.program import Program


def verify(program: Program) -> None:
    """Raise UserError naming part, instruction, layer and rule if the program is not legal."""
    for part, code in program.code():
        instructions = decode(code)
        broken = violations(instructions, program.machine) + _outside(program, instructions)
        if not broken:
            broken = hazards(instructions)
        if broken:
            raise UserError(f"{part}: {broken[0]}" + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""))


def _outside(program: Program, instructions: list[Decoded]) -> list[str]:
    """Accesses beyond the end of a memory."""
    noise = program.buffers["noise"]
    limits = {
        ("sram", 0): program.machine.sram.capacity_bytes,
        ("param", 0): program.machine.param_memory.capacity_bytes,
        ("dram", 0): program.dram_bytes,
        ("dram", 1): program.sets.shape[1],
        ("dram", 2): noise.bytes // program.steps,
    }
    found = []
    for index, ins in enumerate(instructions):
        for region in (r for regions in BY_MNEMONIC[ins.op].footprint(ins) for r in regions):
            limit = limits[region.memory, region.base]
            if region.end > limit:
                where = f"{program.layers[ins.layer]}: {region.memory} bytes {region.start}..{region.end}"
                found.append(f"instruction {index} ({ins.op}): {where} lie outside its {limit} bytes")
    return found


def completed_before(instructions: list[Decoded]) -> list[list[int]]:
    """For each instruction and unit: how many instructions of that unit are certainly complete when it starts.

    Raises UserError if a wait has no matching token or a token is never taken.
    """
    sent: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    taken: dict[tuple[str, int, int], int] = defaultdict(int)
    position, knowledge = [], []
    last: list[list[int]] = [[0] * len(UNITS) for _ in UNITS]
    counts = [0] * len(UNITS)
    for index, ins in enumerate(instructions):
        known = list(last[ins.unit])
        if ins.op == "barrier":
            known = list(counts)
        for kind in ("raw", "war"):
            for unit in range(len(UNITS)):
                if getattr(ins, f"wait_{kind}") >> unit & 1:
                    key = kind, unit, ins.unit
                    if taken[key] >= len(sent[key]):
                        raise UserError(
                            f"instruction {index} ({ins.op}) waits for a {kind} token of unit {UNITS[unit]} that nobody sent before"
                        )
                    producer = sent[key][taken[key]]
                    taken[key] += 1
                    known = [max(pair) for pair in zip(known, knowledge[producer], strict=True)]
                    known[unit] = max(known[unit], position[producer] + 1)
                if getattr(ins, f"signal_{kind}") >> unit & 1:
                    sent[kind, ins.unit, unit].append(index)
        known[ins.unit] = counts[ins.unit]
        position.append(counts[ins.unit])
        knowledge.append(known)
        counts[ins.unit] += 1
        last[ins.unit] = [*known]
        if ins.op == "barrier":
            last = [list(counts) for _ in UNITS]
    for (kind, producer_unit, consumer_unit), tokens in sent.items():
        if len(tokens) != taken[kind, producer_unit, consumer_unit]:
            raise UserError(f"a {kind} token from {UNITS[producer_unit]} to {UNITS[consumer_unit]} is never taken")
    return knowledge


def hazards(instructions: list[Decoded]) -> list[str]:
    """Pairs of instructions that touch the same bytes, at least one writing, with nothing that orders them."""
    try:
        knowledge = completed_before(instructions)
    except UserError as error:
        return [str(error)]
    rows: list[tuple[int, int, int, int, int, int]] = []
    found, counts = [], [0] * len(UNITS)
    table = np.zeros((0, 6), np.int64)
    for index, ins in enumerate(instructions):
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        mine = [(*_key(r), 0) for r in reads] + [(*_key(r), 1) for r in writes]
        if len(rows) > len(table):
            table = np.array(rows, np.int64)
        known = np.array(knowledge[index])
        for memory, start, end, writing in mine:
            clash = (table[:, 0] == memory) & (table[:, 1] < end) & (table[:, 2] > start) & (table[:, 3] | writing > 0)
            late = clash & (table[:, 5] >= known[table[:, 4]]) & (table[:, 4] != ins.unit)
            if late.any():
                found.append(
                    f"instruction {index} ({ins.op}) touches bytes {start}..{end} of unit {UNITS[int(table[late][0, 4])]}'s unfinished work"
                )
        rows += [(*entry, ins.unit, counts[ins.unit]) for entry in mine]
        counts[ins.unit] += 1
    return found


def _key(region: Region) -> tuple[int, int, int]:
    return ("dram", "sram", "param").index(region.memory) + 8 * region.base, region.start, region.end
