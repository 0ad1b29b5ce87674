"""Handler of MATMUL, for operands of 8 and 16 bits where no accumulator can overflow.

The products are those of `npusim.engine.gemm`; b is packed by transposing blocks of units in registers, and a is read
where it lies if its bytes are units already.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine import amx
from npusim.engine.cache import helper
from npusim.engine.context import (
    ARENA,
    ARENA_BYTES,
    COLUMNS,
    ELEMENT_BYTES,
    HIGH,
    I8,
    I16,
    KIND_OF,
    LOW,
    MOST,
    PARAM,
    SIZE,
    SRAM,
    U8,
    U16,
    UNIT,
    Place,
    Words,
    apart,
    columns,
    share,
    tally,
    words,
)  # fmt: skip
from npusim.engine.dot import TILE_ROWS, VARIANT, tile
from npusim.engine.finish import FOUR_DIGITS, NARROW_SUMS, TWO_DIGITS, WIDE_SUMS, finish
from npusim.engine.kept import COLUMNS as COLUMNS_SLOT
from npusim.engine.kept import OTHER_COLUMNS, ROWS, drop, is_kept, keep, slot_of_columns
from npusim.engine.lanes import PAIRED_ROW, WIDTH, paired
from npusim.engine.native import carray, pointer
from npusim.engine.order import begin, region
from npusim.engine.scalar import INT32_HIGH, INT32_LOW, clamp
from npusim.engine.stream_digits import MOST_K, split_columns, split_row
from npusim.engine.stream_pack import pack_columns, pack_row, sum_columns, sum_row
from npusim.engine.stream_rows import place32, place64, scratch32, scratch64
from npusim.isa.encoding import MAX_SHIFT
from npusim.isa.matmul import RQ_MODES
from npusim.units import KINDS as UNIT_NAMES

MATMUL, KIND = columns("matmul"), KIND_OF["matmul"]
TENSOR, CHANNEL, ROW = (RQ_MODES.index(name) for name in ("tensor", "channel", "row"))
LANES, PANEL = VARIANT.lanes, VARIANT.vectors
BLOCK_ROWS = amx.ROWS * TILE_ROWS
PANEL_BYTES = 4 * LANES * PANEL
BLOCK_BYTES = BLOCK_ROWS * PANEL_BYTES
PLANE_BYTES = amx.ROWS * PANEL_BYTES + 4 * LANES
"""A plane of sums, and a line of the cache, so that rows of four planes lie apart."""
ACC_BITS, MULTIPLIER_BITS, ROW_SUMS, ROUNDS_TWICE, HELD, HELD_ROWS, HELD_M, HELD_N, HELD_BOUND, HELD_ROW_BOUND = (
    int(place)
    for place in (
        Place.ACC_BITS, Place.MULTIPLIER_BITS, Place.ROW_SUMS, Place.ROUNDS_TWICE, Place.HELD, Place.HELD_ROWS,
        Place.HELD_M, Place.HELD_N, Place.HELD_BOUND, Place.HELD_LARGEST_ROW,
    )
)  # fmt: skip
TILES = int(Place.TILES)
HELD_WORDS, UNIT_KINDS = int(Place.SECOND_HELD - Place.HELD), len(UNIT_NAMES)
"""Words about one array's held sums; kinds of units, so that a unit's number divided by it counts arrays."""
HELD_MOST = 1 << 20
"""Held sums that there is room for."""
LARGEST = tuple(max(HIGH[kind], -LOW[kind]) for kind in range(len(HIGH)))
BLOCK_AT, LEFT_AT, RIGHT_AT = 3 << 20, 4 << 20, 7 << 20
"""Where in the arena lie a block of results, packed rows of a, and packed b."""
HALF = (ARENA_BYTES - RIGHT_AT) // 2
"""Of the room for packed b, so that two of them can be kept."""
MOST_N, MOST_ROWS, ROW_SUMS_AT = (1 << 14) - 64, 1 << 14, 8
"""Limits of what scratch arrays hold; the number of that of a's sums of rows."""


@helper
def _extent(w: Words, size: int, rows: int, row: int, b0: int, b1: int) -> Any:
    """Bytes from first to last of an operand: rows of ``size`` bytes in both batches."""
    return size + (rows - 1) * row + (w[MATMUL.batch0] - 1) * b0 + (w[MATMUL.batch1] - 1) * b1


