"""What one instruction reads and writes: name, place, element type, shape and strides of every operand.

Nothing here knows an instruction. The regions come from the family's ``footprint``; shapes, strides and types are those
that its ``execute`` asks a memory for, which here only takes notes; names come from the address fields, each of which
is marked while both run.
"""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, ELEMENT_BITS, NO_ADDRESS, Decoded, Field, is_packed
from npusim.memory import MachineState, Operand

_MARK = 80
"""Bits below a mark; addresses have at most 64."""


@dataclass(frozen=True)
class Access:
    """One operand of an instruction.

    ``name`` is that of its address field without ``_addr``; it covers bytes [start, end) of ``memory`` (behind DRAM
    register ``base``). ``dtype`` names an element type, or is the NumPy type of a record. ``shape`` in elements and
    ``strides`` in bytes, the last one of packed types 0; both are empty where the instruction could not be followed.
    """

    name: str
    memory: str
    start: int
    end: int
    base: int
    written: bool
    dtype: str | np.dtype[Any] = "u8"
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return ELEMENT_BITS[self.dtype] if isinstance(self.dtype, str) else self.dtype.itemsize * 8

    @property
    def type_name(self) -> str:
        """The element type, or the fields of a record."""
        return self.dtype if isinstance(self.dtype, str) else f"record({', '.join(self.dtype.names or ())})"

    def address(self, index: tuple[int, ...]) -> int:
        """The byte that an element begins in."""
        byte = self.start + sum(i * stride for i, stride in zip(index, self.strides, strict=True))
        return byte + (index[-1] * self.bits // 8 if self.bits < 8 else 0)

    def values(self, state: MachineState) -> NDArray[Any]:
        """The elements in ``state``, of ``shape``."""
        start = self.start + (state.bases[self.base] if self.memory == "dram" else 0)
        if self.bits < 8:
            number = DTYPE_NAMES.index(str(self.dtype))
            return state.operand(self.memory, start, number, self.shape, self.strides[:-1]).values()
        kind = DTYPES[self.dtype][0] if isinstance(self.dtype, str) else self.dtype
        return state.window(self.memory, start, kind, self.shape, self.strides)


def accesses(ins: Decoded, machine: Machine) -> list[Access]:
    """Operands of a decoded instruction, reads before writes, as its family's ``footprint`` lists them."""
    spec, (marked, names) = BY_MNEMONIC[ins.op], _marked(ins)
    regions = spec.footprint(marked)
    notes = _Notes(machine, {(region.memory, region.start) for region in chain(*regions)})
    # It stops when every operand was asked for. Made-up memory contents may be undefined; what was noted before stands.
    with suppress(_AllSeenError, ValueError, TypeError, OverflowError, IndexError, MemoryError):
        spec.execute(notes, marked)
    found = []
    for written, some in enumerate(regions):
        for region in some:
            mark, start = region.start >> _MARK, region.start & ((1 << _MARK) - 1)
            end = start + region.end - region.start
            name = names[mark].name.removesuffix("addr").rstrip("_") if mark in names else ""
            seen = notes.seen.get((region.memory, region.start), ("u8", (), ()))
            found.append(Access(name, region.memory, start, end, region.base, bool(written), *seen))
    return found


def regions_by_field(ins: Decoded, memory: str) -> list[tuple[Field, int, int, bool]]:
    """Regions of a memory on the chip as the address fields place them, reads before writes.

    (field, bytes from its address to the region, bytes of the region, whether written).
    """
    marked, fields = _marked(ins)
    found = []
    for written, regions in enumerate(BY_MNEMONIC[ins.op].footprint(marked)):
        for region in (region for region in regions if region.memory == memory):
            field, start = fields[region.start >> _MARK], region.start & ((1 << _MARK) - 1)
            found.append((field, start - getattr(ins, field.name), region.end - region.start, bool(written)))
    return found


def _marked(ins: Decoded) -> tuple[Decoded, dict[int, Field]]:
    """A copy in which every address is marked with a number, and the address fields by number."""
    marked, fields = copy(ins), dict[int, Field]()
    for number, f in enumerate(BY_MNEMONIC[ins.op].fields, 1):
        if f.name.endswith("addr") and getattr(ins, f.name) != NO_ADDRESS:
            fields[number] = f
            setattr(marked, f.name, getattr(ins, f.name) + (number << _MARK))
    return marked, fields


class _AllSeenError(Exception):
    """Every operand was asked for: what follows is arithmetic."""


class _Notes(MachineState):
    """Memories without contents: every element reads as 1, a value that no family finds undefined."""

    def __init__(self, machine: Machine, wanted: set[tuple[str, int]]) -> None:
        super().__init__(machine, 0)
        self.wanted = wanted
        self.seen: dict[tuple[str, int], tuple[str | np.dtype[Any], tuple[int, ...], tuple[int, ...]]] = {}

    def window(
        self, memory: str, address: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> NDArray[Any]:
        kind = np.dtype(dtype)
        name = kind if kind.names else f"{kind.kind}{kind.itemsize * 8}"
        self._note(memory, address, name, shape, strides)
        contents = np.zeros(shape, kind)
        for field in kind.names or ():
            contents[field] = 1
        return contents if kind.names else np.ones(shape, kind)

    def operand(
        self, memory: str, address: int, dtype: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Operand:
        last = 0 if is_packed(dtype) else ELEMENT_BITS[DTYPE_NAMES[dtype]] // 8
        self._note(memory, address, DTYPE_NAMES[dtype], shape, (*strides, last))
        return super().operand(memory, address, dtype, shape, strides)

    def _note(
        self, memory: str, address: int, dtype: str | np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.seen.setdefault((memory, address), (dtype, shape, strides))
        if self.wanted <= self.seen.keys():
            raise _AllSeenError
