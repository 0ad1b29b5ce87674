"""A run's program with a swap policy: its sets begin in storage, and what fetching them costs step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compiler import compile_model
from compiler.schedule.tokens import with_tokens
from compiler.swap import IN_DRAM, swap_program
from compiler.swap.build import LAYER
from compiler.verify import verify
from models.quantize import QuantizedModel
from npusim.config import Machine
from npusim.cost import Range, swap_energy
from npusim.isa.assembly import disassemble
from npusim.isa.encoding import HEADER
from npusim.program import Program
from npusim.swap_timer import Timer, Words, roomy
from npusim.timing import CodeTiming, ProgramTiming, simulate

_LAYER = next(field for field in HEADER if field.name == "layer")


def compiled(
    quantized: QuantizedModel,
    machine: Machine,
    policy: str,
    attention_bits: int,
    factored: bool,
    branch: str | None = None,
    dump: Callable[[str, str], None] | None = None,
) -> Program:
    """Compile for ``machine``; with a ``policy``, all sets of steps and time ranges begin in storage.

    Raises UserError as `compiler.compile_model` and `compiler.swap.swap_program`.
    """
    home = machine if policy == IN_DRAM else roomy(machine)
    plain = compile_model(quantized, home, attention_bits, dump, factored, branch=branch)
    if policy == IN_DRAM:
        return plain
    program = swap_program(plain, Timer(machine, plain.bases(0)), policy, policy, machine)
    verify(program)
    if dump:
        for part, code in program.code():
            dump(f"swapped_{part}", disassemble(code))
    return program


@dataclass(frozen=True)
class PartSwap:
    """What the prologue or one step fetches.

    ``part``: "prologue" or the step's number. ``storage_cycles``: of all storage units, busy. ``exposed_cycles``: how
    much longer the part takes than the same code without fetches. ``energy``: pJ, of storage, of the DRAM's bus, and of
    decoding.
    """

    part: str
    storage_read_bytes: int
    dram_write_bytes: int
    storage_cycles: int
    exposed_cycles: int
    energy: Range

    @property
    def hidden_cycles(self) -> int:
        """Storage cycles during which something else was done."""
        return max(0, self.storage_cycles - self.exposed_cycles)


def swap_rows(program: Program, timing: ProgramTiming) -> tuple[PartSwap, ...]:
    """By part, the prologue first, then every step that ``timing`` counts; empty where nothing is fetched."""
    if program.swap is None:
        return ()
    bases, swap_layer = program.bases(0), program.layers.index(LAYER)
    prologue, step = (
        simulate(without_layer(code, swap_layer), program.machine, bases).total_cycles
        for code in (program.prologue, program.step)
    )

    def row(part: str, found: CodeTiming, without: int) -> PartSwap:
        moved = found.traffic
        busy = sum(found.ledger[unit]["busy"] for unit in program.machine.units_of("storage"))
        return PartSwap(
            part, moved.storage_read_bytes, moved.fetch_bytes, busy, found.total_cycles - without,
            swap_energy(program.machine, moved.storage_read_bytes, moved.dram_fetch_bytes, moved.decoded_bytes),
        )  # fmt: skip

    steps = (row(str(number), timing.codes[code], step) for number, code in enumerate(timing.code_of_step))
    return row("prologue", timing.prologue, prologue), *steps


def without_layer(code: Words, layer: int) -> Words:
    """The words (count, 32) of all other layers, with the tokens that they need without it."""
    layers = (code[:, _LAYER.word] >> np.uint32(_LAYER.lo)) & np.uint32((1 << _LAYER.bits) - 1)
    return with_tokens(code[layers != layer])
