"""Handlers of LNSTAT, LNAPPLY, SMEXP and RECIP."""

from __future__ import annotations

import numpy as np

from npusim.engine.context import (
    COLUMNS,
    ELEMENT_BYTES,
    HIGH,
    I16,
    KIND_OF,
    LOW,
    PARAM,
    SIZE,
    SRAM,
    apart,
    columns,
    reach,
    share,
    tally,
    words,
)  # fmt: skip
from npusim.engine.exponential import exponentials
from npusim.engine.native import carray, pointer
from npusim.engine.order import begin, region
from npusim.engine.scalar import clamp, normalised_multiplier, reciprocal, rescale, rsqrt
from npusim.engine.stream_rows import scratch32, write_values
from npusim.engine.stream_vector import rows_of, same_rows
from npusim.isa.encoding import MAX_SHIFT, NO_ADDRESS

LNSTAT, LNAPPLY, SMEXP, RECIP = (columns(name) for name in ("lnstat", "lnapply", "smexp", "recip"))
LNAPPLY_KIND = KIND_OF["lnapply"]


def lnstat(context: int, row: int) -> int:
    """Execute an LNSTAT; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    rows, cols, a, a_row, out = w[LNSTAT.rows], w[LNSTAT.cols], w[LNSTAT.a_addr], w[LNSTAT.a_row], w[LNSTAT.stat_addr]
    if not (
        rows_of(c, I16, a, a_row, rows, cols, 0)
        and out & 3 == 0
        and region(c, SRAM, out, 12 * rows, 1)
        and apart(a, reach(2 * cols, 1, 0, rows, a_row), out, 12 * rows)
    ):
        return 0
    begin(c)
    records = carray(pointer(c[SRAM] + out), (rows, 3), np.int32)
    first, last = share(c, rows)
    for i in range(first, last):
        values = carray(pointer(c[SRAM] + a + i * a_row), cols, np.int16)
        total, squares = np.int64(0), np.int64(0)
        for j in range(cols):
            value = np.int64(values[j])
            total += value
            squares += value * value
        mantissa, shift = rsqrt(cols * squares - total * total + w[LNSTAT.epsilon])
        records[i, 0], records[i, 1], records[i, 2] = total, mantissa, shift
    return 1


def lnapply(context: int, row: int) -> int:
    """Execute an LNAPPLY; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    rows, cols, a, a_row = w[LNAPPLY.rows], w[LNAPPLY.cols], w[LNAPPLY.a_addr], w[LNAPPLY.a_row]
    out_kind, out, out_row = w[LNAPPLY.out_dtype], w[LNAPPLY.out_addr], w[LNAPPLY.out_row]
    at, g_at, b_at = w[LNAPPLY.stat_addr], w[LNAPPLY.g_addr], w[LNAPPLY.b_addr]
    if not (
        rows_of(c, I16, a, a_row, rows, cols, 0)
        and rows_of(c, out_kind, out, out_row, rows, cols, 1)
        and same_rows(a, I16, a_row, out, out_kind, out_row, rows, cols)
        and at & 3 == 0
        and g_at & 1 == 0
        and b_at & 3 == 0
        and region(c, SRAM, at, 12 * rows, 0)
        and region(c, PARAM, g_at, 2 * cols, 0)
        and region(c, PARAM, b_at, 4 * cols, 0)
        and apart(at, 12 * rows, out, reach(cols * ELEMENT_BYTES[out_kind], 1, 0, rows, out_row))
    ):
        return 0
    begin(c)
    records = carray(pointer(c[SRAM] + at), (rows, 3), np.int32)
    for i in range(rows):
        if records[i, 1] < 0 or records[i, 2] < 1 or records[i, 2] > MAX_SHIFT:
            return 0
    g, b = carray(pointer(c[PARAM] + g_at), cols, np.int16), carray(pointer(c[PARAM] + b_at), cols, np.int32)
    fraction_bits, shift, zero_point = w[LNAPPLY.fraction_bits], w[LNAPPLY.shift], w[LNAPPLY.out_zp]
    low, high, clamped = LOW[out_kind], HIGH[out_kind], 0
    results = scratch32(c, 0, cols)
    first, last = share(c, rows)
    for i in range(first, last):
        values = carray(pointer(c[SRAM] + a + i * a_row), cols, np.int16)
        total, mantissa = np.int64(records[i, 0]), np.int64(records[i, 1])
        down = max(np.int64(records[i, 2]) - fraction_bits, 1)
        for j in range(cols):
            n = clamp(rescale(cols * np.int64(values[j]) - total, mantissa, down), -32768, 32767)
            exact = rescale(n * np.int64(g[j]) + np.int64(b[j]), 1, shift) + zero_point
            result = clamp(exact, low, high)
            results[j] = result
            clamped += result != exact
        write_values(c[SRAM] + out + i * out_row, out_kind, results, cols)
    tally(c, w, LNAPPLY_KIND, clamped, rows * cols)
    return 1


