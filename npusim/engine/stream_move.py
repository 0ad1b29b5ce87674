"""Handlers of LOAD and STORE, and of what computes nothing."""

from __future__ import annotations

from typing import Any

from npusim.engine.cache import helper
from npusim.engine.context import BASE, COLUMNS, DRAM, MOST, SIZE, SRAM, columns, share, words
from npusim.engine.native import move, prefetch
from npusim.engine.order import begin, region
from npusim.isa.addressing import BASES

LOAD = columns("load")
FETCHED_BYTES, AHEAD = 1 << 10, 6
"""Runs up to this size are fetched from DRAM's array so many runs ahead."""


@helper
def _copy(context: int, row: int, store: int) -> Any:
    c, w = words(context, SIZE), words(row, COLUMNS)
    size, rows, planes = w[LOAD.row_bytes], w[LOAD.rows], w[LOAD.planes]
    if not (size > 0 and 0 < rows < MOST and 0 < planes < MOST and w[LOAD.base] < BASES and w[LOAD.dram_plane] >= 0):
        return 0
    # The planes' stride has 64 bits.
    if planes > 1 and w[LOAD.dram_plane] > 1 << 36:
        return 0
    memory, local = SRAM + w[LOAD.memory], w[LOAD.local_addr]
    dram = c[BASE + w[LOAD.base]] + w[LOAD.dram_addr]
    dram_plane, dram_row = w[LOAD.dram_plane], w[LOAD.dram_row]
    local_plane, local_row = w[LOAD.local_plane], w[LOAD.local_row]
    if w[LOAD.dram_addr] < 0 or not (
        region(c, DRAM, dram, (planes - 1) * dram_plane + (rows - 1) * dram_row + size, store)
        and region(c, memory, local, (planes - 1) * local_plane + (rows - 1) * local_row + size, 1 - store)
    ):
        return 0
    begin(c)
    near, far = c[memory] + local, c[DRAM] + dram
    if planes * rows == 1:
        first, last = share(c, size >> 6)
        first, last = first << 6, size if last == size >> 6 else last << 6
        if store:
            move(far + first, near + first, last - first)
        else:
            move(near + first, far + first, last - first)
        return 1
    first, last = share(c, planes * rows)
    for i in range(first, last):
        plane, line = i // rows, i % rows
        a, b = near + plane * local_plane + line * local_row, far + plane * dram_plane + line * dram_row
        if size <= FETCHED_BYTES:  # the processor foresees long runs only
            for byte in range(0, size, 64):
                prefetch(b + AHEAD * dram_row + byte)
        if store:
            move(b, a, size)
        else:
            move(a, b, size)
    return 1


def load(context: int, row: int) -> int:
    """Execute a LOAD; 0 where it is left to NumPy, which says what is wrong with it."""
    return int(_copy(context, row, 0))


def store(context: int, row: int) -> int:
    """Execute a STORE; likewise."""
    return int(_copy(context, row, 1))


def nothing(context: int, row: int) -> int:
    """BARRIER, HALT and TOKEN."""
    return 1
