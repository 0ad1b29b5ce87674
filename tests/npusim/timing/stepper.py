"""A machine that advances one cycle at a time: slow, obvious, and written without a look at ``npusim/timing``.

It follows the rules in the docstring of ``npusim/timing/core.py``; only the duration of a compute instruction comes
from the same place as the model's, the instruction table. DRAM bytes are moved cycle after cycle, as exact fractions.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC
from npusim.isa.control import JOINS
from npusim.isa.encoding import UNITS, Decoded


@dataclass
class Stepped:
    """Result: total cycles, first cycle and first cycle after of each instruction, cycles by (unit, cause)."""

    total: int = 0
    start: dict[int, int] = field(default_factory=dict)
    end: dict[int, int] = field(default_factory=dict)
    ledger: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass
class Running:
    """An instruction on its unit.

    ``cycles_left`` counts down execution or set-up; then a DMA instruction asks for the channel.
    """

    index: int
    cycles_left: int
    dma_bytes: int
    requested_at: int | None = None
    bytes_left: Fraction | None = None


def dram_bytes(ins: Decoded, burst: int) -> int:
    """Bytes on the bus: list the runs row by row, join those that touch, round each up."""
    runs: list[list[int]] = []
    for plane in range(ins.planes):
        for row in range(ins.rows):
            at = plane * ins.dram_plane + row * ins.dram_row
            if runs and runs[-1][1] == at:
                runs[-1][1] += ins.row_bytes
            else:
                runs.append([at, at + ins.row_bytes])
    return sum(-(-(end - at) // burst) * burst for at, end in runs)


class Stepper:
    """The machine at cycle ``now``."""

    def __init__(self, code: Sequence[Decoded], machine: Machine) -> None:
        self.code, self.machine, self.result, self.now = code, machine, Stepped(), 0
        self.queues = {unit: deque[int]() for unit in UNITS}
        for index, ins in enumerate(code):
            if ins.op not in JOINS:
                self.queues[UNITS[ins.unit]].append(index)
        self.barriers = deque(index for index, ins in enumerate(code) if ins.op in JOINS)
        self.barrier_left = 0
        self.running: dict[str, Running | None] = dict.fromkeys(UNITS)
        self.tokens: Counter[tuple[str, str, str]] = Counter()
        self.channel: deque[str] = deque()
        self.rate = Fraction(machine.dram.bandwidth_bytes_per_second, machine.clock_mhz * 1_000_000)
        self.latency = -(-machine.dram.latency_ns * machine.clock_mhz // 1000)

    def needs(self, index: int, kind: str) -> list[tuple[str, str, str]]:
        ins = self.code[index]
        mask = getattr(ins, f"wait_{kind}")
        return [(kind, UNITS[u], UNITS[ins.unit]) for u in range(len(UNITS)) if mask & 1 << u]

    def behind_barrier(self, index: int) -> bool:
        return bool(self.barriers) and index > self.barriers[0]

    def finish(self) -> None:
        """Instructions whose last cycle has passed end now."""
        for unit, job in self.running.items():
            if job is None or job.cycles_left or (job.dma_bytes and (job.bytes_left is None or job.bytes_left > 0)):
                continue
            ins = self.code[job.index]
            for kind in ("raw", "war"):
                for u, name in enumerate(UNITS):
                    self.tokens[kind, unit, name] += getattr(ins, f"signal_{kind}") >> u & 1
            self.result.end[job.index] = self.now
            self.running[unit] = None
            if job.dma_bytes:
                assert self.channel.popleft() == unit

    def barrier(self) -> None:
        """End or begin a barrier."""
        if self.barrier_left == 0 and self.barriers and self.barriers[0] in self.result.start:
            self.result.end[self.barriers.popleft()] = self.now
        waiting = any(queue and not self.behind_barrier(queue[0]) for queue in self.queues.values())
        if self.barriers and not waiting and not any(self.running.values()) and not self.barrier_left:
            assert not +self.tokens
            self.result.start[self.barriers[0]] = self.now
            halts = self.code[self.barriers[0]].op == "halt"
            self.barrier_left = 1 if halts else self.machine.barrier_cycles

    def start(self) -> None:
        for unit, queue in self.queues.items():
            if self.running[unit] or not queue or self.behind_barrier(queue[0]):
                continue
            wanted = self.needs(queue[0], "raw") + self.needs(queue[0], "war")
            if all(self.tokens[token] for token in wanted):
                self.tokens.subtract(wanted)
                index = queue.popleft()
                ins = self.code[index]
                size = dram_bytes(ins, self.machine.dram.burst_bytes) if ins.op in ("load", "store") else 0
                cycles = BY_MNEMONIC[ins.op].cycles(ins, self.machine)
                self.running[unit] = Running(index, cycles, size)
                self.result.start[index] = self.now

    def request(self) -> None:
        """Set-ups that are over ask for the channel, load first; the first in line moves bytes after its latency."""
        for unit in ("load", "store"):
            job = self.running[unit]
            if job and job.cycles_left == 0 and job.requested_at is None:
                job.requested_at = self.now
                self.channel.append(unit)
        if self.channel:
            job = self.running[self.channel[0]]
            assert job is not None
            assert job.requested_at is not None
            if job.bytes_left is None and self.now >= job.requested_at + self.latency:
                job.bytes_left = Fraction(job.dma_bytes)

    def cause(self, unit: str) -> str:
        """What ``unit`` does in this cycle."""
        job, queue = self.running[unit], self.queues[unit]
        if job:
            return "busy" if job.cycles_left or job.bytes_left is not None else "wait_dram"
        if self.barrier_left or (self.barriers and (not queue or self.behind_barrier(queue[0]))):
            return "wait_barrier"
        if not queue:
            return "idle_done"
        return "wait_token_war" if all(self.tokens[t] for t in self.needs(queue[0], "raw")) else "wait_token_raw"

    def pass_cycle(self) -> None:
        for unit in UNITS:
            self.result.ledger[unit, self.cause(unit)] += 1
        for job in self.running.values():
            if job and job.cycles_left:
                job.cycles_left -= 1
            elif job and job.bytes_left is not None:
                job.bytes_left -= self.rate
        self.barrier_left -= 1 if self.barrier_left else 0
        self.now += 1

    def run(self, limit: int = 1_000_000) -> Stepped:
        while self.now < limit:
            self.finish()
            self.barrier()
            self.start()
            self.request()
            if len(self.result.end) == len(self.code):
                self.result.total = self.now
                return self.result
            self.pass_cycle()
        raise RuntimeError(f"still running after {limit} cycles")


def step(code: Sequence[Decoded], machine: Machine) -> Stepped:
    """Run decoded ``code`` cycle by cycle."""
    return Stepper(code, machine).run()
