"""The event-driven core: when each instruction starts and ends, and what every unit does in every cycle.

Time is a whole number of NPU cycles. An instruction that starts at ``s`` and ends at ``e`` occupies the cycles
``s <= t < e``; a token sent at ``e`` can be taken at ``e``. The rules, in full:

* Each unit executes its instructions in program order, one at a time. An instruction starts as soon as its unit is
  free, every earlier barrier is over, and every semaphore named by ``wait_raw`` and ``wait_war`` is above 0; starting
  takes one token from each. When it ends it adds one token to every semaphore named by ``signal_raw`` and
  ``signal_war``.
* A compute instruction ends its ``busy`` cycles after its start.
* A DMA instruction (``transfer`` > 0) sets up for ``busy`` cycles and then hands its bursts to the DRAM, at ``r``. The
  DRAM has a clock of its own, which begins with every barrier's end: NPU cycle ``t`` after that is its clock
  ``ceil(t D / N)`` for a request, and what happens there at clock ``d`` is seen in cycle ``ceil(d N / D)``, with both
  frequencies as whole numbers. The instruction ends when its last burst has passed the bus and the interconnect.
  `npusim.timing.dram` states what the DRAM does. Nothing of a unit's next instruction overlaps its present one.
* A barrier starts when every instruction before it in program order has ended, and lasts ``busy`` cycles; no
  instruction after it starts before it ends. All semaphores must be 0 when it starts, and when the code ends. It leaves
  the DRAM in one fixed state.

In each cycle a unit is in exactly one state of `CAUSES`:

* ``busy``: computing, setting up a transfer, or transferring: of the cycles between ``r`` and the end, as many as the
  bytes take at the peak rate of all channels (``transfer``);
* ``wait_token_raw``: the head of its queue lacks at least one read-after-write token;
* ``wait_token_war``: the head lacks no read-after-write token, but one that guards an overwrite;
* ``wait_dram``: the other cycles between ``r`` and the end: latency, rows that open, refresh, bytes of others;
* ``wait_barrier``: it has nothing left before the next barrier, or the barrier is being executed (by no unit in
  particular);
* ``idle_done``: it has nothing left, and no barrier follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel
from npusim.timing import dram

CAUSES = ("busy", "wait_token_raw", "wait_token_war", "wait_dram", "wait_barrier", "idle_done")
BUSY, WAIT_RAW, WAIT_WAR, WAIT_DRAM, WAIT_BARRIER, IDLE_DONE = range(len(CAUSES))

DONE, DEADLOCK, LEFTOVER = 0, 1, 2
"""How a run ended: complete; no unit can proceed; tokens left over at a barrier or at the end."""

_RAW, _WAR = 0, 1
_FREE, _EXECUTE, _SETUP, _REQUESTED = range(4)
_DMA_UNITS = 2
"""Units load and store, which are the DRAM's streams of the same numbers."""
_UNKNOWN = -1
"""In ``until``: the end is not known yet."""

Int64 = NDArray[np.int64]


@inlined
def _missing(tokens: Int64, wait: Int64, index: int, unit: int) -> int:
    """Which kind of token instruction ``index`` at the head of ``unit`` lacks: WAIT_RAW, WAIT_WAR, or BUSY for none."""
    for kind in range(2):
        for producer in range(tokens.shape[1]):
            if (wait[index, kind] >> producer) & 1 and tokens[kind, producer, unit] == 0:
                return WAIT_RAW if kind == _RAW else WAIT_WAR
    return BUSY


@inlined
def _move(tokens: Int64, mask: int, kind: int, unit: int, amount: int) -> None:
    """Take (``amount`` -1) tokens sent to ``unit``, or send (+1) tokens from it, of one kind."""
    for other in range(tokens.shape[1]):
        if (mask >> other) & 1:
            if amount < 0:
                tokens[kind, other, unit] -= 1
            else:
                tokens[kind, unit, other] += 1


@inlined
def _advance(
    now: int, stop: Int64, queue: Int64, head: Int64, phase: Int64, until: Int64, tokens: Int64,
    busy: Int64, transfer: Int64, wait: Int64, signal: Int64, start: Int64, end: Int64,
) -> None:  # fmt: skip
    """End and start everything that can end and start at ``now``.

    Repeats while anything changes, since an end frees a start. The order of visits does not matter: a semaphore has one
    taker.
    """
    changed = True
    while changed:
        changed = False
        for unit in range(head.shape[0]):
            if (phase[unit] == _EXECUTE or phase[unit] == _REQUESTED) and until[unit] == now:
                index = queue[head[unit]]
                end[index] = now
                _move(tokens, signal[index, _RAW], _RAW, unit, 1)
                _move(tokens, signal[index, _WAR], _WAR, unit, 1)
                head[unit] += 1
                phase[unit] = _FREE
                changed = True
            if phase[unit] == _FREE and head[unit] < stop[unit]:
                index = queue[head[unit]]
                if _missing(tokens, wait, index, unit) == BUSY:
                    _move(tokens, wait[index, _RAW], _RAW, unit, -1)
                    _move(tokens, wait[index, _WAR], _WAR, unit, -1)
                    start[index] = now
                    until[unit] = now + busy[index]
                    phase[unit] = _SETUP if transfer[index] > 0 else _EXECUTE
                    changed = True


@inlined
def _next_end(phase: Int64, until: Int64) -> int:
    """The first cycle in which a unit is known to end what it does, or -1."""
    first = -1
    for unit in range(phase.shape[0]):
        if phase[unit] != _FREE and until[unit] != _UNKNOWN and (first < 0 or until[unit] < first):
            first = int(until[unit])
    return first


