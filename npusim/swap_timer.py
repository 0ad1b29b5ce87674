"""What policies of parameter swap are judged by: cycles of code, on machines with another storage or more DRAM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.congruence import joins, pieces, time_digest
from npusim.program import MAX_DRAM_BYTES
from npusim.timing import simulate

Words = NDArray[np.uint32]


class Timer:
    """Cycles of code on one machine with given base registers; equal pieces between barriers are timed once."""

    def __init__(self, machine: Machine, bases: Sequence[int]) -> None:
        self.machine, self._bases = machine, bases
        self._known: dict[bytes, int] = {}

    def at(self, bases: Sequence[int]) -> Timer:
        """A timer with other base registers that knows what this one knows."""
        made = Timer(self.machine, bases)
        made._known = self._known
        return made

    def __call__(self, code: Words) -> int:
        return sum(self.cycles(code[begin:end]) for begin, end in pieces(joins(code)))

    def cycles(self, piece: Words) -> int:
        """Of code that stands between two barriers."""
        key = time_digest(piece, self._bases, self.machine)
        if key not in self._known:
            self._known[key] = simulate(piece, self.machine, self._bases).total_cycles
        return self._known[key]


def with_rate(machine: Machine, bytes_per_second: int) -> Machine:
    """The machine with another storage rate."""
    device = machine.storage.device.model_copy(update={"bandwidth_bytes_per_second": bytes_per_second})
    return machine.model_copy(update={"storage": machine.storage.model_copy(update={"device": device})})


def roomy(machine: Machine) -> Machine:
    """The machine with a DRAM budget that holds all sets: for compiling what is then swapped on the real one."""
    dram = machine.dram.model_copy(update={"npu_budget_bytes": MAX_DRAM_BYTES, "capacity_bytes": MAX_DRAM_BYTES})
    return machine.model_copy(update={"dram": dram})
