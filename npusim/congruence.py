"""When two pieces of code differ in nothing but where in DRAM they work.

Pieces end in barriers, behind which nothing of what came before is left. If two of them touch DRAM in intervals that
overlap in the same way, whatever depends on overlaps alone is equal for both: which rows two bursts share, which tokens
order two copies. `places` gives such intervals numbers that are equal exactly where they overlap in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
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
ADDRESS, STORAGE_ADDRESS = LOAD.by_name["dram_addr"], FETCH.by_name["storage_addr"]
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


class _Places(NamedTuple):
    """Runs of DRAM that instructions reach: index, the word of the address, base register, [first, end) from there.

    ``old``: 1 for old bytes of a FETCH.
    """

    at: Int64
    word: Int64
    base: Int64
    first: Int64
    end: Int64
    old: Int64


def _fetched(code: NDArray[np.uint32]) -> _Places | None:
    """What FETCHes write in DRAM and read of old bytes there; None as `copies`."""
    at = np.flatnonzero((code[:, 0] & 0xFF) == FETCH.opcode)
    field = {f.name: _field(code[at], f) for f in FETCH.fields}
    coded = field["coded_bytes"] > 0
    spans = []
    for name, base, some in (("dram_addr", "base", np.ones(len(at), np.bool_)), ("old_addr", "old_base", coded)):
        first, size, register = (field[key][some] for key in (name, "bytes", base))
        if (first.astype(np.float64) + size >= MOST).any():
            return None
        word = np.full(len(first), FETCH.by_name[name].word)
        old = np.full(len(first), int(name == "old_addr"))
        spans.append((at[some], word, *(v.astype(np.int64) for v in (register, first, first + size)), old))
    return _Places(*map(np.concatenate, zip(*spans, strict=True)))


def digest(code: NDArray[np.uint32]) -> bytes:
    """Equal for pieces that differ in layers' numbers, `IMMEDIATES`, storage, and where clusters lie in DRAM only.

    A FETCH is a copy to its place and, of coded bytes, one from the old bytes. Pieces whose copies cannot be counted
    are equal to their own words only.
    """
    found = _all_places(code)
    if found is None:
        return _hash(code, np.zeros((1, 0)))
    cluster, begin = places(found.base, found.first, found.end)
    return _hash(_with_offsets(code, found, found.first - begin), cluster)


def time_digest(code: NDArray[np.uint32], bases: Sequence[int], machine: Machine) -> bytes:
    """Equal for pieces that take equal time on ``machine`` by the rules of `npusim.timing.reuse`.

    ``bases``: what the base registers hold. It compares words, not what they cost, so it is quick, and finer than need
    be: other places in SRAM may take the same time.
    """
    found = _all_places(code)
    if found is None:
        return _hash(code, np.array(bases))
    origin = np.array(bases, np.int64)[found.base]
    # Old bytes are read by as many bursts as are written, which may be one more than they touch.
    more = machine.dram.device.burst_bytes * found.old
    offset, cluster = in_turns(found.first + origin, found.end + origin - 1 + more, machine)
    return _hash(_with_offsets(code, found, offset), cluster)


def in_turns(first: Int64, last: Int64, machine: Machine) -> tuple[Int64, Int64]:
    """All that the DRAM's time depends on of the addresses of a piece, whose copies reach bytes ``first`` to ``last``.

    Returns each ``first`` from the beginning of its cluster of turns on, and the cluster's number; where background
    traffic may share rows with the piece, ``first`` as it is, and no numbers.
    """
    dram, turn = machine.dram, machine.dram.turn_bytes
    if dram.background_bytes_per_second and (last >= dram.capacity_bytes // 2).any():
        return first, np.zeros(0, np.int64)
    cluster, begin = places(np.zeros_like(first), first // turn, last // turn + 1)
    return first - begin * turn, cluster


def _all_places(code: NDArray[np.uint32]) -> _Places | None:
    found, fetched = copies(code), _fetched(code)
    if found is None or fetched is None:
        return None
    word, old = np.full(len(found.at), ADDRESS.word), np.zeros(len(found.at), np.int64)
    loaded = _Places(found.at, word, found.base, found.first, found.end, old)
    return _Places(*map(np.concatenate, zip(loaded, fetched, strict=True)))


def _with_offsets(code: NDArray[np.uint32], found: _Places, offset: Int64) -> NDArray[np.uint32]:
    """The code with ``offset`` for the addresses of ``found``, and without addresses in storage."""
    words = code.copy()
    fetches = (code[:, 0] & 0xFF) == FETCH.opcode
    words[fetches, STORAGE_ADDRESS.word] = words[fetches, STORAGE_ADDRESS.word + 1] = 0
    words[found.at, found.word], words[found.at, found.word + 1] = offset & 0xFFFF_FFFF, offset >> 32
    return words


def _hash(words: NDArray[np.uint32], more: NDArray[Any]) -> bytes:
    """Of words without the layers' numbers and `IMMEDIATES`."""
    words = words & ~_MASKS[words[:, 0] & 0xFF]
    words[:, LAYER.word] &= np.uint32(0xFFFF_FFFF ^ (((1 << LAYER.bits) - 1) << LAYER.lo))
    return blake2b(words.tobytes() + str(more.shape).encode() + more.tobytes()).digest()
