"""The event-driven core: when each instruction starts and ends, and what every unit does in every cycle.

Time is a whole number of NPU cycles. An instruction that starts at ``s`` and ends at ``e`` occupies the cycles
``s <= t < e``; a token sent at ``e`` can be taken at ``e``. The rules, in full:

* Each unit executes its instructions in program order, one at a time. An instruction starts as soon as its unit is
  free, every earlier barrier is over, and every semaphore named by ``wait_raw`` and ``wait_war`` is above 0; starting
  takes one token from each. When it ends it adds one token to every semaphore named by ``signal_raw`` and
  ``signal_war``.
* A compute instruction ends its ``busy`` cycles after its start.
* A DMA instruction (``transfer`` > 0) sets up for ``busy`` cycles and then requests the DRAM channel, at ``r``. Its
  first byte is there at ``r + latency``. The one channel serves loads and stores alike, one transfer at a time, in the
  order of ``r``, load before store at equal ``r``. A transfer holds the channel from ``b`` to ``b + transfer``, and
  that is the end of the instruction; ``b`` is the later of ``r + latency`` and the end of the transfer before it. So
  the latency of one transfer overlaps the transfer of the other unit, and nothing of a unit's next instruction overlaps
  its present one.
* A barrier starts when every instruction before it in program order has ended, and lasts ``busy`` cycles; no
  instruction after it starts before it ends. All semaphores must be 0 when it starts, and when the code ends.

In each cycle a unit is in exactly one state of `CAUSES`:

* ``busy``: computing, setting up a transfer, or transferring on the channel;
* ``wait_token_raw``: the head of its queue lacks at least one read-after-write token;
* ``wait_token_war``: the head lacks no read-after-write token, but one that guards an overwrite;
* ``wait_dram``: between request and transfer, for the latency and for the other unit's transfer;
* ``wait_barrier``: it has nothing left before the next barrier, or the barrier is being executed (by no unit in
  particular);
* ``idle_done``: it has nothing left, and no barrier follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel

CAUSES = ("busy", "wait_token_raw", "wait_token_war", "wait_dram", "wait_barrier", "idle_done")
BUSY, WAIT_RAW, WAIT_WAR, WAIT_DRAM, WAIT_BARRIER, IDLE_DONE = range(len(CAUSES))

DONE, DEADLOCK, LEFTOVER = 0, 1, 2
"""How a run ended: complete; no unit can proceed; tokens left over at a barrier or at the end."""

_RAW, _WAR = 0, 1
_FREE, _EXECUTE, _SETUP, _REQUESTED, _TRANSFER = range(5)

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
            if (phase[unit] == _EXECUTE or phase[unit] == _TRANSFER) and until[unit] == now:
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
def _serve(
    now: int, latency: int, channel_free: int, queue: Int64, head: Int64, phase: Int64, until: Int64, transfer: Int64
) -> int:
    """Serve the channel at ``now``: queue new requests, lower unit first, and begin due transfers.

    Returns the cycle from which the channel is free.
    """
    for unit in range(head.shape[0]):
        if phase[unit] == _SETUP and until[unit] == now:
            until[unit] = max(now + latency, channel_free)
            channel_free = until[unit] + transfer[queue[head[unit]]]
            phase[unit] = _REQUESTED
        if phase[unit] == _REQUESTED and until[unit] == now:
            until[unit] = now + transfer[queue[head[unit]]]
            phase[unit] = _TRANSFER
    return channel_free


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
            ledger[unit, WAIT_DRAM] += cycles
        elif phase[unit] != _FREE:
            ledger[unit, BUSY] += cycles
        elif head[unit] == stop[unit]:
            ledger[unit, idle] += cycles
        else:
            ledger[unit, _missing(tokens, wait, queue[head[unit]], unit)] += cycles


@kernel
def run(
    queue: Int64, stops: Int64, barriers: Int64, busy: Int64, transfer: Int64, wait: Int64, signal: Int64, latency: int
) -> Any:
    """Time one piece of code.

    Args:
        queue: (count,) instruction indices by unit, in program order inside a unit; barriers left out.
        stops: (barriers + 2, units). Row 0 holds where each unit's part of ``queue`` begins, row ``k + 1`` where its
            instructions before barrier ``k`` end; the last row where they end altogether.
        barriers: (barriers,) indices of the barrier instructions.
        busy: (instructions,) cycles of execution, or of DMA set-up, or of the barrier.
        transfer: (instructions,) cycles on the DRAM channel, 0 for everything but DMA.
        wait: (instructions, 2) unit masks of the tokens taken, [raw, war].
        signal: (instructions, 2) unit masks of the tokens sent.
        latency: DRAM latency in cycles.

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
    now, channel_free = 0, 0
    for segment in range(stops.shape[0] - 1):
        stop = stops[segment + 1]
        more = segment < barriers.shape[0]
        while True:
            _advance(now, stop, queue, head, phase, until, tokens, busy, transfer, wait, signal, start, end)
            channel_free = _serve(now, latency, channel_free, queue, head, phase, until, transfer)
            following = -1
            for unit in range(head.shape[0]):
                if phase[unit] != _FREE and (following < 0 or until[unit] < following):
                    following = int(until[unit])
            if following < 0:
                break
            idle = WAIT_BARRIER if more else IDLE_DONE
            _charge(ledger, following - now, idle, stop, queue, head, phase, tokens, wait)
            now = following
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
            for unit in range(units):
                ledger[unit, WAIT_BARRIER] += busy[barriers[segment]]
    return DONE, now, ledger, start, end, head, tokens, barriers.shape[0]
