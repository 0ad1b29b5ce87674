"""The reference executor: instructions one after another in program order, in NumPy int64.

It is the definition of what a program computes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from npusim.isa import BY_MNEMONIC, check_halt, decode
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState


def execute(state: MachineState, instructions: Iterable[Decoded]) -> None:
    """Run decoded instructions on ``state``.

    Raises:
        ValueError: an instruction reaches outside a memory or finds an undefined record in it.
        OverflowError: an accumulator overflows on a machine whose accumulators trap.
    """
    for ins in instructions:
        BY_MNEMONIC[ins.op].execute(state, ins)


def run(state: MachineState, code: NDArray[np.uint32]) -> None:
    """Run (count, 32) instruction words on ``state``; raises as `execute`, and UserError for words that are no code."""
    instructions = decode(code)
    check_halt(code)
    execute(state, instructions)
