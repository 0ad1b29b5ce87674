"""Energy and area of a run: counted actions times the tables in `hwconfigs/energy`, with low, nominal and high."""

from npusim.cost.area import Area, area
from npusim.cost.energy import Energy, energy, swap_energy
from npusim.cost.tables import Range

__all__ = ["Area", "Energy", "Range", "area", "energy", "swap_energy"]
