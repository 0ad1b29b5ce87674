"""DRAM addresses of constants and of parameter sets, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, Graph, Op, Value
from compiler.schedule.place import Home, Turns, aligned, value_bytes
from npusim.isa.matmul import RECORD
from npusim.memory import packed

BASES = {"const": 0, "step_const": 1, "range_const": 3}
"""Base registers: see `npusim.isa.addressing.BASES`."""

PADDING, SET_PADDING = 1 / 16, 1 / 3
"""The most that gaps may add, as a part of all constants and sets, and of the constants or of a set."""

Part = list[tuple[str, int]]
"""Constants that one segment reads first, as (name, bytes); an attention's requantization record has its output's."""


def logit_record(op: Op) -> bytes:
    """The requantization record of an attention's scores: no bias, no zero point."""
    record = np.zeros(1, RECORD)
    record["multiplier"], record["shift"] = op.attrs["logit_multiplier"], op.attrs["logit_shift"]
    return record.tobytes()


def contents(value: Value, data: NDArray[Any]) -> NDArray[np.uint8]:
    """A constant's bytes in memory; no copy where it holds whole bytes."""
    whole = np.ascontiguousarray(packed(data, BITS[value.dtype]) if BITS[value.dtype] < 8 else data)
    return whole.reshape(-1).view(np.uint8)


class Layout:
    """DRAM addresses of everything, from sizes alone; and the bytes of constants and of the sets, made when asked for.

    ``homes`` by value; ``logits``: the homes of attentions' requantization records, by output. Nothing depends on what
    constants hold, so a graph without contents has the same addresses.

    With ``segments`` of the step's operations, the constants of each lie together, and those of segments that read as
    many bytes in the same order begin at the same place in ``turns`` of the DRAM's address mapping, and so does every
    set; without the gaps where those would take more than `PADDING` or `SET_PADDING`. ``aligned``: kinds with gaps.
    """

    def __init__(self, graph: Graph, segments: Sequence[Sequence[Op]] = (), turns: Turns | None = None) -> None:
        self.graph, self.turns = graph, turns or Turns()
        self.homes: dict[str, Home] = {}
        self.logits: dict[str, Home] = {}
        self.aligned = set[str]()
        counts = {"const": 1, "step_const": graph.steps, "range_const": graph.ranges}
        parts = {
            kind: _parts_of_segments(graph, kind, segments) if segments else [_all_of(graph, kind)] for kind in BASES
        }
        found = {kind: _placed(some, 1) for kind, some in parts.items()}
        most = PADDING * sum(counts[kind] * size for kind, (_, size) in found.items())
        for kind in BASES if segments and self.turns.size else ():
            (_, size), (addresses, end) = found[kind], _placed(parts[kind], self.turns.size)
            end = -(-end // self.turns.size) * self.turns.size
            if end - size <= SET_PADDING * size and (end - size) * counts[kind] <= most:
                found[kind] = addresses, end
                self.aligned.add(kind)
        for kind, base in BASES.items():
            for name, address in found[kind][0].items():
                homes = self.homes if graph.values[name].kind == kind else self.logits
                homes[name] = Home("dram", address, base)
        sizes = [size for _, size in found.values()]
        self.constant_bytes, self.step_set_bytes, self.range_set_bytes = sizes

    @property
    def set_address(self) -> int:
        """Where the first step's constants lie: right behind those of the program."""
        return self.constant_bytes

    @property
    def range_address(self) -> int:
        """Where the first time range's parameter set lies: right behind the steps'."""
        return self.set_address + self.graph.steps * self.step_set_bytes

    @property
    def end(self) -> int:
        """The first address behind all constants and sets."""
        return self.range_address + self.graph.ranges * self.range_set_bytes

    def constants(self) -> NDArray[np.uint8]:
        """The program's constants, (constant_bytes,)."""
        data = self._filled("const", 1, self.constant_bytes)
        for op in (*self.graph.prologue, *self.graph.step) if self.graph.contents else ():
            if op.kind == "attention":
                start = self.logits[op.output].address
                data[0, start : start + RECORD.itemsize] = np.frombuffer(logit_record(op), np.uint8)
        return np.asarray(data[0])

    def step_sets(self) -> NDArray[np.uint8]:
        """The steps' constants, (steps, step_set_bytes)."""
        return self._filled("step_const", self.graph.steps, self.step_set_bytes)

    def range_sets(self) -> NDArray[np.uint8]:
        """The parameter sets, (ranges, range_set_bytes)."""
        return self._filled("range_const", self.graph.ranges, self.range_set_bytes)

    def _filled(self, kind: str, count: int, size: int) -> NDArray[np.uint8]:
        """Bytes of all constants of a kind, (count, size); zeros that take no memory for a graph without contents."""
        if not self.graph.contents:
            return np.broadcast_to(np.uint8(0), (count, size))
        filled = np.zeros((count, size), np.uint8)
        for value in self.graph.values.values():
            if value.kind == kind and value.base is None:
                assert value.data is not None
                start = self.homes[value.name].address
                for part, data in zip(filled, value.data[None] if kind == "const" else value.data, strict=True):
                    part[start : start + value_bytes(value)] = contents(value, data)
        return filled


def _all_of(graph: Graph, kind: str) -> Part:
    """All constants of a kind as the graph has them, then the requantization records of attentions."""
    found = [(v.name, value_bytes(v)) for v in graph.values.values() if v.kind == kind and v.base is None]
    attentions = [op.output for op in (*graph.prologue, *graph.step) if op.kind == "attention" and kind == "const"]
    return [*found, *((output, RECORD.itemsize) for output in attentions)]


def _parts_of_segments(graph: Graph, kind: str, segments: Sequence[Sequence[Op]]) -> list[Part]:
    """The same by the segment that reads them first, in the order of reading; the prologue's come first."""
    left = dict(_all_of(graph, kind))
    parts = list[Part]()
    for ops in (graph.prologue, *segments):
        names = [name for op in ops for name in (*(graph.base(n).name for n in op.inputs.values()), op.output)]
        parts.append([(name, left.pop(name)) for name in dict.fromkeys(names) if name in left])
    return [*parts, list(left.items())]


def _placed(parts: Sequence[Part], turn: int) -> tuple[dict[str, int], int]:
    """Addresses by name, and the size of all; parts of equal sizes begin at the same place in a turn."""
    addresses, end = dict[str, int](), 0
    places = dict[tuple[int, ...], int]()
    for part in parts:
        sizes = tuple(size for _, size in part)
        end += (places.setdefault(sizes, end % turn) - end) % turn
        for name, size in part:
            addresses[name] = end
            end += aligned(size)
    return addresses, end
