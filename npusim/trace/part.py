"""The parts of a program, timed: what each instruction is, when it ran, and what its unit waited for before it.

`npusim.timing` counts causes by unit; here the same cycles are booked on instructions, from their starts and ends and
the tokens that they take. The sums are the ledger's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa.control import TOKEN_KINDS
from npusim.program import Code, Program
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
    """One piece of a program's code with its timing; ``executions``: how often a video runs it.

    A large network's step has a million instructions, which as Python objects would take gigabytes: what concerns all
    of them is read from ``words``, uint32 (instructions, 32), and ``cost``; ``instructions`` decodes on demand.
    """

    program: Program
    name: str
    words: NDArray[np.uint32]
    instructions: Code
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

    @cached_property
    def layer_numbers(self) -> Int64:
        """Each instruction's layer; -1 for a barrier, which belongs to none."""
        return np.where(self.cost.barrier, -1, self.cost.layer)

    def layer_name(self, number: int) -> str:
        """Name of a layer by number; "" for -1."""
        names = self.program.layers
        if number < 0:
            return ""
        return (names[number] or "(no name)") if number < len(names) else f"number {number}"

    def layer(self, index: int) -> str:
        """Name of an instruction's layer; "" for a barrier."""
        return self.layer_name(int(self.layer_numbers[index]))

    def by_name(self, named: Callable[[str], str] = str) -> tuple[list[str], Int64]:
        """Names in the order of the code, and each instruction's position in them; ``named`` renames layers."""
        numbers, first, inverse = np.unique(self.layer_numbers, return_index=True, return_inverse=True)
        positions, places = dict[str, int](), np.zeros(len(numbers), np.int64)
        for place in np.argsort(first).tolist():
            places[place] = positions.setdefault(named(self.layer_name(int(numbers[place]))), len(positions))
        return list(positions), places[inverse]


def parts_of(program: Program, timing: ProgramTiming, names: Sequence[str] = PARTS) -> Mapping[str, Part]:
    """The parts of these names, in their order; an empty prologue is left out.

    A program that fetches its parameter sets has several step codes: "step" is the first one, that of step 0.
    """
    code, machine, bases = dict(program.code()), program.machine, program.bases(0)
    timings = dict(zip(code, (timing.prologue, *timing.codes), strict=True))
    executions = Counter(["prologue", *(program.part_of_step(step) for step in range(timing.steps))])
    return {
        name: Part(
            program, name, code[name], Code(name, code[name]), costs(code[name], machine, bases), timings[name],
            executions[name],
        )
        for name in names if len(code[name])
    }  # fmt: skip


def the_part(program: Program, timing: ProgramTiming, name: str) -> Part:
    """One part, of any name in `Program.code`. Raises UserError for a part that is not there."""
    names = sorted((part for part, words in program.code() if len(words)), key="prologue".__eq__)
    if name not in names:
        raise UserError(f"part = {name!r}: allowed {', '.join(names)}")
    return parts_of(program, timing, [name])[name]


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
