"""Runs cases through the RTL and the reference executor, and says where they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npusim import reference
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import Decoded
from npusim.isa.matmul import operands
from npusim.memory import MachineState
from tests.cosim.cases import Case
from tests.cosim.rtl import MatrixUnit, Outcome


def differences(unit: MatrixUnit, cases: Sequence[Case]) -> list[str]:
    """One line for each case in which bits, cycles or the overflow flag differ; cases run back to back.

    Where the reference traps, the flag is compared and the values are not: the program has ended.
    """
    states = [case.state.copy() for case in cases]
    flat = [(ins, state) for case, state in zip(cases, states, strict=True) for ins in case.instructions]
    outcomes = iter(unit.run([ins for ins, _ in flat], [state for _, state in flat]))
    found = []
    for case, state in zip(cases, states, strict=True):
        expected, trapped, faults = case.state.copy(), False, []
        for ins in case.instructions:
            outcome = next(outcomes)
            if trapped:
                continue
            try:
                reference.execute(expected, [ins])
            except OverflowError:
                trapped = True
            faults += _faults(unit, ins, outcome, trapped)
        if not trapped and not np.array_equal(state.sram, expected.sram):
            faults.append(_wrong_values(case.instructions[-1], state, expected))
        if faults:
            found.append(f"{case.name}: {'; '.join(faults)}")
    return found


def _faults(unit: MatrixUnit, ins: Decoded, outcome: Outcome, trap: bool) -> list[str]:
    faults = []
    cycles = BY_MNEMONIC["matmul"].cycles(ins, unit.machine)
    if outcome.cycles != cycles:
        faults.append(f"{outcome.cycles} cycles, closed form {cycles}")
    if outcome.gap:
        faults.append(f"{outcome.gap} idle cycles before it")
    count = 0 if ins.acc_hold else ins.batch0 * ins.batch1 * ins.m * ins.n
    if (outcome.values, outcome.stray) != (count, 0):
        faults.append(f"{outcome.values} values and {outcome.stray} outside of the output, of {count}")
    if outcome.trap != trap:
        faults.append(f"trap {outcome.trap}, reference {trap}")
    return faults


def _wrong_values(ins: Decoded, state: MachineState, expected: MachineState) -> str:
    got, want = operands(state, ins)[2].values(), operands(expected, ins)[2].values()
    wrong = np.argwhere(got != want)
    where = tuple(wrong[0].tolist()) if len(wrong) else ()
    shown = f", first {where}: {got[where]}, reference {want[where]}" if len(wrong) else ", bytes around it"
    return f"{len(wrong)} of {got.size} values differ{shown}"