@helper
def _regions(c: Words, w: Words, a_size: int, b_size: int, out_size: int) -> Any:
    """Note all operands; False where one is not aligned or meets the result."""
    m, k, n = w[MATMUL.m], w[MATMUL.k], w[MATMUL.n]
    if (w[MATMUL.a_addr] | w[MATMUL.a_row] | w[MATMUL.a_b0] | w[MATMUL.a_b1]) & (a_size - 1):
        return False
    if (w[MATMUL.b_addr] | w[MATMUL.b_k] | w[MATMUL.b_n] | w[MATMUL.b_b0] | w[MATMUL.b_b1]) & (b_size - 1):
        return False
    a, b, out, rq = w[MATMUL.a_addr], w[MATMUL.b_addr], w[MATMUL.out_addr], w[MATMUL.rq_addr]
    a_bytes = _extent(w, k * a_size, m, w[MATMUL.a_row], w[MATMUL.a_b0], w[MATMUL.a_b1])
    b_bytes = _extent(w, b_size + (k - 1) * w[MATMUL.b_k], n, w[MATMUL.b_n], w[MATMUL.b_b0], w[MATMUL.b_b1])
    if not (region(c, SRAM, a, a_bytes, 0) and region(c, SRAM, b, b_bytes, 0)):
        return False
    if w[MATMUL.acc_hold]:
        return True
    if (w[MATMUL.out_addr] | w[MATMUL.out_row] | w[MATMUL.out_b0] | w[MATMUL.out_b1]) & (out_size - 1):
        return False
    out_bytes = _extent(w, n * out_size, m, w[MATMUL.out_row], w[MATMUL.out_b0], w[MATMUL.out_b1])
    if rq & 3 or not (region(c, SRAM, out, out_bytes, 1) and apart(a, a_bytes, out, out_bytes)):
        return False
    if w[MATMUL.rq_mode] == ROW:
        size = 4 * w[MATMUL.batch0] * w[MATMUL.batch1] * m
        return region(c, SRAM, rq, size, 0) and apart(rq, size, out, out_bytes) and apart(b, b_bytes, out, out_bytes)
    size = 12 * n if w[MATMUL.rq_mode] == CHANNEL else 12
    return region(c, PARAM, rq, size, 0) and apart(b, b_bytes, out, out_bytes)


@helper
def _largest(c: Words, w: Words) -> Any:
    """The greatest magnitude in a, of 16-bit elements: probabilities, for instance, use fewer bits than they have."""
    low, high = np.int64(0), np.int64(0)
    for batch in range(w[MATMUL.batch0] * w[MATMUL.batch1]):
        i0, i1 = batch // w[MATMUL.batch1], batch % w[MATMUL.batch1]
        at = c[SRAM] + w[MATMUL.a_addr] + i0 * w[MATMUL.a_b0] + i1 * w[MATMUL.a_b1]
        for r in range(w[MATMUL.m]):
            row = carray(pointer(at + r * w[MATMUL.a_row]), w[MATMUL.k], np.int16)
            least, most = np.int16(0), np.int16(0)
            for value in row:
                least, most = min(least, value), max(most, value)
            low, high = min(low, np.int64(least)), max(high, np.int64(most))
    return max(high, -low)


@helper
def _records(c: Words, w: Words, multiplier: Any, shift: Any, weight_zero: Any, bias: Any) -> tuple[Any, Any]:
    """Read the records of mode tensor or channel; greatest magnitudes of bias and zero point, the former -1 if bad."""
    n, limit = w[MATMUL.n], np.int64(1) << (c[MULTIPLIER_BITS] - 1)
    count = n if w[MATMUL.rq_mode] == CHANNEL else 1
    found = carray(pointer(c[PARAM] + w[MATMUL.rq_addr]), (count, 3), np.int32)
    largest_bias, largest_zero = np.int64(0), np.int64(0)
    for j in range(count):
        place = paired(j)
        bias[j] = (np.int64(np.int16(found[j, 1])) << 32) | (np.int64(found[j, 0]) & 0xFFFF_FFFF)
        weight_zero[j] = np.int64(np.int8(found[j, 1] >> 16))
        shift[place] = np.int64(found[j, 1] >> 24) & 255
        multiplier[place] = found[j, 2]
        if found[j, 2] < 0 or found[j, 2] >= limit or shift[place] < 1 or shift[place] > MAX_SHIFT:
            return -1, 0
        largest_bias, largest_zero = max(largest_bias, abs(bias[j])), max(largest_zero, abs(np.int64(weight_zero[j])))
    for j in range(count, n):
        bias[j], weight_zero[j] = bias[0], weight_zero[0]
        shift[paired(j)], multiplier[paired(j)] = shift[0], multiplier[0]
    return largest_bias, largest_zero


