"""How an instruction is laid out in bits: one table per family drives encoder, decoder, assembler and disassembler.

Every instruction is 32 little-endian 32-bit words (128 bytes). Words 0, 1 and 31 are the header that all instructions
share; the rest belongs to the family. A field lies inside one word, or spans exactly two (``bits=64``, low word first).
Signed fields are two's complement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import index
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.units import UNITS, kind_of

WORDS = 32
INSTRUCTION_BYTES = WORDS * 4

DTYPES = {
    "u8": (np.uint8, 0, 255),
    "i8": (np.int8, -128, 127),
    "i16": (np.int16, -32768, 32767),
    "i32": (np.int32, -(2**31), 2**31 - 1),
    "u4": (np.uint8, 0, 15),
    "i4": (np.int8, -8, 7),
    "u6": (np.uint8, 0, 63),
    "i6": (np.int8, -32, 31),
    "u16": (np.uint16, 0, 65535),
}
"""Element types: NumPy type that holds a value, least and greatest value. The position is the type's number."""
DTYPE_NAMES = tuple(DTYPES)

ELEMENT_BITS = {name: int(name[1:]) for name in DTYPES}
"""Bits of one element in memory. Elements of 4 and 6 bits are packed: element i of a row takes the bits from
``i * bits``, counted from the lowest bit of the row's first byte. A row starts at a byte; the bits that are left over
in its last byte are written as 0 and ignored when read."""


