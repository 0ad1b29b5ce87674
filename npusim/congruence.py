"""When two pieces of code differ in nothing but where in DRAM they work.

Pieces end in barriers, behind which nothing of what came before is left. If two of them touch DRAM in intervals that
overlap in the same way, whatever depends on overlaps alone is equal for both: which rows two bursts share, which tokens
order two copies. `places` gives such intervals numbers that are equal exactly where they overlap in the same way.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.isa import BY_MNEMONIC
from npusim.isa.control import JOINS
from npusim.isa.dma import FIELDS as DMA_FIELDS
from npusim.isa.dma import LOAD, STORE
from npusim.isa.encoding import HEADER, WORDS, Field
from npusim.isa.storage_dma import FETCH

Int64 = NDArray[np.int64]
MOST = 2.0**61
JOIN_OPCODES = [BY_MNEMONIC[name].opcode for name in JOINS]
LAYER = next(f for f in HEADER if f.name == "layer")
ADDRESS = LOAD.by_name["dram_addr"]
IMMEDIATES = ("multiplier", "shift", "out_zp", "a_mul", "b_mul", "epsilon", "fraction_bits", "p_bits")
"""Fields on which neither footprint nor time depends, in any family that has them."""


def pieces(joins: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[begin, end) of the instructions up to each barrier or halt, itself included; then of those behind the last."""
    cuts = [0, *(np.flatnonzero(joins) + 1).tolist()]
    if cuts[-1] < len(joins):
        cuts.append(len(joins))
    return list(pairwise(cuts))


def places(space: Int64, first: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Where each of the intervals [first, end) lies in its `space`, but for shifts of all that overlap.

    Intervals of a space that overlap, directly or through others, form a cluster. Returns the number of each interval's
    cluster, in the order of their first members, and where the cluster begins. All arrays are (count,), no interval is
    empty. Moving a whole cluster, to where it still meets no other, changes neither the numbers nor `first` less the
    beginning; and intervals with the same of both have the same overlaps, to the unit.
    """
    order = np.lexsort((first, space))
    space, begin, end = space[order], first[order], end[order]
    new = np.ones(len(order), np.bool_)
    bounds = [0, *(np.flatnonzero(np.diff(space)) + 1).tolist(), len(order)]
    for low, high in pairwise(bounds):
        new[low + 1 : high] = begin[low + 1 : high] >= np.maximum.accumulate(end[low:high])[:-1]
    cluster = np.cumsum(new) - 1
    found = np.empty(len(order), np.int64)
    found[order] = cluster
    # Numbered anew, by first appearance.
    _, seen, number = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(seen), np.int64)
    rank[np.argsort(seen, kind="stable")] = np.arange(len(seen))
    return rank[number], begin[new][found]


class Copies(NamedTuple):
    """LOADs and STOREs: their indices, which of them store, and [first, end) in DRAM from register ``base``."""

    at: Int64
    stores: NDArray[np.bool_]
    base: Int64
    first: Int64
    end: Int64


def copies(code: NDArray[np.uint32]) -> Copies | None:
    """The copies in ``code`` (count, 32); None if one reaches so far that 64 bits cannot count it."""
    opcodes = code[:, 0] & 0xFF
    at = np.flatnonzero((opcodes == LOAD.opcode) | (opcodes == STORE.opcode))
    field = {f.name: _field(code[at], f) for f in DMA_FIELDS}
    rows, planes = ((field[f"{name}s"].astype(np.float64) - 1) * field[f"dram_{name}"] for name in ("row", "plane"))
    if (field["dram_addr"].astype(np.float64) + rows + planes >= MOST).any():
        return None
    number = {name: values.astype(np.int64) for name, values in field.items()}
    first = number["dram_addr"]
    extent = (number["rows"] - 1) * number["dram_row"] + (number["planes"] - 1) * number["dram_plane"]
    return Copies(at, opcodes[at] == STORE.opcode, number["base"], first, first + extent + number["row_bytes"])


def _field(code: NDArray[np.uint32], f: Field) -> NDArray[np.uint64]:
    raw = code[:, f.word].astype(np.uint64)
    if f.bits == 64:
        return raw | code[:, f.word + 1].astype(np.uint64) << np.uint64(32)
    return (raw >> np.uint64(f.lo)) & np.uint64((1 << f.bits) - 1)


def joins(code: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which instructions are barriers or halts."""
    return np.isin(code[:, 0] & 0xFF, JOIN_OPCODES)


def _immediates() -> NDArray[np.uint32]:
    """(256, 32): by opcode, the bits of `IMMEDIATES`."""
    masks = np.zeros((256, WORDS), np.uint32)
    for spec in BY_MNEMONIC.values():
        for f in (f for f in spec.fields if f.name in IMMEDIATES):
            bits = ((1 << f.bits) - 1) << f.lo
            masks[spec.opcode, f.word] |= np.uint32(bits & 0xFFFF_FFFF)
            if f.bits == 64:
                masks[spec.opcode, f.word + 1] |= np.uint32(bits >> 32)
    return masks


_MASKS = _immediates()


def digest(code: NDArray[np.uint32]) -> bytes:
    """Equal for pieces that differ in layers' numbers, `IMMEDIATES`, and where clusters of copies lie in DRAM only.

    A piece with a FETCH, or whose copies cannot be counted, is equal to its own words only.
    """
    words, cluster = code & ~_MASKS[code[:, 0] & 0xFF], np.zeros(0, np.int64)
    words[:, LAYER.word] &= np.uint32(0xFFFF_FFFF ^ (((1 << LAYER.bits) - 1) << LAYER.lo))
    found = None if ((code[:, 0] & 0xFF) == FETCH.opcode).any() else copies(code)
    if found is not None and len(found.at):
        cluster, begin = places(found.base, found.first, found.end)
        offset = (found.first - begin).astype(np.uint64)
        words[found.at, ADDRESS.word] = offset & np.uint64(0xFFFF_FFFF)
        words[found.at, ADDRESS.word + 1] = offset >> np.uint64(32)
    return blake2b(words.tobytes() + b"copies" * (found is not None) + cluster.tobytes()).digest()
