"""The kernels of MATMUL: a block of rows is packed, multiplied, requantized and written while it is in cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel
from npusim.engine.dot import TILE_ROWS
from npusim.engine.gemm import BLOCK_ROWS, ROW_GAP, Columns, Elements, address, multiply, read_row
from npusim.engine.scalar import INT32_HIGH, INT32_LOW, WRAP, clamp, narrow_accumulator, rescale, rescale_double

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
    """Operand a: ``k`` elements in a row, and what is done to them.

    ``zero``: int64 (rows,), subtracted from what `read_row` reads. ``shifts``: int16 (k,), or (0,). ``sum_rows``: 1
    where sums of rows are asked for.
    """

    elements: Elements
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
    """The records as int64 arrays (n,); with ``by_row``, the scale is (rows,).

    ``second``: (rows, 2), multiplier and shift of the factored modes, which add ``late_bias`` behind it; else (0, 2).
    ``low``, ``high``: what the output is clamped to behind ``zero_point``.
    """

    bias: NDArray[np.int64]
    weight_zero: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    by_row: int
    rounds_twice: int
    second: NDArray[np.int64]
    late_bias: NDArray[np.int64]
    fraction_bits: int
    zero_point: int
    low: int
    high: int


@inlined
def pack_rows(
    left: Left, batch: int, inside: int, rows: int, top: int, plan: Plan, elements: Any, packed_bytes: Any,
    packed_words: Any, row_sums: Any,
) -> None:  # fmt: skip
    """Pack some rows of a batch, from row ``inside`` on, and add their elements to ``row_sums`` from ``top`` on.

    ``elements``: int16 (k,), scratch; ``packed_bytes``, ``packed_words``: views of (digits, rows, units).
    """
    k, offset = elements.size, np.int16(128 * left.elements.signed)
    for r in range(rows):
        read_row(left.elements, batch, inside + r, elements)
        if plan.as_bytes:
            for i in range(k):
                packed_bytes[0, r, i] = elements[i] + offset
        elif plan.digits == 1:
            for i in range(k):
                packed_words[0, r, i] = elements[i]
        else:
            for i in range(k):
                packed_words[0, r, i] = elements[i] & 255
                packed_words[1, r, i] = elements[i] >> 8
        if left.sum_rows:
            zero, total = left.zero[top + r], np.int64(0)
            for i in range(k):
                total += elements[i]
            for i in range(left.shifts.size):
                total += (elements[i] - zero) * ((1 << left.shifts[i]) - 1)
            row_sums[top + r] += total - k * zero


@inlined
def correct(values: Any, rows: int, bias: Any, weight_zero: Any, row_sums: Any, acc: Accumulators) -> int:
    """Add bias and row sums to ``values`` (rows, columns), and narrow; return how often an accumulator overflowed."""
    overflows = 0
    for r in range(rows):
        row_sum = row_sums[r]
        for j in range(bias.size):
            value = values[r, j] + bias[j] - weight_zero[j] * row_sum
            narrowed = clamp(value, acc.low, acc.high)
            overflows += narrowed != value
            values[r, j] = value if acc.overflow == WRAP else narrowed
        if acc.overflow == WRAP:
            for j in range(bias.size):
                values[r, j] = narrow_accumulator(values[r, j], acc.low, acc.high, WRAP)
    return overflows


@inlined
def requantize(values: Any, rows: int, top: int, column: int, columns: int, rq: Requantizers) -> None:
    """Multiply, shift and round the sums in ``values`` (rows, columns); the results are not yet clamped."""
    multiplier, shift = rq.multiplier[column : column + columns], rq.shift[column : column + columns]
    late_bias = rq.late_bias[column : column + columns]
    if rq.by_row:
        multiplier, shift = np.empty(columns, np.int64), np.empty(columns, np.int64)
    for r in range(rows):
        if rq.by_row:
            for j in range(columns):
                multiplier[j], shift[j] = rq.multiplier[top + r], rq.shift[top + r]
        if rq.rounds_twice:
            for j in range(columns):
                values[r, j] = rescale_double(values[r, j], multiplier[j], shift[j])
        else:
            for j in range(columns):
                values[r, j] = rescale(values[r, j], multiplier[j], shift[j])
        if rq.second.shape[0]:
            scale, right = rq.second[top + r, 0], rq.second[top + r, 1]
            for j in range(columns):
                value = rescale(clamp(values[r, j], INT32_LOW, INT32_HIGH), scale, right)
                value = clamp(clamp(value, INT32_LOW, INT32_HIGH) + late_bias[j], INT32_LOW, INT32_HIGH)
                values[r, j] = rescale(value, 1, rq.fraction_bits)


@inlined
def write(values: Any, r: int, columns: int, at: int, rq: Requantizers, out: Elements, results: Any) -> int:
    """Clamp row ``r`` of the results and write it from byte ``at`` on; return how many the clamp changed."""
    clipped, memory, bits = 0, out.memory, out.bits
    for j in range(columns):
        value = values[r, j] + rq.zero_point
        results[j] = clamp(value, rq.low, rq.high)
        clipped += results[j] != value
    # Unsigned, because an index that may be negative for all Numba knows keeps LLVM from vector instructions.
    first = np.uint64(at)
    if bits == 8:
        for j in range(columns):
            memory[first + np.uint64(j)] = results[j]
    elif bits == 16:
        for j in range(columns):
            memory[first + np.uint64(2 * j)] = results[j]
            memory[first + np.uint64(2 * j + 1)] = results[j] >> 8
    elif bits == 32:
        for j in range(columns):
            for byte in range(4):
                memory[first + np.uint64(4 * j + byte)] = results[j] >> 8 * byte
    else:
        _write_packed(results[:columns], bits, memory[at : at + (columns * bits + 7 >> 3)])
    return clipped


@inlined
def _write_packed(results: Any, bits: int, place: Any) -> None:
    for byte in range(place.size):
        place[byte] = 0
    for j in range(results.size):
        byte, shift, value = j * bits >> 3, j * bits & 7, results[j] & ((1 << bits) - 1)
        place[byte] |= value << shift
        if shift + bits > 8:
            place[byte + 1] |= value >> (8 - shift)


@kernel
def execute_rows(
    left: Left, right: Columns, plan: Plan, panel: int, sums: Any, row_sums: Any, acc: Accumulators, rq: Requantizers,
    out: Elements, saturated: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Multiply, correct, requantize and write the groups of rows first..last - 1; return the number of overflows.

    A group is up to ``TILE_ROWS`` rows of one batch; ``panel`` is how many vectors of columns a tile takes. ``sums``
    int64 (rows, n), or (0, n) where they are 0, and ``row_sums`` int64 (rows,) are what the accumulators start from;
    they are brought up to date where the sums are held. ``saturated`` int64 (rows,) counts the outputs that the clamp
    changed. Where b has no units, nothing is multiplied.
    """
    batches, vectors, units, lanes = right.units.shape
    n, m = right.sums.shape[1], row_sums.size // batches
    groups = (m + TILE_ROWS - 1) // TILE_ROWS
    elements = np.empty(left.k, np.int16)
    packed = np.zeros((plan.digits, BLOCK_ROWS, units + ROW_GAP), np.int32)
    packed_bytes, packed_words = packed.view(np.uint8), packed.view(np.int16)
    block, values = np.empty((BLOCK_ROWS, panel * lanes), np.int32), np.empty((BLOCK_ROWS, panel * lanes), np.int64)
    nothing, results = np.zeros(vectors * lanes, np.int32), np.empty(panel * lanes, np.int32)
    offset = 128 if plan.as_bytes and left.elements.signed else 0
    overflows, group = 0, first
    while group < last:
        batch, inside = group // groups, group % groups * TILE_ROWS
        rows = min(min(BLOCK_ROWS, (last - group) * TILE_ROWS), m - inside)
        group += (rows + TILE_ROWS - 1) // TILE_ROWS
        top = batch * m + inside
        if units:
            pack_rows(left, batch, inside, rows, top, plan, elements, packed_bytes, packed_words, row_sums)
        for vector in range(0, vectors, panel):
            wide, column = min(panel, vectors - vector), vector * lanes
            columns = min(n - column, wide * lanes)
            column_sums = right.sums[batch, column : column + columns]
            for r in range(rows):
                zero = left.zero[top + r] + offset
                for j in range(columns):
                    values[r, j] = -zero * column_sums[j]
                if sums.shape[0]:
                    for j in range(columns):
                        values[r, j] += sums[top + r, column + j]
            for digit in range(plan.digits):
                for unit in range(0, units, plan.segment):
                    multiply(
                        packed[digit], 0, rows, right.units[batch], vector, wide, unit, min(plan.segment, units - unit),
                        plan.as_bytes, nothing, block.ctypes.data, block.shape[1] * 4,
                    )  # fmt: skip
                    for r in range(rows):
                        for j in range(columns):
                            values[r, j] += np.int64(block[r, j]) << (8 * digit)
            if acc.hold:
                for r in range(rows):
                    for j in range(columns):
                        sums[top + r, column + j] = values[r, j]
                continue
            bias, weight_zero = rq.bias[column : column + columns], rq.weight_zero[column : column + columns]
            overflows += correct(values, rows, bias, weight_zero, row_sums[top:], acc)
            requantize(values, rows, top, column, columns, rq)
            for r in range(rows):
                at = address(out, batch, inside + r) + (column * out.bits >> 3)
                saturated[top + r] += write(values, r, columns, at, rq, out, results)
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
