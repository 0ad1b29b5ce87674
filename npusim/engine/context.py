"""What the handlers of `npusim.engine.stream` work on: a context of int64 words, and a table of instructions.

A handler gets the addresses of both: ``Place`` names the words of a context, `columns` those of an instruction.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from enum import IntEnum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import helper
from npusim.engine.native import carray, pointer
from npusim.isa import ALL, BY_MNEMONIC, BY_OPCODE
from npusim.isa.addressing import BASES
from npusim.isa.encoding import DTYPE_NAMES, WORDS, Decoded

Words = Any
"""int64 (count,), a context or an instruction, in a kernel."""

OPCODE, LAYER, UNIT, FIRST = 0, 1, 2, 3
COLUMNS = FIRST + max(len(spec.fields) for spec in ALL)
KINDS = len(ALL)
KIND_OF = {spec.mnemonic: number for number, spec in enumerate(ALL)}
TALLY = 3
"""Words of a tally: outputs that a clamp changed, outputs, instructions."""


def columns(mnemonic: str) -> Any:
    """Columns of an instruction's fields in the table, by name."""
    names = [f.name for f in BY_MNEMONIC[mnemonic].fields]
    return namedtuple(f"Columns_{mnemonic}", names)(*range(FIRST, FIRST + len(names)))


