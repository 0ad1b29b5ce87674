"""Where tensors live: in SRAM for as long as they are needed if they fit, else in DRAM; constants always in DRAM.

SRAM is split into three zones: tensors that stay, a ring for weights, and a ring for tiles of tensors that live in
DRAM. Parameter memory is a ring too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, Graph, Op, Value
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.matmul import RECORD
from npusim.memory import packed

ALIGN = 64
STEP_BASE, NOISE_BASE, RANGE_BASE = 1, 2, 3
"""Base registers: see `npusim.isa.addressing.BASES`."""
_BASES = {"const": 0, "step_const": STEP_BASE, "range_const": RANGE_BASE}


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def row_bytes(value: Value, count: int) -> int:
    """Bytes of ``count`` consecutive elements; a row of packed ones begins at a byte."""
    return -(-count * BITS[value.dtype] // 8)


def value_bytes(value: Value) -> int:
    rows = int(np.prod(value.shape[:-1], dtype=np.int64))
    return rows * row_bytes(value, value.shape[-1])


def contents(value: Value, data: NDArray[Any]) -> NDArray[np.uint8]:
    """A constant's bytes in memory; no copy where it holds whole bytes."""
    whole = np.ascontiguousarray(packed(data, BITS[value.dtype]) if BITS[value.dtype] < 8 else data)
    return whole.reshape(-1).view(np.uint8)


@dataclass(frozen=True)
class Home:
    """Address of a tensor in ``memory`` ('sram' or 'dram'); ``base`` is the DRAM base register."""

    memory: str
    address: int
    base: int = 0


@dataclass
class FirstFit:
    """Lowest-address allocator of lifetimes; ``peak`` is the size needed so far."""

    start: int
    capacity: int
    live: list[tuple[int, int, int]] = field(default_factory=list)  # (address, end, last use)
    peak: int = 0

    def take(self, size: int, first: int, last: int) -> int | None:
        """Address of ``size`` bytes alive from operation ``first`` to ``last``, or None."""
        self.live = sorted(entry for entry in self.live if entry[2] >= first)
        address = self.start
        for begin, end, _ in self.live:
            if begin - address >= size:
                break
            address = max(address, end)
        if address + size > self.start + self.capacity:
            return None
        self.live.append((address, address + size, last))
        self.peak = max(self.peak, address + size - self.start)
        return address


class Ring:
    """Buffers taken round and round from one zone.

    Buffers that are needed at the same time may fill at most half of it together. Then none of them overwrites another,
    even where the ring starts again between them, and the next ones can be filled while these are in use.
    """

    def __init__(self, name: str, field: str, start: int, size: int) -> None:
        """``name`` and ``field`` (the machine's size of this memory) are for messages."""
        self.name, self.field, self.start, self.end, self.next = name, field, start, start + size, start

    @property
    def half(self) -> int:
        """Bytes that buffers needed at the same time may take, a multiple of ALIGN."""
        return (self.end - self.start) // 2 // ALIGN * ALIGN

    def take(self, size: int, layer: str) -> int:
        """Address of one buffer; the caller keeps the sum of simultaneous buffers within ``half``."""
        return self.take_together([size], layer)[0]

    def take_together(self, sizes: list[int], layer: str) -> list[int]:
        """Addresses of buffers that are needed at the same time. Raises UserError if they exceed ``half``."""
        total = sum(aligned(size) for size in sizes)
        if total > self.half:
            raise UserError(
                f"{layer}: {total} bytes do not fit half of the {self.name} zone ({self.half} bytes); "
                f"the machine is too small: allowed is a larger {self.field}"
            )
        addresses = []
        for size in map(aligned, sizes):
            if self.next + size > self.end:
                self.next = self.start
            addresses.append(self.next)
            self.next += size
        return addresses


@dataclass(frozen=True)
class Zones:
    """Split of SRAM: [0, resident) stays, then the weight ring, then the tile ring."""

    resident: int
    weights: int
    tiles: int

    @classmethod
    def of(cls, machine: Machine) -> Zones:
        quarter = machine.sram.capacity_bytes // 4 // ALIGN * ALIGN
        return cls(machine.sram.capacity_bytes - 2 * quarter, quarter, quarter)


def logit_record(op: Op) -> bytes:
    """The requantization record of an attention's scores: no bias, no zero point."""
    record = np.zeros(1, RECORD)
    record["multiplier"], record["shift"] = op.attrs["logit_multiplier"], op.attrs["logit_shift"]
    return record.tobytes()


class Layout:
    """DRAM addresses of everything, from sizes alone; and the bytes of constants and of the sets, made when asked for.

    ``homes`` by value; ``logits``: the homes of attentions' requantization records, by output. Nothing depends on what
    constants hold, so a graph without contents has the same addresses.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.homes: dict[str, Home] = {}
        self.logits: dict[str, Home] = {}
        sizes = dict.fromkeys(_BASES, 0)
        for value in graph.values.values():
            if value.kind in sizes and value.base is None:
                self.homes[value.name] = Home("dram", sizes[value.kind], _BASES[value.kind])
                sizes[value.kind] += aligned(value_bytes(value))
        for op in (*graph.prologue, *graph.step):
            if op.kind == "attention":
                self.logits[op.output] = Home("dram", sizes["const"])
                sizes["const"] += aligned(RECORD.itemsize)
        self.constant_bytes, self.step_set_bytes, self.range_set_bytes = (sizes[kind] for kind in _BASES)

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


def lifetimes(graph: Graph, ops: tuple[Op, ...], groups: Sequence[int] = ()) -> dict[str, tuple[int, int]]:
    """First and last operation that touches each computed tensor of one phase (views count for their base).

    ``groups``: the number of each operation's group; those of a group run block by block, so all at the same time.
    """
    spans: dict[str, tuple[int, int]] = {}
    for index, op in zip(groups or range(len(ops)), ops, strict=True):
        for name in (*op.inputs.values(), op.output):
            owner = graph.base(name)
            if owner.kind == "value":
                spans[owner.name] = spans.get(owner.name, (index, index))[0], index
    return spans


def place(
    graph: Graph, phase: str, pinned: dict[str, Home], zones: Zones, spill: FirstFit,
    inner: frozenset[str] = frozenset(), groups: Sequence[int] = (),
) -> dict[str, Home]:  # fmt: skip
    """Homes of the tensors that one phase computes. ``pinned`` ones are given; the rest go to SRAM, or to ``spill``.

    ``inner`` ones have no home: only a block of their rows exists at a time. ``groups`` as for `lifetimes`.
    """
    ops = getattr(graph, phase)
    resident, homes = FirstFit(0, zones.resident), dict(pinned)
    for name, (first, last) in sorted(lifetimes(graph, ops, groups).items(), key=lambda item: item[1]):
        if name in homes or name in inner:
            continue
        size = aligned(value_bytes(graph.values[name]))
        address = resident.take(size, first, last)
        if address is not None:
            homes[name] = Home("sram", address)
            continue
        address = spill.take(size, first, last)
        if address is None:
            layer = next(op.layer for op in ops if graph.base(op.output).name == name)
            raise UserError(
                f"{layer}: tensor {name} of {size} bytes fits neither the {zones.resident} bytes of SRAM for tensors "
                f"that stay nor dram.npu_budget_bytes = {spill.start + spill.capacity}, of which {spill.start} are used"
            )
        homes[name] = Home("dram", address)
    return homes
