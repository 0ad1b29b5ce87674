"""Where tensors live: in SRAM for as long as they are needed if they fit, else in DRAM; constants always in DRAM.

SRAM is split into three zones: tensors that stay, a ring for weights, and a ring for tiles of tensors that live in
DRAM. Parameter memory is a ring too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.graph import BITS, Graph, Op, Value
from npusim.config import Machine
from npusim.errors import UserError

ALIGN = 64
NOISE_BASE = 2
"""Base register of the step's noise: see `npusim.isa.addressing.BASES`."""


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


@dataclass(frozen=True)
class Turns:
    """Turns of the DRAM's address mapping, of ``size`` bytes: 0 where no tensor must know of them.

    Else large tensors share no turn, and all begin at the same place in one, ``offset``: half of what neighbours have
    in one channel, so that copies of that many bytes out of each row are spread over two channels.
    """

    size: int = 0
    offset: int = 0

    @classmethod
    def of(cls, machine: Machine) -> Turns:
        return cls(machine.dram.turn_bytes, machine.dram.interleave_bytes // 2 // ALIGN * ALIGN)

    def _matter(self, size: int) -> bool:
        """To tensors that they let grow by little more than a quarter."""
        return bool(self.size) and size >= 4 * self.size

    def start(self, address: int, size: int) -> int:
        """The first address from ``address`` on where a tensor of ``size`` bytes may begin."""
        return address + (self.offset - address) % self.size if self._matter(size) else address

    def whole(self, size: int) -> int:
        """The bytes that a tensor of ``size`` bytes takes."""
        return -(-(size + self.offset) // self.size) * self.size if self._matter(size) else size


def row_bytes(value: Value, count: int) -> int:
    """Bytes of ``count`` consecutive elements; a row of packed ones begins at a byte."""
    return -(-count * BITS[value.dtype] // 8)


def value_bytes(value: Value) -> int:
    rows = int(np.prod(value.shape[:-1], dtype=np.int64))
    return rows * row_bytes(value, value.shape[-1])


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
    turns: Turns = field(default_factory=Turns)
    live: list[tuple[int, int, int]] = field(default_factory=list)  # (address, end, last use)
    peak: int = 0

    def take(self, size: int, first: int, last: int) -> int | None:
        """Address of ``size`` bytes alive from operation ``first`` to ``last``, or None."""
        self.live = sorted(entry for entry in self.live if entry[2] >= first)
        address, taken = self.turns.start(self.start, size), self.turns.whole(size)
        for begin, end, _ in self.live:
            if begin - address >= taken:
                break
            address = max(address, self.turns.start(end, size))
        size = taken
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
