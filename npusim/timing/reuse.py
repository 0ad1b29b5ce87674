"""Pieces of code that take equal time are timed once. This is exact, not an estimate.

The rules, in full:

* A barrier leaves nothing behind: queues are empty, no token is left, the DRAM is in one state and its clock starts
  anew (`npusim.timing.core`). So what happens up to the next barrier follows from the instructions between them.
* Of an instruction the core reads its unit, its cycles, its tokens, its demands on the SRAM and, for a copy, its shape
  and address. Layers and opcodes play no part.
* Of an address the DRAM takes everything below the row (channel, bank group, bank, place in the row) as it is; these
  repeat with every *turn* of the mapping, one row of every bank. Of rows it asks only whether two are the same.
* So a copy's address is known well enough by its place in a turn, and by which copies share turns with it. The turns
  that copies reach, from first to last, form clusters (`npusim.congruence.in_turns`): moving a cluster by whole turns
  to where it meets no other changes no answer. Two pieces whose instructions agree in all the above, addresses taken
  relative to their clusters' first turns, take the same time, cycle by cycle.
* A FETCH counts as a copy to its place in DRAM and, of coded bytes, one from the old bytes. Addresses in storage play
  no part.
* Background traffic reaches the upper half of the memory, at addresses of its own. Where there is any and a piece
  reaches there too, its addresses count as they are.

What was timed is kept for later pieces of the same process, of any code for a machine that is equal to the core.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.congruence import in_turns, pieces
from npusim.timing import core, dram, sram, storage
from npusim.timing.cost import Costs, Int64
from npusim.units import KINDS, of_kind

KEPT_INSTRUCTIONS = 4_000_000
"""How many instructions' timings are kept; 24 bytes each."""


@dataclass(frozen=True, eq=False)
class Run:
    """What `core.run` found; times from the beginning of the code.

    ``dram``: (counts,) as `DramCounts` has them. ``stuck``: for each unit the index of the instruction at the head of
    its queue, or -1. All that follows ``dram`` is for messages.
    """

    outcome: int
    total: int
    ledger: Int64
    start: Int64
    end: Int64
    held: Int64
    dram: Int64
    stuck: tuple[int, ...]
    tokens: Int64
    barriers_passed: int


class _Machine(NamedTuple):
    """What the core reads of a machine; ``units``: one past the highest number of a unit."""

    memory: Int64
    ports: Int64
    clocks: Int64
    units: Int64

    @classmethod
    def of(cls, machine: Machine) -> _Machine:
        clocks = np.array([machine.clock_mhz, machine.dram.device.clock_mhz, machine.interconnect_cycles], np.int64)
        rows = len(KINDS) * max(machine.unit_counts.values())
        return cls(dram.new_state(machine), sram.ports(machine.sram), clocks, np.array([rows], np.int64))


_kept: OrderedDict[bytes, Run] = OrderedDict()


def run_whole(cost: Costs, machine: Machine) -> Run:
    """Time every instruction."""
    return _run(cost, slice(None), _Machine.of(machine))


def run_pieces(cost: Costs, machine: Machine) -> Run:
    """Time each piece between barriers unless an equal one is known."""
    known, cuts = _Machine.of(machine), pieces(cost.barrier)
    salt = blake2b(b"".join(array.tobytes() for array in known)).digest()
    runs = list[Run]()
    for begin, end in cuts:
        part = slice(begin, end)
        key = _key(cost, part, machine, salt)
        run = _kept.pop(key, None) or _run(cost, part, known)
        if run.outcome != core.DONE:
            return run_whole(cost, machine)  # for its cycle and indices
        _kept[key] = run
        runs.append(run)
    _forget()
    return _joined(runs) if runs else _run(cost, slice(None), known)


def _forget() -> None:
    """Drop what was not asked for longest."""
    count = sum(len(run.start) for run in _kept.values())
    while count > KEPT_INSTRUCTIONS:
        count -= len(_kept.popitem(last=False)[1].start)


