"""SystemVerilog of the matrix unit, with a machine's numbers as parameters. See README.md in this folder."""

from npusim.rtl.generate import LINT, SOURCES, TOP, write_rtl

__all__ = ["LINT", "SOURCES", "TOP", "write_rtl"]
