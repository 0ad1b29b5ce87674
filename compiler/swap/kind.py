"""What the policies work on: one kind of sets (of steps or of time ranges), its code, and how long that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from compiler.swap.code import Coder, Fetch, Words
from compiler.swap.coded import Codes

PROLOGUE = -1
"""The number of the "step" that the prologue is."""

Timer = Callable[[Words], int]
"""Cycles of a piece of code that begins behind a barrier, or of several such pieces."""
Fetches = dict[int, list[Fetch]]
"""By step, or `PROLOGUE`."""


@dataclass(frozen=True)
class Registers:
    """Base registers of one kind: where code loads from, present and next set in storage, the next set's place."""

    base: int
    present: int
    following: int
    place: int


STEP, RANGE = Registers(1, 4, 5, 6), Registers(3, 7, 8, 9)


@dataclass(frozen=True)
class Plan:
    """``place``: which place in DRAM each set gets; ``fetches``: the instructions that bring it there."""

    place: tuple[int, ...]
    fetches: Mapping[int, Sequence[Fetch]]

    @property
    def places(self) -> int:
        return 1 + max(self.place)


@dataclass(frozen=True)
class Kind:
    """The sets of steps or of time ranges.

    ``set_bytes`` of each; ``steps`` of each set, in order; ``address``: of the first place in DRAM; ``storage``: of the
    first set in storage; ``most_places``: how many sets the machine's DRAM budget has room for. ``given``: fetches of
    the other kind, which stand in front of this one's. ``unit_bytes``: what fetches of code that is cut into segments
    are multiples of (`compiler.swap.spread`); ``latency_cycles``: of storage. ``codes``: of all sets but the first,
    where storage holds them coded.
    """

    name: str
    registers: Registers
    set_bytes: int
    steps: tuple[tuple[int, ...], ...]
    address: int
    storage: int
    most_places: int
    coder: Coder
    timer: Timer
    given: Mapping[int, Sequence[Fetch]]
    unit_bytes: int
    latency_cycles: int
    codes: Codes | None = None
    _known: dict[tuple[int, tuple[Fetch, ...]], int] = field(default_factory=dict, compare=False, repr=False)

    def fetch(self, at: int, storage_base: int, base: int, start: int, size: int, join: bool = False) -> Fetch:
        """A fetch of a part of any set but the first; the set before is at the register that code loads from."""
        plain = Fetch(at, storage_base, base, start, size, join)
        if self.codes is None:
            return plain
        return plain._replace(coded=self.codes.room(start, size), old_base=self.registers.base)

    def uses(self, start: int, end: int) -> tuple[int, int]:
        """Indices of the first and the last load of a step that reads bytes [start, end) of the set; -1 for none."""
        found = [i for i, a, b in self.coder.loads(self.registers.base) if a < end and b > start]
        return (found[0], found[-1]) if found else (-1, -1)

    def cycles(self, fetches: Mapping[int, Sequence[Fetch]]) -> int:
        """Cycles of the steps named in ``fetches``, with these fetches and those that are given."""
        return sum(self._cycles(step, (*self.given.get(step, ()), *found)) for step, found in fetches.items())

    def extra(self, fetches: Mapping[int, Sequence[Fetch]]) -> int:
        """Cycles that ``fetches`` add to the steps that they stand in."""
        return self.cycles(fetches) - self.cycles(dict.fromkeys(fetches, ()))

    def _cycles(self, step: int, found: tuple[Fetch, ...]) -> int:
        key = min(step, 0), found
        if key not in self._known:
            self._known[key] = sum(map(self.timer, self.coder.parts(step == PROLOGUE, found)))
        return self._known[key]

    @property
    def is_cut(self) -> bool:
        """Whether barriers cut the step into segments; the last one, of HALT alone, does not count."""
        return len(self.coder.segments) > 2

    @cached_property
    def segment_cycles(self) -> list[int]:
        """Of each segment of the step, without fetches."""
        return list(map(self.timer, self.coder.parts(False, ())))

    def at_start(self) -> Fetches:
        """The first set, fetched while the prologue runs."""
        r = self.registers
        return {PROLOGUE: [Fetch(0, r.following, r.place, 0, self.set_bytes)]}


def merged(*parts: Mapping[int, Sequence[Fetch]]) -> Fetches:
    """Fetches of several boundaries, step by step in the order given."""
    out: Fetches = {}
    for part in parts:
        for step, fetches in part.items():
            out.setdefault(step, []).extend(fetches)
    return out
