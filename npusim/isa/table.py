"""TABLE: TOSA's 513-entry interpolating lookup of int16 values, then a rescale to the output type.

GELU and the sampler's standard deviation are tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart, span
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, Decoded, Field, Instruction, Region, shift_rules

ENTRIES = 513
FIELDS = (
    Field("a_addr", 2), Field("a_row", 3), Field("out_addr", 4), Field("out_row", 5), Field("rows", 6),
    Field("cols", 7), Field("table_addr", 8, doc="513 int16 in parameter memory"),
    Field("multiplier", 9, 0, 16), Field("shift", 9, 16, 6),
    Field("out_zp", 10, signed=True), Field("out_dtype", 11, 0, 4, names=DTYPE_NAMES),
)  # fmt: skip


def operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """Windows of the input (rows, cols) int16, the table (513,) int16 and the output (rows, cols)."""
    kind = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0])
    a = state.window("sram", ins.a_addr, np.int16, (ins.rows, ins.cols), (ins.a_row, 2))
    out = state.window("sram", ins.out_addr, kind, (ins.rows, ins.cols), (ins.out_row, kind.itemsize))
    return a, state.vector("param", ins.table_addr, np.int16, ENTRIES), out


def execute(state: Any, ins: Decoded) -> None:
    a, table, out = operands(state, ins)
    value = numerics.table_lookup_16(a.astype(np.int64), table.astype(np.int64))
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    out[...] = numerics.requantize(value, ins.multiplier, ins.shift, ins.out_zp, low, high)


def check(ins: Decoded, machine: Any) -> list[str]:
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    broken = [f"{name} is 0" for name in ("rows", "cols") if getattr(ins, name) == 0] + shift_rules(ins)
    return broken + apart(size, (ins.rows, ins.out_row), (ins.cols, size))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    reads = [
        Region("sram", *span(ins.a_addr, 2, (ins.rows, ins.a_row), (ins.cols, 2))),
        Region("param", ins.table_addr, ins.table_addr + ENTRIES * 2),
    ]
    return reads, [Region("sram", *span(ins.out_addr, size, (ins.rows, ins.out_row), (ins.cols, size)))]


def cycles(ins: Decoded, machine: Any) -> int:
    """One pass: each lane has its own port to the table."""
    passes = -(-ins.rows * ins.cols // machine.vector_unit.lanes)
    return int(passes + machine.vector_unit.op_latency_cycles)


TABLE = Instruction("table", 0x30, FIELDS, ("vector",), execute, check, footprint, cycles, doc=__doc__)
