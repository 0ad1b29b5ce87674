"""What every program must keep, checked before anything is allocated or run; and programs of bare code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, broken_rules, decode
from npusim.isa.addressing import BASES
from npusim.isa.encoding import Decoded
from npusim.program import MAX_DRAM_BYTES, Buffer, Program

MAX_STEPS = 10_000


def validate(program: Program) -> None:
    """Sizes, addresses and every instruction, before anything is allocated or run."""
    if not 0 < program.dram_bytes <= min(program.machine.dram.npu_budget_bytes, MAX_DRAM_BYTES):
        raise UserError(
            f"needs {program.dram_bytes} bytes of DRAM; the machine's budget is {program.machine.dram.npu_budget_bytes}"
        )
    if program.storage_bytes > program.machine.storage.device.capacity_bytes:
        raise UserError(
            f"needs {program.storage_bytes} bytes of storage; the machine has "
            f"{program.machine.storage.device.capacity_bytes}"
        )
    if not 0 < program.steps <= MAX_STEPS:
        raise UserError(f"{program.steps} denoising steps; allowed 1..{MAX_STEPS}")
    ranges = len(program.range_sets)
    if len(program.range_of_step) != program.steps or any(r >= ranges for r in program.range_of_step):
        raise UserError(
            f"range_of_step = {list(program.range_of_step)}: allowed one of 0..{ranges - 1} for each of "
            f"{program.steps} steps"
        )
    _check_codes(program)
    spans = {name: (b.address, b.address + b.bytes) for name, b in program.buffers.items()}
    spans |= {name: (address, address + data.size) for name, (address, data) in program.areas.items()}
    spans |= program.places
    for name, (start, end) in spans.items():
        if start < 0 or end > program.dram_bytes:
            raise UserError(
                f"{name} at bytes {start}..{end} lies outside the program's {program.dram_bytes} bytes of DRAM"
            )
    if "noise" in program.buffers and program.buffers["noise"].bytes % program.steps:
        raise UserError(f"buffer noise does not hold one plane for each of {program.steps} steps")
    _check_overlaps(program, spans)
    for part, instructions in program.instructions().items():
        for start, piece in instructions.pieces():
            for index, rule in broken_rules(piece, program.machine) or outside(program, piece):
                raise UserError(f"{part}: {program.named(start + index, piece[index])}: {rule}")


def _check_codes(program: Program) -> None:
    """Which code each step runs, and the base registers of programs that swap."""
    codes, swap = len(program.step_codes), program.swap
    numbers = program.code_of_step
    if numbers and (len(numbers) != program.steps or any(number >= codes for number in numbers)):
        raise UserError(
            f"code_of_step = {list(numbers)}: allowed one of 0..{codes - 1} for each of {program.steps} steps"
        )
    if swap is None:
        if program.coded.size:
            raise UserError(f"coded holds {program.coded.size} bytes, but nothing begins in storage; allowed: none")
        return
    if len(swap.registers) != 1 + program.steps or any(len(row) != BASES or row[0] for row in swap.registers):
        raise UserError(f"registers: allowed {BASES} numbers, the first 0, for the prologue and {program.steps} steps")
    if swap.set_places > program.steps or swap.range_places > len(program.range_sets):
        raise UserError(
            f"{swap.set_places} places of sets and {swap.range_places} of range_sets: allowed at most one for each of "
            f"{program.steps} and {len(program.range_sets)}"
        )


def _check_overlaps(program: Program, spans: dict[str, tuple[int, int]]) -> None:
    """Refuse areas that share bytes, and empty buffers. Two buffers at the very same bytes are two names for one."""
    owners: dict[tuple[int, int], str] = {}
    for name in sorted(spans, key=lambda name: (spans[name], name)):
        start, end = spans[name]
        if start == end:
            if name in program.buffers:
                raise UserError(f"buffer {name} holds no element")
            continue
        if name in program.buffers and owners.get((start, end)) in program.buffers:
            continue
        if owners:
            (before, limit), other = next(reversed(owners.items()))
            if start < limit:
                raise UserError(f"{name} at bytes {start}..{end} overlaps {other} at bytes {before}..{limit}")
        owners[start, end] = name


def outside(program: Program, instructions: list[Decoded]) -> list[tuple[int, str]]:
    """Accesses beyond the end of a memory, of a parameter set or of a step's noise, and layers without a name.

    Each with its instruction's index.
    """
    limits, found = program.limits, []
    for index, ins in enumerate(instructions):
        if ins.layer >= len(program.layers):
            found.append((index, f"layer = {ins.layer}: allowed 0..{len(program.layers) - 1}"))
        for region in (r for regions in BY_MNEMONIC[ins.op].footprint(ins) for r in regions):
            limit = limits.get((region.memory, region.base), 0)
            if region.end > limit:
                found.append((index, f"{region} lie outside its {limit} bytes"))
    return found


def bare_program(code: NDArray[np.uint32], machine: Machine) -> Program:
    """A program of one step that runs ``code`` (count, 32), without prologue, constants and parameter sets.

    The DRAM that the code reaches is one buffer of bytes, "dram". Raises UserError for code that is not legal.
    """
    instructions = decode(code)
    regions = [r for ins in instructions for rs in BY_MNEMONIC[ins.op].footprint(ins) for r in rs if r.memory == "dram"]
    reach = max((region.end for region in regions if region.base == 0), default=0)
    buffers = {"dram": Buffer(0, "u8", (reach,))} if reach else {}
    layers = ("",) * (1 + max((ins.layer for ins in instructions), default=0))
    none, sets = np.zeros(0, np.uint8), np.zeros((1, 0), np.uint8)
    program = Program(machine, code[:0], code, none, sets, sets, 0, 0, (0,), max(reach, 1), buffers, layers, {})
    validate(program)
    return program
