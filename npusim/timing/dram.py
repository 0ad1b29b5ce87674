"""The DRAM, compiled: one controller per channel, commands at whole clocks of the DRAM's own clock.

Time here counts DRAM clocks from the last barrier (or from the start). The rules, in full. In each clock, first
requests enter the queues, then every channel issues at most one command.

* *Streams*: load DMA, store DMA, storage DMA, background, and the second DMA of each kind where a machine has one. Each
  has its bursts in order. They enter in turns, one burst at a time, until no stream can go on: its next burst is not
  there yet, or the queue of that burst's channel is full. The turn goes on, from clock to clock, with the stream after
  the one that entered last. When a burst of the storage
  DMA is there is what `npusim.timing.storage` states; a cycle ``t`` is clock ``ceil(t D / N)``.
* A *burst* needs its row open in its bank: a read or write command if it is, an activate if the bank is closed, else a
  precharge. No precharge closes a row that a burst in the queue hits. Of all commands that may be issued in this clock,
  reads and writes go first, then the burst that entered the queue first (FR-FCFS). Its read or write command takes a
  burst out of the queue. Once ``passed_limit`` such commands have overtaken the oldest burst, only commands for that
  burst are issued, a precharge of a row that others hit included, until it has left.
* *Refresh* is due every ``trefi`` clocks. From then on the channel precharges all banks at once as soon as every open
  one may be, refreshes when all are precharged, and does nothing else before. Rows stay open otherwise.
* Between commands (b: same bank, g: same bank group, else any bank of the channel):
  activate to read or write ``trcd`` b, to precharge ``tras`` b, to activate ``trrd_l`` g and ``trrd_s``, to the fourth
  activate after it ``tfaw``; precharge to activate and refresh ``trp`` b; read to read and write to write ``tccd_l`` g
  and ``tccd_s``; read to write ``trtw``; write to read ``cwl + burst + twtr_l`` g and ``cwl + burst + twtr_s``; read to
  precharge ``trtp`` b; write to precharge ``cwl + burst + twr`` b; refresh to activate and refresh ``trfc``.
* The data of a read at ``t`` have passed the bus at ``t + cas + burst``, those of a write at ``t + cwl + burst``.
* A barrier leaves all rows closed, queues empty, no command to wait for, and refresh due after ``trefi`` clocks.

``advance`` jumps from one clock in which something happens to the next; a channel's next command is chosen anew
whenever its queue or its banks change. All state lies in one int64 array, as C structures would: compiled code passes
one array for little, and ten of them, or views, at the price of counting their references, which made it six times
slower.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.engine.cache import inlined
from npusim.timing import storage

Int64 = NDArray[np.int64]
NEVER = 1 << 62
LOAD, STORE, STORAGE, BACKGROUND = range(4)
SECOND, STREAMS = 4, 7
"""The second DMA of each kind is ``SECOND`` streams behind the first; how many streams there may be."""

COMMANDS = ("read", "write", "activate", "precharge", "precharge_all", "refresh")
READ, WRITE, ACTIVATE, PRECHARGE, PRECHARGE_ALL, REFRESH = range(len(COMMANDS))
TRACE = ("clock", "channel", "command", "bank", "row")
"""Columns of a command trace; bank and row are -1 where a command has none."""

# The array holds these numbers, then the streams' structures, the channels' structures, and the trace. First the
# configuration; ``_AT`` is where something begins, GROUPS_AT, BANKS_AT and RING_AT inside a channel.
(BURST_SHIFT, CHUNK_SHIFT, CHANNEL_SHIFT, GROUP_SHIFT, BANK_SHIFT, COLUMN_SHIFT, COLUMN_FIRST, QUEUE, PASSED_LIMIT,
 BURST, RCD, RP, CAS, CWL, RAS, RRD_S, RRD_L, FAW, CCD_S, CCD_L, RTW, WTR_S, WTR_L, WR, RTP, REFI, RFC,
 BACKGROUND_WHOLE, BACKGROUND_PART, BACKGROUND_OF, BACKGROUND_RANDOM, BACKGROUND_WRITES, BACKGROUND_START,
 BACKGROUND_SPAN, CHANNELS, CHANNELS_AT, CHANNEL_SIZE, BANKS, GROUPS_AT, BANKS_AT, RING_AT, RING_MASK,
 TRACE_AT, TRACE_MOST, NPU_MHZ, OWN_MHZ, INTERCONNECT, SLOTS_AT, FETCH_AT, STREAM_COUNT) = range(50)  # fmt: skip
# The next clock in which bursts may enter, the stream whose turn it is, whether a copy was completed, and counts.
ENTER_AT, TURN, COMPLETED, ROW_HITS, ROW_MISSES, REFRESHES, BACKGROUND_BURSTS, ISSUED, STREAMS_AT = range(50, 59)

# Structures. ``_OK``: the first clock in which the command may be issued. The queue is a ring of entries. Of a storage
# stream's present request, in NPU cycles: its FETCH's issue, its delivery's begin and length; its bytes.
(PENDING, READY_AT, TARGET, ENTRY, OUTSTANDING, LAST_END, DONE, NEXT_BURST, LAST_BURST, FETCH_START, DELIVERY,
 DELIVERY_CYCLES, REQUEST_FIRST, REQUEST_SIZE, ROW, PLANE, ADDRESS, RUN, ROWS, ROW_STRIDE, PLANES, PLANE_STRIDE,
 STREAM) = range(23)  # fmt: skip
HEAD, LENGTH, CHANNEL_HITS, PASSED, DUE, NEXT_AT, NEXT_COMMAND, NEXT_POSITION, OLDEST_ACTIVATE, ACTIVATES = range(10)
READ_OK, WRITE_OK, GROUP_ACTIVATE_OK, GROUP = range(4)
ANY = ACTIVATES + 4
"""Where a channel keeps, like a group, what its commands forbid to every group."""
CHANNEL = ANY + GROUP
OPEN_ROW, ACTIVATE_OK, PRECHARGE_OK, COLUMN_OK, HITS, BANK = range(6)
PART, WRITTEN, SEED = ROW, PLANE, ADDRESS
"""What the background stream keeps instead of a copy's shape."""
REQUEST, OLD_WAS_READ, FETCH_REQUESTS, FETCH_OLD = ROW, PLANE, ROWS, PLANES
"""What the storage stream keeps: the number of its present request; whether the next burst is the one to be written, of
coded bytes; how many requests there are; the first old byte, or `storage.PLAIN`."""
SLOT_LEFT, SLOT_END, SLOT = range(3)
"""A slot of an outstanding request: bursts that have not been served; when the last of the others passed the bus."""
GEOMETRY = STREAM - ADDRESS
"""A copy's shape: address, bytes of a run, runs in a plane, their distance, planes, their distance."""
BACKGROUND_AT = STREAMS_AT + BACKGROUND * STREAM
STREAMS_END = STREAMS_AT + STREAMS * STREAM

