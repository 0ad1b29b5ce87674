"""From instruction words to cycles: costs, event-driven run, ledger check, and the sums over a program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_OPCODE, check_halt
from npusim.isa.addressing import BASES
from npusim.isa.control import JOINS
from npusim.program import Program
from npusim.timing import core
from npusim.timing.cost import Costs, Int64, costs
from npusim.timing.results import CodeTiming, DramCounts, LayerTiming, ProgramTiming, Traffic, summed
from npusim.timing.reuse import Run, run_pieces, run_whole
from npusim.units import UNITS

_KINDS = ("raw", "war")
_JOINS = {opcode for opcode, spec in BY_OPCODE.items() if spec.mnemonic in JOINS}


def simulate(
    code: NDArray[np.uint32], machine: Machine, bases: Sequence[int] = (0,) * BASES, reuse: bool = True
) -> CodeTiming:
    """Time ``code`` (count, 32) from empty queues and no tokens, with the base registers at ``bases``.

    Time depends on no data. Behind HALT, a part begins. With ``reuse``, pieces of code between barriers that are equal
    but for places in DRAM are timed once (`npusim.timing.reuse`); the result is the same.

    Raises:
        UserError: an instruction is not legal, no unit can proceed (each unit's next instruction and missing tokens are
            named), or tokens are left over at a barrier or at the end.
        AssertionError: the ledger of a unit does not sum to the total; a fault of this package.
    """
    cost = costs(code, machine, bases)
    run = run_pieces(cost, machine) if reuse else run_whole(cost, machine)
    total, ledger = run.total, run.ledger
    if run.outcome == core.DEADLOCK:
        raise UserError(_deadlock(code, cost, run, machine.units))
    if run.outcome == core.LEFTOVER:
        barriers = np.flatnonzero(cost.barrier)
        place = "at the end of the code"
        if run.barriers_passed < len(barriers):
            place = f"at instruction {barriers[run.barriers_passed]} (barrier or halt)"
        raise UserError(f"tokens left over {place}: {_tokens(run.tokens)}")
    if (ledger.sum(axis=1) != total).any():
        raise AssertionError(
            f"ledger of {UNITS[: len(ledger)]} sums to {ledger.sum(axis=1)}, not to {total} cycles: {ledger.tolist()}"
        )
    return CodeTiming(
        total_cycles=int(total),
        ledger={
            unit: dict(zip(core.CAUSES, ledger[UNITS.index(unit)].tolist(), strict=True)) for unit in machine.units
        },
        start_cycle=run.start,
        end_cycle=run.end,
        wait_bank_cycles=run.held,
        traffic=Traffic(*cost.traffic.sum(axis=0).tolist()),
        dram=DramCounts(*run.dram.tolist()),
        layers=_layers(cost, run.start, run.end, machine.units),
    )


def time_program(program: Program, reuse: bool = True, steps: int | None = None) -> ProgramTiming:
    """Time the prologue and all denoising steps, or the first ``steps`` of them.

    All pieces of code end in a barrier or halt, so each starts from the same state; hence each step code is timed once
    and counted as often as steps run it. Every step is timed with the base registers of the first one. ``reuse=False``
    times prologue and all steps as one long piece of code instead, and every instruction of it; the totals are equal.

    Raises:
        UserError: a piece of code does not end in a barrier or halt (an empty prologue need not), something stands
            behind halt, or as `simulate`.
    """
    for name, code in program.code():
        empty = name == "prologue" and len(code) == 0
        if not empty and (len(code) == 0 or int(code[-1, 0]) & 0xFF not in _JOINS):
            raise UserError(f"{name}: does not end in a barrier or halt, so that repetitions cannot be added up")
    bases = program.bases(0)
    executed = program.steps if steps is None else steps
    prologue, *codes = (_named(name, code, program.machine, bases, reuse) for name, code in program.code())
    numbers = [program.code_number(step) for step in range(executed)]
    if reuse:
        cycles, ledger, traffic, memory = prologue.total_cycles, prologue.ledger, prologue.traffic, prologue.dram
        for number, step in enumerate(codes):
            count = numbers.count(number)
            cycles += count * step.total_cycles
            ledger = summed(ledger, step.ledger, count)
            traffic, memory = traffic + step.traffic.times(count), memory + step.dram.times(count)
    else:
        pieces = [program.prologue, *(program.step_codes[number] for number in numbers)]
        whole = simulate(np.concatenate(pieces), program.machine, bases, reuse=False)
        cycles, ledger, traffic, memory = whole.total_cycles, whole.ledger, whole.traffic, whole.dram
    moved = traffic.dram_read_bytes + traffic.dram_write_bytes + traffic.dram_fetch_bytes
    return ProgramTiming(
        prologue=prologue,
        step=codes[0],
        steps=executed,
        cycles=cycles,
        seconds=cycles / program.machine.clock_hz,
        mac_utilisation=traffic.mac_operations / (program.machine.peak_macs_per_cycle * cycles),
        dram_bandwidth_share=moved / (program.machine.dram_bytes_per_cycle * cycles),
        traffic=traffic,
        dram=memory,
        ledger=ledger,
        codes=tuple(codes),
        code_of_step=tuple(numbers),
    )


def _named(name: str, code: NDArray[np.uint32], machine: Machine, bases: Sequence[int], reuse: bool) -> CodeTiming:
    try:
        check_halt(code)
        return simulate(code, machine, bases, reuse)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _layers(cost: Costs, start: Int64, end: Int64, units: Sequence[str]) -> dict[int, LayerTiming]:
    out = {}
    busy = cost.busy + cost.transfer
    order = np.flatnonzero(~cost.barrier)
    order = order[np.argsort(cost.layer[order], kind="stable")]
    numbers, first = np.unique(cost.layer[order], return_index=True)
    for number, rows in zip(numbers.tolist(), np.split(order, first)[1:], strict=True):
        by_unit = np.zeros(len(UNITS), np.int64)
        np.add.at(by_unit, cost.unit[rows], busy[rows])
        out[number] = LayerTiming(
            busy_cycles={unit: int(by_unit[UNITS.index(unit)]) for unit in units},
            start_cycle=int(start[rows].min()),
            end_cycle=int(end[rows].max()),
            traffic=Traffic(*cost.traffic[rows].sum(axis=0).tolist()),
        )
    return out


def _tokens(tokens: Int64) -> str:
    """Every semaphore above 0."""
    held = [
        f"{int(tokens[kind, a, b])} {_KINDS[kind]} from {UNITS[a]} to {UNITS[b]}" for kind, a, b in np.argwhere(tokens)
    ]
    return ", ".join(held)


def _deadlock(code: NDArray[np.uint32], cost: Costs, run: Run, units: Sequence[str]) -> str:
    """One line that says for every unit what it waits for."""
    parts = []
    for unit in units:
        u = UNITS.index(unit)
        index = run.stuck[u]
        if index < 0:
            parts.append(f"{unit}: nothing left before the next barrier or the end")
            continue
        missing = [
            f"{kind} from {UNITS[producer]}"
            for k, kind in enumerate(_KINDS)
            for producer in range(run.tokens.shape[1])
            if cost.wait[index, k] >> producer & 1 and run.tokens[k, producer, u] == 0
        ]
        name = BY_OPCODE[int(code[index, 0]) & 0xFF].mnemonic
        parts.append(f"{unit}: instruction {index} ({name}) waits for a token {' and '.join(missing)}")
    return f"deadlock at cycle {run.total}; {'; '.join(parts)}"
