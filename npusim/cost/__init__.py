"""Energy and area of a run: counted actions times the tables in `hwconfigs/energy`, with low, nominal and high."""

from npusim.cost.area import Area, area
from npusim.cost.energy import Energy, energy, swap_energy
from npusim.cost.rates import Rates, rates, tops_per_watt
from npusim.cost.tables import Range

__all__ = ["Area", "Energy", "Range", "Rates", "area", "energy", "rates", "swap_energy", "tops_per_watt"]
