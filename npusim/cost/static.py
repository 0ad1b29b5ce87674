"""Energy that comes with time, split by what each unit did in that time: static power times the ledger's cycles.

A unit's static power is the leakage of its logic, by area, and, in every cycle in which it is not busy, the switching
of its idle cells or lanes. SRAM and parameter memory leak all the time and belong to no unit: `MEMORIES`. DMA units and
the control have no power of their own here (npusim/cost/README.md says what is left out).
"""

from __future__ import annotations

from collections.abc import Mapping

from npusim.config import Machine
from npusim.cost.area import area, param_macros, sram_macros
from npusim.cost.tables import Range, base_table, sram_table
from npusim.timing import CAUSES, Ledger

IDLE, LEAKAGE = "idle", "leakage"
MEMORIES, ALWAYS = "memories", "always"
"""In the place of a unit and its cause: leakage of the memories on the chip."""

Static = Mapping[str, Mapping[str, Mapping[str, Range]]]
"""pJ by unit, cause and component (`IDLE`, `LEAKAGE`)."""


def static_energy(
    machine: Machine, node_nm: int, idle_cell_cycle: Range, idle_lane_cycle: Range, ledger: Ledger, cycles: int
) -> Static:
    """Of code that takes ``cycles``, whose units did what ``ledger`` says; ``idle_*_cycle``: pJ of one cell or lane."""
    leaks, array = leakage_mw(machine, node_nm), machine.mac_array
    idle = dict.fromkeys(machine.units_of("mac"), idle_cell_cycle * (array.rows * array.cols))
    idle |= dict.fromkeys(machine.units_of("vector"), idle_lane_cycle * machine.vector_unit.lanes)
    pj_in_a_cycle = 1e9 / machine.clock_hz  # of one mW: mW times seconds is 1e9 pJ

    def of(unit: str, cause: str) -> dict[str, Range]:
        spent = ledger[unit][cause]
        waiting = 0 if cause == "busy" else spent
        return {IDLE: idle[unit] * waiting, LEAKAGE: leaks[unit] * (spent * pj_in_a_cycle)}

    always = {IDLE: Range(), LEAKAGE: leaks[MEMORIES] * (cycles * pj_in_a_cycle)}
    return {unit: {cause: of(unit, cause) for cause in CAUSES} for unit in idle} | {MEMORIES: {ALWAYS: always}}


def leakage_mw(machine: Machine, node_nm: int) -> dict[str, Range]:
    """By unit with logic of its own, the array's with its requantizers, and of the `MEMORIES`."""
    base, table, size = base_table(), sram_table(), area(machine, node_nm)
    memory = Range()
    for macros, banks in ((sram_macros(machine), machine.sram.banks), (param_macros(machine), 1)):
        memory += Range(*table.bank(macros.bytes, macros.word_bits).leakage_mw) * (macros.count * banks)
    found = {MEMORIES: memory * base.energy_factor(table.node_nm, node_nm)}
    for kind, mm2 in (("mac", size.array_mm2 + size.requantizers_mm2), ("vector", size.vector_mm2)):
        units = machine.units_of(kind)
        found |= {unit: mm2 * base.figures.logic_leakage_mw_per_mm2.range * (1 / len(units)) for unit in units}
    return found


def added(first: Static, second: Static, times: int = 1) -> Static:
    """``first + times * second``."""
    return {
        unit: {
            cause: {name: value + second[unit][cause][name] * times for name, value in parts.items()}
            for cause, parts in causes.items()
        }
        for unit, causes in first.items()
    }
