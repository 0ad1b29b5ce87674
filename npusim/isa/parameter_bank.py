"""PSWITCH: the parameter memory's two banks change places.

The last ``bank_bytes`` of the addressable parameter memory are the active bank. LOAD fills the other one, which is the
memory ``param_next``, while instructions still read this one; PSWITCH then makes it the active one, in one cycle and
without moving a byte. That is how the parameters of the next denoising step can be swapped in while this step computes.
"""

from __future__ import annotations

from typing import Any

from npusim.isa.addressing import vector
from npusim.isa.encoding import Decoded, Field, Instruction, Region, Rule

FIELDS = (
    Field("bank_start", 2, doc="where the active bank begins in parameter memory"),
    Field("bank_bytes", 3, doc="size of a bank"),
)


def execute(state: Any, ins: Decoded) -> None:
    bank = state.param[ins.bank_start : ins.bank_start + ins.bank_bytes]
    bank[...], state.param_next[...] = state.param_next.copy(), bank.copy()


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    both = [vector("param", ins.bank_start, ins.bank_bytes), vector("param_next", 0, ins.bank_bytes)]
    return both, both


def cycles(ins: Decoded, machine: Any) -> int:
    """One: an address bit flips."""
    return 1


RULES = (
    Rule(
        ("bank_bytes",),
        "param_memory.bank_bytes of a machine that has banks",
        lambda ins, machine: bool(0 < ins.bank_bytes == machine.param_memory.bank_bytes),
    ),
    Rule(
        ("bank_start",),
        "the end of the memory outside the banks",
        lambda ins, machine: bool(ins.bank_start == machine.param_memory.common_bytes),
    ),
)
PSWITCH = Instruction(
    "pswitch", 0x03, "exchange the active parameter bank and the one that LOAD fills", FIELDS, ("load",),
    execute, RULES, footprint, cycles, __doc__,
)  # fmt: skip
