"""The parts of a program, timed: what each instruction is, when it ran, and what its unit waited for before it.

`npusim.timing` counts causes by unit; here the same cycles are booked on instructions, from their starts and ends and
the tokens that they take. The sums are the ledger's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa.control import TOKEN_KINDS
from npusim.isa.encoding import Decoded
from npusim.program import Program
from npusim.timing import CAUSES, CodeTiming, ProgramTiming
from npusim.timing.cost import Costs, costs
from npusim.units import UNITS, of_kind

Int64 = NDArray[np.int64]

PARTS = ("step", "prologue")


class TokenPairs(NamedTuple):
    """Tokens of one kind from one unit to another: the k-th ``sender`` sends what the k-th ``taker`` takes."""

    kind: str
    sender: Int64
    taker: Int64


@dataclass(frozen=True, eq=False)
class Part:
    """One piece of a program's code with its timing; ``executions``: how often a video runs it."""

    program: Program
    name: str
    instructions: list[Decoded]
    cost: Costs
    timing: CodeTiming
    executions: int

    @cached_property
    def tokens(self) -> list[TokenPairs]:
        """Every token that is sent and taken."""
        return token_pairs(self.cost)

    @cached_property
    def causes(self) -> Int64:
        """Cycles (instructions, `CAUSES`) that each instruction's unit spent on it, waiting and executing."""
        return instruction_causes(self.cost, self.timing, self.tokens)

    @property
    def start(self) -> Int64:
        return self.timing.start_cycle

    @property
    def end(self) -> Int64:
        return self.timing.end_cycle

    def layer(self, index: int) -> str:
        """Name of an instruction's layer; "" for a barrier, which belongs to none."""
        number, names = int(self.cost.layer[index]), self.program.layers
        if self.cost.barrier[index]:
            return ""
        return (names[number] or "(no name)") if number < len(names) else f"number {number}"


def parts_of(program: Program, timing: ProgramTiming) -> Mapping[str, Part]:
    """The parts by name, "step" first; an empty prologue is left out."""
    decoded, words = program.decoded(), dict(program.code())
    timings = {"step": (timing.step, timing.steps), "prologue": (timing.prologue, 1)}
    return {
        name: Part(program, name, decoded[name], costs(words[name], program.machine, program.bases(0)), *timings[name])
        for name in PARTS
        if decoded[name]
    }


def the_part(parts: Mapping[str, Part], name: str) -> Part:
    """Raises UserError for a part that is not there."""
    if name not in parts:
        raise UserError(f"part = {name!r}: allowed {', '.join(parts)}")
    return parts[name]


def token_pairs(cost: Costs) -> list[TokenPairs]:
    """Senders and takers by kind and pair of units: of each semaphore the k-th one sent is the k-th one taken."""
    found = []
    for kind, name in enumerate(TOKEN_KINDS):
        numbers = np.unique(cost.unit).tolist()
        for producer in numbers:
            for consumer in numbers:
                sender = np.flatnonzero((cost.unit == producer) & (cost.signal[:, kind] >> consumer & 1 == 1))
                taker = np.flatnonzero((cost.unit == consumer) & (cost.wait[:, kind] >> producer & 1 == 1))
                count = min(len(sender), len(taker))
                if count:
                    found.append(TokenPairs(name, sender[:count], taker[:count]))
    return found


def instruction_causes(cost: Costs, timing: CodeTiming, tokens: list[TokenPairs]) -> Int64:
    """Cycles (instructions, `CAUSES`): of the time since its unit's last instruction ended.

    A unit waits for tokens of storage units until the last of them is sent, then for read-after-write tokens, then
    for the others. Cycles of execution beyond what an instruction takes by itself and what it waits for ports are the
    DRAM's. Rows of barriers are 0: what every unit spends there is of no instruction.
    """
    start, end = timing.start_cycle, timing.end_cycle
    found = np.zeros((len(start), len(CAUSES)), np.int64)
    last_raw, last_swap = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
    for pairs in tokens:
        if pairs.kind == "raw":
            np.maximum.at(last_raw, pairs.taker, end[pairs.sender])
        if len(pairs.sender) and cost.unit[pairs.sender[0]] in of_kind("storage"):
            np.maximum.at(last_swap, pairs.taker, end[pairs.sender])
    free = unit_free(cost, end)
    swap_until = np.clip(last_swap, free, start)
    raw_until = np.clip(last_raw, swap_until, start)
    busy = cost.busy + cost.transfer
    found[:, CAUSES.index("busy")] = busy
    found[:, CAUSES.index("wait_token_raw")] = raw_until - swap_until
    found[:, CAUSES.index("wait_param_swap")] = swap_until - free
    found[:, CAUSES.index("wait_token_war")] = start - raw_until
    found[:, CAUSES.index("wait_dram")] = end - start - busy - timing.wait_bank_cycles
    found[:, CAUSES.index("wait_bank")] = timing.wait_bank_cycles
    found[cost.barrier] = 0
    return found


def unit_free(cost: Costs, end: Int64) -> Int64:
    """When each instruction's unit became free for it: the end of its last instruction, or of a barrier."""
    free = np.zeros(len(end), np.int64)
    for unit in range(len(UNITS)):
        own = np.flatnonzero((cost.unit == unit) | cost.barrier)
        free[own[1:]] = end[own[:-1]]
    return free
