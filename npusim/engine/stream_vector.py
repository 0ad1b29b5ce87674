"""Handlers of EWLIN, EWMUL and TABLE. Rows of the first two are read to int32, computed, and written."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import helper
from npusim.engine.context import (
    COLUMNS,
    ELEMENT_BYTES,
    HIGH,
    I16,
    I32,
    KIND_OF,
    LOW,
    MOST_COLS,
    PARAM,
    SIZE,
    SRAM,
    Words,
    apart,
    columns,
    reach,
    share,
    tally,
    words,
)  # fmt: skip
from npusim.engine.interpolate import interpolate
from npusim.engine.order import begin, region
from npusim.engine.scalar import INT32_HIGH, clamp, rescale
from npusim.engine.scaled_sum import scaled_sum
from npusim.engine.stream_rows import aligned, place32, read_values, scratch32, write_values
from npusim.isa.elementwise import MAX_MULTIPLIER
from npusim.isa.encoding import NO_ADDRESS
from npusim.isa.table import ENTRIES

EWLIN, EWMUL, TABLE = columns("ewlin"), columns("ewmul"), columns("table")
LARGEST = tuple(max(HIGH[kind], -LOW[kind]) for kind in range(len(HIGH)))
EWLIN_KIND, EWMUL_KIND, TABLE_KIND = (KIND_OF[name] for name in ("ewlin", "ewmul", "table"))


@helper
def _window(c: Words, w: Words, kind: int, start: int, row: int, batch: int, written: int) -> Any:
    """Note one operand of an element-wise instruction; False where the handlers do not take it."""
    size = ELEMENT_BYTES[kind]
    return (
        0 < w[EWLIN.cols] <= MOST_COLS
        and aligned(kind, start, row, batch)
        and region(c, SRAM, start, reach(w[EWLIN.cols] * size, w[EWLIN.batch], batch, w[EWLIN.rows], row), written)
    )


@helper
def _in_step(w: Words, kind: int, start: int, row: int, batch: int) -> Any:
    """Whether the result may be written row by row while this operand is read."""
    size, out = ELEMENT_BYTES[kind] * w[EWLIN.cols], ELEMENT_BYTES[w[EWLIN.out_dtype]] * w[EWLIN.cols]
    extent = reach(size, w[EWLIN.batch], batch, w[EWLIN.rows], row)
    written = reach(out, w[EWLIN.batch], w[EWLIN.out_batch], w[EWLIN.rows], w[EWLIN.out_row])
    if apart(start, extent, w[EWLIN.out_addr], written):
        return True
    same = start == w[EWLIN.out_addr] and row == w[EWLIN.out_row] and batch == w[EWLIN.out_batch]
    return same and (w[EWLIN.rows] == 1 or row >= size) and (w[EWLIN.batch] == 1 or batch >= w[EWLIN.rows] * row)


@helper
def _multipliers(c: Words, w: Words, address: int, immediate: int, kind: int, out: Any) -> int:
    """Fill ``out`` with an operand's multipliers; 1 for one that is undefined."""
    cols = w[EWLIN.cols]
    if address == NO_ADDRESS:
        for j in range(cols):
            out[j] = immediate
        return 0
    wide = w[EWLIN.wide] or kind == I32
    count = 1 if w[EWLIN.shared_mul] else cols
    read_values(c[PARAM] + address, I32 if wide else I16, out, count)
    if kind == I32:
        for j in range(count):
            if abs(np.int64(out[j])) > MAX_MULTIPLIER:
                return 1
    if count == 1:
        only = out[0]
        for j in range(cols):
            out[j] = only
    return 0


@helper
def _parameters(c: Words, w: Words, address: int, wide: int, shared: int) -> Any:
    """Note a vector in parameter memory, if it is there."""
    size = 4 if wide else 2
    if address == NO_ADDRESS:
        return True
    return address & (size - 1) == 0 and region(c, PARAM, address, size * (1 if shared else w[EWLIN.cols]), 0)


@helper
def _greatest(values: Any, count: int) -> Any:
    """The greatest magnitude of int32 values."""
    low, high = np.int32(0), np.int32(0)
    for j in range(count):
        low, high = min(low, values[j]), max(high, values[j])
    return max(np.int64(high), -np.int64(low))


