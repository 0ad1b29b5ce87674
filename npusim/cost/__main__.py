"""``python -m npusim.cost``: area and peak rates of the machines in hwconfigs, as the table in this folder's README."""

from __future__ import annotations

from npusim.cost.area import area, peak_tops_per_mm2
from npusim.cost.energy import product_pj, unit_energies
from npusim.cost.tables import Range
from npusim.hw import list_machines


def shown(value: Range, digits: int = 3) -> str:
    """A range as text."""
    return f"{value.nominal:.{digits}g} ({value.low:.{digits}g} to {value.high:.{digits}g})"


def main() -> None:
    """Print the table."""
    print("| machine | nm | TOPS | mm2 | TOPS/mm2 | pJ per 8-bit MAC | TOPS/W of the cells alone |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for machine in list_machines().values():
        size = area(machine)
        units = unit_energies(machine, size.node_nm)
        acc_bits = machine.mac_array.acc_bits
        mac = product_pj(units.multiply_8x8, units.add_32, units.register_bit, (8, 8), acc_bits)
        per_watt = Range(2 / mac.high, 2 / mac.nominal, 2 / mac.low)
        figures = shown(size.total_mm2), shown(peak_tops_per_mm2(machine)), shown(mac), shown(per_watt)
        print(f"| `{machine.name}` | {size.node_nm} | {machine.peak_tops:.3g} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