def _key(cost: Costs, part: slice, machine: Machine, salt: bytes) -> bytes:
    """A digest of all that the time of a piece depends on."""
    geometry = cost.geometry[part].copy()
    row, column, start, last = _reached(geometry, cost.unit[part], cost.transfer[part], machine.dram.device.burst_bytes)
    geometry[row, column], cluster = in_turns(start, last, machine)
    digest = blake2b(salt)
    for array in (
        cost.unit[part], cost.barrier[part], cost.busy[part], cost.transfer[part], cost.wait[part], cost.signal[part],
        cost.demand[part], geometry, cluster,
    ):  # fmt: skip
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _reached(geometry: Int64, unit: Int64, transfer: Int64, burst_bytes: int) -> tuple[Int64, Int64, Int64, Int64]:
    """What copies reach in DRAM: row and column of ``geometry`` with the first byte, that byte, and the last one."""
    fetches = np.isin(unit, of_kind("storage"))
    copy, fetch = np.flatnonzero((transfer > 0) & ~fetches), np.flatnonzero((transfer > 0) & fetches)
    coded = fetch[geometry[fetch, storage.OLD] != storage.PLAIN]
    first, run, rows, row_stride, planes, plane_stride = geometry[copy].T
    last = first + (rows - 1) * row_stride + (planes - 1) * plane_stride + run - 1
    # Old bytes are read by as many bursts as are written, which may be one more than they touch.
    spans = [
        (copy, 0, last),
        (fetch, storage.ADDRESS, geometry[fetch, storage.ADDRESS] + geometry[fetch, storage.SIZE] - 1),
        (coded, storage.OLD, geometry[coded, storage.OLD] + geometry[coded, storage.SIZE] - 1 + burst_bytes),
    ]
    row = np.concatenate([rows for rows, _, _ in spans])
    column = np.concatenate([np.full(len(rows), column) for rows, column, _ in spans])
    return row, column, geometry[row, column], np.concatenate([last for *_, last in spans])


def _run(cost: Costs, part: slice, machine: _Machine) -> Run:
    unit, barrier = cost.unit[part], cost.barrier[part]
    queue, stops, barriers = _queues(unit, barrier, int(machine.units[0]))
    arrays = (cost.busy, cost.transfer, cost.geometry, cost.wait, cost.signal, cost.demand)
    memory = machine.memory.copy()
    # Contiguous in any case, so that the kernel is compiled for one kind of array only.
    given = map(np.ascontiguousarray, (queue, stops, barriers, *(array[part] for array in arrays)))
    run = core.run(*given, machine.ports, machine.clocks, memory)
    outcome, total, ledger, start, end, held, head, tokens, passed = run
    stop = stops[min(passed + 1, len(stops) - 1)]
    stuck = [int(queue[at]) if at < limit else -1 for at, limit in zip(head, stop, strict=True)]
    counts = memory[dram.ROW_HITS : dram.ISSUED]
    return Run(outcome, int(total), ledger, start, end, held, counts, tuple(stuck), tokens, int(passed))


def _queues(unit: Int64, barrier: NDArray[np.bool_], units: int) -> tuple[Int64, Int64, Int64]:
    """``queue``, ``stops`` and ``barriers`` as `core.run` wants them."""
    barriers = np.flatnonzero(barrier)
    members = [np.flatnonzero((unit == number) & ~barrier) for number in range(units)]
    begin = np.cumsum([0, *map(len, members)])[:-1]
    limits = [-1, *barriers.tolist(), len(unit)]
    stops = np.array([[np.searchsorted(member, limit) for member in members] for limit in limits], np.int64) + begin
    return np.concatenate(members), stops, barriers


def _joined(runs: list[Run]) -> Run:
    """One run behind the other; there is one at least."""
    origins = np.cumsum([0, *(run.total for run in runs)]).tolist()
    start, end = (
        np.concatenate([getattr(run, name) + origin for run, origin in zip(runs, origins, strict=False)])
        for name in ("start", "end")
    )
    return replace(
        runs[-1], total=origins[-1], ledger=np.sum([run.ledger for run in runs], axis=0), start=start, end=end,
        held=np.concatenate([run.held for run in runs]), dram=np.sum([run.dram for run in runs], axis=0),
    )  # fmt: skip
