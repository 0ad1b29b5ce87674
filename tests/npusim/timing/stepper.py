"""A machine that advances one cycle at a time: slow, obvious, and written without a look at ``npusim/timing``.

It follows the rules in the docstring of ``npusim/timing/core.py``; only the duration of a compute instruction comes
from the same place as the model's, the instruction table. The DRAM is `dram_stepper.py`, one clock at a time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC
from npusim.isa.control import JOINS
from npusim.isa.encoding import Decoded
from npusim.units import UNITS
from tests.npusim.timing.dram_stepper import DramStepper, bursts_of
from tests.npusim.timing.sram_stepper import FULL, Job, Ports, asked_by
from tests.npusim.timing.storage_stepper import Fetching

COPIES = ("load", "store", "fetch")


@dataclass
class Stepped:
    """Result: total cycles, first cycle and first cycle after of each instruction, cycles by (unit, cause), the
    DRAM."""

    dram: DramStepper
    total: int = 0
    start: dict[int, int] = field(default_factory=dict)
    end: dict[int, int] = field(default_factory=dict)
    ledger: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass
class Running:
    """An instruction on its unit.

    ``cycles_left`` counts down set-up; then a DMA instruction hands its ``bursts`` to the DRAM, which is done at
    ``ends_at`` when that is known; FETCH hands over ``fetching`` instead. ``job`` is the work on the SRAM, of a DMA
    instruction from the hand-over on.
    """

    index: int
    cycles_left: int
    bursts: list[int]
    job: Job
    requested_at: int | None = None
    ends_at: int | None = None
    fetching: Fetching | None = None

    @property
    def copies(self) -> bool:
        return bool(self.bursts) or self.fetching is not None


class Stepper:
    """The machine at cycle ``now``."""

    def __init__(self, code: Sequence[Decoded], machine: Machine) -> None:
        self.code, self.machine, self.now = code, machine, 0
        self.dram = DramStepper(machine)
        self.ports = Ports(machine)
        self.result = Stepped(self.dram)
        self.dma_units = [unit for unit in machine.units if unit.rstrip("2") in ("load", "store", "storage")]
        self.queues = {unit: deque[int]() for unit in machine.units}
        for index, ins in enumerate(code):
            if ins.op not in JOINS:
                self.queues[UNITS[ins.unit]].append(index)
        self.barriers = deque(index for index, ins in enumerate(code) if ins.op in JOINS)
        self.barrier_left = 0
        self.running: dict[str, Running | None] = dict.fromkeys(machine.units)
        self.tokens: Counter[tuple[str, str, str]] = Counter()
        self.needed: dict[tuple[int, str], list[tuple[str, str, str]]] = {}
        self.clocks_per_cycle = Fraction(machine.dram.device.clock_mhz, machine.clock_mhz)
        self.interconnect = -(-machine.dram.interconnect_ns * machine.clock_mhz // 1000)
        self.origin = 0

    def needs(self, index: int, kind: str) -> list[tuple[str, str, str]]:
        if (index, kind) not in self.needed:
            ins = self.code[index]
            mask = getattr(ins, f"wait_{kind}")
            self.needed[index, kind] = [(kind, UNITS[u], UNITS[ins.unit]) for u in range(len(UNITS)) if mask & 1 << u]
        return self.needed[index, kind]

    def is_empty(self, unit: str) -> bool:
        queue = self.queues[unit]
        return not queue or self.behind_barrier(queue[0])

    def behind_barrier(self, index: int) -> bool:
        return bool(self.barriers) and index > self.barriers[0]

    def finish(self) -> None:
        """Instructions whose last cycle has passed end now."""
        for unit, job in self.running.items():
            if job is None or job.cycles_left or job.job.left > 0:
                continue
            if job.copies and (job.ends_at is None or self.now < job.ends_at):
                continue
            ins = self.code[job.index]
            for kind in ("raw", "war"):
                for u, name in enumerate(UNITS):
                    self.tokens[kind, unit, name] += getattr(ins, f"signal_{kind}") >> u & 1
            self.result.end[job.index] = self.now
            self.running[unit] = None
            self.book(unit, job)

    def barrier(self) -> None:
        """End or begin a barrier."""
        if self.barrier_left == 0 and self.barriers and self.barriers[0] in self.result.start:
            self.result.end[self.barriers.popleft()] = self.now
            self.dram.reset()
            self.origin = self.now
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
                burst_bytes = self.machine.dram.device.burst_bytes
                bursts = bursts_of(ins, burst_bytes) if ins.op in ("load", "store") else []
                cycles = BY_MNEMONIC[ins.op].cycles(ins, self.machine)
                work = self.peak_cycles(bursts) if bursts else cycles
                job = Job(work * FULL, asked_by(ins, self.machine, work))
                copies = ins.op in COPIES
                if copies and not job.asked:
                    job.left = 0
                begin = self.now + cycles - self.origin
                fetching = Fetching(ins, self.machine, begin) if ins.op == "fetch" else None
                self.running[unit] = Running(index, cycles if copies else 0, bursts, job, fetching=fetching)
                self.result.start[index] = self.now

    def request(self) -> None:
        """Set-ups that are over hand their bursts to the DRAM."""
        for unit in self.dma_units:
            job = self.running[unit]
            if job and job.copies and job.cycles_left == 0 and job.requested_at is None:
                job.requested_at = self.now
                if job.fetching:
                    self.dram.fetch(unit, job.fetching)
                else:
                    self.dram.request(unit, job.bursts)

    def pass_clocks(self) -> None:
        """The DRAM's clocks before the next cycle; a copy whose last command is out has an end."""
        while self.dram.now < (self.now + 1 - self.origin) * self.clocks_per_cycle:
            self.dram.tick()
            for unit in self.dma_units:
                job = self.running[unit]
                if job and job.requested_at is not None and job.ends_at is None and self.dram.is_done(unit):
                    passed = Fraction(self.dram.last_data[unit]) / self.clocks_per_cycle
                    job.ends_at = self.origin + ceil(passed) + self.interconnect

    def peak_cycles(self, bursts: list[int]) -> int:
        """What bursts take at the peak rate of all channels."""
        dram, device = self.machine.dram, self.machine.dram.device
        clocks = Fraction(len(bursts) * device.burst_clocks, dram.channels)
        return ceil(clocks / self.clocks_per_cycle)

    def book(self, unit: str, job: Running) -> None:
        """Split an instruction's cycles: what it takes by itself, the DRAM's delays, the SRAM's."""
        ins = self.code[job.index]
        alone = BY_MNEMONIC[ins.op].cycles(ins, self.machine)
        if job.copies:
            assert job.requested_at is not None
            assert job.ends_at is not None
            busy = job.fetching.alone() if job.fetching else self.peak_cycles(job.bursts)
            self.result.ledger[unit, "busy"] += busy + alone
            self.result.ledger[unit, "wait_dram"] += job.ends_at - job.requested_at - busy
            self.result.ledger[unit, "wait_bank"] += self.now - job.ends_at
        else:
            self.result.ledger[unit, "busy"] += alone
            self.result.ledger[unit, "wait_bank"] += self.now - self.result.start[job.index] - alone

    def cause(self, unit: str) -> str | None:
        """What ``unit`` does in this cycle; None in an instruction, which is booked at its end."""
        queue = self.queues[unit]
        if self.running[unit]:
            return None
        if self.barrier_left:
            return "wait_barrier"
        if self.barriers and (not queue or self.behind_barrier(queue[0])):
            at_work = {u for u in self.queues if self.running[u] or not self.is_empty(u)}
            return "wait_param_swap" if at_work <= {"storage", "storage2"} else "drain"
        if not queue:
            return "idle_done"
        missing = [token for kind in ("raw", "war") for token in self.needs(queue[0], kind) if not self.tokens[token]]
        if any(sender in ("storage", "storage2") for _, sender, _ in missing):
            return "wait_param_swap"
        return "wait_token_war" if all(self.tokens[t] for t in self.needs(queue[0], "raw")) else "wait_token_raw"

    def pass_cycle(self) -> None:
        for unit in self.queues:
            cause = self.cause(unit)
            if cause:
                self.result.ledger[unit, cause] += 1
        self.ports.work(job.job for job in self.running.values() if job and not job.cycles_left)
        for job in self.running.values():
            if job and job.cycles_left:
                job.cycles_left -= 1
        if not self.barrier_left:
            self.pass_clocks()
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
