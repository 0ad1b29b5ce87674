"""What MATMULs keep from one to the next: packed right operands, and sums of rows of a left one.

Queries come in blocks of rows, each multiplied by the same keys; output channels in chunks, each with the same rows.
What is kept is dropped as soon as an instruction is about to write to the bytes of SRAM that it was made from.
"""

from __future__ import annotations

from typing import Any

from npusim.engine.cache import helper
from npusim.engine.context import KEPT, KEPT_SLOTS, KEPT_WORDS, Place, Words

ROWS, COLUMNS, OTHER_COLUMNS = range(KEPT_SLOTS)
LAST = int(Place.KEPT_LAST)


@helper
def is_kept(c: Words, slot: int, start: int, one: int, two: int, three: int, four: int, five: int) -> bool:
    """Whether a slot has what is made from bytes at ``start`` in the way that five numbers tell."""
    at = KEPT + KEPT_WORDS * slot
    if c[at] == 0 or c[at + 1] != start or c[at + 2] != one or c[at + 3] != two:
        return False
    return bool(c[at + 4] == three and c[at + 5] == four and c[at + 6] == five)


@helper
def slot_of_columns(c: Words, start: int, one: int, two: int, three: int, four: int, five: int) -> Any:
    """The slot that has columns already, or the one of two that was not used last."""
    slot = COLUMNS + OTHER_COLUMNS - c[LAST]
    for used in (COLUMNS, OTHER_COLUMNS):
        if is_kept(c, used, start, one, two, three, four, five):
            slot = used
    if slot != OTHER_COLUMNS:
        slot = COLUMNS
    c[LAST] = slot
    return slot


@helper
def keep(c: Words, slot: int, size: int, start: int, one: int, two: int, three: int, four: int, five: int) -> None:
    """Say that a slot has from now on what is made from ``size`` bytes at ``start``."""
    at = KEPT + KEPT_WORDS * slot
    c[at], c[at + 1], c[at + 2], c[at + 3] = size, start, one, two
    c[at + 4], c[at + 5], c[at + 6] = three, four, five


@helper
def drop(c: Words, slot: int) -> None:
    c[KEPT + KEPT_WORDS * slot] = 0


@helper
def drop_written(c: Words, start: int, size: int) -> None:
    """Drop what is made from bytes of SRAM that are about to be written."""
    for slot in range(KEPT_SLOTS):
        at = KEPT + KEPT_WORDS * slot
        if c[at + 1] < start + size and start < c[at + 1] + c[at]:
            c[at] = 0
