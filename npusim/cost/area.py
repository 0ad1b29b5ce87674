"""Area of a machine by part, and rates per area and power, from the tables of `hwconfigs/energy`."""

from __future__ import annotations

from dataclasses import dataclass

from npusim.config import Machine
from npusim.cost.tables import BITCELL, Macros, Range, base_table, macros_of, sram_table

PARAM_WORD_BYTES, ACCUMULATOR_WORD_BYTES = 16, 8
"""Words of the parameter memory and of a column's accumulators: assumptions, for no field of a machine says."""


@dataclass(frozen=True)
class Area:
    """mm2 by part at ``node_nm``, without overhead; ``total_mm2`` is with it."""

    array_mm2: Range
    requantizers_mm2: Range
    vector_mm2: Range
    accumulators_mm2: Range
    sram_mm2: Range
    param_memory_mm2: Range
    overhead: Range
    node_nm: int

    @property
    def logic_mm2(self) -> Range:
        return self.array_mm2 + self.requantizers_mm2 + self.vector_mm2

    @property
    def total_mm2(self) -> Range:
        return (self.logic_mm2 + self.accumulators_mm2 + self.sram_mm2 + self.param_memory_mm2) * self.overhead


def area(machine: Machine, node_nm: int | None = None) -> Area:
    """Area of ``machine`` at ``node_nm``, by default the table's for it."""
    base, table = base_table(), sram_table()
    node = base.node_of(machine.name) if node_nm is None else node_nm
    figures, array = base.area, machine.mac_array
    cell = figures.cell_8x8_um2.range * (base.area_factor(figures.cell_8x8_um2.node_nm, node) * 1e-6)
    requantizer = getattr(figures, f"requantizer_{array.requant_multiplier_bits}_cells").range
    second = figures.requantizer_16_cells.range if array.factored_requant else Range()

    def memory(made: Macros) -> Range:
        bank = table.bank(made.bytes, made.word_bits)
        share = made.count * made.bytes / (bank.kib * 1024)  # the table's largest bank is smaller than some memories
        return Range(*bank.area_mm2) * share * base.area_factor(table.node_nm, node, BITCELL)

    return Area(
        array_mm2=cell * (array.count * array.rows * array.cols),
        requantizers_mm2=cell * (requantizer + second) * (array.count * array.cols),
        vector_mm2=cell * figures.vector_lane_cells.range * (machine.vector_unit.count * machine.vector_unit.lanes),
        accumulators_mm2=memory(accumulator_macros(machine)) * _accumulator_columns(machine),
        sram_mm2=memory(sram_macros(machine)) * machine.sram.banks,
        param_memory_mm2=memory(param_macros(machine)),
        overhead=figures.overhead.range,
        node_nm=node,
    )


def sram_macros(machine: Machine) -> Macros:
    """Macros of one bank of the SRAM."""
    return macros_of(machine.sram.bank_bytes, machine.sram.bytes_per_cycle)


def param_macros(machine: Machine) -> Macros:
    """The parameter memory as one bank."""
    return macros_of(machine.param_memory.capacity_bytes, PARAM_WORD_BYTES)


def accumulator_macros(machine: Machine) -> Macros:
    """The accumulators of one column of the array."""
    return macros_of(machine.mac_array.acc_rows * machine.mac_array.acc_bits / 8, ACCUMULATOR_WORD_BYTES)


def _accumulator_columns(machine: Machine) -> int:
    """Columns with an accumulator memory; output-stationary cells hold theirs."""
    array = machine.mac_array
    return 0 if array.dataflow == "output_stationary" else array.count * array.cols


def peak_tops_per_mm2(machine: Machine) -> Range:
    """8-bit peak over the whole area; low is at the largest area."""
    size = area(machine).total_mm2
    return Range(machine.peak_tops / size.high, machine.peak_tops / size.nominal, machine.peak_tops / size.low)
