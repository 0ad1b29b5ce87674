"""The event-driven core: when each instruction starts and ends, and what every unit does in every cycle.

Time is a whole number of NPU cycles. An instruction that starts at ``s`` and ends at ``e`` occupies the cycles
``s <= t < e``; a token sent at ``e`` can be taken at ``e``. The rules, in full:

* Each unit executes its instructions in program order, one at a time. An instruction starts as soon as its unit is
  free, every earlier barrier is over, and every semaphore named by ``wait_raw`` and ``wait_war`` is above 0; starting
  takes one token from each. When it ends it adds one token to every semaphore named by ``signal_raw`` and
  ``signal_war``.
* A compute instruction ends when it has worked ``busy`` cycles at full speed. It is slower while units ask more of a
  bank of the SRAM than its ports move; `npusim.timing.sram` states by how much.
* A DMA instruction (``transfer`` > 0) sets up for ``busy`` cycles and then hands its bursts to the DRAM, at ``r``. The
  DRAM has a clock of its own, which begins with every barrier's end: NPU cycle ``t`` after that is its clock
  ``ceil(t D / N)`` for a request, and what happens there at clock ``d`` is seen in cycle ``ceil(d N / D)``, with both
  frequencies as whole numbers. The DRAM is done when the last burst has passed the bus and the interconnect.
  `npusim.timing.dram` states what it does. From ``r`` on the instruction also works ``transfer`` cycles at full speed
  on the SRAM. It ends when both are done. Nothing of a unit's next instruction overlaps its present one.
* A FETCH (``transfer`` > 0 on a storage unit) sets up for ``busy`` cycles, until ``r``. Then its requests go to the
  storage, and what arrives goes to the DRAM as it comes; `npusim.timing.storage` states how. It ends when the last
  burst has passed the bus and the interconnect.
* A barrier starts when every instruction before it in program order has ended, and lasts ``busy`` cycles; no
  instruction after it starts before it ends. All semaphores must be 0 when it starts, and when the code ends. It leaves
  the DRAM in one fixed state.

In each cycle a unit is in exactly one state of `CAUSES`:

* ``busy``: computing, setting up a transfer, or transferring: as many cycles as these take by themselves (``busy``),
  and of those between ``r`` and the end as many as the bytes take at the peak rate of all channels, or of a FETCH the
  storage by itself, whose DRAM would take no time (``transfer``);
* ``wait_param_swap``: the head of its queue lacks a token that a storage unit sends, or its queue is empty and the next
  barrier waits for storage units alone;
* ``wait_token_raw``: the head of its queue lacks no such token, but a read-after-write token;
* ``wait_token_war``: the head lacks neither, but a token that guards an overwrite;
* ``wait_dram``: the other cycles between ``r`` and the DRAM's end: latency, rows that open, refresh, bytes of others;
* ``wait_bank``: the other cycles of an instruction: ports of the SRAM that others use;
* ``drain``: it has nothing left before the next barrier, which waits for others, not for storage units alone;
* ``wait_barrier``: the barrier is being executed (by no unit in particular);
* ``idle_done``: it has nothing left, and no barrier follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel
from npusim.timing import dram, sram
from npusim.units import KINDS

CAUSES = (
    "busy", "wait_token_raw", "wait_token_war", "wait_dram", "wait_bank", "wait_param_swap", "drain", "wait_barrier",
    "idle_done",
)  # fmt: skip
BUSY, WAIT_RAW, WAIT_WAR, WAIT_DRAM, WAIT_BANK, WAIT_SWAP, DRAIN, WAIT_BARRIER, IDLE_DONE = range(len(CAUSES))

DONE, DEADLOCK, LEFTOVER = 0, 1, 2
"""How a run ended: complete; no unit can proceed; tokens left over at a barrier or at the end."""

_RAW, _WAR = 0, 1
_FREE, _EXECUTE, _SETUP, _REQUESTED = range(4)
_KINDS, _STORAGE = len(KINDS), KINDS.index("storage")
_UNKNOWN = -1
"""In ``until``: the end is not known yet."""

# Rows of a unit's state: its position in the queue; its phase; when the instruction started; when its set-up ends or
# the DRAM is done with it; when its work is done at the present speed, `dram.NEVER` once that was so; the work that was
# left at ``SINCE``, in parts of a cycle; its speed.
HEAD, PHASE, START, UNTIL, WORKED, LEFT, SINCE, SPEED = range(8)

Int64 = NDArray[np.int64]


@inlined
def _stream(unit: int) -> int:
    """The stream of the DRAM that a DMA unit moves."""
    kind = unit % _KINDS
    return unit // _KINDS * dram.SECOND + (dram.STORAGE if kind == _STORAGE else kind)


@inlined
def _missing(tokens: Int64, wait: Int64, index: int, unit: int) -> int:
    """What instruction ``index`` at the head of ``unit`` waits for: WAIT_SWAP, WAIT_RAW, WAIT_WAR, or BUSY: nothing."""
    for kind in range(2):
        for producer in range(_STORAGE, tokens.shape[1], _KINDS):
            if (wait[index, kind] >> producer) & 1 and tokens[kind, producer, unit] == 0:
                return WAIT_SWAP
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
def _ask(ports: Int64, asked: Int64, demands: Int64, sign: int) -> bool:
    """Add (``sign`` 1) an instruction's demands to those on each port, or take them away (-1); whether it has any."""
    banks, kinds = ports[0], ports[1]
    for demand in demands:
        if demand == 0:
            return bool(demands[0] != 0)
        write = (demand & sram.WRITE_BIT) * (kinds - 1)
        bank = demand >> sram.FIRST_SHIFT & 0x1FF
        for _ in range(demand >> sram.TOUCHED_SHIFT & 0x3FF):
            asked[bank * kinds + write] += sign * (demand >> sram.RATE_SHIFT)
            bank = bank + 1 if bank + 1 < banks else 0
    return True


