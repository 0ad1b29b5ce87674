"""Spreads instructions over the units of their kind, on machines that have several: list scheduling in program order.

Each instruction goes to the unit on which it is estimated to start first, after everything whose bytes it needs or
overwrites; of units on which it starts at the same time, to the one that was at work last. Or it is cut in halves
(`compiler.schedule.halves`), where both are estimated to end earlier than the whole: a piece of code between barriers
is scheduled with such cuts and without, and the shorter schedule is taken. The order stays. A MATMUL that goes on from
held sums stays on the array that holds them; the emitter lets no other MATMUL come between. Tokens are set afterwards.
On machines with one unit of each kind nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.accesses import READ, WRITE, Accesses
from compiler.schedule.cost_model import transfer
from compiler.schedule.encode import encode_all
from compiler.schedule.halves import halves
from npusim.config import Machine
from npusim.congruence import digest, joins, pieces
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.control import JOINS
from npusim.isa.dma import dma_bytes
from npusim.isa.encoding import Decoded, Region
from npusim.units import UNITS, kind_of


class Placed(NamedTuple):
    """An instruction on its unit: the ``source``-th of the piece, or half of that."""

    source: int
    unit: int
    ins: Decoded


def spread(code: NDArray[np.uint32], machine: Machine) -> NDArray[np.uint32]:
    """The words of ``code`` (count, 32), all on the first unit of their kind, spread; there may be more of them then.

    Tokens are not looked at. Every piece between barriers begins with all units free. Equal pieces are spread alike.
    """
    if max(machine.unit_counts.values()) == 1:
        return code
    known: dict[bytes, Spread] = {}
    found = []
    for begin, end in pieces(joins(code)):
        piece = code[begin:end]
        key = digest(piece)
        if key not in known:
            known[key] = Spread.of(piece, machine)
        found.append(known[key].applied(piece))
    return np.concatenate(found) if found else code


class Spread(NamedTuple):
    """What becomes of a piece: of each new instruction its ``source``, and the bits that are ``turned`` over.

    Equal pieces differ in layers, in places in DRAM and in immediates, of which nothing is turned.
    """

    source: NDArray[np.int64]
    turned: NDArray[np.uint32]

    @classmethod
    def of(cls, piece: NDArray[np.uint32], machine: Machine) -> Spread:
        placed = schedule(decode(piece), machine)
        source = np.array([p.source for p in placed], np.int64)
        return cls(source, _words(placed) ^ piece[source])

    def applied(self, piece: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The words of an equal piece."""
        return piece[self.source] ^ self.turned


def _words(placed: list[Placed]) -> NDArray[np.uint32]:
    fields = [(p.ins.op, {n: v for n, v in vars(p.ins).items() if n not in ("op", "opcode")}) for p in placed]
    return encode_all([(op, {**values, "unit": p.unit}) for (op, values), p in zip(fields, placed, strict=True)], ())


def schedule(instructions: list[Decoded], machine: Machine) -> list[Placed]:
    """One piece, on its units: the schedule that is estimated to end first, with cuts or without."""
    best = min((_Schedule(machine, cuts).of(instructions) for cuts in (False, True)), key=lambda made: max(made.free))
    return best.placed


@dataclass
class _Schedule:
    """What is estimated of the instructions so far: when units and DRAM are free, and when bytes were touched last."""

    machine: Machine
    cuts: bool
    free: list[int] = field(default_factory=lambda: [0] * len(UNITS))
    dram_free: int = 0
    touched: Accesses = field(default_factory=Accesses)
    last_array: int = UNITS.index("mac")
    placed: list[Placed] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = self.machine.unit_counts
        self.options = {kind: [UNITS.index(unit) for unit in self.machine.units_of(kind)] for kind in kinds}

    def of(self, instructions: list[Decoded]) -> _Schedule:
        """Itself, after all of these."""
        for source, ins in enumerate(instructions):
            if ins.op in JOINS:
                self.placed.append(Placed(source, ins.unit, ins))
            else:
                self._place(source, ins)
        return self

    def _place(self, source: int, ins: Decoded) -> None:
        unit, start = self._first(ins)
        pair = halves(ins, self.machine) if self.cuts else None
        if pair:
            end, ends, before = self._end(ins, start), [0, 0], list(self.free)
            for number, half in enumerate(pair):
                other, start = self._first(half)
                ends[number] = self.free[other] = self._end(half, start)
            self.free = before
            if max(ends) < end:
                for half in pair:
                    self._put(source, half, *self._first(half))
                return
        self._put(source, ins, unit, start)

    def _first(self, ins: Decoded) -> tuple[int, int]:
        """The unit on which an instruction starts first, and when."""
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        ready = max((self._last(region, WRITE) for region in reads), default=0)
        ready = max((ready, *(max(self._last(region, READ), self._last(region, WRITE)) for region in writes)))
        options = self.options[kind_of(ins.unit)]
        if ins.op == "matmul" and ins.acc_continue:
            options = [self.last_array]
        unit = min(options, key=lambda number: (max(ready, self.free[number]), -self.free[number], number))
        return unit, max(ready, self.free[unit])

    def _last(self, region: Region, access: int) -> int:
        return max(0, int(self.touched.latest(region)[access].max()))

    def _put(self, source: int, ins: Decoded, unit: int, start: int) -> None:
        end = self._end(ins, start)
        self.free[unit] = end
        if ins.op in ("load", "store"):
            self.dram_free = end
        if ins.op == "matmul":
            self.last_array = unit
        for access, regions in zip((READ, WRITE), BY_MNEMONIC[ins.op].footprint(ins), strict=True):
            for region in regions:
                self.touched.add(region, access, unit, end)
        self.placed.append(Placed(source, unit, ins))

    def _end(self, ins: Decoded, start: int) -> int:
        """When an instruction that starts at ``start`` ends; copies follow one another in the DRAM."""
        if ins.op not in ("load", "store"):
            return start + BY_MNEMONIC[ins.op].cycles(ins, self.machine)
        alone, latency = (int(transfer(self.machine, size, 1).dram) for size in (dma_bytes(ins), 0))
        return max(start + latency, self.dram_free) + alone - latency
