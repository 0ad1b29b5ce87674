"""Code of a segment whose like has been emitted before: the same words, moved to other places in DRAM and other layers.

What `compiler.schedule.blocks` and the tilers emit depends on what `_shape` names and on nothing else: where a tensor
lies in DRAM is only added to, and a layer's name only written down. So a segment of the same shape has the same words
but for `dram_addr` of its copies and for `layer`. Equal blocks of a network are such segments, if their immediates are
the same too: always without weights (`compiler/README.md`), hardly ever with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.schedule.blocks import Plan
from compiler.schedule.emitter import Emitter
from compiler.schedule.fuse import quantized_input
from compiler.schedule.place import value_bytes
from compiler.schedule.segments import Group
from npusim.congruence import ADDRESS, LAYER, copies
from npusim.isa.matmul import RECORD

Int64 = NDArray[np.int64]


class _Made(NamedTuple):
    """Words of a segment; the ranges of DRAM that its tensors take, and its layers, each in the order of `_shape`."""

    words: NDArray[np.uint32]
    ranges: Int64
    layers: list[str]


class Repeats:
    """The segments of one phase that have been emitted, by shape."""

    def __init__(self, emitter: Emitter, phase: str) -> None:
        self.emitter, self.phase = emitter, phase
        self._made: dict[object, _Made] = {}

    def words(self, segment: Sequence[Group]) -> NDArray[np.uint32] | None:
        """The segment's words (count, 32), or None where it must be emitted."""
        key, ranges, layers = _shape(self.emitter, self.phase, segment)
        made = self._made.get(key)
        return None if made is None else _moved(self.emitter, made, ranges, layers)

    def keep(self, segment: Sequence[Group], words: NDArray[np.uint32]) -> None:
        """Remember what was emitted."""
        key, ranges, layers = _shape(self.emitter, self.phase, segment)
        self._made.setdefault(key, _Made(words, ranges, layers))


def _moved(emitter: Emitter, made: _Made, ranges: Int64, layers: Sequence[str]) -> NDArray[np.uint32] | None:
    """The words for tensors in other ranges; None where the old ones do not tell which tensor a copy moves."""
    order = np.lexsort((made.ranges[:, 1], made.ranges[:, 0]))
    base, first, end = made.ranges[order].T
    shift = (ranges - made.ranges)[order, 1]
    meet = (base[1:] == base[:-1]) & (first[1:] < np.maximum.accumulate(end)[:-1])
    found = copies(made.words)
    if found is None or (ranges[:, 0] != made.ranges[:, 0]).any() or (meet & (shift[1:] != shift[:-1])).any():
        return None
    # One number for register and address: a register's addresses are far below the next one's.
    far = 1 << 56
    at = np.searchsorted(base * far + first, found.base * far + found.first, side="right") - 1
    if (at < 0).any() or (base[at] != found.base).any() or (found.end > end[at]).any():
        return None
    words = made.words.copy()
    address = (found.first + shift[at]).astype(np.uint64)
    words[found.at, ADDRESS.word] = address & np.uint64(0xFFFF_FFFF)
    words[found.at, ADDRESS.word + 1] = address >> np.uint64(32)
    numbers = words[:, LAYER.word] >> LAYER.lo
    _, begin, which = np.unique(numbers, return_index=True, return_inverse=True)
    new = np.zeros(len(begin), np.uint32)
    names = dict(zip(made.layers, layers, strict=True))
    for number in np.argsort(begin).tolist():  # numbered in the order in which they would have been emitted
        new[number] = emitter.number(names[emitter.layers[numbers[begin[number]]]])
    words[:, LAYER.word] += (new[which] - numbers) << np.uint32(LAYER.lo)
    return words


def _shape(emitter: Emitter, phase: str, segment: Sequence[Group]) -> tuple[object, Int64, list[str]]:
    """All that a segment's words depend on but places in DRAM and layers; the tensors' ranges there; the layers.

    A range is (base register, first byte, end).
    """
    graph, number, layers = emitter.graph, dict[str, int](), {phase: 0}
    parts: list[object] = []
    for plan, ops in segment:
        for op in ops:
            parts.append((op.kind, layers.setdefault(op.layer, len(layers)), tuple(sorted(op.attrs.items()))))
            for role, name in (*op.inputs.items(), ("output", op.output)):
                value, owner = graph.values[name], graph.base(name)
                which = tuple(number.setdefault(n, len(number)) for n in (name, owner.name))
                home = emitter.homes.get(owner.name)
                place = home and (home.memory, home.base, home.memory == "sram" and home.address)
                parts.append((role, which, value.kind, value.shape, value.dtype, value.row, value.col, place))
                parts.append((owner.shape, owner.dtype))
        parts.append(_cut(plan, number))
    ranges = list[tuple[int, int, int]]()
    for name in number:
        home = emitter.homes.get(name)
        if home and home.memory == "dram":
            ranges.append((home.base, home.address, home.address + value_bytes(graph.values[name])))
    for op in (op for _, ops in segment for op in ops if op.kind == "attention"):
        home = emitter.layout.logits[op.output]
        ranges.append((home.base, home.address, home.address + RECORD.itemsize))
    return tuple(parts), np.array(ranges, np.int64).reshape(-1, 3), list(layers)


def _cut(plan: Plan | None, number: Mapping[str, int]) -> object:
    """A plan with numbers in place of names."""
    if plan is None:
        return None
    known = {**number} | {quantized_input(op): -1 - number[op.output] for op in plan.group.ops}
    by_name = [sorted((known[name], at) for name, at in table.items()) for table in (plan.pieces, plan.local)]
    brought = tuple(known[name] for name in plan.brought)
    inner = frozenset(known[name] for name in plan.group.inner)
    return plan.rows, plan.columns, plan.zones, str(by_name), brought, inner