@inlined
def _speed(ports: Int64, asked: Int64, demands: Int64) -> int:
    """The least offer of all ports that an instruction asks."""
    banks, kinds, capacity = ports
    most = capacity
    for demand in demands:
        if demand == 0:
            break
        write = (demand & sram.WRITE_BIT) * (kinds - 1)
        bank = demand >> sram.FIRST_SHIFT & 0x1FF
        for _ in range(demand >> sram.TOUCHED_SHIFT & 0x3FF):
            most = max(most, asked[bank * kinds + write])
            bank = bank + 1 if bank + 1 < banks else 0
    return sram.UNIT if most <= capacity else max(1, sram.UNIT * capacity // most)


@inlined
def _share(now: int, units: Int64, queue: Int64, demand: Int64, ports: Int64, asked: Int64) -> None:
    """Give every unit the speed that the demands allow from ``now`` on."""
    crowded = False
    for port in range(asked.shape[0]):
        crowded = crowded or asked[port] > ports[2]
    for unit in range(units.shape[1]):
        if units[WORKED, unit] == dram.NEVER:
            continue
        speed = _speed(ports, asked, demand[queue[units[HEAD, unit]]]) if crowded else sram.UNIT
        if speed != units[SPEED, unit]:
            units[LEFT, unit] -= units[SPEED, unit] * (now - units[SINCE, unit])
            units[SINCE, unit], units[SPEED, unit] = now, speed
            units[WORKED, unit] = now - -units[LEFT, unit] // speed


@inlined
def _work(now: int, units: Int64, unit: int, cycles: int) -> None:
    """Begin ``cycles`` cycles of work, at full speed."""
    units[LEFT, unit], units[SINCE, unit], units[SPEED, unit] = cycles << sram.UNIT_SHIFT, now, sram.UNIT
    units[WORKED, unit] = now + cycles


@inlined
def _end(
    now: int,
    unit: int,
    units: Int64,
    index: int,
    busy: Int64,
    tokens: Int64,
    signal: Int64,
    end: Int64,
    held: Int64,
    ledger: Int64,
) -> None:
    """End the instruction ``index`` of a unit."""
    end[index] = now
    _move(tokens, signal[index, _RAW], _RAW, unit, 1)
    _move(tokens, signal[index, _WAR], _WAR, unit, 1)
    ledger[unit, BUSY] += busy[index]
    if units[PHASE, unit] == _EXECUTE:
        held[index] = now - units[START, unit] - busy[index]
    else:
        held[index] = now - units[UNTIL, unit]
    ledger[unit, WAIT_BANK] += held[index]
    units[HEAD, unit] += 1
    units[PHASE, unit] = _FREE


@inlined
def _advance(
    now: int, stop: Int64, queue: Int64, units: Int64, tokens: Int64, busy: Int64, transfer: Int64, wait: Int64,
    signal: Int64, demand: Int64, ports: Int64, asked: Int64, start: Int64, end: Int64, held: Int64,
    ledger: Int64,
) -> None:  # fmt: skip
    """End and start everything that can end and start at ``now``.

    Repeats while anything changes, since an end frees a start. The order of visits does not matter: a semaphore has one
    taker.
    """
    changed, moved = True, False
    while changed:
        changed = False
        for unit in range(units.shape[1]):
            index = queue[units[HEAD, unit]] if units[HEAD, unit] < stop[unit] else -1
            if units[WORKED, unit] == now:
                units[WORKED, unit] = dram.NEVER
                if _ask(ports, asked, demand[index], -1):
                    moved = True
            phase = units[PHASE, unit]
            over = phase == _EXECUTE or (phase == _REQUESTED and _UNKNOWN != units[UNTIL, unit] <= now)
            if over and units[WORKED, unit] == dram.NEVER:
                _end(now, unit, units, index, busy, tokens, signal, end, held, ledger)
                changed = True
                index = queue[units[HEAD, unit]] if units[HEAD, unit] < stop[unit] else -1
            if units[PHASE, unit] == _FREE and index >= 0 and _missing(tokens, wait, index, unit) == BUSY:
                _move(tokens, wait[index, _RAW], _RAW, unit, -1)
                _move(tokens, wait[index, _WAR], _WAR, unit, -1)
                start[index] = units[START, unit] = now
                if transfer[index] > 0:
                    units[PHASE, unit], units[UNTIL, unit] = _SETUP, now + busy[index]
                else:
                    units[PHASE, unit] = _EXECUTE
                    _work(now, units, unit, busy[index])
                    if _ask(ports, asked, demand[index], 1):
                        moved = True
                changed = True
    if moved:
        _share(now, units, queue, demand, ports, asked)


@inlined
def _next_event(now: int, units: Int64) -> int:
    """The first cycle after ``now`` in which a unit is known to end what it does, or -1."""
    first = dram.NEVER
    for unit in range(units.shape[1]):
        if units[PHASE, unit] != _FREE:
            first = min(first, units[WORKED, unit])
            if units[PHASE, unit] != _EXECUTE and units[UNTIL, unit] > now:
                first = min(first, units[UNTIL, unit])
    return -1 if first == dram.NEVER else first


@inlined
def _request(
    now: int, origin: int, clocks: Int64, queue: Int64, units: Int64, transfer: Int64, geometry: Int64, demand: Int64,
    ports: Int64, asked: Int64, memory: Int64, ledger: Int64,
) -> None:  # fmt: skip
    """Hand transfers whose set-up ends at ``now`` to the DRAM, or to the storage."""
    npu, own, _ = clocks
    moved = False
    for unit in range(units.shape[1]):
        if units[PHASE, unit] == _SETUP and units[UNTIL, unit] == now:
            index, stream = queue[units[HEAD, unit]], _stream(unit)
            if dram.kind_of(stream) == dram.STORAGE:
                dram.begin_fetch(memory, stream, geometry[index], now - origin)
            else:
                dram.begin(memory, stream, geometry[index], -(-(now - origin) * own // npu))
            units[PHASE, unit], units[UNTIL, unit] = _REQUESTED, _UNKNOWN
            # The wait is end - now - transfer; the end is added when it is known.
            ledger[unit, BUSY] += transfer[index]
            ledger[unit, WAIT_DRAM] -= now + transfer[index]
            if _ask(ports, asked, demand[index], 1):
                _work(now, units, unit, transfer[index])
                moved = True
    if moved:
        _share(now, units, queue, demand, ports, asked)


@inlined
def _serve(now: int, origin: int, clocks: Int64, units: Int64, memory: Int64, ledger: Int64) -> int:
    """Let the DRAM run as far as the units' future is known.

    Returns the first cycle after ``now`` in which a unit ends what it does, or -1.
    """
    npu, own, interconnect = clocks
    while True:
        following = _next_event(now, units)
        waits = False
        for unit in range(units.shape[1]):
            waits = waits or (units[PHASE, unit] == _REQUESTED and units[UNTIL, unit] == _UNKNOWN)
        limit = dram.NEVER if following < 0 else -(-(following - origin) * own // npu)
        if not waits or not dram.advance(memory, limit):
            return int(following)
        for unit in range(units.shape[1]):
            st = dram.STREAMS_AT + _stream(unit) * dram.STREAM
            if units[PHASE, unit] == _REQUESTED and units[UNTIL, unit] == _UNKNOWN and memory[st + dram.DONE]:
                last = memory[st + dram.LAST_END]
                units[UNTIL, unit] = origin - (-last * npu // own) + interconnect
                ledger[unit, WAIT_DRAM] += units[UNTIL, unit]


@inlined
def _charge(
    ledger: Int64, cycles: int, idle: int, stop: Int64, queue: Int64, units: Int64, tokens: Int64, wait: Int64
) -> None:
    """Book ``cycles`` cycles in which nothing changes on units that execute nothing; `_end` books the others' at once.

    ``idle``: the cause for an empty queue.
    """
    fetches, others = False, False
    for unit in range(units.shape[1]):
        if units[HEAD, unit] < stop[unit]:
            if unit % _KINDS == _STORAGE:
                fetches = True
            else:
                others = True
    if idle == DRAIN and fetches and not others:
        idle = WAIT_SWAP
    for unit in range(units.shape[1]):
        if units[PHASE, unit] == _FREE:
            if units[HEAD, unit] == stop[unit]:
                ledger[unit, idle] += cycles
            else:
                ledger[unit, _missing(tokens, wait, queue[units[HEAD, unit]], unit)] += cycles


@kernel
def run(
    queue: Int64, stops: Int64, barriers: Int64, busy: Int64, transfer: Int64, geometry: Int64, wait: Int64,
    signal: Int64, demand: Int64, ports: Int64, clocks: Int64, memory: Int64,
) -> Any:  # fmt: skip
    """Time one piece of code.

    Args:
        queue: (count,) instruction indices by unit, in program order inside a unit; barriers left out.
        stops: (barriers + 2, units). Row 0 holds where each unit's part of ``queue`` begins, row ``k + 1`` where its
            instructions before barrier ``k`` end; the last row where they end altogether.
        barriers: (barriers,) indices of the barrier instructions.
        busy: (instructions,) cycles of execution, or of DMA set-up, or of the barrier.
        transfer: (instructions,) cycles of the bytes at the DRAM's peak rate, of FETCH those of the storage alone;
            0 for everything but DMA.
        geometry: (instructions, dram.GEOMETRY) of DMA; of FETCH what `storage.geometry` says.
        wait: (instructions, 2) unit masks of the tokens taken, [raw, war].
        signal: (instructions, 2) unit masks of the tokens sent.
        demand: (instructions, sram.OPERANDS), all that are not 0 first.
        ports: from `sram.ports`.
        clocks: (3,) MHz of the NPU, MHz of the DRAM, cycles of the interconnect.
        memory: from `dram.new_state`.

    Returns:
        (outcome, total cycles, ledger (units, causes), start (instructions,), end (instructions,), held
        (instructions,): cycles of ``wait_bank``, head (units,): next position in ``queue``, tokens (2, units, units):
        [kind, producer, consumer], barriers passed). On DEADLOCK and LEFTOVER the total is the cycle in which it was
        found.
    """
    count = busy.shape[0]
    start, end, held = np.full(count, -1, np.int64), np.full(count, -1, np.int64), np.zeros(count, np.int64)
    number = stops.shape[1]
    ledger = np.zeros((number, IDLE_DONE + 1), np.int64)
    tokens = np.zeros((2, number, number), np.int64)
    asked = np.zeros(ports[0] * ports[1], np.int64)
    units = np.zeros((SPEED + 1, number), np.int64)
    units[HEAD], units[WORKED] = stops[0], dram.NEVER
    now, origin = 0, 0
    for segment in range(stops.shape[0] - 1):
        dram.reset(memory)
        stop = stops[segment + 1]
        more = segment < barriers.shape[0]
        while True:
            _advance(
                now, stop, queue, units, tokens, busy, transfer, wait, signal, demand, ports, asked, start, end, held,
                ledger,
            )  # fmt: skip
            _request(now, origin, clocks, queue, units, transfer, geometry, demand, ports, asked, memory, ledger)
            following = _serve(now, origin, clocks, units, memory, ledger)
            if following < 0:
                break
            _charge(ledger, following - now, DRAIN if more else IDLE_DONE, stop, queue, units, tokens, wait)
            now = following
        dram.advance(memory, -(-(now - origin) * clocks[1] // clocks[0]))  # refresh and background up to here
        for unit in range(number):
            if units[HEAD, unit] < stop[unit]:
                return DEADLOCK, now, ledger, start, end, held, units[HEAD], tokens, segment
        for token in tokens.flat:
            if token != 0:
                return LEFTOVER, now, ledger, start, end, held, units[HEAD], tokens, segment
        if more:
            start[barriers[segment]] = now
            now += busy[barriers[segment]]
            end[barriers[segment]] = now
            origin = now
            for unit in range(number):
                ledger[unit, WAIT_BARRIER] += busy[barriers[segment]]
    return DONE, now, ledger, start, end, held, units[HEAD], tokens, barriers.shape[0]
