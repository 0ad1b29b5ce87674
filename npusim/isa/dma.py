"""LOAD and STORE: three-dimensional strided copies between DRAM and an on-chip memory.

``planes`` x ``rows`` runs of ``row_bytes`` bytes. The DRAM address is relative to a base register, so that the same
code serves every denoising step: 0 absolute, 1 the step's parameter set, 2 the step's noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.isa.addressing import BASES, apart, span
from npusim.isa.encoding import Decoded, Field, Instruction, Region

MEMORIES = ("sram", "param")
FIELDS = (
    Field("dram_addr", 2, 0, 64), Field("base", 4, 0, 8), Field("memory", 4, 8, 8, names=MEMORIES),
    Field("local_addr", 5), Field("row_bytes", 6), Field("rows", 7), Field("planes", 8),
    Field("dram_row", 9), Field("dram_plane", 10, 0, 64), Field("local_row", 12), Field("local_plane", 13),
)  # fmt: skip


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


def check(ins: Decoded, machine: Any) -> list[str]:
    broken = [f"{name} is 0" for name in ("row_bytes", "rows", "planes") if getattr(ins, name) == 0]
    if ins.base >= BASES:
        broken.append(f"base = {ins.base}: allowed 0..{BASES - 1}")
    side = "local" if ins.op == "load" else "dram"
    strides = getattr(ins, f"{side}_plane"), getattr(ins, f"{side}_row")
    return broken + apart(ins.row_bytes, (ins.planes, strides[0]), (ins.rows, strides[1]))


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
    """Set-up of the descriptor; the transfer itself is timed by the memory model."""
    return int(machine.dma.setup_cycles)


LOAD = Instruction("load", 0x01, FIELDS, ("load",), execute_load, check, footprint_load, cycles, doc=__doc__)
STORE = Instruction("store", 0x02, FIELDS, ("store",), execute_store, check, footprint_store, cycles, doc=__doc__)