@helper
def _small(c: Words, w: Words, rows: int, multiplier: Any, shift: Any, bound: int) -> Any:
    """Whether sums up to ``bound``, multiplied and shifted, fit int32, with the zero point, before they are clamped."""
    most = np.int64(0)
    if w[MATMUL.rq_mode] == ROW:
        records = carray(pointer(c[SRAM] + w[MATMUL.rq_addr]), (rows, 2), np.int16)
        for i in range(rows):
            most = max(most, ((bound * np.int64(records[i, 0])) >> records[i, 1]))
    else:
        for j in range(w[MATMUL.n]):
            most = max(most, (bound * multiplier[paired(j)]) >> shift[paired(j)])
    return most + 1 + abs(w[MATMUL.out_zp]) <= INT32_HIGH


@helper
def _multiply(
    panel: int, rows: int, a: int, a_row: int, b: int, b_vector: int, units: int, start: int, block: int
) -> None:
    """Multiply some rows by ``panel`` vectors of columns on tiles; all of the last tile's rows are written."""
    for v in range(0, panel, 2):
        for r in range(0, rows, 2 * amx.ROWS):
            amx.multiply_tiles(
                1 if rows - r <= amx.ROWS else 2, min(panel - v, 2), a + r * a_row, a_row, b + v * b_vector, b_vector,
                units // LANES, start + v * 4 * LANES, block + r * PANEL_BYTES + v * 4 * LANES, PANEL_BYTES,
            )  # fmt: skip


@helper
def _multiply_units(
    as_bytes: int, panel: int, rows: int, a: int, a_row: int, b: int, b_vector: int, units: int, start: int, block: int
) -> None:
    """The same by dot products of units."""
    for r in range(0, rows, TILE_ROWS):
        tile(as_bytes, panel, a + r * a_row, a_row, b, b_vector, units, start, block + r * PANEL_BYTES, PANEL_BYTES)


@helper
def _widen(block: int, plane: int, rows: int, count: int, digit: int, fresh: bool, bias: Any) -> None:
    """Add int32 sums of a digit, ``plane`` bytes behind a block's begin, to its int64 ones, which are far behind.

    ``fresh``: these are the bias as yet.
    """
    for r in range(rows):
        sums = carray(pointer(block + plane + r * PANEL_BYTES), count, np.int32)
        wide = carray(pointer(block + 2 * BLOCK_BYTES + 2 * r * PANEL_BYTES), count, np.int64)
        if fresh:
            for j in range(count):
                wide[j] = bias[j] + np.int64(sums[j])
        else:
            for j in range(count):
                wide[j] += np.int64(sums[j]) << (8 * digit)


@helper
def _scale_rows(c: Words, w: Words, first: int, rows: int, multiplier: Any, shift: Any, rounding: Any) -> None:
    """Read the records of some rows, each eight times as `npusim.engine.finish` takes them."""
    records = carray(pointer(c[SRAM] + w[MATMUL.rq_addr]), (first + rows, 2), np.int16)
    for r in range(rows):
        for lane in range(8 * r, 8 * r + 8):
            multiplier[lane], shift[lane] = records[first + r, 0], records[first + r, 1]
            rounding[lane] = np.int64(1) << (shift[lane] - 1)


@helper
def _exchange(block: int, rows: int, count: int, goes_on: int, hold: int, held: Any) -> None:
    """Add held sums to those of a block, and hold them."""
    for r in range(rows):
        sums = carray(pointer(block + r * PANEL_BYTES), count, np.int32)
        if goes_on:
            for j in range(count):
                sums[j] += held[r, j]
        if hold:
            for j in range(count):
                held[r, j] = sums[j]