_MISS, _WRITE = 2, 1
_STREAM_SHIFT, _SLOT_SHIFT, _BANK_SHIFT, _ROW_SHIFT = 2, 5, 13, 21
"""An entry of a queue is row << 21 | bank << 13 | slot << 5 | stream << 2 | opened a row << 1 | write."""


def new_state(machine: Machine, trace: int = 0) -> Int64:
    """The DRAM of ``machine``, not yet reset; ``trace`` is how many commands are kept."""
    dram, device = machine.dram, machine.dram.device
    ring = 1 << (dram.queue_entries - 1).bit_length()
    groups_at, banks_at = CHANNEL, CHANNEL + device.bank_groups * GROUP
    size = banks_at + device.banks * BANK + ring
    slots_at = STREAMS_END
    channels_at = slots_at + 2 * machine.storage.device.queue_depth * SLOT
    fetch_at = channels_at + dram.channels * size
    values = {
        COLUMN_FIRST: dram.mapping == "row_bank_column_group_channel", QUEUE: dram.queue_entries,
        PASSED_LIMIT: dram.passed_limit, CHANNELS: dram.channels, CHANNELS_AT: channels_at, CHANNEL_SIZE: size,
        BANKS: device.banks, GROUPS_AT: groups_at, BANKS_AT: banks_at, RING_AT: size - ring,
        RING_MASK: ring - 1, TRACE_AT: fetch_at + storage.CONSTANTS, TRACE_MOST: trace, NPU_MHZ: machine.clock_mhz,
        OWN_MHZ: device.clock_mhz, INTERCONNECT: machine.interconnect_cycles, SLOTS_AT: slots_at, FETCH_AT: fetch_at,
        STREAM_COUNT: STREAMS if max(machine.unit_counts.values()) > 1 else SECOND,
    }  # fmt: skip
    m = np.zeros(values[TRACE_AT] + trace * len(TRACE), np.int64)
    m[fetch_at : fetch_at + storage.CONSTANTS] = storage.constants(machine)
    for index, value in {
        BURST_SHIFT: device.burst_bytes, CHUNK_SHIFT: dram.interleave_bytes // device.burst_bytes,
        CHANNEL_SHIFT: dram.channels, GROUP_SHIFT: device.bank_groups, BANK_SHIFT: device.banks_per_group,
        COLUMN_SHIFT: device.row_bytes // dram.interleave_bytes,
    }.items():  # fmt: skip
        values[index] = value.bit_length() - 1
    timing = (
        "burst", "trcd", "trp", "cas", "cwl", "tras", "trrd_s", "trrd_l", "tfaw", "tccd_s", "tccd_l", "trtw", "twtr_s",
        "twtr_l", "twr", "trtp", "trefi", "trfc",
    )  # fmt: skip
    m[BURST : RFC + 1] = [getattr(device, f"{name}_clocks") for name in timing]
    if dram.background_bytes_per_second:
        # Clocks between two bursts: a whole number, and a rest as a fraction of BACKGROUND_OF.
        apart = device.burst_bytes * device.clock_mhz * 1_000_000
        values[BACKGROUND_OF] = dram.background_bytes_per_second
        values[BACKGROUND_WHOLE], values[BACKGROUND_PART] = divmod(apart, dram.background_bytes_per_second)
        values[BACKGROUND_RANDOM] = dram.background_pattern == "random"
        values[BACKGROUND_WRITES] = dram.background_write_percent
        values[BACKGROUND_START] = values[BACKGROUND_SPAN] = dram.capacity_bytes // 2 // device.burst_bytes
    for index, value in values.items():
        m[index] = value
    return m


