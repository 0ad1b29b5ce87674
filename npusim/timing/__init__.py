"""The cycle model: `simulate` times a piece of code, `time_program` a whole program. See README.md in this folder."""

from npusim.timing.core import CAUSES
from npusim.timing.results import CodeTiming, LayerTiming, Ledger, ProgramTiming, Traffic
from npusim.timing.simulate import simulate, time_program

__all__ = ["CAUSES", "CodeTiming", "LayerTiming", "Ledger", "ProgramTiming", "Traffic", "simulate", "time_program"]
