"""TABLE and TABLE8: lookups.

TABLE is TOSA's for 16 bits, 513 entries and linear interpolation over the 7 low bits, then a rescale to the output
type: with ``i = (a + 32768) >> 7`` and ``f = (a + 32768) & 127``, ``v = (t[i] << 7) + (t[i+1] - t[i]) f`` and
``out = requantize(v, multiplier, shift, out_zp)``. GELU and the sampler's standard deviation are tables.

TABLE8 is TOSA's for 8 bits: one entry for each value of an operand of at most 8 bits, ``out = t[a - lowest value]``.
No arithmetic and no error: any function of one operand, clamped and scaled by whoever made the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart_rule, vector, window
from npusim.isa.encoding import (
    DTYPE_NAMES,
    DTYPES,
    ELEMENT_BITS,
    SHIFT_RULE,
    Decoded,
    Field,
    Instruction,
    Region,
    at_least_one,
    one_of,
    row_bytes,
)

ENTRIES = 513
_COMMON = (
    Field("a_addr", 2, doc="SRAM: the input"),
    Field("a_row", 3, doc="byte distance of the input's rows"),
    Field("out_addr", 4, doc="SRAM: the result"),
    Field("out_row", 5, doc="byte distance of the result's rows"),
    Field("rows", 6, doc="rows"),
    Field("cols", 7, doc="elements of a row"),
)
FIELDS = (
    *_COMMON,
    Field("table_addr", 8, doc="parameter memory: 513 int16"),
    Field("multiplier", 9, 0, 16, doc="of the interpolated value"),
    Field("shift", 9, 16, 6, doc="right shift that ends in the rounding"),
    Field("out_zp", 10, signed=True, doc="zero point of the result"),
    Field("out_dtype", 11, 0, 4, names=DTYPE_NAMES, doc="element type of the result"),
)
FIELDS8 = (
    *_COMMON,
    Field("table_addr", 8, doc="parameter memory: 2^bits entries of the result's type, packed ones a byte each"),
    Field("a_dtype", 11, 4, 4, names=DTYPE_NAMES, doc="element type of the input"),
    Field("out_dtype", 11, 0, 4, names=DTYPE_NAMES, doc="element type of the result"),
)


def output(state: Any, ins: Decoded) -> Any:
    """The result (rows, cols), an `npusim.memory.Operand`."""
    return state.operand("sram", ins.out_addr, ins.out_dtype, (ins.rows, ins.cols), (ins.out_row,))


def operands(state: Any, ins: Decoded) -> tuple[Any, Any]:
    """TABLE's input (rows, cols) int16 as an `npusim.memory.Operand`, and the table (513,) int16."""
    a = state.operand("sram", ins.a_addr, DTYPE_NAMES.index("i16"), (ins.rows, ins.cols), (ins.a_row,))
    return a, state.vector("param", ins.table_addr, np.int16, ENTRIES)


def execute(state: Any, ins: Decoded) -> None:
    a, table = operands(state, ins)
    value = numerics.table_lookup_16(a.values(), table.astype(np.int64))
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    out = numerics.requantize(value, ins.multiplier, ins.shift, ins.out_zp, low, high)
    state.write(ins, output(state, ins), out, numerics.rescale(value, ins.multiplier, ins.shift) + ins.out_zp)


def entries(ins: Decoded) -> tuple[int, Any]:
    """Number and type of TABLE8's entries."""
    return 1 << ELEMENT_BITS[DTYPE_NAMES[ins.a_dtype]], np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0])


def execute8(state: Any, ins: Decoded) -> None:
    a = state.operand("sram", ins.a_addr, ins.a_dtype, (ins.rows, ins.cols), (ins.a_row,)).values()
    count, kind = entries(ins)
    table = state.vector("param", ins.table_addr, kind, count).astype(np.int64)
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    if (table < low).any() or (table > high).any():
        raise ValueError(f"an entry of the table at param byte {ins.table_addr} is outside {low}..{high}")
    out = table[a - DTYPES[DTYPE_NAMES[ins.a_dtype]][1]]
    state.write(ins, output(state, ins), out, out)


_APART = apart_rule(("out_row",), lambda ins: (row_bytes(ins.out_dtype, ins.cols), ((ins.rows, ins.out_row),)))


def _output_region(ins: Decoded) -> Region:
    return window("sram", ins.out_addr, ins.out_dtype, (ins.rows, ins.cols), (ins.out_row,))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    a = window("sram", ins.a_addr, DTYPE_NAMES.index("i16"), (ins.rows, ins.cols), (ins.a_row,))
    return [a, vector("param", ins.table_addr, ENTRIES * 2)], [_output_region(ins)]


def footprint8(ins: Decoded) -> tuple[list[Region], list[Region]]:
    a = window("sram", ins.a_addr, ins.a_dtype, (ins.rows, ins.cols), (ins.a_row,))
    count, kind = entries(ins)
    return [a, vector("param", ins.table_addr, count * kind.itemsize)], [_output_region(ins)]


def cycles(ins: Decoded, machine: Any) -> int:
    """One pass, ceil(rows cols / lanes), and the pipeline: each lane has its own port to the table."""
    passes = -(-ins.rows * ins.cols // machine.vector_unit.lanes)
    return int(passes + machine.vector_unit.latency_cycles(ins.op))


TABLE = Instruction(
    "table", 0x30, "look 16-bit values up in a table with interpolation, rescale, clamp", FIELDS, ("vector",),
    execute, (*at_least_one("rows", "cols"), SHIFT_RULE, _APART), footprint, cycles, __doc__,
)  # fmt: skip
TABLE8 = Instruction(
    "table8", 0x31, "replace each value of at most 8 bits by its entry in a table", FIELDS8, ("vector",),
    execute8,
    (
        *at_least_one("rows", "cols"),
        one_of("a_dtype", "u4", "i4", "u6", "i6", "u8", "i8"),
        one_of("out_dtype", "u4", "i4", "u6", "i6", "u8", "i8", "i16", "u16"),
        _APART,
    ),
    footprint8, cycles, __doc__, ("an entry that does not fit a packed result type",),
)  # fmt: skip