def trace_of(m: Int64) -> Int64:
    """The commands kept, (commands, len(TRACE))."""
    kept = min(int(m[ISSUED]), int(m[TRACE_MOST]))
    return m[m[TRACE_AT] : m[TRACE_AT] + kept * len(TRACE)].reshape(kept, len(TRACE))


@inlined
def kind_of(stream: int) -> int:
    """`LOAD`, `STORE`, `STORAGE` or `BACKGROUND`."""
    return stream & (SECOND - 1)


@inlined
def reset(m: Int64) -> None:
    """The state after a barrier. Counts go on."""
    m[STREAMS_AT : m[FETCH_AT]] = 0
    m[TURN] = m[COMPLETED] = 0
    m[ENTER_AT] = NEVER
    for channel in range(m[CHANNELS]):
        ch = m[CHANNELS_AT] + channel * m[CHANNEL_SIZE]
        m[ch + DUE] = m[REFI]
        m[ch + ACTIVATES : ch + ACTIVATES + 4] = -NEVER
        for bank in range(m[BANKS]):
            m[ch + m[BANKS_AT] + bank * BANK + OPEN_ROW] = -1
        _choose(m, ch, 0)
    if m[BACKGROUND_OF]:
        m[BACKGROUND_AT + NEXT_BURST] = m[BACKGROUND_START]
        m[BACKGROUND_AT + PENDING] = 1
        _prepare_background(m)
        m[ENTER_AT] = 0


@inlined
def begin(m: Int64, stream: int, geometry: Int64, clock: int) -> None:
    """Start the copy ``geometry`` (GEOMETRY,) on ``stream``; its bursts are there from ``clock`` on."""
    st = STREAMS_AT + stream * STREAM
    m[st + ADDRESS : st + STREAM] = geometry
    m[st + ROW] = m[st + PLANE] = m[st + OUTSTANDING] = m[st + LAST_END] = m[st + DONE] = 0
    m[st + NEXT_BURST] = geometry[0] >> m[BURST_SHIFT]
    m[st + LAST_BURST] = (geometry[0] + geometry[1] - 1) >> m[BURST_SHIFT]
    m[st + READY_AT] = clock
    m[st + PENDING] = 1
    _locate(m, stream, kind_of(stream), m[st + NEXT_BURST])
    m[ENTER_AT] = min(m[ENTER_AT], clock)


