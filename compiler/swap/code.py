"""Code with fetches in it: they are put where a policy wants them, and all tokens are set anew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.schedule.tokens import insert_tokens
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.control import JOINS
from npusim.isa.encoding import HEADER, UNITS, Decoded, encode

MASKS = {f.name: f for f in HEADER if f.name.startswith(("wait_", "signal_"))}


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

    def __init__(self, prologue: NDArray[np.uint32], step: NDArray[np.uint32], layer: int) -> None:
        """``layer``: the number of the layer that fetches belong to."""
        self._words = {True: prologue, False: step}
        self._decoded = {key: _without_tokens(decode(words)) for key, words in self._words.items()}
        self._layer = layer
        self._loads: dict[int, list[tuple[int, int, int]]] = {}
        self._made: dict[tuple[bool, tuple[Fetch, ...]], NDArray[np.uint32]] = {}

    def loads(self, base: int) -> list[tuple[int, int, int]]:
        """(index, start, end) of every access of the step to DRAM through register ``base``."""
        if base not in self._loads:
            self._loads[base] = [
                (index, region.start, region.end)
                for index, ins in enumerate(self._decoded[False])
                for region in BY_MNEMONIC[ins.op].footprint(ins)[0]
                if region.memory == "dram" and region.base == base
            ]
        return self._loads[base]

    def code(self, prologue: bool, fetches: Sequence[Fetch]) -> NDArray[np.uint32]:
        """Words (count, 32) of the prologue or the step, with ``fetches``; of those at one place in their order."""
        key = prologue, tuple(fetches)
        if key not in self._made:
            self._made[key] = self._code(prologue, fetches) if fetches else self._words[prologue]
        return self._made[key]

    def _code(self, prologue: bool, fetches: Sequence[Fetch]) -> NDArray[np.uint32]:
        words, decoded = self._words[prologue], self._decoded[prologue]
        rows, instructions, begin = [], list[Decoded](), 0
        for fetch in sorted(fetches, key=lambda fetch: fetch.at):
            rows += list(words[begin : fetch.at])
            instructions += decoded[begin : fetch.at]
            begin = max(begin, fetch.at)
            for op, fields in self._made_of(fetch):
                row = encode(BY_MNEMONIC[op], fields)
                rows.append(row)
                instructions += decode(row[None])
        rows += list(words[begin:])
        instructions += decoded[begin:]
        return _with_tokens(np.stack(rows), instructions)

    def _made_of(self, fetch: Fetch) -> list[tuple[str, dict[str, int]]]:
        values = {"storage_addr": fetch.storage + fetch.start, "dram_addr": fetch.dram + fetch.start}
        values |= {"bytes": fetch.size, "base": fetch.base}
        if fetch.coded:
            values |= {"coded_bytes": fetch.coded, "old_base": fetch.old_base, "old_addr": fetch.old + fetch.start}
        values |= {"storage_base": fetch.storage_base, "unit": UNITS.index("storage"), "layer": self._layer}
        barrier = {"unit": UNITS.index("vector"), "layer": self._layer}
        return [("fetch", values), *([("barrier", barrier)] if fetch.join else [])]


def _without_tokens(instructions: list[Decoded]) -> list[Decoded]:
    return [SimpleNamespace(**{**vars(ins), **dict.fromkeys(MASKS, 0)}) for ins in instructions]


def _with_tokens(words: NDArray[np.uint32], instructions: list[Decoded]) -> NDArray[np.uint32]:
    """The words with the tokens that program order needs; none crosses a barrier, which takes all."""
    words = words.copy()
    words[:, next(iter(MASKS.values())).word] = 0
    joins = [-1, *(i for i, ins in enumerate(instructions) if ins.op in JOINS), len(instructions)]
    for before, join in pairwise(joins):
        for index, tokens in enumerate(insert_tokens(instructions[before + 1 : join]), before + 1):
            for name, mask in tokens.items():
                words[index, MASKS[name].word] |= np.uint32(mask << MASKS[name].lo)
    return words
