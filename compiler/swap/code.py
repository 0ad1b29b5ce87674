"""Code with fetches in it: they are put where a policy wants them, and all tokens are set anew."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.schedule.tokens import with_tokens
from npusim.congruence import copies, joins, pieces
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import encode
from npusim.units import UNITS

Words = NDArray[np.uint32]


class Fetch(NamedTuple):
    """Bytes [start, start + size) of a set, fetched in front of instruction ``at``; with ``join``, a barrier follows.

    ``storage_base`` and ``base`` are the registers that point to the set in storage and in DRAM; ``storage`` and
    ``dram`` are added to ``start`` where these are absolute. ``coded``: bytes of the code in storage, as the difference
    to the same bytes of the set at ``old`` behind register ``old_base``; 0: none.
    """

    at: int
    storage_base: int
    base: int
    start: int
    size: int
    join: bool = False
    storage: int = 0
    dram: int = 0
    coded: int = 0
    old_base: int = 0
    old: int = 0


class Coder:
    """Prologue and step of a program, to which fetches are added. Raises UserError for code that cannot be decoded."""

    def __init__(self, prologue: Words, step: Words, layer: int) -> None:
        """``layer``: the number of the layer that fetches belong to."""
        self._words = {True: prologue, False: step}
        self._segments = {part: pieces(joins(words)) for part, words in self._words.items()}
        self._layer = layer
        self._loads: dict[int, list[tuple[int, int, int]]] = {}
        self._made: dict[tuple[bool, int, tuple[Fetch, ...]], Words] = {}
        self._tokens: dict[bytes, Words] = {}

    @property
    def segments(self) -> list[tuple[int, int]]:
        """[begin, end) of the instructions of the step up to each barrier, itself included."""
        return self._segments[False]

    def loads(self, base: int) -> list[tuple[int, int, int]]:
        """(index, start, end) of every access of the step to DRAM through register ``base``."""
        if base not in self._loads:
            found = copies(self._words[False])
            if found is None:
                raise UserError("the step's code reaches DRAM beyond 2^61 bytes; allowed: one as compiled")
            mine = ~found.stores & (found.base == base)
            columns = (array[mine].tolist() for array in (found.at, found.first, found.end))
            self._loads[base] = list(zip(*columns, strict=True))
        return self._loads[base]

    def code(self, prologue: bool, fetches: Sequence[Fetch]) -> Words:
        """Words (count, 32) of the prologue or the step, with ``fetches``; of those at one place in their order."""
        return np.concatenate(self.parts(prologue, fetches)) if fetches else self._words[prologue]

    def parts(self, prologue: bool, fetches: Sequence[Fetch]) -> list[Words]:
        """The same segment by segment."""
        words, segments = self._words[prologue], self._segments[prologue]
        parts = [words[begin:end] for begin, end in segments] or [words]
        begins = [begin for begin, _ in segments]
        found: dict[int, list[Fetch]] = {}
        for fetch in fetches:
            found.setdefault(max(0, bisect(begins, fetch.at) - 1), []).append(fetch)
        for number, some in found.items():
            key = prologue, number, tuple(some)
            if key not in self._made:
                self._made[key] = self._part(parts[number], begins[number] if begins else 0, some)
            parts[number] = self._made[key]
        return parts

    def _part(self, words: Words, first: int, fetches: Sequence[Fetch]) -> Words:
        """One segment with its fetches; ``first``: the number of its first instruction."""
        parts, begin = list[Words](), 0
        for fetch in sorted(fetches, key=lambda fetch: fetch.at):
            parts.append(words[begin : fetch.at - first])
            begin = max(begin, fetch.at - first)
            parts += [encode(BY_MNEMONIC[op], fields)[None] for op, fields in self._made_of(fetch)]
        return with_tokens(np.concatenate([*parts, words[begin:]]), self._tokens)

    def _made_of(self, fetch: Fetch) -> list[tuple[str, dict[str, int]]]:
        values = {"storage_addr": fetch.storage + fetch.start, "dram_addr": fetch.dram + fetch.start}
        values |= {"bytes": fetch.size, "base": fetch.base}
        if fetch.coded:
            values |= {"coded_bytes": fetch.coded, "old_base": fetch.old_base, "old_addr": fetch.old + fetch.start}
        values |= {"storage_base": fetch.storage_base, "unit": UNITS.index("storage"), "layer": self._layer}
        barrier = {"unit": UNITS.index("vector"), "layer": self._layer}
        return [("fetch", values), *([("barrier", barrier)] if fetch.join else [])]