def ewlin(context: int, row: int) -> int:
    """Execute an EWLIN; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    a_kind, b_kind, out_kind, cols = w[EWLIN.a_dtype], w[EWLIN.b_dtype], w[EWLIN.out_dtype], w[EWLIN.cols]
    a, b, target, two = w[EWLIN.a_addr], w[EWLIN.b_addr], w[EWLIN.out_addr], w[EWLIN.b_addr] != NO_ADDRESS
    if not (
        _window(c, w, a_kind, a, w[EWLIN.a_row], w[EWLIN.a_batch], 0)
        and _window(c, w, out_kind, target, w[EWLIN.out_row], w[EWLIN.out_batch], 1)
        and _in_step(w, a_kind, a, w[EWLIN.a_row], w[EWLIN.a_batch])
        and _parameters(c, w, w[EWLIN.a_mul_addr], w[EWLIN.wide] or a_kind == I32, w[EWLIN.shared_mul])
        and _parameters(c, w, w[EWLIN.bias_addr], 1, w[EWLIN.shared_bias])
    ):
        return 0
    if two and not (
        _window(c, w, b_kind, b, w[EWLIN.b_row], w[EWLIN.b_batch], 0)
        and _in_step(w, b_kind, b, w[EWLIN.b_row], w[EWLIN.b_batch])
        and _parameters(c, w, w[EWLIN.b_mul_addr], w[EWLIN.wide] or b_kind == I32, w[EWLIN.shared_mul])
    ):
        return 0
    begin(c)
    left, right = scratch32(c, 0, cols), scratch32(c, 1, cols)
    a_mul, b_mul, offset = scratch32(c, 2, cols), scratch32(c, 3, cols), scratch32(c, 4, cols)
    if _multipliers(c, w, w[EWLIN.a_mul_addr], w[EWLIN.a_mul], a_kind, a_mul):
        return 0
    if two and _multipliers(c, w, w[EWLIN.b_mul_addr], w[EWLIN.b_mul], b_kind, b_mul):
        return 0
    if w[EWLIN.bias_addr] != NO_ADDRESS:
        read_values(c[PARAM] + w[EWLIN.bias_addr], I32, offset, 1 if w[EWLIN.shared_bias] else cols)
    if w[EWLIN.bias_addr] == NO_ADDRESS or w[EWLIN.shared_bias]:
        only = np.int32(0) if w[EWLIN.bias_addr] == NO_ADDRESS else offset[0]
        for j in range(cols):
            offset[j] = only
    shift, zero_point, low, high = w[EWLIN.shift], w[EWLIN.out_zp], LOW[out_kind], HIGH[out_kind]
    bound = _greatest(offset, cols) + LARGEST[a_kind] * _greatest(a_mul, cols)
    if two:
        bound += LARGEST[b_kind] * _greatest(b_mul, cols)
    wide = np.int64((bound >> shift) + 1 + abs(zero_point) > INT32_HIGH)
    rows, clamped = w[EWLIN.rows], 0
    first, last = share(c, rows * w[EWLIN.batch])
    for i in range(first, last):
        plane, line = i // rows, i % rows
        read_values(c[SRAM] + a + plane * w[EWLIN.a_batch] + line * w[EWLIN.a_row], a_kind, left, cols)
        if two:
            read_values(c[SRAM] + b + plane * w[EWLIN.b_batch] + line * w[EWLIN.b_row], b_kind, right, cols)
        clamped += scaled_sum(
            np.int64(two), wide, ELEMENT_BYTES[out_kind], cols, place32(c, 0), place32(c, 1), place32(c, 2),
            place32(c, 3), place32(c, 4), c[SRAM] + target + plane * w[EWLIN.out_batch] + line * w[EWLIN.out_row],
            shift, zero_point, low, high,
        )  # fmt: skip
    tally(c, w, EWLIN_KIND, clamped, rows * w[EWLIN.batch] * cols)
    return 1


def ewmul(context: int, row: int) -> int:
    """Execute an EWMUL; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    a_kind, b_kind, out_kind, cols = w[EWLIN.a_dtype], w[EWLIN.b_dtype], w[EWLIN.out_dtype], w[EWLIN.cols]
    a, b, target = w[EWLIN.a_addr], w[EWLIN.b_addr], w[EWLIN.out_addr]
    if not (
        _window(c, w, a_kind, a, w[EWLIN.a_row], w[EWLIN.a_batch], 0)
        and _window(c, w, b_kind, b, w[EWLIN.b_row], w[EWLIN.b_batch], 0)
        and _window(c, w, out_kind, target, w[EWLIN.out_row], w[EWLIN.out_batch], 1)
        and _in_step(w, a_kind, a, w[EWLIN.a_row], w[EWLIN.a_batch])
        and _in_step(w, b_kind, b, w[EWLIN.b_row], w[EWLIN.b_batch])
    ):
        return 0
    begin(c)
    left, right, results = scratch32(c, 0, cols), scratch32(c, 1, cols), scratch32(c, 2, cols)
    shift, zero_point, low, high = w[EWLIN.shift], w[EWLIN.out_zp], LOW[out_kind], HIGH[out_kind]
    rows, clamped = w[EWLIN.rows], 0
    first, last = share(c, rows * w[EWLIN.batch])
    for i in range(first, last):
        plane, line = i // rows, i % rows
        read_values(c[SRAM] + a + plane * w[EWLIN.a_batch] + line * w[EWLIN.a_row], a_kind, left, cols)
        read_values(c[SRAM] + b + plane * w[EWLIN.b_batch] + line * w[EWLIN.b_row], b_kind, right, cols)
        for j in range(cols):
            exact = rescale(np.int64(left[j]) * np.int64(right[j]), 1, shift) + zero_point
            result = clamp(exact, low, high)
            results[j] = result
            clamped += result != exact
        address = c[SRAM] + target + plane * w[EWLIN.out_batch] + line * w[EWLIN.out_row]
        write_values(address, out_kind, results, cols)
    tally(c, w, EWMUL_KIND, clamped, rows * w[EWLIN.batch] * cols)
    return 1


