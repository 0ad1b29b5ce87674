"""Packing of a MATMUL's operands by its handler: rows, and columns whose units are transposed in registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import helper
from npusim.engine.context import I8, I16, U8, U16
from npusim.engine.dot import VARIANT
from npusim.engine.native import carray, move, pointer, sum_bytes, turn

LANES = VARIANT.lanes


@helper
def pack_columns(
    k: int,
    n: int,
    row: int,
    k_step: int,
    b: int,
    along: int,
    b_size: int,
    as_bytes: int,
    padded: int,
    target: int,
    rows_at: int,
) -> None:
    """Pack b, whose bytes start at ``b``, as vectors of ``padded`` units for `tile`; zeros behind the last k.

    ``row``, ``k_step``: bytes between its columns and between elements along k; ``along``: whether k is contiguous,
    else n is. ``rows_at``: address of room beside, for rows.
    """
    if not along:  # n contiguous, words
        for v in range(0, n, LANES):
            count = min(LANES, n - v)
            for unit in range(padded):
                units = carray(pointer(target + (v // LANES * padded + unit) * 4 * LANES), LANES, np.int32)
                if 2 * unit >= k:
                    for lane in range(LANES):
                        units[lane] = 0
                    continue
                at = b + 2 * unit * k_step + v * b_size
                even = carray(pointer(at), count, np.int16)
                if 2 * unit + 1 < k:
                    odd = carray(pointer(at + k_step), count, np.int16)
                    for lane in range(count):
                        units[lane] = (np.int32(odd[lane]) << 16) | (np.int32(even[lane]) & 0xFFFF)
                else:
                    for lane in range(count):
                        units[lane] = np.int32(even[lane]) & 0xFFFF
                for lane in range(count, LANES):
                    units[lane] = 0
        return
    size, block = k * b_size, 4 * LANES
    widen = not as_bytes and b_size == 1
    for v in range(0, n, LANES):
        last, place = min(LANES, n - v) - 1, target + v * padded * 4
        source, step, whole = b + v * row, row, size // block
        if widen:  # to words, beside
            step = 4 * padded
            for lane in range(last + 1):
                narrow = carray(pointer(source + lane * row), k, np.int8)
                wide = carray(pointer(rows_at + lane * step), 2 * padded, np.int16)
                for i in range(k):
                    wide[i] = narrow[i]
                for i in range(k, 2 * padded):
                    wide[i] = 0
            source, whole = rows_at, padded // LANES
        for i in range(whole):
            turn(source + i * block, step, last, place + i * LANES * block)
        if whole * LANES < padded:
            for lane in range(last + 1):
                ends = carray(pointer(rows_at + lane * block), block, np.uint8)
                rest = size - whole * block
                move(rows_at + lane * block, source + lane * step + whole * block, rest)
                for i in range(rest, block):
                    ends[i] = 0
            turn(rows_at, block, last, place + whole * LANES * block)


@helper
def sum_columns(n: int, padded: int, right: int, sums: Any) -> None:
    """Sums of the packed columns' bytes."""
    for v in range(0, n, LANES):
        count = min(LANES, n - v)
        for lane in range(count):
            sums[v + lane] = 0
        for unit in range(padded):
            octets = carray(pointer(right + (v * padded + unit * LANES) * 4), 4 * LANES, np.int8)
            for lane in range(count):
                at = 4 * lane
                sums[v + lane] += (
                    np.int64(octets[at])
                    + np.int64(octets[at + 1])
                    + np.int64(octets[at + 2])
                    + np.int64(octets[at + 3])
                )


@helper
def pack_row(source: int, k: int, kind: int, digits: int, low: int, high: int, units: int) -> None:
    """Pack one row of a: bytes, words, or the low and high bytes of words as words; zeros behind the last k."""
    if kind in (U8, I8):
        octets, out = carray(pointer(source), k, np.uint8), carray(pointer(low), 4 * units, np.uint8)
        flip = np.uint8(128 if kind == I8 else 0)
        for i in range(k):
            out[i] = octets[i] ^ flip
        for i in range(k, 4 * units):
            out[i] = 0
        return
    values, first = carray(pointer(source), k, np.int16), carray(pointer(low), 2 * units, np.int16)
    if digits == 1:
        for i in range(k):
            first[i] = values[i]
    else:
        second = carray(pointer(high), 2 * units, np.int16)
        for i in range(k):
            first[i] = values[i] & 255
        if kind == U16:
            unsigned = carray(pointer(source), k, np.uint16)
            for i in range(k):
                second[i] = unsigned[i] >> 8
        else:
            for i in range(k):
                second[i] = values[i] >> 8
        for i in range(k, 2 * units):
            second[i] = 0
    for i in range(k, 2 * units):
        first[i] = 0


@helper
def sum_row(source: int, k: int, kind: int) -> Any:
    """The sum of a row of a."""
    total, done = np.int64(0), 0
    if kind == U8:
        done = k // (4 * LANES) * (4 * LANES)
        total = sum_bytes(source, k // (4 * LANES))
        octets = carray(pointer(source), k, np.uint8)
        for i in range(done, k):
            total += octets[i]
    elif kind == I8:
        signed = carray(pointer(source), k, np.int8)
        for i in range(k):
            total += signed[i]
    elif kind == I16:
        values = carray(pointer(source), k, np.int16)
        for i in range(k):
            total += values[i]
    else:
        unsigned = carray(pointer(source), k, np.uint16)
        for i in range(k):
            total += unsigned[i]
    return total