def table_of_words(code: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Fields of instruction words (count, 32), int64 (count, COLUMNS): opcode, layer, unit, then the family's."""
    words = code.reshape(-1, WORDS).astype(np.int64)
    table = np.zeros((len(words), COLUMNS), np.int64)
    table[:, OPCODE], table[:, LAYER], table[:, UNIT] = words[:, 0] & 0xFF, words[:, 0] >> 16, words[:, 0] >> 8 & 0xFF
    for opcode in np.unique(table[:, OPCODE]).tolist():
        rows = np.flatnonzero(table[:, OPCODE] == opcode)
        for column, f in enumerate(BY_OPCODE[opcode].fields, FIRST):
            raw = words[rows, f.word]
            if f.bits == 64:
                raw |= words[rows, f.word + 1] << 32
            else:
                raw = raw >> f.lo & ((1 << f.bits) - 1)
                if f.signed:
                    raw = (raw ^ 1 << (f.bits - 1)) - (1 << (f.bits - 1))
            table[rows, column] = raw
    return table


def table_of(instructions: Sequence[Decoded]) -> NDArray[np.int64]:
    """The same of decoded instructions."""
    table = np.zeros((len(instructions), COLUMNS), np.int64)
    for row, ins in zip(table, instructions, strict=True):
        spec = BY_MNEMONIC[ins.op]
        values = [getattr(ins, f.name) for f in spec.fields]
        row[:FIRST] = spec.opcode, ins.layer, ins.unit
        row[FIRST : FIRST + len(values)] = [v - (1 << 64) if v >> 63 > 0 else v for v in values]
    return table


KEPT_SLOTS, KEPT_WORDS = 3, 7
"""What MATMULs keep (`npusim.engine.kept`): slots, and words of each: bytes of SRAM or 0, where they are, how made."""


class Place(IntEnum):
    """Words of a context. Addresses and sizes of memories come first, in the order of ``MEMORY``.

    From ``HELD`` on: what the first MAC array holds; from ``SECOND_HELD`` on the same of the second; from ``KEPT`` on
    what MATMULs keep.
    """

    DRAM = 0
    SRAM = auto()
    PARAM = auto()
    PARAM_NEXT = auto()
    DRAM_BYTES = auto()
    SRAM_BYTES = auto()
    PARAM_BYTES = auto()
    PARAM_NEXT_BYTES = auto()
    BASE = 8
    ACC_BITS = 8 + BASES
    MULTIPLIER_BITS = auto()
    ROW_SUMS = auto()
    ROUNDS_TWICE = auto()
    PART = auto()
    PARTS = auto()
    MEETING = auto()
    LOOKS = auto()
    STOPPED = auto()
    HANDLERS = auto()
    TALLIES = auto()
    NOTES = auto()
    ARENA = auto()
    TILES = auto()
    HELD = auto()
    HELD_ROWS = auto()
    HELD_M = auto()
    HELD_N = auto()
    HELD_BOUND = auto()
    HELD_LARGEST_ROW = auto()
    SECOND_HELD = auto()
    SECOND_HELD_ROWS = auto()
    SECOND_HELD_M = auto()
    SECOND_HELD_N = auto()
    SECOND_HELD_BOUND = auto()
    SECOND_HELD_LARGEST_ROW = auto()
    KEPT_LAST = auto()
    KEPT = 40 + BASES
    SIZE = 40 + BASES + KEPT_SLOTS * KEPT_WORDS


# Kernels take numbers only.
DRAM, SRAM, PARAM, PARAM_NEXT = (int(place) for place in (Place.DRAM, Place.SRAM, Place.PARAM, Place.PARAM_NEXT))
BYTES, BASE, PART, PARTS = int(Place.DRAM_BYTES), int(Place.BASE), int(Place.PART), int(Place.PARTS)
TALLIES, ARENA, SIZE = int(Place.TALLIES), int(Place.ARENA), int(Place.SIZE)
NOTES, MEETING, LOOKS, STOPPED = (int(place) for place in (Place.NOTES, Place.MEETING, Place.LOOKS, Place.STOPPED))
KEPT = int(Place.KEPT)

U8, I8, I16, I32, U16 = (DTYPE_NAMES.index(name) for name in ("u8", "i8", "i16", "i32", "u16"))
ELEMENT_BYTES = tuple({U8: 1, I8: 1, I16: 2, U16: 2, I32: 4}.get(number, 0) for number in range(len(DTYPE_NAMES)))
"""0 for the packed types, which the handlers leave to the other kernels."""
LOW = tuple({U8: 0, I8: -128, I16: -(1 << 15), I32: -(1 << 31)}.get(number, 0) for number in range(len(DTYPE_NAMES)))
HIGH = tuple(
    {U8: 255, I8: 127, I16: (1 << 15) - 1, U16: 65535, I32: (1 << 31) - 1}.get(number, 0)
    for number in range(len(DTYPE_NAMES))
)

MOST_NOTES = 64
MOST = 1 << 24
"""Greatest count that a handler takes, so that addresses fit int64."""
MOST_COLS = 1 << 14

ARENA_BYTES = 16 << 20
"""Scratch memory of a thread; packed operands that do not fit it are left to the other kernels."""


@helper
def words(address: int, count: int) -> Words:
    return carray(pointer(address), count, np.int64)


@helper
def reach(size: int, count0: int, stride0: int, count1: int, stride1: int) -> int:
    """Bytes from the first to the last of two nested loops over runs of ``size`` bytes; -1 for counts too large."""
    if not (0 < size < MOST << 3 and 0 < count0 < MOST and 0 < count1 < MOST):
        return -1
    return (count0 - 1) * stride0 + (count1 - 1) * stride1 + size


@helper
def inside(c: Words, memory: int, start: int, size: int) -> bool:
    """Whether ``size`` bytes, at least one, lie in a memory."""
    return size > 0 and start >= 0 and start + size <= c[BYTES + memory]


@helper
def apart(start: int, size: int, other: int, other_size: int) -> bool:
    """Whether two ranges of bytes share none."""
    return start + size <= other or other + other_size <= start


@helper
def tally(c: Words, w: Words, kind: int, changed: int, outputs: int) -> None:
    """Count an instruction's outputs; each thread those that it wrote."""
    t = words(c[TALLIES] + 8 * TALLY * (w[LAYER] * KINDS + kind), TALLY)
    t[0] += changed
    if c[PART] == 0:
        t[1] += outputs
        t[2] += 1


@helper
def share(c: Words, count: int) -> tuple[int, int]:
    """First and last (exclusive) of ``count`` pieces of work that belong to this thread."""
    return count * c[PART] // c[PARTS], count * (c[PART] + 1) // c[PARTS]
