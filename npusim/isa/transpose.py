"""TRANSPOSE: rows become columns, ``out[batch, col, row] = a[batch, row, col]``, elements of 8, 16 or 32 bits.

MATMUL reads its stationary operand with any strides; a streamed operand that lies the other way goes through this.
"""

from __future__ import annotations

from typing import Any

from npusim.isa.addressing import apart_rule, window
from npusim.isa.encoding import DTYPE_NAMES, Decoded, Field, Instruction, Region, at_least_one, one_of, row_bytes

FIELDS = (
    Field("a_addr", 2, doc="SRAM: the input"),
    Field("a_row", 3, doc="byte distance of the input's rows"),
    Field("a_batch", 4, doc="byte distance of the input's matrices"),
    Field("out_addr", 5, doc="SRAM: the result"),
    Field("out_row", 6, doc="byte distance of the result's rows"),
    Field("out_batch", 7, doc="byte distance of the result's matrices"),
    Field("rows", 8, doc="rows of the input, columns of the result"),
    Field("cols", 9, doc="columns of the input, rows of the result"),
    Field("batch", 10, doc="matrices"),
    Field("out_dtype", 11, 0, 4, names=DTYPE_NAMES, doc="element type of both"),
)


def operands(state: Any, ins: Decoded) -> tuple[Any, Any]:
    """Operands a (batch, rows, cols) and out (batch, cols, rows)."""
    a = state.operand("sram", ins.a_addr, ins.out_dtype, (ins.batch, ins.rows, ins.cols), (ins.a_batch, ins.a_row))
    shape = (ins.batch, ins.cols, ins.rows)
    return a, state.operand("sram", ins.out_addr, ins.out_dtype, shape, (ins.out_batch, ins.out_row))


def execute(state: Any, ins: Decoded) -> None:
    a, out = operands(state, ins)
    out.assign(a.values().transpose(0, 2, 1))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    shape = (ins.batch, ins.rows, ins.cols)
    turned = (ins.batch, ins.cols, ins.rows)
    return (
        [window("sram", ins.a_addr, ins.out_dtype, shape, (ins.a_batch, ins.a_row))],
        [window("sram", ins.out_addr, ins.out_dtype, turned, (ins.out_batch, ins.out_row))],
    )


def cycles(ins: Decoded, machine: Any) -> int:
    """One pass, ceil(batch rows cols / lanes), and the pipeline: a lane writes one element a cycle to any bank."""
    passes = -(-ins.batch * ins.rows * ins.cols // machine.vector_unit.lanes)
    return int(passes + machine.vector_unit.latency_cycles(ins.op))


RULES = (
    *at_least_one("rows", "cols", "batch"),
    one_of("out_dtype", "u8", "i8", "i16", "u16", "i32"),
    apart_rule(
        ("out_row", "out_batch"),
        lambda ins: (row_bytes(ins.out_dtype, ins.rows), ((ins.batch, ins.out_batch), (ins.cols, ins.out_row))),
    ),
)
TRANSPOSE = Instruction(
    "transpose", 0x22, "exchange rows and columns of each matrix", FIELDS, ("vector",),
    execute, RULES, footprint, cycles, __doc__,
)  # fmt: skip
