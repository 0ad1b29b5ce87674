"""A storage that reads one FETCH, from the rules in the docstring of ``npusim/timing/storage.py``.

It knows of a request only when it is issued, and then writes down in which cycle each of its bursts has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from npusim.config import Machine
from npusim.isa.encoding import Decoded


@dataclass
class Request:
    """A request of ``stored`` bytes: bytes [start, end) of DRAM.

    ``left`` bursts have not been served; the last of the others passed the bus at clock ``ends``.
    """

    start: int
    end: int
    stored: int
    left: int = 0
    ends: int = 0


class Fetching:
    """The requests of one FETCH, whose set-up ends at cycle ``now`` since the last barrier."""

    def __init__(self, ins: Decoded, machine: Machine, now: int) -> None:
        self.machine, self.device, self.begin = machine, machine.storage.device, now
        size, stored = self.device.request_bytes, ins.coded_bytes or ins.bytes
        pieces = [min(size, stored - start) for start in range(0, stored, size)]
        ends = [sum(pieces[: k + 1]) for k in range(len(pieces))]
        if ins.coded_bytes:
            ends = [(k + 1) * ins.bytes // len(pieces) for k in range(len(pieces))]
        self.requests = [
            Request(ins.dram_addr + start, ins.dram_addr + end, piece)
            for start, end, piece in zip([0, *ends], ends, pieces, strict=False)
        ]
        self.coded, burst_bytes = bool(ins.coded_bytes), machine.dram.device.burst_bytes
        self.apart = ins.old_addr // burst_bytes - ins.dram_addr // burst_bytes
        self.issued: list[Request] = []
        self.delivered = now

    def issue(self, interconnect: int, cycle_of: Fraction) -> list[tuple[int, int, bool, Request]]:
        """(cycle of arrival, burst, write, request) of requests that can be issued; ``cycle_of``: cycles in a clock."""
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

    def cycles(self, request: Request) -> int:
        """Of the delivery of a request."""
        cycles = ceil(Fraction(request.stored * self.machine.clock_hz, self.device.bandwidth_bytes_per_second))
        if not self.coded:
            return cycles
        return max(cycles, ceil(Fraction(request.end - request.start, self.machine.dma.decoder_bytes_per_cycle)))

    def deliver(self, request: Request, issued: int) -> list[tuple[int, int, bool, Request]]:
        begin = max(issued + self.device.latency_us * self.machine.clock_mhz, self.delivered)
        size, burst_bytes = request.end - request.start, self.machine.dram.device.burst_bytes
        cycles = self.cycles(request)
        self.delivered = begin + cycles
        found: dict[int, int] = {}
        burst = request.start // burst_bytes
        for byte in range(1, size + 1):  # the last byte of each burst, and the last one
            if (request.start + byte) % burst_bytes == 0 or byte == size:
                found[burst] = begin + ceil(Fraction(byte * cycles, size))
                burst += 1
        out = []
        for burst, cycle in sorted(found.items()):
            out += [(cycle, burst + self.apart, False, request)] if self.coded else []
            out += [(cycle, burst, True, request)]
        request.left = len(out)
        return out

    def alone(self) -> int:
        """Cycles of all requests if each were complete as soon as it is delivered."""
        ends: list[int] = []
        device, end = self.device, 0
        for request in (*self.issued, *self.requests):
            issue = ends[-device.queue_depth] if len(ends) >= device.queue_depth else 0
            end = max(issue + device.latency_us * self.machine.clock_mhz, end) + self.cycles(request)
            ends.append(end)
        return end
