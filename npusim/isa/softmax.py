"""SMEXP and RECIP: softmax without the division, which the requantization after P V makes up for.

SMEXP: per row of base-2 logits with ``fraction_bits`` fractional bits, over the first ``valid`` columns:
``d = max - logit``, ``p = (2^p_bits - 1) 2^(-d / 2^fraction_bits)`` (unnormalised, `numerics.exp2_negative`), 0 in the
other columns; and the integer row sum of p. ``valid`` below 1 counts as 1, above ``cols`` as ``cols``.
RECIP: per row, the 16-bit multiplier and the shift that divide by the row sum and apply one static factor
``multiplier * 2^-shift``: a reciprocal from 128 seeds and two Newton steps (`numerics.reciprocal`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart_rule, disjoint_rule, vector, window
from npusim.isa.encoding import (
    DTYPE_NAMES,
    NO_ADDRESS,
    Decoded,
    Field,
    Instruction,
    Region,
    Rule,
    at_least_one,
    row_bytes,
)
from npusim.isa.matmul import ROW_RECORD

I16 = DTYPE_NAMES.index("i16")
MAX_P_BITS = {"u8": 8, "i16": 15, "u16": 16}
"""Types of p, and how many bits each holds."""
_EXP = (
    Field("a_addr", 2, doc="SRAM: logits, int16"),
    Field("out_addr", 3, doc="SRAM: p"),
    Field("sum_addr", 4, doc="SRAM: int32, the sum of each row of p"),
    Field("rows", 5, doc="rows, one softmax each"),
    Field("cols", 6, doc="elements of a row"),
    Field("a_row", 7, doc="byte distance of the logits' rows"),
    Field("out_row", 8, doc="byte distance of p's rows"),
    Field("valid_addr", 9, doc="SRAM: int32, how many columns count; absent: all"),
    Field("fraction_bits", 10, 0, 5, doc="fractional bits of a logit, which is a base-2 logarithm"),
    Field("p_bits", 10, 8, 5, doc="p of the row's maximum is 2^p_bits - 1"),
    Field("out_dtype", 10, 16, 4, names=DTYPE_NAMES, doc="element type of p"),
)
_RECIP = (
    Field("sum_addr", 2, doc="SRAM: int32 row sums"),
    Field("out_addr", 3, doc="SRAM: a ROW_RECORD per row, int16 multiplier and int16 shift"),
    Field("rows", 4, doc="rows"),
    Field("multiplier", 5, doc="of the static factor"),
    Field("shift", 6, 0, 6, doc="of the static factor"),
)


def exp_operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any, int]:
    """Operands logits and p (rows, cols); row sums (rows,) int32; the number of valid columns."""
    a = state.operand("sram", ins.a_addr, I16, (ins.rows, ins.cols), (ins.a_row,))
    out = state.operand("sram", ins.out_addr, ins.out_dtype, (ins.rows, ins.cols), (ins.out_row,))
    valid = ins.cols if ins.valid_addr == NO_ADDRESS else int(state.vector("sram", ins.valid_addr, np.int32, 1)[0])
    return a, out, state.vector("sram", ins.sum_addr, np.int32, ins.rows), max(1, min(valid, ins.cols))


def execute_exp(state: Any, ins: Decoded) -> None:
    a, out, sums, valid = exp_operands(state, ins)
    logits, p = a.values()[:, :valid], np.zeros(a.shape, np.int64)
    p[:, :valid] = numerics.exp2_negative(logits.max(axis=1, keepdims=True) - logits, ins.fraction_bits, ins.p_bits)
    out.assign(p)
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


def _p_bits_fit(ins: Decoded, machine: Any) -> bool:
    return bool(8 <= ins.p_bits <= MAX_P_BITS.get(DTYPE_NAMES[ins.out_dtype], 0))


def footprint_exp(ins: Decoded) -> tuple[list[Region], list[Region]]:
    reads = [window("sram", ins.a_addr, I16, (ins.rows, ins.cols), (ins.a_row,))]
    if ins.valid_addr != NO_ADDRESS:
        reads.append(vector("sram", ins.valid_addr, 4))
    p = window("sram", ins.out_addr, ins.out_dtype, (ins.rows, ins.cols), (ins.out_row,))
    return reads, [p, vector("sram", ins.sum_addr, 4 * ins.rows)]


_EXP_RULES = (
    *at_least_one("rows", "cols"),
    Rule(("p_bits", "out_dtype"), "8 bits in u8, 8 to 15 in i16, 8 to 16 in u16", _p_bits_fit),
    Rule(("fraction_bits",), "0..16", lambda ins, machine: bool(ins.fraction_bits <= 16)),
    Rule(
        ("cols", "p_bits"),
        "cols << p_bits at most 2^31, so that a row sum fits int32",
        lambda ins, machine: bool(ins.cols << ins.p_bits <= 1 << 31),
    ),
    apart_rule(("out_row",), lambda ins: (row_bytes(ins.out_dtype, ins.cols), ((ins.rows, ins.out_row),))),
    disjoint_rule(("out_addr", "sum_addr"), footprint_exp),
)
_RECIP_RULES = (
    *at_least_one("rows"),
    Rule(("multiplier",), "2^30..2^31 - 1", lambda ins, machine: bool(1 << 30 <= ins.multiplier < 1 << 31)),
)


def footprint_recip(ins: Decoded) -> tuple[list[Region], list[Region]]:
    records = vector("sram", ins.out_addr, ROW_RECORD.itemsize * ins.rows)
    return [vector("sram", ins.sum_addr, 4 * ins.rows)], [records]


def cycles_exp(ins: Decoded, machine: Any) -> int:
    """Two passes, the row maximum, then the exponentials with their sum; and the pipeline."""
    passes = 2 * -(-ins.rows * ins.cols // machine.vector_unit.lanes)
    return int(passes + machine.vector_unit.latency_cycles(ins.op))


def cycles_recip(ins: Decoded, machine: Any) -> int:
    """One row a cycle through one reciprocal unit, and the pipeline."""
    return int(ins.rows) + int(machine.vector_unit.latency_cycles(ins.op))


SMEXP = Instruction(
    "smexp", 0x50, "unnormalised powers of two against each row's maximum, and their sum", _EXP, ("vector",),
    execute_exp, _EXP_RULES, footprint_exp, cycles_exp, __doc__,
)  # fmt: skip
RECIP = Instruction(
    "recip", 0x51, "the requantization records that divide by each row sum", _RECIP, ("vector",),
    execute_recip, _RECIP_RULES, footprint_recip, cycles_recip, __doc__, ("a row sum below 1",),
)  # fmt: skip