@inlined
def begin_fetch(m: Int64, stream: int, geometry: Int64, cycle: int) -> None:
    """Start the FETCH ``geometry`` (GEOMETRY,) at NPU cycle ``cycle``, counted as clocks are from the last barrier."""
    st = STREAMS_AT + stream * STREAM
    m[st + ADDRESS : st + STREAM] = geometry
    m[st + REQUEST] = m[st + OLD_WAS_READ] = m[st + OUTSTANDING] = m[st + LAST_END] = m[st + DONE] = 0
    m[st + PENDING] = 1
    m[st + FETCH_START] = cycle
    m[st + DELIVERY] = m[st + DELIVERY_CYCLES] = 0
    _next_request(m, stream)


@inlined
def advance(m: Int64, limit: int) -> bool:
    """Simulate the clocks before ``limit``, or up to one in which a copy's last command is issued; whether that was so.

    Such a copy's `DONE` is 1, and its data have passed the bus at `LAST_END`.
    """
    size = m[CHANNEL_SIZE]
    first = m[CHANNELS_AT]
    end = first + m[CHANNELS] * size
    while True:
        now = m[ENTER_AT]
        for ch in range(first, end, size):
            now = min(now, m[ch + NEXT_AT])
        if now >= limit:
            return False
        if m[ENTER_AT] == now:
            _enter(m, now)
        m[COMPLETED] = 0
        for ch in range(first, end, size):
            if m[ch + NEXT_AT] == now:
                _issue(m, ch, now)
                _choose(m, ch, now + 1)
        if m[COMPLETED]:
            return True


@inlined
def _locate(m: Int64, stream: int, write: int, burst: int) -> None:
    """Find channel, bank and row of the stream's next burst."""
    st = STREAMS_AT + stream * STREAM
    at = burst >> m[CHUNK_SHIFT]
    m[st + TARGET] = m[CHANNELS_AT] + (at & ((1 << m[CHANNEL_SHIFT]) - 1)) * m[CHANNEL_SIZE]
    at >>= m[CHANNEL_SHIFT]
    group = at & ((1 << m[GROUP_SHIFT]) - 1)
    at >>= m[GROUP_SHIFT]
    if m[COLUMN_FIRST]:
        at >>= m[COLUMN_SHIFT]
    bank = at & ((1 << m[BANK_SHIFT]) - 1)
    row = at >> m[BANK_SHIFT]
    if not m[COLUMN_FIRST]:
        row >>= m[COLUMN_SHIFT]
    bank |= group << m[BANK_SHIFT]
    m[st + ENTRY] = row << _ROW_SHIFT | bank << _BANK_SHIFT | stream << _STREAM_SHIFT | write


@inlined
def _slot(m: Int64, stream: int, number: int) -> int:
    """Where the slot ``number`` of a storage stream lies."""
    first = m[m[FETCH_AT] + storage.DEPTH] if stream >= SECOND else 0
    return m[SLOTS_AT] + SLOT * (first + number)  # type: ignore[no-any-return]