@inlined
def _serve(
    now: int, origin: int, clocks: Int64, queue: Int64, head: Int64, phase: Int64, until: Int64, transfer: Int64,
    geometry: Int64, memory: Int64, ledger: Int64,
) -> int:  # fmt: skip
    """Hand transfers whose set-up ends at ``now`` to the DRAM, which runs as far as the units' future is known.

    Returns the first cycle in which a unit ends what it does, or -1.
    """
    npu, own, interconnect = clocks
    for unit in range(_DMA_UNITS):
        if phase[unit] == _SETUP and until[unit] == now:
            dram.begin(memory, unit, geometry[queue[head[unit]]], -(-(now - origin) * own // npu))
            phase[unit], until[unit] = _REQUESTED, _UNKNOWN
            # The wait is end - now - transfer; the end is added when it is known.
            ledger[unit, BUSY] += transfer[queue[head[unit]]]
            ledger[unit, WAIT_DRAM] -= now + transfer[queue[head[unit]]]
    while True:
        following = _next_end(phase, until)
        waits = False
        for unit in range(_DMA_UNITS):
            waits = waits or (phase[unit] == _REQUESTED and until[unit] == _UNKNOWN)
        limit = dram.NEVER if following < 0 else -(-(following - origin) * own // npu)
        if not waits or not dram.advance(memory, limit):
            return int(following)
        for unit in range(_DMA_UNITS):
            if (
                phase[unit] == _REQUESTED
                and until[unit] == _UNKNOWN
                and memory[dram.STREAMS_AT + unit * dram.STREAM + dram.DONE]
            ):
                last = memory[dram.STREAMS_AT + unit * dram.STREAM + dram.LAST_END]
                until[unit] = origin - (-last * npu // own) + interconnect
                ledger[unit, WAIT_DRAM] += until[unit]


@inlined
def _charge(
    ledger: Int64,
    cycles: int,
    idle: int,
    stop: Int64,
    queue: Int64,
    head: Int64,
    phase: Int64,
    tokens: Int64,
    wait: Int64,
) -> None:
    """Book ``cycles`` cycles in which nothing changes on every unit; ``idle`` is the cause for an empty queue."""
    for unit in range(head.shape[0]):
        if phase[unit] == _REQUESTED:
            continue  # `_serve` books the whole transfer
        if phase[unit] != _FREE:
            ledger[unit, BUSY] += cycles
        elif head[unit] == stop[unit]:
            ledger[unit, idle] += cycles
        else:
            ledger[unit, _missing(tokens, wait, queue[head[unit]], unit)] += cycles


@kernel
def run(
    queue: Int64, stops: Int64, barriers: Int64, busy: Int64, transfer: Int64, geometry: Int64, wait: Int64,
    signal: Int64, clocks: Int64, memory: Int64,
) -> Any:  # fmt: skip
    """Time one piece of code.

    Args:
        queue: (count,) instruction indices by unit, in program order inside a unit; barriers left out.
        stops: (barriers + 2, units). Row 0 holds where each unit's part of ``queue`` begins, row ``k + 1`` where its
            instructions before barrier ``k`` end; the last row where they end altogether.
        barriers: (barriers,) indices of the barrier instructions.
        busy: (instructions,) cycles of execution, or of DMA set-up, or of the barrier.
        transfer: (instructions,) cycles of the bytes at the DRAM's peak rate, 0 for everything but DMA.
        geometry: (instructions, dram.GEOMETRY) of DMA.
        wait: (instructions, 2) unit masks of the tokens taken, [raw, war].
        signal: (instructions, 2) unit masks of the tokens sent.
        clocks: (3,) MHz of the NPU, MHz of the DRAM, cycles of the interconnect.
        memory: from `dram.new_state`.

    Returns:
        (outcome, total cycles, ledger (units, causes), start (instructions,), end (instructions,), head (units,): next
        position in ``queue``, tokens (2, units, units): [kind, producer, consumer], barriers passed). On DEADLOCK and
        LEFTOVER the total is the cycle in which it was found.
    """
    count = busy.shape[0]
    start, end = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    units = stops.shape[1]
    ledger = np.zeros((units, IDLE_DONE + 1), np.int64)
    tokens = np.zeros((2, units, units), np.int64)
    head, phase, until = stops[0].copy(), np.zeros(units, np.int64), np.zeros(units, np.int64)
    now, origin = 0, 0
    for segment in range(stops.shape[0] - 1):
        dram.reset(memory)
        stop = stops[segment + 1]
        more = segment < barriers.shape[0]
        while True:
            _advance(now, stop, queue, head, phase, until, tokens, busy, transfer, wait, signal, start, end)
            following = _serve(now, origin, clocks, queue, head, phase, until, transfer, geometry, memory, ledger)
            if following < 0:
                break
            idle = WAIT_BARRIER if more else IDLE_DONE
            _charge(ledger, following - now, idle, stop, queue, head, phase, tokens, wait)
            now = following
        dram.advance(memory, -(-(now - origin) * clocks[1] // clocks[0]))  # refresh and background up to here
        for unit in range(units):
            if head[unit] < stop[unit]:
                return DEADLOCK, now, ledger, start, end, head, tokens, segment
        for token in tokens.flat:
            if token != 0:
                return LEFTOVER, now, ledger, start, end, head, tokens, segment
        if more:
            start[barriers[segment]] = now
            now += busy[barriers[segment]]
            end[barriers[segment]] = now
            origin = now
            for unit in range(units):
                ledger[unit, WAIT_BARRIER] += busy[barriers[segment]]
    return DONE, now, ledger, start, end, head, tokens, barriers.shape[0]
