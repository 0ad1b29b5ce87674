"""``python -m npusim.cost``: area and peak rates of the machines in hwconfigs, as the table in this folder's README."""

from __future__ import annotations

from npusim.cost.rates import rates
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
        found = rates(machine)
        figures = map(shown, (found.area_mm2, found.tops_per_mm2, found.mac_pj, found.cells_tops_per_watt))
        print(f"| `{machine.name}` | {found.node_nm} | {machine.peak_tops:.3g} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