@helper
def _requantize(
    c: Words, w: Words, form: int, largest_zero: int, inner: int, first: int, rows: int, column: int, count: int,
    out: int, block: int, plane: int,
) -> Any:  # fmt: skip
    """Write results of some rows of a block's; return how many the clamp changed.

    ``first``: the first one's number in the block; ``inner``: the number of the block's first row; ``out``: place of
    that one's first column; ``column``: the first of ``count`` columns.
    """
    row_sums = place64(c, ROW_SUMS_AT) + 8 * (inner + first)
    kind, out_row, zero_point = w[MATMUL.out_dtype], w[MATMUL.out_row], w[MATMUL.out_zp]
    by_row, wide = np.int64(w[MATMUL.rq_mode] == ROW), np.int64(form == WIDE_SUMS)
    scales = PAIRED_ROW * first if by_row else 8 * column
    return finish(
        form, np.int64(largest_zero > 0), ELEMENT_BYTES[kind], rows, count,
        out + first * out_row + column * ELEMENT_BYTES[kind], out_row, block + wide * 2 * BLOCK_BYTES,
        PANEL_BYTES << wide, plane, place32(c, 1) + 4 * column, row_sums, place64(c, 5) + scales,
        place64(c, 7) + scales, place64(c, 0) + scales, PAIRED_ROW * by_row, 1 - by_row, zero_point,
        clamp(INT32_LOW + zero_point, LOW[kind], HIGH[kind]), clamp(INT32_HIGH + zero_point, LOW[kind], HIGH[kind]),
    )  # fmt: skip


