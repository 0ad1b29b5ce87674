"""Rates by area and by power, of machines and of runs. Every figure is a range, as area and energy are."""

from __future__ import annotations

from dataclasses import dataclass

from npusim.config import Machine
from npusim.cost.area import area, peak_tops_per_mm2
from npusim.cost.energy import product_pj, unit_energies
from npusim.cost.tables import Range


@dataclass(frozen=True)
class Rates:
    """What follows from a machine's area and from the energy of its cells, at the node that the tables give it.

    Attributes:
        node_nm: that node.
        area_mm2: of the whole machine, with the overhead.
        tops_per_mm2: 8-bit peak over that area.
        mac_pj: one 8-bit multiply-accumulate in a cell.
        cells_tops_per_watt: a full array and nothing else; a whole run reaches far less (`tops_per_watt`).
    """

    node_nm: int
    area_mm2: Range
    tops_per_mm2: Range
    mac_pj: Range
    cells_tops_per_watt: Range


def rates(machine: Machine) -> Rates:
    """The rates of ``machine``."""
    size, acc_bits = area(machine), machine.mac_array.acc_bits
    units = unit_energies(machine, size.node_nm)
    mac = product_pj(units.multiply_8x8, units.add_32, units.register_bit, (8, 8), acc_bits)
    return Rates(size.node_nm, size.total_mm2, peak_tops_per_mm2(machine), mac, tops_per_watt(1, mac))


def tops_per_watt(mac_operations: int, energy_pj: Range) -> Range:
    """Operations per joule in units of 1e12, two for each multiply-accumulate; low is at the highest energy."""
    return Range(*(2 * mac_operations / pj for pj in (energy_pj.high, energy_pj.nominal, energy_pj.low)))
