"""SMEXP and RECIP: softmax without the division, which the requantization after P V makes up for.

SMEXP: per row of base-2 logits with ``fraction_bits`` fractional bits, over the first ``valid`` columns:
``d = max - logit``, ``p = (2^p_bits - 1) 2^(-d / 2^fraction_bits)`` (unnormalised), 0 in the other columns; and the
integer row sum of p.
RECIP: per row, the multiplier and shift that divide by the row sum and apply one static factor
``multiplier * 2^-shift``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart, span
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, NO_ADDRESS, Decoded, Field, Instruction, Region
from npusim.isa.matmul import ROW_RECORD

_EXP = (
    Field("a_addr", 2), Field("out_addr", 3), Field("sum_addr", 4), Field("rows", 5), Field("cols", 6),
    Field("a_row", 7), Field("out_row", 8), Field("valid_addr", 9, doc="SRAM int32: columns that count; absent: all"),
    Field("fraction_bits", 10, 0, 5), Field("p_bits", 10, 8, 5), Field("out_dtype", 10, 16, 4, names=DTYPE_NAMES),
)  # fmt: skip
_RECIP = (Field("sum_addr", 2), Field("out_addr", 3), Field("rows", 4), Field("multiplier", 5), Field("shift", 6, 0, 6))


def exp_operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any, int]:
    """Windows of logits (rows, cols) int16, p (rows, cols) and row sums (rows,) int32; the number of valid columns."""
    kind = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0])
    a = state.window("sram", ins.a_addr, np.int16, (ins.rows, ins.cols), (ins.a_row, 2))
    out = state.window("sram", ins.out_addr, kind, (ins.rows, ins.cols), (ins.out_row, kind.itemsize))
    valid = ins.cols if ins.valid_addr == NO_ADDRESS else int(state.vector("sram", ins.valid_addr, np.int32, 1)[0])
    return a, out, state.vector("sram", ins.sum_addr, np.int32, ins.rows), max(1, min(valid, ins.cols))


def execute_exp(state: Any, ins: Decoded) -> None:
    a, out, sums, valid = exp_operands(state, ins)
    logits = a[:, :valid].astype(np.int64)
    p = numerics.exp2_negative(logits.max(axis=1, keepdims=True) - logits, ins.fraction_bits, ins.p_bits)
    out[:, :valid], out[:, valid:] = p, 0
    sums[...] = p.sum(axis=1)


def sums_of(state: Any, ins: Decoded) -> Any:
    """Row sums that SMEXP left, int64 (rows,). Raises ValueError for one that is not positive."""
    sums = state.vector("sram", ins.sum_addr, np.int32, ins.rows).astype(np.int64)
    if (sums < 1).any():
        raise ValueError(f"a row sum at sram byte {ins.sum_addr} is not positive")
    return sums


def execute_recip(state: Any, ins: Decoded) -> None:
    sums = sums_of(state, ins)
    mantissa, shift = numerics.reciprocal(sums)
    product = (mantissa * ins.multiplier + (1 << 29)) >> 30
    m, s = numerics.normalised_multiplier(product, shift + ins.shift - 30, 16)
    records = state.vector("sram", ins.out_addr, ROW_RECORD, ins.rows)
    records["multiplier"], records["shift"] = m, s


def check_exp(ins: Decoded, machine: Any) -> list[str]:
    broken = [f"{name} is 0" for name in ("rows", "cols") if getattr(ins, name) == 0]
    p_bits = {"u8": 8, "i16": 15}.get(DTYPE_NAMES[ins.out_dtype])
    if p_bits is None or not 8 <= ins.p_bits <= p_bits:
        broken.append(f"p_bits = {ins.p_bits} in {DTYPE_NAMES[ins.out_dtype]}: allowed 8 in u8, 8 to 15 in i16")
    if ins.fraction_bits > 16:
        broken.append(f"fraction_bits = {ins.fraction_bits}: allowed 0 to 16")
    if ins.cols > 65536:
        broken.append(f"cols = {ins.cols}: at most 65536, so that the row sum stays below 2^31")
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    return broken + apart(size, (ins.rows, ins.out_row), (ins.cols, size))


def check_recip(ins: Decoded, machine: Any) -> list[str]:
    broken = ["rows is 0"] if ins.rows == 0 else []
    if not 1 << 30 <= ins.multiplier < 1 << 31:
        broken.append(f"multiplier = {ins.multiplier}: allowed 2^30 to 2^31 - 1")
    return broken


def footprint_exp(ins: Decoded) -> tuple[list[Region], list[Region]]:
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    reads = [Region("sram", *span(ins.a_addr, 2, (ins.rows, ins.a_row), (ins.cols, 2)))]
    if ins.valid_addr != NO_ADDRESS:
        reads.append(Region("sram", ins.valid_addr, ins.valid_addr + 4))
    p = Region("sram", *span(ins.out_addr, size, (ins.rows, ins.out_row), (ins.cols, size)))
    return reads, [p, Region("sram", ins.sum_addr, ins.sum_addr + 4 * ins.rows)]


def footprint_recip(ins: Decoded) -> tuple[list[Region], list[Region]]:
    records = Region("sram", ins.out_addr, ins.out_addr + ROW_RECORD.itemsize * ins.rows)
    return [Region("sram", ins.sum_addr, ins.sum_addr + 4 * ins.rows)], [records]


def cycles_exp(ins: Decoded, machine: Any) -> int:
    """Two passes: row maximum, then exponential with the sum."""
    passes = 2 * -(-ins.rows * ins.cols // machine.vector_unit.lanes)
    return int(passes + machine.vector_unit.op_latency_cycles)


def cycles_recip(ins: Decoded, machine: Any) -> int:
    """One reciprocal unit, one row per cycle."""
    return int(ins.rows) + int(machine.vector_unit.op_latency_cycles)


SMEXP = Instruction("smexp", 0x50, _EXP, ("vector",), execute_exp, check_exp, footprint_exp, cycles_exp, doc=__doc__)
RECIP = Instruction(
    "recip", 0x51, _RECIP, ("vector",), execute_recip, check_recip, footprint_recip, cycles_recip, doc=__doc__
)
