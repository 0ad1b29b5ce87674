"""BARRIER: the end of a denoising step.

It waits until every queue is empty and every token is taken, and costs a fixed time.
"""

from __future__ import annotations

from typing import Any

from npusim.isa.encoding import Decoded, Instruction, Region


def execute(state: Any, ins: Decoded) -> None:
    """Nothing to compute."""


def check(ins: Decoded, machine: Any) -> list[str]:
    return []


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    return [], []


def cycles(ins: Decoded, machine: Any) -> int:
    return int(machine.barrier_cycles)


BARRIER = Instruction("barrier", 0x7F, (), ("vector",), execute, check, footprint, cycles, doc=__doc__)