@helper
def rows_of(c: Words, kind: int, start: int, row: int, rows: int, cols: int, written: int) -> Any:
    """Note the rows of an operand; False where the handlers do not take it."""
    size = ELEMENT_BYTES[kind]
    return (
        0 < cols <= MOST_COLS
        and aligned(kind, start, row, 0)
        and region(c, SRAM, start, reach(cols * size, 1, 0, rows, row), written)
    )


@helper
def same_rows(a: int, a_kind: int, a_row: int, out: int, out_kind: int, out_row: int, rows: int, cols: int) -> bool:
    """Whether rows may be written at ``out`` one after the other while those at ``a`` are read."""
    size = cols * ELEMENT_BYTES[a_kind]
    extent, written = reach(size, 1, 0, rows, a_row), reach(cols * ELEMENT_BYTES[out_kind], 1, 0, rows, out_row)
    return apart(a, extent, out, written) or (a == out and a_row == out_row and (rows == 1 or a_row >= size))


def table(context: int, row: int) -> int:
    """Execute a TABLE; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    rows, cols, out_kind, at = w[TABLE.rows], w[TABLE.cols], w[TABLE.out_dtype], w[TABLE.table_addr]
    a, a_row, out, out_row = w[TABLE.a_addr], w[TABLE.a_row], w[TABLE.out_addr], w[TABLE.out_row]
    if not (
        rows_of(c, I16, a, a_row, rows, cols, 0)
        and rows_of(c, out_kind, out, out_row, rows, cols, 1)
        and same_rows(a, I16, a_row, out, out_kind, out_row, rows, cols)
        and ELEMENT_BYTES[out_kind] <= 2
        and ((w[TABLE.multiplier] << 22) >> w[TABLE.shift]) + 1 + abs(w[TABLE.out_zp]) <= INT32_HIGH
        and at & 1 == 0
        and region(c, PARAM, at, 2 * ENTRIES, 0)
    ):
        return 0
    begin(c)
    first, last = share(c, rows)
    clamped = interpolate(
        ELEMENT_BYTES[out_kind], last - first, cols, c[SRAM] + a + first * a_row, a_row,
        c[SRAM] + out + first * out_row, out_row, c[PARAM] + at, w[TABLE.multiplier], w[TABLE.shift], w[TABLE.out_zp],
        LOW[out_kind], HIGH[out_kind],
    )  # fmt: skip
    tally(c, w, TABLE_KIND, clamped, rows * cols)
    return 1
