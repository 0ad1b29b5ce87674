"""SMEXP and RECIP."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import exp2_negative, normalised_multiplier, reciprocal
from npusim.engine.threads import in_threads
from npusim.engine.windows import gather, scratch
from npusim.isa.encoding import Decoded
from npusim.isa.matmul import ROW_RECORD
from npusim.isa.softmax import exp_operands, sums_of


@kernel
def exponential(a: Any, valid: int, fraction_bits: int, p_bits: int, out: Any, sums: Any, first: int, last: int) -> int:
    """Unnormalised powers of two against the row's maximum in ``valid`` columns, 0 in the others; their sum per row."""
    for i in range(first, last):
        top = np.int64(a[i, 0])
        for j in range(1, valid):
            top = max(top, np.int64(a[i, j]))
        total = np.int64(0)
        for j in range(valid):
            p = exp2_negative(top - a[i, j], fraction_bits, p_bits)
            out[i, j] = p
            total += p
        for j in range(valid, a.shape[1]):
            out[i, j] = 0
        sums[i] = total
    return 0


@kernel
def invert(sums: Any, factor: int, shift: int, out: Any) -> None:
    """Per row the 16-bit multiplier and the shift of ``factor * 2^-shift / sum``, to ``out`` int32 (2, rows)."""
    for i in range(sums.size):
        mantissa, down = reciprocal(sums[i])
        product = (mantissa * factor + (1 << 29)) >> 30
        out[0, i], out[1, i] = normalised_multiplier(product, down + shift - 30, 16)


def execute_exp(state: Any, ins: Decoded) -> None:
    source, target, sums, valid = exp_operands(state, ins)
    a, out, totals = gather(source), scratch(target.shape), np.empty(ins.rows, np.int32)
    in_threads(exponential, len(a), 4 * a.size, a, valid, ins.fraction_bits, ins.p_bits, out, totals)
    target.assign(out)
    sums[...] = totals


def execute_recip(state: Any, ins: Decoded) -> None:
    out = np.empty((2, ins.rows), np.int32)
    invert(sums_of(state, ins), ins.multiplier, ins.shift, out)
    records = state.vector("sram", ins.out_addr, ROW_RECORD, ins.rows)
    records["multiplier"], records["shift"] = out
