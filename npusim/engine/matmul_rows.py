"""The kernels of MATMUL: a block of rows is packed, multiplied, corrected, requantized and written while it is in cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel
from npusim.engine.dot import TILE_ROWS
from npusim.engine.gemm import BLOCK_ROWS, ROW_GAP, Columns, copy, multiply, read_row
from npusim.engine.scalar import INT32_HIGH, INT32_LOW, clamp, narrow_accumulator, rescale, rescale_double

FOLD_ROWS = 4
"""Rows whose folds are added together, so that one read of b serves four multiplications."""


class Plan(NamedTuple):
    """How `execute_rows` multiplies.

    ``as_bytes``: whether elements are multiplied as bytes, else as 16-bit words. ``digits``: 2 where the elements of a
    are split into a low and a high byte, because products of two words would leave int32. ``segment``: units of k whose
    products are sure to fit int32 together; behind each, the sums go to int64.
    """

    as_bytes: int
    digits: int
    segment: int


class Left(NamedTuple):
    """Operand a: its `npusim.engine.gemm.Elements`, ``k`` of them in a row, and what is done to them.

    ``zero``: int64 (rows,), subtracted from what `read_row` reads. ``shifts``: int16 (k,), or (0,). ``sum_rows``: 1
    where sums of rows are asked for.
    """

    memory: NDArray[np.uint8]
    at: NDArray[np.int64]
    bits: int
    signed: int
    k: int
    zero: NDArray[np.int64]
    shifts: NDArray[np.int16]
    sum_rows: int


class Accumulators(NamedTuple):
    """Range of an accumulator, what it does beyond it, and whether its sums are held instead of requantized."""

    low: int
    high: int
    overflow: int
    hold: int


class Requantizers(NamedTuple):
    """The records as int64 arrays (n,); with ``by_row``, multiplier and shift are (rows,).

    ``second``: (rows, 2), multiplier and shift of the factored modes, which add ``late_bias`` behind it; else (0, 2).
    """

    bias: NDArray[np.int64]
    weight_zero: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    by_row: int
    double: int
    second: NDArray[np.int64]
    late_bias: NDArray[np.int64]
    fraction_bits: int


class Output(NamedTuple):
    """Where results go: row i to byte ``at[i]`` of ``memory``, elements of ``bits`` bits from ``low`` to ``high``."""

    memory: NDArray[np.uint8]
    at: NDArray[np.int64]
    bits: int
    zero_point: int
    low: int
    high: int


@inlined
def pack_row(left: Left, row: int, plan: Plan, words: Any, packed: Any, r: int) -> int:
    """Pack one row of a to row ``r`` of ``packed`` int32 (digits, rows, units); return the sum of its elements."""
    elements = words[: left.k]
    read_row(left.memory, left.at[row], left.bits // 8, left.bits, left.signed, elements)
    if plan.as_bytes:
        place, offset = packed[0, r].view(np.uint8), np.int16(128 * left.signed)
        for i in range(left.k):
            place[i] = elements[i] + offset
    elif plan.digits == 1:
        copy(elements, packed[0, r].view(np.int16))
    else:
        low, high = packed[0, r].view(np.int16), packed[1, r].view(np.int16)
        for i in range(left.k):
            low[i], high[i] = elements[i] & 255, elements[i] >> 8
    total, zero = np.int64(0), left.zero[row]
    if left.sum_rows:
        for i in range(left.k):
            total += elements[i]
        total -= left.k * zero
        for i in range(left.shifts.size):
            total += (elements[i] - zero) * ((1 << left.shifts[i]) - 1)
    return total


@inlined
def correct(values: Any, column: int, row_sum: int, rq: Requantizers, acc: Accumulators) -> int:
    """Add bias and row sum, and narrow; return how often an accumulator overflowed."""
    bias, weight_zero = rq.bias[column:], rq.weight_zero[column:]
    overflows = 0
    for j in range(values.size):
        value = values[j] + bias[j] - weight_zero[j] * row_sum
        overflows += value < acc.low or value > acc.high
        values[j] = narrow_accumulator(value, acc.low, acc.high, acc.overflow)
    return overflows


@inlined
def requantize(values: Any, column: int, row: int, rq: Requantizers) -> None:
    """Multiply, shift and round the sums in ``values``; the results are not yet clamped."""
    multiplier, shift = rq.multiplier[column:], rq.shift[column:]
    if rq.by_row:
        multiplier, shift = np.full(values.size, rq.multiplier[row]), np.full(values.size, rq.shift[row])
    if rq.double:
        for j in range(values.size):
            values[j] = rescale_double(values[j], multiplier[j], shift[j])
    else:
        for j in range(values.size):
            values[j] = rescale(values[j], multiplier[j], shift[j])
    if rq.second.shape[0]:
        bias, scale, right = rq.late_bias[column:], rq.second[row, 0], rq.second[row, 1]
        for j in range(values.size):
            value = rescale(clamp(values[j], INT32_LOW, INT32_HIGH), scale, right)
            value = clamp(clamp(value, INT32_LOW, INT32_HIGH) + bias[j], INT32_LOW, INT32_HIGH)
            values[j] = rescale(value, 1, rq.fraction_bits)


@inlined
def write(values: Any, column: int, row: int, out: Output, results: Any) -> int:
    """Clamp ``values`` and write them to their row of the output; return how many the clamp changed."""
    clipped = 0
    for j in range(values.size):
        result = clamp(clamp(values[j], INT32_LOW, INT32_HIGH) + out.zero_point, out.low, out.high)
        clipped += result != values[j] + out.zero_point
        results[j] = result
    place = out.memory[
        out.at[row] + (column * out.bits >> 3) : out.at[row] + ((column + values.size) * out.bits + 7 >> 3)
    ]
    if out.bits == 8:
        copy(results, place)
    elif out.bits == 16:
        halves = np.empty(values.size, np.int16)
        copy(results, halves)
        copy(halves.view(np.uint8), place)
    elif out.bits == 32:
        copy(results.view(np.uint8), place)
    else:
        place[:] = 0
        for j in range(values.size):
            bit, value = j * out.bits, results[j] & ((1 << out.bits) - 1)
            place[bit >> 3] |= value << (bit & 7)
            if (bit & 7) + out.bits > 8:
                place[(bit >> 3) + 1] |= value >> (8 - (bit & 7))
    return clipped


@kernel
def execute_rows(
    left: Left, right: Columns, plan: Plan, panel: int, sums: Any, row_sums: Any, acc: Accumulators, rq: Requantizers,
    out: Output, saturated: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Multiply, correct, requantize and write the groups of rows first..last - 1; return the number of overflows.

    A group is up to ``TILE_ROWS`` rows of one batch; ``panel`` is how many vectors of columns a tile takes. ``sums``
    int64 (rows, n), or (0, n) where they are 0, and ``row_sums`` int64 (rows,) is what the accumulators start from; they
    are brought up to date where the sums are held. ``saturated`` int64 (rows,) counts outputs that the clamp changed.
    Where b has no units, nothing is multiplied.
    """
    batches, vectors, units, lanes = right.units.shape
    n, m = right.sums.shape[1], left.at.size // batches
    groups = (m + TILE_ROWS - 1) // TILE_ROWS
    words = np.zeros(left.k, np.int16)
    packed = np.zeros((plan.digits, BLOCK_ROWS, units + ROW_GAP), np.int32)
    block, values = np.empty((BLOCK_ROWS, panel * lanes), np.int32), np.empty((BLOCK_ROWS, panel * lanes), np.int64)
    nothing, results = np.zeros(vectors * lanes, np.int32), np.empty(panel * lanes, np.int32)
    offset = 128 if plan.as_bytes and left.signed else 0
    overflows, group = 0, first
    while group < last:
        batch, inside = group // groups, group % groups
        count = min(BLOCK_ROWS // TILE_ROWS, min(groups - inside, last - group))
        top, rows = batch * m + inside * TILE_ROWS, min(count * TILE_ROWS, m - inside * TILE_ROWS)
        group += count
        if units:
            for r in range(rows):
                row_sums[top + r] += pack_row(left, top + r, plan, words, packed, r)
        for vector in range(0, vectors, panel):
            wide, column = min(panel, vectors - vector), vector * lanes
            width = min(n - column, wide * lanes)
            for r in range(rows):
                row, zero, column_sums = values[r, :width], left.zero[top + r] + offset, right.sums[batch, column:]
                for j in range(width):
                    row[j] = -zero * column_sums[j]
                if sums.shape[0]:
                    start = sums[top + r, column:]
                    for j in range(width):
                        row[j] += start[j]
            for digit in range(plan.digits):
                for unit in range(0, units, plan.segment):
                    multiply(
                        packed[digit], 0, rows, right.units[batch], vector, wide, unit, min(plan.segment, units - unit),
                        plan.as_bytes, nothing, block.ctypes.data, block.shape[1] * 4,
                    )  # fmt: skip
                    for r in range(rows):
                        row, added = values[r, :width], block[r]
                        for j in range(width):
                            row[j] += np.int64(added[j]) << (8 * digit)
            for r in range(rows):
                row = values[r, :width]
                if acc.hold:
                    copy(row, sums[top + r, column : column + width])
                    continue
                overflows += correct(row, column, row_sums[top + r], rq, acc)
                requantize(row, column, top + r, rq)
                saturated[top + r] += write(row, column, top + r, out, results)
    return overflows


@kernel
def add_folds(
    a: Any, b: Any, segment: int, acc_low: int, acc_high: int, overflow: int,
    acc: Any, row_sums: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Add the groups first..last - 1 of four rows of products to ``acc``; return how often an accumulator overflowed.

    a: (batch * m, k), b: (batch, k, n); the type of ``a`` is that of the sums within a segment. After each ``segment``
    columns of k the sums go to the accumulators ``acc`` int64 (batch * m, n), which are then narrowed. The sums of the
    rows of a are added to ``row_sums`` int64 (batch * m,).
    """
    k, n = b.shape[1], b.shape[2]
    m = a.shape[0] // b.shape[0]
    groups = (m + FOLD_ROWS - 1) // FOLD_ROWS
    overflows = 0
    sums = np.empty((FOLD_ROWS, n), a.dtype)
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    for group in range(first, last):
        batch, start = group // groups, group % groups * FOLD_ROWS
        rows, row = min(FOLD_ROWS, m - start), group // groups * m + start
        # A group at the end computes its last row more than once and writes it once.
        a0, a1, a2, a3 = a[row], a[row + min(1, rows - 1)], a[row + min(2, rows - 1)], a[row + min(3, rows - 1)]
        for k0 in range(0, k, segment):
            k1 = min(k, k0 + segment)
            even = k0 + (k1 - k0) // 2 * 2
            sums[:] = 0
            for p in range(k0, even, 2):
                b0, b1 = b[batch, p], b[batch, p + 1]
                a00, a01, a10, a11 = a0[p], a0[p + 1], a1[p], a1[p + 1]
                a20, a21, a30, a31 = a2[p], a2[p + 1], a3[p], a3[p + 1]
                for j in range(n):
                    v0, v1 = b0[j], b1[j]
                    s0[j] += a00 * v0 + a01 * v1
                    s1[j] += a10 * v0 + a11 * v1
                    s2[j] += a20 * v0 + a21 * v1
                    s3[j] += a30 * v0 + a31 * v1
            for p in range(even, k1):
                for j in range(n):
                    s0[j] += a0[p] * b[batch, p, j]
                    s1[j] += a1[p] * b[batch, p, j]
                    s2[j] += a2[p] * b[batch, p, j]
                    s3[j] += a3[p] * b[batch, p, j]
            for r in range(rows):
                for j in range(n):
                    value = acc[row + r, j] + sums[r, j]
                    overflows += value < acc_low or value > acc_high
                    acc[row + r, j] = narrow_accumulator(value, acc_low, acc_high, overflow)
        for r in range(rows):
            for p in range(k):
                row_sums[row + r] += a[row + r, p]
    return overflows