def matmul(context: int, row: int) -> int:
    """Execute a MATMUL; 0 where it is left to the other kernels."""
    c, w = words(context, SIZE), words(row, COLUMNS)
    m, k, n, batches = w[MATMUL.m], w[MATMUL.k], w[MATMUL.n], w[MATMUL.batch0] * w[MATMUL.batch1]
    a_kind, b_kind, out_kind, mode = w[MATMUL.a_dtype], w[MATMUL.b_dtype], w[MATMUL.out_dtype], w[MATMUL.rq_mode]
    a_size, b_size, out_size = ELEMENT_BYTES[a_kind], ELEMENT_BYTES[b_kind], ELEMENT_BYTES[out_kind]
    hold, goes_on = w[MATMUL.acc_hold], w[MATMUL.acc_continue]
    second = HELD_WORDS * (w[UNIT] // UNIT_KINDS)
    if not (0 < m <= MOST_ROWS and 0 < k < MOST and 0 < n <= MOST_N and 0 < batches < MOST):
        return 0
    if a_size == 0 or (b_kind != I8 and b_kind != I16) or a_size < b_size or w[MATMUL.shifted]:
        return 0
    if not hold and (out_size == 0 or mode > ROW or c[ROUNDS_TWICE]):
        return 0
    if (hold or goes_on) and (batches != 1 or m * n > HELD_MOST):
        return 0
    if goes_on and (c[HELD_M + second] != m or c[HELD_N + second] != n):
        return 0
    split = a_kind == I16 and b_kind == I16 and c[TILES] != 0 and k <= MOST_K
    as_bytes, per_unit = (1, 4) if a_size == 1 or split else (0, 2)
    along = k == 1 or w[MATMUL.b_k] == b_size
    if not along and (b_size != 2 or w[MATMUL.b_n] != 2):
        return 0
    digits = 2 if a_kind == U16 or b_kind == I16 else 1
    word = 255 if digits == 2 or as_bytes else 32768
    segment = INT32_HIGH // (word * LARGEST[b_kind]) // per_unit
    units = (k + per_unit - 1) // per_unit
    padded, vectors = (units + LANES - 1) // LANES * LANES, (n + LANES - 1) // LANES
    left_row = 4 * padded + 64
    b_plane = vectors * padded * 4 * LANES
    b_packed = b_plane * (2 if split else 1)
    if RIGHT_AT + b_packed > ARENA_BYTES or digits * BLOCK_ROWS * left_row > RIGHT_AT - LEFT_AT - (1 << 20):
        return 0
    bound = k * LARGEST[a_kind] * LARGEST[b_kind] + (c[HELD_BOUND + second] if goes_on else 0)
    row_bound = k * LARGEST[a_kind] + (c[HELD_ROW_BOUND + second] if goes_on else 0)
    room = np.int64(1) << (c[ACC_BITS] - 1)
    if (bound >= room and a_kind != I16) or ((hold or goes_on) and bound > INT32_HIGH):
        return 0
    if not _regions(c, w, a_size, b_size, out_size):
        return 0
    begin(c)
    if bound >= room:
        bound = k * _largest(c, w) * LARGEST[b_kind]
    weight_zero, start = scratch32(c, 1, n), scratch32(c, 2, vectors * LANES)
    shift, fixed = scratch64(c, 0, n + WIDTH), scratch64(c, 1, n)
    multiplier, rounding = scratch64(c, 5, n + WIDTH), scratch64(c, 7, n + WIDTH)
    largest_bias, largest_zero = np.int64(0), np.int64(0)
    if not hold and mode != ROW:
        largest_bias, largest_zero = _records(c, w, multiplier, shift, weight_zero, fixed)
        if largest_bias < 0 or (largest_zero and not c[ROW_SUMS]):
            return 0
    if hold or mode == ROW:
        for j in range(n):
            fixed[j] = 0
    if mode == ROW and not hold:
        records = carray(pointer(c[SRAM] + w[MATMUL.rq_addr]), (batches * m, 2), np.int16)
        for i in range(batches * m):
            if records[i, 0] < 0 or records[i, 1] < 1 or records[i, 1] > MAX_SHIFT:
                return 0
    total_bound = bound + largest_bias + largest_zero * row_bound
    if total_bound >= room:
        return 0
    small = hold or _small(c, w, batches * m, multiplier, shift, total_bound)
    narrow = digits == 1 and units <= segment and total_bound <= INT32_HIGH and small
    if (hold or goes_on) and not narrow:
        return 0
    sums_rows = hold or largest_zero > 0
    held = carray(pointer(c[HELD + second]), (m, n), np.int32)
    held_rows = carray(pointer(c[HELD_ROWS + second]), m, np.int64)
    row_sums = scratch64(c, ROW_SUMS_AT, m)
    form = NARROW_SUMS if narrow else WIDE_SUMS
    if digits == 2 and small and largest_zero == 0 and (split or units <= segment):
        form = FOUR_DIGITS if split else TWO_DIGITS
    for j in range(0 if hold or mode == ROW else n):
        place = paired(j)
        rounding[place] = np.int64(1) << (shift[place] - 1)
        if form in (TWO_DIGITS, FOUR_DIGITS):
            rounding[place] += fixed[j] * multiplier[place]
    column_sums, bias = scratch64(c, 2, n), scratch64(c, 3, n)
    left, block = c[ARENA] + LEFT_AT, c[ARENA] + BLOCK_AT
    b_step, b_form, alone = w[MATMUL.b_k], 4 * b_size + 2 * as_bytes + split, batches == 1 and b_packed <= HALF
    slot = COLUMNS_SLOT
    if alone:
        slot = slot_of_columns(c, w[MATMUL.b_addr], k, n, w[MATMUL.b_n], b_step, b_form)
    kept = alone and is_kept(c, slot, w[MATMUL.b_addr], k, n, w[MATMUL.b_n], b_step, b_form)
    if not kept:
        drop(c, slot)
    if b_packed > HALF:
        drop(c, OTHER_COLUMNS)
    right = c[ARENA] + RIGHT_AT + (slot - COLUMNS_SLOT) * HALF
    direct = k % per_unit == 0 and digits == 1 and a_kind != I8 and a_kind != U16
    b_vector = padded * 4 * LANES
    tiles = a_size == 1 and c[TILES] != 0 and units <= segment
    step = amx.ROWS if tiles or split else TILE_ROWS
    if tiles:
        direct = a_kind == U8 and k % (4 * LANES) == 0
    if tiles or split:
        amx.configure(c[TILES])
    # Threads hold and find the same rows of sums, whatever the operands' types.
    piece = amx.ROWS if hold or goes_on else step
    changed, packed_batch, groups = 0, -1, (m + piece - 1) // piece
    group, last = share(c, batches * groups)
    pure = sums_rows and batches == 1 and not (hold or goes_on)
    summed = pure and is_kept(c, ROWS, w[MATMUL.a_addr], k, m, w[MATMUL.a_row], a_kind, piece)
    if sums_rows and not summed:
        drop(c, ROWS)
    while group < last:
        batch, inner = group // groups, group % groups * piece
        rows = min(min(BLOCK_ROWS, (last - group) * piece), m - inner)
        group += (rows + piece - 1) // piece
        i0, i1 = batch // w[MATMUL.batch1], batch % w[MATMUL.batch1]
        if batch != packed_batch:
            packed_batch = batch
            b = c[SRAM] + w[MATMUL.b_addr] + i0 * w[MATMUL.b_b0] + i1 * w[MATMUL.b_b1]
            if split and not kept:
                split_columns(k, n, w[MATMUL.b_n], b_step, b, along, padded, right, b_plane, left)
            elif not kept:
                pack_columns(k, n, w[MATMUL.b_n], b_step, b, along, b_size, as_bytes, padded, right, left)
            if a_kind == I8:
                sum_columns(n, padded, right, column_sums)
            for j in range(n):
                bias[j] = fixed[j] - (128 * column_sums[j] if a_kind == I8 else 0)
            for j in range(vectors * LANES):
                start[j] = bias[j] if narrow and j < n else 0
        a_row = w[MATMUL.a_row]
        a = c[SRAM] + w[MATMUL.a_addr] + i0 * w[MATMUL.a_b0] + i1 * w[MATMUL.a_b1] + inner * a_row
        whole = rows // step * step if direct else 0
        for r in range(whole, rows):
            at = left + (r - whole) * left_row
            if split:
                split_row(a + r * a_row, k, 4 * padded, at, at + BLOCK_ROWS * left_row)
            else:
                pack_row(a + r * a_row, k, a_kind, digits, at, at + BLOCK_ROWS * left_row, units)
        for r in range(inner, inner + rows if sums_rows and not summed else 0):
            row_sums[r] = sum_row(a + (r - inner) * a_row, k, a_kind)
            if goes_on:
                row_sums[r] += held_rows[r]
            if hold:
                held_rows[r] = row_sums[r]
        if mode == ROW and not hold:
            _scale_rows(c, w, batch * m + inner, rows, multiplier, shift, rounding)
        out = c[SRAM] + w[MATMUL.out_addr] + i0 * w[MATMUL.out_b0] + i1 * w[MATMUL.out_b1] + inner * w[MATMUL.out_row]
        for vector in range(0, vectors, PANEL):
            panel, column = min(PANEL, vectors - vector), vector * LANES
            count = min(n - column, panel * LANES)
            b_at, begins = right + vector * b_vector, c[ARENA] + (2 << 16) + 4 * column
            if tiles:
                _multiply(panel, whole, a, a_row, b_at, b_vector, padded, begins, block)
                rest = block + whole * PANEL_BYTES
                _multiply(panel, rows - whole, left, left_row, b_at, b_vector, padded, begins, rest)
                if form == WIDE_SUMS:
                    _widen(block, 0, rows, count, 0, True, bias[column:])
            for r in range(0, rows if split else 0, amx.ROWS):
                some = min(amx.ROWS, rows - r)
                for v in range(panel):
                    amx.multiply_digits(
                        left + r * left_row, BLOCK_ROWS * left_row, left_row, b_at + v * b_vector, b_plane,
                        padded // LANES, block + v * 4 * LANES, PLANE_BYTES, PANEL_BYTES,
                    )  # fmt: skip
                if form == WIDE_SUMS:
                    for number in range(4):
                        digit = (number + 1) // 2
                        _widen(block, number * PLANE_BYTES, some, count, digit, number == 0, bias[column:])
                changed += _requantize(c, w, form, largest_zero, inner, r, some, column, count, out, block, PLANE_BYTES)
            for digit in range(0 if tiles or split else digits):
                for unit in range(0, units, segment):
                    some = min(segment, units - unit)
                    target = block + digit * BLOCK_BYTES if form == TWO_DIGITS else block
                    at, place = 4 * unit, b_at + unit * 4 * LANES
                    _multiply_units(as_bytes, panel, whole, a + at, a_row, place, b_vector, some, begins, target)
                    at += left + digit * BLOCK_ROWS * left_row
                    target += whole * PANEL_BYTES
                    _multiply_units(as_bytes, panel, rows - whole, at, left_row, place, b_vector, some, begins, target)
                    if form == WIDE_SUMS:
                        _widen(block, 0, rows, count, digit, digit == 0 and unit == 0, bias[column:])
            if hold or goes_on:
                _exchange(block, rows, count, goes_on, hold, held[inner : inner + rows, column : column + count])
            if not (hold or split):
                changed += _requantize(c, w, form, largest_zero, inner, 0, rows, column, count, out, block, BLOCK_BYTES)
    if pure:
        a_bytes = _extent(w, k * a_size, m, w[MATMUL.a_row], 0, 0)
        keep(c, ROWS, a_bytes, w[MATMUL.a_addr], k, m, w[MATMUL.a_row], a_kind, piece)
    if alone and packed_batch == 0:
        b_bytes = _extent(w, b_size + (k - 1) * b_step, n, w[MATMUL.b_n], 0, 0)
        keep(c, slot, b_bytes, w[MATMUL.b_addr], k, n, w[MATMUL.b_n], b_step, b_form)
    if hold:
        c[HELD_M + second], c[HELD_N + second] = m, n
        c[HELD_BOUND + second], c[HELD_ROW_BOUND + second] = bound, row_bound
    else:
        c[HELD_M + second] = 0
    if tiles or split:
        amx.release()
    tally(c, w, KIND, changed, 0 if hold else batches * m * n)
    return 1