@inlined
def _next_request(m: Int64, stream: int) -> None:
    """Issue a storage stream's next request, or let the stream wait until its slot is free."""
    st = STREAMS_AT + stream * STREAM
    at, number = m[FETCH_AT], m[st + REQUEST]
    slot = _slot(m, stream, number % m[at + storage.DEPTH])
    issued = m[st + FETCH_START]
    if number >= m[at + storage.DEPTH]:
        if m[slot + SLOT_LEFT]:
            m[st + READY_AT] = NEVER
            return
        issued = -(-m[slot + SLOT_END] * m[NPU_MHZ] // m[OWN_MHZ]) + m[INTERCONNECT]
    consts = m[at : at + storage.CONSTANTS]
    first, size, cycles = storage.request_of(m[st + ADDRESS : st + STREAM], number, consts)
    m[st + DELIVERY] = max(issued + m[at + storage.LATENCY], m[st + DELIVERY] + m[st + DELIVERY_CYCLES])
    m[st + DELIVERY_CYCLES] = cycles
    m[st + REQUEST_FIRST], m[st + REQUEST_SIZE] = first, size
    start = m[st + ADDRESS] + first
    m[st + NEXT_BURST] = start >> m[BURST_SHIFT]
    m[st + LAST_BURST] = (start + size - 1) >> m[BURST_SHIFT]
    bursts = m[st + LAST_BURST] - m[st + NEXT_BURST] + 1
    m[slot + SLOT_LEFT], m[slot + SLOT_END] = bursts if m[st + FETCH_OLD] == storage.PLAIN else 2 * bursts, 0
    _prepare_fetched(m, stream)
    m[ENTER_AT] = min(m[ENTER_AT], m[st + READY_AT])


@inlined
def _prepare_fetched(m: Int64, stream: int) -> None:
    """Find when a storage stream's next burst is there, and its place."""
    st = STREAMS_AT + stream * STREAM
    end = (m[st + NEXT_BURST] + 1) << m[BURST_SHIFT]
    arrived = min(end - m[st + ADDRESS] - m[st + REQUEST_FIRST], m[st + REQUEST_SIZE])
    cycle = m[st + DELIVERY] - (-arrived * m[st + DELIVERY_CYCLES] // m[st + REQUEST_SIZE])
    m[st + READY_AT] = -(-cycle * m[OWN_MHZ] // m[NPU_MHZ])
    if m[st + FETCH_OLD] != storage.PLAIN and not m[st + OLD_WAS_READ]:
        apart = (m[st + FETCH_OLD] >> m[BURST_SHIFT]) - (m[st + ADDRESS] >> m[BURST_SHIFT])
        _locate(m, stream, 0, m[st + NEXT_BURST] + apart)
    else:
        _locate(m, stream, 1, m[st + NEXT_BURST])
    m[st + ENTRY] |= (m[st + REQUEST] % m[m[FETCH_AT] + storage.DEPTH]) << _SLOT_SHIFT


@inlined
def _prepare_background(m: Int64) -> None:
    """Choose direction and, if random, place of the background's next burst."""
    st = BACKGROUND_AT
    write = 0
    m[st + WRITTEN] += m[BACKGROUND_WRITES]
    if m[st + WRITTEN] >= 100:
        m[st + WRITTEN] -= 100
        write = 1
    if m[BACKGROUND_RANDOM]:
        # The generator of drand48: 48 bits, of which the upper 31 are used.
        m[st + SEED] = (m[st + SEED] * 0x5DEECE66D + 11) & ((1 << 48) - 1)
        m[st + NEXT_BURST] = m[BACKGROUND_START] + (m[st + SEED] >> 17) % m[BACKGROUND_SPAN]
    _locate(m, BACKGROUND, write, m[st + NEXT_BURST])


@inlined
def _step(m: Int64, stream: int) -> None:
    """Go on to the stream's next burst."""
    st = STREAMS_AT + stream * STREAM
    if stream == BACKGROUND:
        m[st + READY_AT] += m[BACKGROUND_WHOLE]
        m[st + PART] += m[BACKGROUND_PART]
        if m[st + PART] >= m[BACKGROUND_OF]:
            m[st + PART] -= m[BACKGROUND_OF]
            m[st + READY_AT] += 1
        m[st + NEXT_BURST] += 1
        if m[st + NEXT_BURST] == m[BACKGROUND_START] + m[BACKGROUND_SPAN]:
            m[st + NEXT_BURST] = m[BACKGROUND_START]
        _prepare_background(m)
        return
    if kind_of(stream) == STORAGE:
        if m[st + FETCH_OLD] != storage.PLAIN:
            m[st + OLD_WAS_READ] = 1 - m[st + OLD_WAS_READ]
            if m[st + OLD_WAS_READ]:
                _prepare_fetched(m, stream)
                return
        if m[st + NEXT_BURST] < m[st + LAST_BURST]:
            m[st + NEXT_BURST] += 1
            _prepare_fetched(m, stream)
            return
        m[st + REQUEST] += 1
        if m[st + REQUEST] == m[st + FETCH_REQUESTS]:
            m[st + PENDING] = 0
        else:
            _next_request(m, stream)
        return
    if m[st + NEXT_BURST] < m[st + LAST_BURST]:
        m[st + NEXT_BURST] += 1
    else:
        m[st + ROW] += 1
        if m[st + ROW] == m[st + ROWS]:
            m[st + ROW] = 0
            m[st + PLANE] += 1
            if m[st + PLANE] == m[st + PLANES]:
                m[st + PENDING] = 0
                return
        start = m[st + ADDRESS] + m[st + ROW] * m[st + ROW_STRIDE] + m[st + PLANE] * m[st + PLANE_STRIDE]
        m[st + NEXT_BURST] = start >> m[BURST_SHIFT]
        m[st + LAST_BURST] = (start + m[st + RUN] - 1) >> m[BURST_SHIFT]
    _locate(m, stream, kind_of(stream), m[st + NEXT_BURST])


@inlined
def _enter(m: Int64, now: int) -> None:
    """Let bursts into the queues; those that stay outside try again after the next read or write."""
    entered, count = True, m[STREAM_COUNT]
    while entered:
        entered = False
        for turn in range(count):
            stream = m[TURN] + turn
            stream -= count if stream >= count else 0
            st = STREAMS_AT + stream * STREAM
            if not m[st + PENDING] or m[st + READY_AT] > now:
                continue
            ch = m[st + TARGET]
            if m[ch + LENGTH] == m[QUEUE]:
                continue
            entry = m[st + ENTRY]
            m[ch + m[RING_AT] + ((m[ch + HEAD] + m[ch + LENGTH]) & m[RING_MASK])] = entry
            m[ch + LENGTH] += 1
            bk = ch + m[BANKS_AT] + (entry >> _BANK_SHIFT & 255) * BANK
            if m[bk + OPEN_ROW] == entry >> _ROW_SHIFT:
                m[bk + HITS] += 1
                m[ch + CHANNEL_HITS] += 1
            m[st + OUTSTANDING] += 1
            _reconsider(m, ch, entry, now)
            _step(m, stream)
            m[TURN] = stream + 1 if stream + 1 < count else 0
            entered = True
            break
    m[ENTER_AT] = NEVER
    for st in range(STREAMS_AT, STREAMS_AT + count * STREAM, STREAM):
        if m[st + PENDING] and m[st + READY_AT] > now:
            m[ENTER_AT] = min(m[ENTER_AT], m[st + READY_AT])


@inlined
def _candidate(m: Int64, ch: int, entry: int, now: int, oldest_only: bool) -> tuple[int, int]:
    """(command that a burst in the queue needs, first clock from ``now`` on for it); NEVER where others hit the row."""
    bank = entry >> _BANK_SHIFT & 255
    bk = ch + m[BANKS_AT] + bank * BANK
    gr = ch + m[GROUPS_AT] + (bank >> m[BANK_SHIFT]) * GROUP
    if m[bk + OPEN_ROW] == entry >> _ROW_SHIFT:
        command = entry & _WRITE
        return command, max(now, m[bk + COLUMN_OK], m[gr + READ_OK + command], m[ch + ANY + READ_OK + command])
    if m[bk + OPEN_ROW] < 0:
        window = m[ch + ACTIVATES + m[ch + OLDEST_ACTIVATE]] + m[FAW]
        apart = max(m[gr + GROUP_ACTIVATE_OK], m[ch + ANY + GROUP_ACTIVATE_OK])
        return ACTIVATE, max(now, m[bk + ACTIVATE_OK], apart, window)
    if m[bk + HITS] == 0 or oldest_only:
        return PRECHARGE, max(now, m[bk + PRECHARGE_OK])
    return PRECHARGE, NEVER


@inlined
def _choose(m: Int64, ch: int, now: int) -> None:
    """Choose the channel's next command, not before clock ``now``, if nothing enters its queue until then."""
    best_at, best_command, best_position = NEVER, REFRESH, -1
    if now < m[ch + DUE]:
        oldest_only = m[ch + PASSED] >= m[PASSED_LIMIT]
        count = min(m[ch + LENGTH], 1) if oldest_only else m[ch + LENGTH]
        # Nothing goes before an older read or write at that clock; and where every row is open there is nothing else.
        column_ok = min(m[ch + ANY + READ_OK], m[ch + ANY + WRITE_OK])
        earliest = max(now, column_ok) if m[ch + CHANNEL_HITS] == m[ch + LENGTH] else now
        for position in range(count):
            entry = m[ch + m[RING_AT] + ((m[ch + HEAD] + position) & m[RING_MASK])]
            command, at = _candidate(m, ch, entry, now, oldest_only)
            if at < best_at or (at == best_at and command <= WRITE < best_command):
                best_at, best_command, best_position = at, command, position
            if command <= WRITE and at <= earliest:
                break
    if best_at >= m[ch + DUE]:
        _choose_refresh(m, ch, now)
    else:
        m[ch + NEXT_AT], m[ch + NEXT_COMMAND], m[ch + NEXT_POSITION] = best_at, best_command, best_position


@inlined
def _reconsider(m: Int64, ch: int, entry: int, now: int) -> None:
    """What `_choose` would choose after ``entry`` came last into the queue, without a look at the others."""
    if m[ch + NEXT_COMMAND] == PRECHARGE or now >= m[ch + DUE]:
        _choose(m, ch, now)  # the burst may hit the row that was to be closed
    elif m[ch + LENGTH] == 1 or m[ch + PASSED] < m[PASSED_LIMIT]:
        command, at = _candidate(m, ch, entry, now, False)
        sooner = at < m[ch + NEXT_AT] or (at == m[ch + NEXT_AT] and command <= WRITE < m[ch + NEXT_COMMAND])
        if sooner and at < m[ch + DUE]:
            m[ch + NEXT_AT], m[ch + NEXT_COMMAND], m[ch + NEXT_POSITION] = at, command, m[ch + LENGTH] - 1


@inlined
def _choose_refresh(m: Int64, ch: int, now: int) -> None:
    """Choose what the refresh that is due next needs."""
    at = ready = max(now, m[ch + DUE])
    command = REFRESH
    for bank in range(m[BANKS]):
        bk = ch + m[BANKS_AT] + bank * BANK
        if m[bk + OPEN_ROW] >= 0:
            command = PRECHARGE_ALL
            at = max(at, m[bk + PRECHARGE_OK])
        ready = max(ready, m[bk + ACTIVATE_OK])
    m[ch + NEXT_AT] = ready if command == REFRESH else at
    m[ch + NEXT_COMMAND] = command


@inlined
def _issue(m: Int64, ch: int, now: int) -> None:
    """Issue the command that was chosen for this clock."""
    command, bank, row = m[ch + NEXT_COMMAND], -1, -1
    if command >= PRECHARGE_ALL:
        _close_or_refresh(m, ch, command, now)
    else:
        place = ch + m[RING_AT] + ((m[ch + HEAD] + m[ch + NEXT_POSITION]) & m[RING_MASK])
        entry = m[place]
        bank, row = entry >> _BANK_SHIFT & 255, entry >> _ROW_SHIFT
        if command <= WRITE:
            _transfer(m, ch, command, bank, now)
            _leave(m, ch, entry, now)
        elif command == ACTIVATE:
            m[place] |= _MISS
            _activate(m, ch, bank, row, now)
        else:
            bk = ch + m[BANKS_AT] + bank * BANK
            m[ch + CHANNEL_HITS] -= m[bk + HITS]
            m[bk + HITS] = 0
            m[bk + OPEN_ROW] = -1
            m[bk + ACTIVATE_OK] = now + m[RP]
    if m[ISSUED] < m[TRACE_MOST]:
        at = m[TRACE_AT] + 5 * m[ISSUED]
        m[at], m[at + 1], m[at + 2] = now, (ch - m[CHANNELS_AT]) // m[CHANNEL_SIZE], command
        m[at + 3], m[at + 4] = bank, row
    m[ISSUED] += 1


@inlined
def _close_or_refresh(m: Int64, ch: int, command: int, now: int) -> None:
    for bank in range(m[BANKS]):
        bk = ch + m[BANKS_AT] + bank * BANK
        if command == REFRESH:
            m[bk + ACTIVATE_OK] = now + m[RFC]
        elif m[bk + OPEN_ROW] >= 0:
            m[bk + OPEN_ROW] = -1
            m[bk + ACTIVATE_OK] = now + m[RP]
        m[bk + HITS] = 0
    m[ch + CHANNEL_HITS] = 0
    if command == REFRESH:
        m[ch + DUE] += m[REFI]
        m[REFRESHES] += 1


@inlined
def _activate(m: Int64, ch: int, bank: int, row: int, now: int) -> None:
    bk = ch + m[BANKS_AT] + bank * BANK
    m[bk + OPEN_ROW], m[bk + COLUMN_OK] = row, now + m[RCD]
    m[bk + PRECHARGE_OK] = max(m[bk + PRECHARGE_OK], now + m[RAS])
    m[ch + m[GROUPS_AT] + (bank >> m[BANK_SHIFT]) * GROUP + GROUP_ACTIVATE_OK] = now + m[RRD_L]
    m[ch + ANY + GROUP_ACTIVATE_OK] = now + m[RRD_S]
    m[ch + ACTIVATES + m[ch + OLDEST_ACTIVATE]] = now
    m[ch + OLDEST_ACTIVATE] = (m[ch + OLDEST_ACTIVATE] + 1) & 3
    wanted = row << (_ROW_SHIFT - _BANK_SHIFT) | bank
    hits = 0
    for position in range(m[ch + LENGTH]):
        entry = m[ch + m[RING_AT] + ((m[ch + HEAD] + position) & m[RING_MASK])]
        hits += 1 if entry >> _BANK_SHIFT == wanted else 0
    m[bk + HITS] = hits
    m[ch + CHANNEL_HITS] += hits


@inlined
def _transfer(m: Int64, ch: int, command: int, bank: int, now: int) -> None:
    """What a read or write at ``now`` forbids."""
    bk = ch + m[BANKS_AT] + bank * BANK
    end = now + m[CWL] + m[BURST]
    recovered = end + m[WR] if command == WRITE else now + m[RTP]
    m[bk + PRECHARGE_OK] = max(m[bk + PRECHARGE_OK], recovered)
    gr, other = ch + m[GROUPS_AT] + (bank >> m[BANK_SHIFT]) * GROUP, WRITE_OK - command
    m[gr + command] = max(m[gr + command], now + m[CCD_L])
    m[ch + ANY + command] = max(m[ch + ANY + command], now + m[CCD_S])
    turned_l, turned_s = (end + m[WTR_L], end + m[WTR_S]) if command == WRITE else (now + m[RTW], now + m[RTW])
    m[gr + other] = max(m[gr + other], turned_l)
    m[ch + ANY + other] = max(m[ch + ANY + other], turned_s)
    m[bk + HITS] -= 1
    m[ch + CHANNEL_HITS] -= 1


@inlined
def _leave(m: Int64, ch: int, entry: int, now: int) -> None:
    """Take the chosen burst, whose read or write is issued at ``now``, out of its queue."""
    position, ring, mask = m[ch + NEXT_POSITION], ch + m[RING_AT], m[RING_MASK]
    m[ch + PASSED] = m[ch + PASSED] + 1 if position else 0
    for each in range(position, 0, -1):
        m[ring + ((m[ch + HEAD] + each) & mask)] = m[ring + ((m[ch + HEAD] + each - 1) & mask)]
    m[ch + HEAD] = (m[ch + HEAD] + 1) & mask
    m[ch + LENGTH] -= 1
    m[ENTER_AT] = min(m[ENTER_AT], now + 1)
    stream = entry >> _STREAM_SHIFT & 7
    if stream == BACKGROUND:
        m[BACKGROUND_BURSTS] += 1
        return
    m[ROW_MISSES if entry & _MISS else ROW_HITS] += 1
    st = STREAMS_AT + stream * STREAM
    m[st + OUTSTANDING] -= 1
    end = now + m[BURST] + (m[CWL] if entry & _WRITE else m[CAS])
    m[st + LAST_END] = max(m[st + LAST_END], end)
    if kind_of(stream) == STORAGE:
        slot = _slot(m, stream, entry >> _SLOT_SHIFT & 255)
        m[slot + SLOT_LEFT] -= 1
        m[slot + SLOT_END] = max(m[slot + SLOT_END], end)
        if m[st + PENDING] and m[st + READY_AT] == NEVER:
            _next_request(m, stream)
    if not m[st + PENDING] and not m[st + OUTSTANDING]:
        m[st + DONE] = m[COMPLETED] = 1
