"""LOAD and STORE: three-dimensional strided copies between DRAM and an on-chip memory.

``planes`` x ``rows`` runs of ``row_bytes`` bytes. The DRAM address is relative to a base register, so that the same
code serves every denoising step: 0 absolute, 1 the step's set of constants, 2 the step's noise, 3 the parameter set of
the step's time range (FETCH has more). On-chip memories are the scratchpad (``sram``), the parameter memory
(``param``), and its bank that no instruction reads (``param_next``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.isa.addressing import BASES, apart_rule, span
from npusim.isa.encoding import Decoded, Field, Instruction, Region, Rule, at_least_one

MEMORIES = ("sram", "param", "param_next")
FIELDS = (
    Field("dram_addr", 2, 0, 64, doc="first byte in DRAM, relative to the base register"),
    Field(
        "base", 4, 0, 8, doc="base register: 0 absolute, 1 the step's constants, 2 its noise, 3 its time range's set"
    ),
    Field("memory", 4, 8, 8, names=MEMORIES, doc="the on-chip memory"),
    Field("local_addr", 5, doc="first byte in the on-chip memory"),
    Field("row_bytes", 6, doc="bytes of one run"),
    Field("rows", 7, doc="runs in a plane"),
    Field("planes", 8, doc="planes"),
    Field("dram_row", 9, doc="byte distance of runs in DRAM"),
    Field("dram_plane", 10, 0, 64, doc="byte distance of planes in DRAM"),
    Field("local_row", 12, doc="byte distance of runs on chip"),
    Field("local_plane", 13, doc="byte distance of planes on chip"),
)


def windows(state: Any, ins: Decoded) -> tuple[Any, Any]:
    """Byte windows (planes, rows, row_bytes) of DRAM and of the on-chip memory."""
    shape = (ins.planes, ins.rows, ins.row_bytes)
    dram = state.window(
        "dram", state.bases[ins.base] + ins.dram_addr, np.uint8, shape, (ins.dram_plane, ins.dram_row, 1)
    )
    return dram, state.window(
        MEMORIES[ins.memory], ins.local_addr, np.uint8, shape, (ins.local_plane, ins.local_row, 1)
    )


def execute_load(state: Any, ins: Decoded) -> None:
    dram, local = windows(state, ins)
    local[...] = dram


def execute_store(state: Any, ins: Decoded) -> None:
    dram, local = windows(state, ins)
    dram[...] = local


def dma_bytes(ins: Decoded) -> int:
    """Bytes moved."""
    return int(ins.planes * ins.rows * ins.row_bytes)


def _rules(written: str) -> tuple[Rule, ...]:
    return (
        *at_least_one("row_bytes", "rows", "planes"),
        Rule(("base",), f"0..{BASES - 1}", lambda ins, machine: bool(ins.base < BASES)),
        apart_rule(
            (f"{written}_row", f"{written}_plane"),
            lambda ins: (
                ins.row_bytes,
                ((ins.planes, getattr(ins, f"{written}_plane")), (ins.rows, getattr(ins, f"{written}_row"))),
            ),
        ),
    )


def _regions(ins: Decoded) -> tuple[Region, Region]:
    dram = span(ins.dram_addr, ins.row_bytes, (ins.planes, ins.dram_plane), (ins.rows, ins.dram_row))
    local = span(ins.local_addr, ins.row_bytes, (ins.planes, ins.local_plane), (ins.rows, ins.local_row))
    return Region("dram", *dram, base=ins.base), Region(MEMORIES[ins.memory], *local)


def footprint_load(ins: Decoded) -> tuple[list[Region], list[Region]]:
    dram, local = _regions(ins)
    return [dram], [local]


def footprint_store(ins: Decoded) -> tuple[list[Region], list[Region]]:
    dram, local = _regions(ins)
    return [local], [dram]


def cycles(ins: Decoded, machine: Any) -> int:
    """``dma.setup_cycles`` for the descriptor; the memory model times the transfer itself."""
    return int(machine.dma.setup_cycles)


_STOPS = ("a run that lies outside its memory",)
LOAD = Instruction(
    "load", 0x01, "copy runs of bytes from DRAM to an on-chip memory", FIELDS, ("load",),
    execute_load, _rules("local"), footprint_load, cycles, __doc__, _STOPS,
)  # fmt: skip
STORE = Instruction(
    "store", 0x02, "copy runs of bytes from an on-chip memory to DRAM", FIELDS, ("store",),
    execute_store, _rules("dram"), footprint_store, cycles, __doc__, _STOPS,
)  # fmt: skip
