"""Which instructions may overlap: threads share every instruction's work, and meet where one needs another's result.

A thread notes what the instructions since the last meeting read and write. All threads see the same instructions, take
the same notes and so meet at the same ones.
"""

from __future__ import annotations

from typing import Any

from npusim.engine.cache import helper
from npusim.engine.context import MOST_NOTES, NOTES, PARTS, SRAM, STOPPED, Words, inside, words
from npusim.engine.kept import drop_written
from npusim.engine.meeting import meet

NOTE = 4
"""Words of a note: memory, first byte, size, whether it is written."""
NOTES_WORDS = 2 + NOTE * MOST_NOTES
"""Number of notes of earlier instructions, number of those of this one, notes."""
MOST_REGIONS = 8


@helper
def region(c: Words, memory: int, start: int, size: int, written: int) -> bool:
    """Note that the instruction reads or writes ``size`` bytes; False where they do not lie in the memory."""
    if not inside(c, memory, start, size):
        return False
    notes = words(c[NOTES], NOTES_WORDS)
    at = 2 + NOTE * (notes[0] + notes[1])
    notes[at], notes[at + 1], notes[at + 2], notes[at + 3] = memory, start, size, written
    notes[1] += 1
    if written and memory == SRAM:
        drop_written(c, start, size)
    return True


@helper
def _clash(notes: Any) -> bool:
    for new in range(notes[0], notes[0] + notes[1]):
        n = 2 + NOTE * new
        for old in range(notes[0]):
            o = 2 + NOTE * old
            if (
                notes[o] == notes[n]
                and (notes[o + 3] or notes[n + 3])
                and notes[o + 1] < notes[n + 1] + notes[n + 2]
                and notes[n + 1] < notes[o + 1] + notes[o + 2]
            ):
                return True
    return False


@helper
def begin(c: Words) -> None:
    """Wait until what the noted regions depend on is done. Contents may be read from here on."""
    notes = words(c[NOTES], NOTES_WORDS)
    if c[PARTS] == 1:
        notes[1] = 0
        return
    if notes[0] + MOST_REGIONS > MOST_NOTES - MOST_REGIONS or _clash(notes):
        if not meet(c):
            c[STOPPED] = 1
        for i in range(NOTE * notes[1]):
            notes[2 + i] = notes[2 + NOTE * notes[0] + i]
        notes[0] = 0
    notes[0] += notes[1]
    notes[1] = 0