def row_bytes(dtype: int, count: int) -> int:
    """Bytes that ``count`` consecutive elements of type number ``dtype`` take."""
    return -(-count * ELEMENT_BITS[DTYPE_NAMES[dtype]] // 8)


def is_packed(dtype: int) -> bool:
    """Whether elements of type number ``dtype`` share bytes."""
    return ELEMENT_BITS[DTYPE_NAMES[dtype]] < 8


MAX_SHIFT = 62
"""Greatest right shift of a rescale: the rounding term ``2^(shift-1)`` and the sum before it fit int64."""

NO_ADDRESS = 0xFFFF_FFFF
"""In an optional address field: the operand is absent."""


@dataclass(frozen=True)
class Field:
    """One bit field of an instruction: ``bits`` wide at bit ``lo`` of word ``word``; ``names`` are an enumeration's."""

    name: str
    word: int
    lo: int = 0
    bits: int = 32
    signed: bool = False
    names: tuple[str, ...] = ()
    doc: str = ""

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1


HEADER = (
    Field("opcode", 0, 0, 8, doc="which instruction"),
    Field("unit", 0, 8, 8, names=UNITS, doc="queue that executes the instruction"),
    Field("layer", 0, 16, 16, doc="index into the program's layer names"),
    Field("wait_raw", 1, 0, 16, doc="one bit per unit: take a read-after-write token sent by that unit"),
    Field("wait_war", 1, 16, 16, doc="one bit per unit: take a token that guards an overwrite"),
    Field("signal_raw", 31, 0, 16, doc="one bit per unit: send that unit a read-after-write token when done"),
    Field("signal_war", 31, 16, 16, doc="one bit per unit: send that unit an overwrite token when done"),
)

TOKENS = tuple(f for f in HEADER if f.name.startswith(("wait_", "signal_")))
TOKEN_WORDS = sorted({f.word for f in TOKENS})
"""Words that hold tokens and nothing else."""

Decoded = SimpleNamespace
"""A decoded instruction: ``.op`` is the mnemonic, every field of its table is a Python integer attribute."""


@dataclass(frozen=True)
class Region:
    """A byte range [start, end) of ``dram`` or ``storage`` (``base``: its register) or of a memory on the chip."""

    memory: str
    start: int
    end: int
    base: int = 0

    def meets(self, other: Region) -> bool:
        """Whether a byte lies in both, which have the same base register."""
        return self.memory == other.memory and self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{self.memory} bytes {self.start}..{self.end}"


@dataclass(frozen=True)
class Rule:
    """A condition outside which an instruction is undefined (TOSA's REQUIRE).

    ``holds(ins, machine)`` decides; ``allowed`` says it for the manual and for messages, which show the values of
    ``fields``.
    """

    fields: tuple[str, ...]
    allowed: str
    holds: Callable[[Decoded, Any], bool]

    def message(self, ins: Decoded) -> str:
        """What is wrong with an instruction that breaks the rule."""
        given = ", ".join(f"{name} = {shown(FIELD_OF[ins.op, name], getattr(ins, name))}" for name in self.fields)
        return f"{given}: allowed {self.allowed}"


FIELD_OF: dict[tuple[str, str], Field] = {}
"""Every field by mnemonic and name."""


def shown(f: Field, value: int) -> str:
    """A field's value as assembler text."""
    if f.names:
        return f.names[value]
    return hex(value) if f.name.endswith("addr") else str(value)


@dataclass(frozen=True)
class Instruction:
    """One row of the instruction table.

    ``summary``: what it does, in one sentence. ``units``: the kinds of unit that execute it. ``execute(state, ins)`` is
    the integer semantics as the reference runs them; ``rules`` outside which it is undefined, and ``stops``: what in
    memory stops an executor with ValueError; ``footprint(ins)`` gives the (reads, writes); ``cycles(ins, machine)`` the
    busy cycles of the unit. ``doc`` is the family's text.
    """

    mnemonic: str
    opcode: int
    summary: str
    fields: tuple[Field, ...]
    units: tuple[str, ...]
    execute: Callable[[Any, Decoded], None]
    rules: tuple[Rule, ...]
    footprint: Callable[[Decoded], tuple[list[Region], list[Region]]]
    cycles: Callable[[Decoded, Any], int]
    doc: str
    stops: tuple[str, ...] = ()
    by_name: dict[str, Field] = field(default_factory=dict, compare=False, hash=False)
    reserved: list[int] = field(default_factory=list, compare=False, hash=False)

    def __post_init__(self) -> None:
        used = np.zeros(WORDS * 32, bool)
        for f in HEADER + self.fields:
            span = slice(f.word * 32 + f.lo, f.word * 32 + f.lo + f.bits)
            if span.stop > WORDS * 32 or used[span].any() or (f.bits < 64 and f.lo + f.bits > 32):
                raise AssertionError(f"{self.mnemonic}.{f.name} overlaps another field or crosses a word")
            used[span] = True
            self.by_name[f.name] = f
            FIELD_OF[self.mnemonic, f.name] = f
        bits = np.packbits(~used, bitorder="little").view("<u4")
        self.reserved.extend(bits.tolist())

    def check(self, ins: Decoded, machine: Any) -> list[str]:
        """Messages of the broken rules; empty for an instruction that is defined on ``machine``."""
        return [rule.message(ins) for rule in self.rules if not rule.holds(ins, machine)]

    def misplaced(self, ins: Decoded, machine: Any) -> str | None:
        """What is wrong with the unit of an instruction: it does not execute it, or ``machine`` has no such unit."""
        allowed = [unit for unit in machine.units if kind_of(UNITS.index(unit)) in self.units]
        unit = UNITS[ins.unit]
        return None if unit in allowed else f"unit = {unit}: allowed {', '.join(allowed)}"


def at_least_one(*names: str) -> tuple[Rule, ...]:
    """A rule for each of the counts ``names``: it is not 0."""
    return tuple(Rule((name,), "at least 1", partial(_is_positive, name)) for name in names)


def _is_positive(name: str, ins: Decoded, machine: Any) -> bool:
    return bool(getattr(ins, name) > 0)


SHIFT_RULE = Rule(("shift",), f"1..{MAX_SHIFT}", lambda ins, machine: bool(1 <= ins.shift <= MAX_SHIFT))
"""Of every instruction that rescales."""


def one_of(name: str, *types: str) -> Rule:
    """The element type ``name`` is one of ``types``."""
    return Rule((name,), ", ".join(types), lambda ins, machine: DTYPE_NAMES[getattr(ins, name)] in types)


def encode(spec: Instruction, values: Mapping[str, int]) -> NDArray[np.uint32]:
    """Return the 32 words of one instruction; unnamed fields are 0.

    Raises UserError for an unknown field or a value out of range, TypeError for a value that is not an integer.
    """
    words = [0] * WORDS
    for name in values:
        if name not in spec.by_name:
            raise UserError(f"{spec.mnemonic}: no field {name!r}; allowed: {', '.join(spec.by_name)}")
    for f in HEADER + spec.fields:
        value = spec.opcode if f.name == "opcode" else index(values.get(f.name, 0))
        if not f.low <= value <= f.high or (f.names and value >= len(f.names)):
            top = len(f.names) - 1 if f.names else f.high
            raise UserError(f"{spec.mnemonic}.{f.name} = {value}: allowed {f.low}..{top}")
        raw = value & ((1 << f.bits) - 1)
        words[f.word] |= (raw << f.lo) & 0xFFFF_FFFF
        if f.bits == 64:
            words[f.word + 1] |= raw >> 32
    return np.array(words, np.uint32)


def decode_row(words: Sequence[int], table: Mapping[int, Instruction]) -> Decoded:
    """Decode the 32 words of one instruction.

    Raises UserError for an unknown opcode or enumeration value, or for a bit that belongs to no field and is not 0.
    """
    opcode = int(words[0]) & 0xFF
    spec = table.get(opcode)
    if spec is None:
        raise UserError(f"opcode {opcode} is not an instruction; known: {sorted(table)}")
    for number, (word, reserved) in enumerate(zip(words, spec.reserved, strict=True)):
        if int(word) & reserved:
            raise UserError(f"{spec.mnemonic}: reserved bits {int(word) & reserved:#x} of word {number} are not 0")
    out = {"op": spec.mnemonic}
    for f in HEADER + spec.fields:
        raw = int(words[f.word])
        if f.bits == 64:
            raw |= int(words[f.word + 1]) << 32
        raw = (raw >> f.lo) & ((1 << f.bits) - 1)
        value = raw - (1 << f.bits) if f.signed and raw >> (f.bits - 1) else raw
        if f.names and value >= len(f.names):
            raise UserError(f"{spec.mnemonic}.{f.name} = {value}: allowed 0..{len(f.names) - 1} ({', '.join(f.names)})")
        out[f.name] = value  # type: ignore[assignment]
    return SimpleNamespace(**out)
