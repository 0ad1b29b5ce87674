"""A DRAM that advances one clock at a time, from the rules in the docstring of ``npusim/timing/dram.py``.

It remembers when each command was last issued and asks, for every command in every clock, whether all distances are
kept. The distances are written down once, in `distance`; `broken` checks any list of commands against them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from npusim.config import Machine
from npusim.config_dram import Dram, DramDevice
from npusim.isa.encoding import Decoded
from tests.npusim.timing.storage_stepper import Fetching, Request

ALL = -1
"""Bank of a command to the whole channel."""
Command = tuple[int, str, int, int]
"""Clock, name, bank, row."""


def distance(d: DramDevice, first: str, one: int, second: str, other: int) -> int:
    """Clocks that must lie between two commands to the banks ``one`` and ``other`` of a channel; 0: any."""
    same = ALL in (one, other) or one == other
    group = one // d.banks_per_group == other // d.banks_per_group
    written = d.cwl_clocks + d.burst_clocks
    match first, second:
        case "activate", "read" | "write":
            return d.trcd_clocks if same else 0
        case "activate", "precharge" | "precharge_all":
            return d.tras_clocks if same else 0
        case "activate", "activate":
            return d.trrd_l_clocks if group else d.trrd_s_clocks
        case "precharge" | "precharge_all", "activate" | "refresh":
            return d.trp_clocks if same else 0
        case ("read", "read") | ("write", "write"):
            return d.tccd_l_clocks if group else d.tccd_s_clocks
        case "read", "write":
            return d.trtw_clocks
        case "write", "read":
            return written + (d.twtr_l_clocks if group else d.twtr_s_clocks)
        case "read", "precharge" | "precharge_all":
            return d.trtp_clocks if same else 0
        case "write", "precharge" | "precharge_all":
            return written + d.twr_clocks if same else 0
        case "refresh", "activate" | "refresh":
            return d.trfc_clocks
    return 0


def broken(d: DramDevice, commands: Sequence[Command]) -> list[str]:
    """Every rule of the device that the commands of one channel break, in words."""
    faults: list[str] = []
    rows: dict[int, int] = {}
    for index, (clock, name, bank, row) in enumerate(commands):
        for before in commands[:index]:
            least = distance(d, before[1], before[2], name, bank)
            if clock - before[0] < least:
                faults.append(f"{name} at {clock}: {before} is less than {least} clocks before")
        if index and clock <= commands[index - 1][0]:
            faults.append(f"{name} at {clock}: two commands in a clock, or backwards")
        if name == "activate":
            activates = [c for c, n, _, _ in commands[:index] if n == "activate"]
            if len(activates) >= 4 and clock - activates[-4] < d.tfaw_clocks:
                faults.append(f"activate at {clock}: the fifth within tFAW")
            if bank in rows:
                faults.append(f"activate at {clock}: bank {bank} has row {rows[bank]} open")
            rows[bank] = row
        elif name == "precharge":
            if bank not in rows:
                faults.append(f"precharge at {clock}: bank {bank} is closed")
            rows.pop(bank, None)
        elif name == "precharge_all":
            rows.clear()
        elif name == "refresh":
            if rows:
                faults.append(f"refresh at {clock}: rows {rows} are open")
        elif rows.get(bank) != row:
            faults.append(f"{name} at {clock}: row {row} of bank {bank} is not open")
    return faults


@dataclass
class Burst:
    """A burst in a queue."""

    stream: str
    write: bool
    channel: int
    bank: int
    row: int
    opened: bool = False
    request: Request | None = None


@dataclass
class Channel:
    """A controller and its banks."""

    queue: list[Burst] = field(default_factory=list)
    open_rows: dict[int, int] = field(default_factory=dict)
    last: dict[tuple[str, int], int] = field(default_factory=dict)
    activates: deque[int] = field(default_factory=lambda: deque(maxlen=4))
    overtaken: int = 0
    refreshed: int = 0
    commands: list[Command] = field(default_factory=list)


def place(dram: Dram, burst: int) -> tuple[int, int, int]:
    """Channel, bank and row of a burst's number, by division."""
    d = dram.device
    chunk = burst // (dram.interleave_bytes // d.burst_bytes)
    columns = d.row_bytes // dram.interleave_bytes
    chunk, channel = divmod(chunk, dram.channels)
    chunk, group = divmod(chunk, d.bank_groups)
    if dram.mapping == "row_bank_column_group_channel":
        row, bank = divmod(chunk // columns, d.banks_per_group)
    else:
        chunk, bank = divmod(chunk, d.banks_per_group)
        row = chunk // columns
    return channel, group * d.banks_per_group + bank, row


def bursts_of(ins: Decoded, burst_bytes: int) -> list[int]:
    """Numbers of the bursts of a copy: list the runs row by row, join those that touch, take every burst of each."""
    runs: list[list[int]] = []
    for plane in range(ins.planes):
        for row in range(ins.rows):
            at = ins.dram_addr + plane * ins.dram_plane + row * ins.dram_row
            if runs and runs[-1][1] == at:
                runs[-1][1] += ins.row_bytes
            else:
                runs.append([at, at + ins.row_bytes])
    return [n for start, end in runs for n in range(start // burst_bytes, (end - 1) // burst_bytes + 1)]


def background(dram: Dram) -> Iterator[tuple[int, int, bool]]:
    """(clock, burst, write) of the background's bursts, without end."""
    d, rate = dram.device, dram.background_bytes_per_second
    half = dram.capacity_bytes // 2 // d.burst_bytes
    apart = Fraction(d.burst_bytes * d.clock_mhz * 1_000_000, rate)
    seed = 0
    index = 0
    while True:
        share = dram.background_write_percent
        write = (index + 1) * share // 100 > index * share // 100
        burst = half + index % half
        if dram.background_pattern == "random":
            seed = (seed * 0x5DEECE66D + 11) % (1 << 48)
            burst = half + (seed >> 17) % half
        yield int(index * apart), burst, write
        index += 1


class DramStepper:
    """The DRAM at clock ``now``; `tick` executes that clock."""

    streams = ("load", "store", "storage", "background", "load2", "store2", "storage2")

    def __init__(self, machine: Machine) -> None:
        self.cycle_of = Fraction(machine.clock_mhz, machine.dram.device.clock_mhz)
        self.interconnect = -(-machine.dram.interconnect_ns * machine.clock_mhz // 1000)
        self.dram, self.device = machine.dram, machine.dram.device
        self.hits = self.misses = self.refreshes = self.background_bursts = 0
        self.reset()

    def reset(self) -> None:
        self.now, self.turn = 0, 0
        self.channels = [Channel() for _ in range(self.dram.channels)]
        self.waiting: dict[str, deque[Burst]] = {stream: deque() for stream in self.streams}
        self.last_data: dict[str, int] = dict.fromkeys(self.streams, 0)
        self.inside = dict.fromkeys(self.streams, 0)
        self.others = background(self.dram) if self.dram.background_bytes_per_second else iter(())
        self.due = next(self.others, None)
        self.fetching: dict[str, Fetching] = {}
        self.arriving: dict[str, deque[tuple[int, Burst]]] = {stream: deque() for stream in self.streams}

    def fetch(self, stream: str, fetching: Fetching) -> None:
        """A FETCH's requests go to the storage from the clock on that comes next."""
        self.fetching[stream], self.last_data[stream] = fetching, 0

    def arrive(self, stream: str) -> None:
        """Requests that can be issued are; bursts that have arrived wait for their queues."""
        arriving = self.arriving[stream]
        for cycle, number, write, request in self.fetching[stream].issue(self.interconnect, self.cycle_of):
            burst = Burst(stream, write, *place(self.dram, number), request=request)
            arriving.append((ceil(cycle / self.cycle_of), burst))
        while arriving and arriving[0][0] <= self.now:
            self.waiting[stream].append(arriving.popleft()[1])

    def request(self, stream: str, bursts: Iterable[int]) -> None:
        """A copy's bursts are there from the clock that comes next."""
        self.waiting[stream] = deque(
            Burst(stream, stream in ("store", "store2"), *place(self.dram, burst)) for burst in bursts
        )
        self.last_data[stream] = 0

    def is_done(self, stream: str) -> bool:
        coming = stream in self.fetching and (self.fetching[stream].requests or self.arriving[stream])
        return not coming and not self.waiting[stream] and not self.inside[stream]

    def tick(self) -> None:
        while self.due is not None and self.due[0] <= self.now:
            _, burst, write = self.due
            self.waiting["background"].append(Burst("background", write, *place(self.dram, burst)))
            self.due = next(self.others)
        for stream in self.fetching:
            self.arrive(stream)
        while self.enter():
            pass
        for number, channel in enumerate(self.channels):
            self.command(number, channel)
        self.now += 1

    def enter(self) -> bool:
        """Let one burst in, if any can go."""
        for offset in range(len(self.streams)):
            stream = self.streams[(self.turn + offset) % len(self.streams)]
            waiting = self.waiting[stream]
            if waiting and len(self.channels[waiting[0].channel].queue) < self.dram.queue_entries:
                burst = waiting.popleft()
                self.channels[burst.channel].queue.append(burst)
                self.inside[stream] += 1
                self.turn = (self.turn + offset + 1) % len(self.streams)
                return True
        return False

    def may(self, channel: Channel, name: str, bank: int) -> bool:
        """Whether all distances allow the command in this clock."""
        full = name == "activate" and len(channel.activates) == 4
        if full and self.now - channel.activates[0] < self.device.tfaw_clocks:
            return False
        return all(
            self.now - clock >= distance(self.device, first, one, name, bank)
            for (first, one), clock in channel.last.items()
        )

    def issue(self, channel: Channel, name: str, bank: int, row: int) -> None:
        channel.last[name, bank] = self.now
        channel.commands.append((self.now, name, bank, row))
        if name == "activate":
            channel.activates.append(self.now)
            channel.open_rows[bank] = row
        elif name == "precharge":
            del channel.open_rows[bank]
        elif name == "precharge_all":
            channel.open_rows.clear()

    def command(self, number: int, channel: Channel) -> None:
        if self.now >= (channel.refreshed + 1) * self.device.trefi_clocks:
            self.refresh(channel)
            return
        candidates = channel.queue
        forced = channel.overtaken >= self.dram.passed_limit
        if forced:
            candidates = candidates[:1]
        rest: tuple[str, Burst] | None = None
        for burst in candidates:
            row = channel.open_rows.get(burst.bank)
            if row == burst.row:
                if self.may(channel, "write" if burst.write else "read", burst.bank):
                    self.serve(channel, burst)
                    return
            elif rest is None and row is None:
                if self.may(channel, "activate", burst.bank):
                    rest = "activate", burst
            elif rest is None:
                wanted = any(other.bank == burst.bank and other.row == row for other in channel.queue)
                if (forced or not wanted) and self.may(channel, "precharge", burst.bank):
                    rest = "precharge", burst
        if rest:
            name, burst = rest
            burst.opened |= name == "activate"
            self.issue(channel, name, burst.bank, burst.row)

    def refresh(self, channel: Channel) -> None:
        if channel.open_rows:
            # only the open banks matter
            if all(self.may(channel, "precharge", bank) for bank in channel.open_rows):
                self.issue(channel, "precharge_all", ALL, ALL)
        elif self.may(channel, "refresh", ALL):
            self.issue(channel, "refresh", ALL, ALL)
            channel.refreshed += 1
            self.refreshes += 1

    def serve(self, channel: Channel, burst: Burst) -> None:
        self.issue(channel, "write" if burst.write else "read", burst.bank, burst.row)
        channel.overtaken = 0 if channel.queue[0] is burst else channel.overtaken + 1
        channel.queue = [other for other in channel.queue if other is not burst]
        first = self.device.cwl_clocks if burst.write else self.device.cas_clocks
        passed = self.now + first + self.device.burst_clocks
        self.last_data[burst.stream] = max(self.last_data[burst.stream], passed)
        if burst.request:
            burst.request.left -= 1
            burst.request.ends = max(burst.request.ends, passed)
        self.inside[burst.stream] -= 1
        if burst.stream == "background":
            self.background_bursts += 1
        elif burst.opened:
            self.misses += 1
        else:
            self.hits += 1