def smexp(context: int, row: int) -> int:
    """Execute an SMEXP; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    rows, cols, a, a_row = w[SMEXP.rows], w[SMEXP.cols], w[SMEXP.a_addr], w[SMEXP.a_row]
    out_kind, out, out_row = w[SMEXP.out_dtype], w[SMEXP.out_addr], w[SMEXP.out_row]
    at, valid_at = w[SMEXP.sum_addr], w[SMEXP.valid_addr]
    if not (
        rows_of(c, I16, a, a_row, rows, cols, 0)
        and rows_of(c, out_kind, out, out_row, rows, cols, 1)
        and same_rows(a, I16, a_row, out, out_kind, out_row, rows, cols)
        and at & 3 == 0
        and region(c, SRAM, at, 4 * rows, 1)
        and apart(a, reach(2 * cols, 1, 0, rows, a_row), at, 4 * rows)
    ):
        return 0
    extent = reach(cols * ELEMENT_BYTES[out_kind], 1, 0, rows, out_row)
    if valid_at != NO_ADDRESS and not (
        valid_at & 3 == 0
        and region(c, SRAM, valid_at, 4, 0)
        and apart(valid_at, 4, out, extent)
        and apart(valid_at, 4, at, 4 * rows)
    ):
        return 0
    begin(c)
    valid = cols if valid_at == NO_ADDRESS else np.int64(carray(pointer(c[SRAM] + valid_at), 1, np.int32)[0])
    valid = max(1, min(valid, cols))
    first, last = share(c, rows)
    exponentials(
        ELEMENT_BYTES[out_kind], last - first, cols, valid, c[SRAM] + a + first * a_row, a_row,
        c[SRAM] + out + first * out_row, out_row, c[SRAM] + at + 4 * first, w[SMEXP.fraction_bits], w[SMEXP.p_bits],
    )  # fmt: skip
    return 1


def recip(context: int, row: int) -> int:
    """Execute a RECIP; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    rows, at, out = w[RECIP.rows], w[RECIP.sum_addr], w[RECIP.out_addr]
    if not (
        (at | out) & 3 == 0
        and region(c, SRAM, at, 4 * rows, 0)
        and region(c, SRAM, out, 4 * rows, 1)
        and apart(at, 4 * rows, out, 4 * rows)
    ):
        return 0
    begin(c)
    sums = carray(pointer(c[SRAM] + at), rows, np.int32)
    for i in range(rows):
        if sums[i] < 1:
            return 0
    records = carray(pointer(c[SRAM] + out), (rows, 2), np.int16)
    first, last = share(c, rows)
    for i in range(first, last):
        mantissa, down = reciprocal(np.int64(sums[i]))
        product = (mantissa * w[RECIP.multiplier] + (1 << 29)) >> 30
        records[i, 0], records[i, 1] = normalised_multiplier(product, down + w[RECIP.shift] - 30, 16)
    return 1
