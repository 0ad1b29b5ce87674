"""Runs cases through the RTL and the reference executor, and says where they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npusim import reference
from npusim.isa import BY_MNEMONIC
from npusim.isa.matmul import operands
from tests.cosim.cases import Case
from tests.cosim.rtl import MatrixUnit


def differences(unit: MatrixUnit, cases: Sequence[Case]) -> list[str]:
    """One line for each case in which bits, cycles or the overflow flag differ; cases run back to back.

    Where the reference traps, the flag is compared and the values are not: the program has ended.
    """
    states = [case.state.copy() for case in cases]
    outcomes = unit.run([case.ins for case in cases], states)
    found = []
    for case, state, outcome in zip(cases, states, outcomes, strict=True):
        expected, trap = case.state.copy(), False
        try:
            reference.execute(expected, [case.ins])
        except OverflowError:
            trap = True
        faults = []
        cycles = BY_MNEMONIC["matmul"].cycles(case.ins, unit.machine)
        if outcome.cycles != cycles:
            faults.append(f"{outcome.cycles} cycles, closed form {cycles}")
        if outcome.gap:
            faults.append(f"{outcome.gap} idle cycles before it")
        count = case.ins.batch0 * case.ins.batch1 * case.ins.m * case.ins.n
        if (outcome.values, outcome.stray) != (count, 0):
            faults.append(f"{outcome.values} values and {outcome.stray} outside of the output, of {count}")
        if outcome.trap != trap:
            faults.append(f"trap {outcome.trap}, reference {trap}")
        if not trap and not np.array_equal(state.sram, expected.sram):
            got, want = operands(state, case.ins)[2], operands(expected, case.ins)[2]
            wrong = np.argwhere(got != want)
            where = tuple(wrong[0].tolist()) if len(wrong) else ()
            shown = f", first {where}: {got[where]}, reference {want[where]}" if len(wrong) else ", bytes around it"
            faults.append(f"{len(wrong)} of {count} values differ{shown}")
        if faults:
            found.append(f"{case.name}: {'; '.join(faults)}")
    return found
