"""FETCH: one run of bytes from storage to DRAM.

Parameter sets that do not fit DRAM all at once lie in storage; a program fetches what its next steps need beside the
computation of the present one. Addresses are relative to base registers, so that one code serves every step that
fetches: 4, 5, 7 and 8 point into storage, 1, 3, 6 and 9 into DRAM, 0 is absolute in either.

With ``coded_bytes``, storage holds the run as its difference to as many bytes of DRAM at ``old_addr``, which may be the
run's own place. The code is a sequence of blocks of 64 bytes of the run, the last one of what is left. A block begins
with a byte: 0..6: Rice code with that many low bits: of each number the rest in ones, a zero, then the low bits, lowest
first; the last byte is filled with zeros; 7: the numbers as they are; 8..255: 1..248 blocks of zeros, and nothing
follows. Bits fill a byte from its lowest. Numbers 0, 1, 2, 3, ... stand for the differences 0, -1, 1, -2, ... of a byte
to the old one, modulo 256. Bytes behind the last block are ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.isa.addressing import BASES, vector
from npusim.isa.encoding import Decoded, Field, Instruction, Region, Rule, at_least_one

FIELDS = (
    Field("storage_addr", 2, 0, 64, doc="first byte in storage, relative to its base register"),
    Field("dram_addr", 4, 0, 64, doc="first byte in DRAM, relative to its base register"),
    Field("storage_base", 6, 0, 8, doc="base register in storage"),
    Field("base", 6, 8, 8, doc="base register in DRAM"),
    Field("old_base", 6, 16, 8, doc="base register of the old bytes in DRAM"),
    Field("bytes", 7, doc="bytes of the run"),
    Field("coded_bytes", 8, doc="bytes of its code in storage; 0: the run as it is"),
    Field("old_addr", 10, 0, 64, doc="first old byte in DRAM, relative to its base register; 0 without code"),
)
BLOCK = 64
RAW, ZEROS, MOST_ZEROS = 7, 7, 248
"""Header of a block that is not coded; header minus number of blocks of zeros, and most of these."""

Bytes = NDArray[np.uint8]


def windows(state: Any, ins: Decoded) -> tuple[Bytes, Bytes | None, Bytes]:
    """Bytes read in storage, the old bytes if there is code, and the run's place in DRAM."""
    source = state.vector(
        "storage", state.bases[ins.storage_base] + ins.storage_addr, np.uint8, ins.coded_bytes or ins.bytes
    )
    old = None
    if ins.coded_bytes:
        old = state.vector("dram", state.bases[ins.old_base] + ins.old_addr, np.uint8, ins.bytes)
    return source, old, state.vector("dram", state.bases[ins.base] + ins.dram_addr, np.uint8, ins.bytes)


def execute(state: Any, ins: Decoded) -> None:
    source, old, target = windows(state, ins)
    target[...] = source if old is None else decoded(source, old)


def decoded(code: Bytes, old: Bytes) -> Bytes:
    """The bytes that ``code`` stands for, bit by bit. Raises ValueError where it ends too early."""
    bits, at, numbers = np.unpackbits(code, bitorder="little").tolist(), 0, list[int]()
    try:
        while len(numbers) < old.size:
            header = _number(bits, at, 8)
            at, left = at + 8, old.size - len(numbers)
            if header > ZEROS:
                numbers += [0] * min(left, (header - ZEROS) * BLOCK)
                continue
            for _ in range(min(left, BLOCK)):
                low, high = (8, 0) if header == RAW else (header, bits.index(0, at) - at)
                at += 0 if header == RAW else high + 1
                numbers.append((high << header if header != RAW else 0) | _number(bits, at, low))
                at += low
            at = -(-at // 8) * 8
    except (IndexError, ValueError):
        raise ValueError(f"code of {code.size} bytes ends before the run of {old.size} does") from None
    differences = [-(number + 1) // 2 if number % 2 else number // 2 for number in numbers]
    return ((old.astype(np.int64) + differences) % 256).astype(np.uint8)


def _number(bits: list[int], at: int, count: int) -> int:
    """``count`` bits, lowest first. Raises IndexError where there are none."""
    return sum(bits[at + index] << index for index in range(count))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    source = vector("storage", ins.storage_addr, ins.coded_bytes or ins.bytes)
    target = vector("dram", ins.dram_addr, ins.bytes)
    reads = [Region(source.memory, source.start, source.end, ins.storage_base)]
    if ins.coded_bytes:
        old = vector("dram", ins.old_addr, ins.bytes)
        reads.append(Region(old.memory, old.start, old.end, ins.old_base))
    return reads, [Region(target.memory, target.start, target.end, ins.base)]


def cycles(ins: Decoded, machine: Any) -> int:
    """``dma.setup_cycles`` for the descriptor; the storage and memory models time the requests themselves."""
    return int(machine.dma.setup_cycles)


RULES = (
    *at_least_one("bytes"),
    Rule(("storage_base",), f"0..{BASES - 1}", lambda ins, machine: bool(ins.storage_base < BASES)),
    Rule(("base",), f"0..{BASES - 1}", lambda ins, machine: bool(ins.base < BASES)),
    Rule(("old_base",), f"0..{BASES - 1}", lambda ins, machine: bool(ins.old_base < BASES)),
    Rule(
        ("coded_bytes",),
        "0 on a machine whose dma.decoder_bytes_per_cycle is 0",
        lambda ins, machine: bool(ins.coded_bytes == 0 or machine.dma.decoder_bytes_per_cycle > 0),
    ),
    Rule(
        ("coded_bytes", "bytes"),
        f"at most the run's bytes and one for each block of {BLOCK}",
        lambda ins, machine: bool(ins.coded_bytes <= ins.bytes + -(-ins.bytes // BLOCK)),
    ),
)
FETCH = Instruction(
    "fetch", 0x04, "copy a run of bytes from storage to DRAM", FIELDS, ("storage",),
    execute, RULES, footprint, cycles, __doc__, ("a run that lies outside storage or DRAM", "code that ends too early"),
)  # fmt: skip
