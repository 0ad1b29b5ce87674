"""BARRIER, HALT and TOKEN: order without computation.

BARRIER ends a denoising step: it waits until every queue is empty and every token is taken, and costs a fixed time.
HALT does the same at the end of a part of a program (the prologue, the step), and the sequencer stops.
TOKEN takes and sends the tokens of its header and does nothing else; it is for code written by hand.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from npusim.isa.encoding import Decoded, Instruction, Region, Rule
from npusim.units import KINDS, UNITS


def execute(state: Any, ins: Decoded) -> None:
    """Nothing to compute."""


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    return [], []


def cycles_barrier(ins: Decoded, machine: Any) -> int:
    """``barrier_cycles`` of the machine, after everything before it has ended."""
    return int(machine.barrier_cycles)


def cycles_one(ins: Decoded, machine: Any) -> int:
    """One."""
    return 1


def _is_zero(name: str, ins: Decoded, machine: Any) -> bool:
    return not getattr(ins, name)


_NO_TOKENS = tuple(
    Rule((name,), "0: it waits for everything before it anyway", partial(_is_zero, name))
    for name in ("wait_raw", "wait_war", "signal_raw", "signal_war")
)
BARRIER = Instruction(
    "barrier", 0x7F, "wait until every queue is empty and every token is taken", (), ("vector",),
    execute, _NO_TOKENS, footprint, cycles_barrier, __doc__,
)  # fmt: skip
HALT = Instruction(
    "halt", 0x7E, "end of the code: a barrier of one cycle, behind which nothing runs", (), ("vector",),
    execute, _NO_TOKENS, footprint, cycles_one, __doc__,
)  # fmt: skip
TOKEN = Instruction(
    "token", 0x7D, "take and send the tokens of the header", (), KINDS, execute, (), footprint, cycles_one, __doc__
)
TOKEN_KINDS = ("raw", "war")


def named_tokens(ins: Decoded, action: str) -> list[tuple[str, int]]:
    """(kind, number of the other unit) of each token that an instruction takes ("wait") or sends ("signal")."""
    masks = [(kind, getattr(ins, f"{action}_{kind}")) for kind in TOKEN_KINDS]
    return [(kind, unit) for kind, mask in masks for unit in range(len(UNITS)) if mask >> unit & 1]


JOINS = (BARRIER.mnemonic, HALT.mnemonic)
"""Instructions at which all units meet."""
