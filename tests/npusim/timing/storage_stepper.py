"""A storage that reads one FETCH, from the rules in the docstring of ``npusim/timing/storage.py``.

It knows of a request only when it is issued, and then writes down in which cycle each of its bursts has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from npusim.config import Machine
from npusim.isa.encoding import Decoded


@dataclass
class Request:
    """A request: bytes [start, end) of DRAM; ``left`` bursts have not been served, the last of which set ``ends``."""

    start: int
    end: int
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    left: int = 0
    ends: int = 0


class Fetching:
    """The requests of one FETCH, whose set-up ends at cycle ``now`` since the last barrier."""

    def __init__(self, ins: Decoded, machine: Machine, now: int) -> None:
        self.machine, self.device, self.begin = machine, machine.storage.device, now
        size = self.device.request_bytes
        ends = [*range(size, ins.bytes, size), ins.bytes]
        self.requests = [
            Request(ins.dram_addr + start, ins.dram_addr + end) for start, end in zip([0, *ends], ends, strict=False)
        ]
        self.issued: list[Request] = []
        self.delivered = now

    def issue(self, interconnect: int, cycle_of: Fraction) -> list[tuple[int, int, Request]]:
        """(cycle of arrival, burst, request) of requests that can be issued; ``cycle_of``: NPU cycles in a clock."""
        out = []
        while self.requests:
            begin = self.begin
            if len(self.issued) >= self.device.queue_depth:
                before = self.issued[-self.device.queue_depth]
                if before.left:
                    break
                begin = ceil(before.ends * cycle_of) + interconnect
            request = self.requests.pop(0)
            self.issued.append(request)
            out += self.deliver(request, begin)
        return out

    def deliver(self, request: Request, issued: int) -> list[tuple[int, int, Request]]:
        begin = max(issued + self.device.latency_us * self.machine.clock_mhz, self.delivered)
        size, burst_bytes = request.end - request.start, self.machine.dram.device.burst_bytes
        cycles = ceil(Fraction(size * self.machine.clock_hz, self.device.bandwidth_bytes_per_second))
        self.delivered = begin + cycles
        found: dict[int, int] = {}
        burst = request.start // burst_bytes
        for byte in range(1, size + 1):  # the last byte of each burst, and the last one
            if (request.start + byte) % burst_bytes == 0 or byte == size:
                found[burst] = begin + ceil(Fraction(byte * cycles, size))
                burst += 1
        request.left = len(found)
        return [(cycle, burst, request) for burst, cycle in sorted(found.items())]

    def alone(self) -> int:
        """Cycles of all requests if each were complete as soon as it is delivered."""
        ends: list[int] = []
        device, end = self.device, 0
        for request in (*self.issued, *self.requests):
            issue = ends[-device.queue_depth] if len(ends) >= device.queue_depth else 0
            size = request.end - request.start
            cycles = ceil(Fraction(size * self.machine.clock_hz, device.bandwidth_bytes_per_second))
            end = max(issue + device.latency_us * self.machine.clock_mhz, end) + cycles
            ends.append(end)
        return end
