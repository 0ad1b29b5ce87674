"""How many bytes of SRAM hold something still needed, over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel
from npusim.isa import BY_OPCODE
from npusim.isa.encoding import decode_row
from npusim.operands import regions_by_field
from npusim.timing.cost import distinct_shapes
from npusim.trace.counters import Curve, summed
from npusim.trace.part import Int64, Part

SRAM = "sram"
LOW, HIGH, BIRTH, USE = range(4)
"""Columns of a piece of memory: its bytes, the cycle since which it holds them, that of the last use."""


def occupancy(part: Part) -> Curve:
    """Bytes of SRAM that hold something still needed.

    A byte is needed from the start of the instruction that writes it to the end of the last one that reads it before
    another writes it. What is read and was not written in this part is needed from its beginning; and if the part's own
    code finds it again in its next execution, what is left at the end is needed to the end. Gaps between an operand's
    rows count as its bytes.
    """
    instruction, low, high, written = regions(part.words)
    first, last = part.start[instruction], part.end[instruction]
    lives = _lives(low, high, written, first, last, part.timing.total_cycles)
    return summed(lives[:, 0], lives[:, 1], lives[:, 2].astype(float))


def regions(words: NDArray[np.uint32], memory: str = SRAM) -> tuple[Int64, Int64, Int64, NDArray[np.bool_]]:
    """(instruction, first byte, end, whether written) of every operand in a memory on the chip, in order of execution.

    Of one instruction reads stand before writes. ``words``: uint32 (instructions, 32).
    """
    kinds, which = distinct_shapes(words)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(kinds) + 1))
    empty = np.zeros(0, np.int64)
    found = [(empty, empty, empty, empty)]
    for number, kind in enumerate(kinds.tolist()):
        rows = order[bounds[number] : bounds[number + 1]]
        for field, offset, length, write in regions_by_field(decode_row(kind, BY_OPCODE), memory):
            low = words[rows, field.word].astype(np.int64) + offset
            found.append((rows, low, low + length, np.full(len(rows), write, np.int64)))
    instruction, low, high, written = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(instruction, kind="stable")
    return instruction[order], low[order], high[order], written[order] == 1


@kernel
def _lives(low: Int64, high: Int64, written: NDArray[np.bool_], first: Int64, last: Int64, total: int) -> Int64:
    """(first cycle, last cycle, bytes) of everything that the memory holds; the arguments: (operands,), in order.

    The memory in pieces that do not overlap. Bytes that are read and that nobody wrote are there from cycle 0, and
    their places are needed to the end: the next execution finds them there.
    """
    pieces, count = np.zeros((64, 4), np.int64), 0
    lives, ended = np.zeros((1024, 3), np.int64), 0
    fresh, inherited = np.zeros((64, 2), np.int64), 0
    for at in range(len(low)):
        if written[at]:
            pieces, count, lives, ended = _write(pieces, count, lives, ended, low[at], high[at], first[at], last[at])
        else:
            pieces, count, fresh, inherited = _read(pieces, count, fresh, inherited, low[at], high[at], last[at])
    for at in range(inherited):
        pieces, count, fresh, _ = _read(pieces, count, fresh, inherited, fresh[at, 0], fresh[at, 1], total)
    for at in range(count):
        lives, ended = _end(lives, ended, pieces[at])
    return lives[:ended]


@inlined
def _room(table: Int64, rows: int) -> Int64:
    """The table, or twice as large a copy where it has fewer rows."""
    if rows <= len(table):
        return table
    larger = np.zeros((2 * rows, table.shape[1]), np.int64)
    larger[: len(table)] = table
    return larger


@inlined
def _position(pieces: Int64, count: int, byte: int) -> int:
    """The first piece that ends behind ``byte``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if pieces[middle, HIGH] <= byte:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def _moved(pieces: Int64, count: int, at: int, by: int) -> tuple[Int64, int]:
    """Move the pieces from ``at`` on ``by`` rows towards the end, or the front."""
    pieces = _room(pieces, count + by)
    if by > 0:
        for row in range(count - 1, at - 1, -1):
            pieces[row + by] = pieces[row]
    elif by < 0:
        for row in range(at, count):
            pieces[row + by] = pieces[row]
    return pieces, count + by


@inlined
def _cut(pieces: Int64, count: int, byte: int) -> tuple[Int64, int, int]:
    """Cut the piece around ``byte`` there; also the first piece that begins at it or behind it."""
    at = _position(pieces, count, byte)
    if at < count and pieces[at, LOW] < byte:
        pieces, count = _moved(pieces, count, at, 1)
        pieces[at, HIGH] = byte
        pieces[at + 1, LOW] = byte
        return pieces, count, at + 1
    return pieces, count, at


@inlined
def _read(
    pieces: Int64, count: int, fresh: Int64, inherited: int, low: int, high: int, use: int
) -> tuple[Int64, int, Int64, int]:
    """Use the bytes until a cycle; those that nobody wrote are noted in ``fresh``."""
    pieces, count, begin = _cut(pieces, count, low)
    pieces, count, end = _cut(pieces, count, high)
    at, byte = begin, low
    while byte < high:
        if at < end and pieces[at, LOW] == byte:
            pieces[at, USE] = max(pieces[at, USE], use)
        else:
            stop = pieces[at, LOW] if at < end else high
            pieces, count = _moved(pieces, count, at, 1)
            end += 1
            pieces[at, LOW], pieces[at, HIGH], pieces[at, BIRTH], pieces[at, USE] = byte, stop, 0, use
            fresh = _room(fresh, inherited + 1)
            fresh[inherited, 0], fresh[inherited, 1] = byte, stop
            inherited += 1
        byte = pieces[at, HIGH]
        at += 1
    return pieces, count, fresh, inherited


@inlined
def _write(
    pieces: Int64, count: int, lives: Int64, ended: int, low: int, high: int, birth: int, use: int
) -> tuple[Int64, int, Int64, int]:
    """Bytes written anew; what they replace has ended."""
    pieces, count, begin = _cut(pieces, count, low)
    pieces, count, end = _cut(pieces, count, high)
    for at in range(begin, end):
        lives, ended = _end(lives, ended, pieces[at])
    pieces, count = _moved(pieces, count, end, 1 - (end - begin))
    pieces[begin, LOW], pieces[begin, HIGH], pieces[begin, BIRTH], pieces[begin, USE] = low, high, birth, use
    return pieces, count, lives, ended


@inlined
def _end(lives: Int64, ended: int, piece: Int64) -> tuple[Int64, int]:
    lives = _room(lives, ended + 1)
    lives[ended, 0], lives[ended, 1], lives[ended, 2] = piece[BIRTH], piece[USE], piece[HIGH] - piece[LOW]
    return lives, ended + 1
