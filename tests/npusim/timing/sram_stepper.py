"""The SRAM's ports in one cycle, from the rules in the docstring of ``npusim/timing/sram.py``.

It lists the banks that each operand touches one by one, and gives every unit its speed anew in every cycle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import DTYPE_NAMES, NO_ADDRESS, Decoded

FULL = 65536


@dataclass
class Job:
    """Work left, 65536 for each cycle at full speed, and what it asks of each (bank, port) in 2^-16 bytes per cycle."""

    left: int
    asked: Counter[tuple[int, str]]


def size(dtype: int, elements: int) -> int:
    """Bytes of a row of elements."""
    return ceil(int(DTYPE_NAMES[dtype][1:]) * elements / 8)


def moved(ins: Decoded, machine: Machine) -> list[tuple[int, int]]:
    """(bytes of its elements, times moved) of each operand in SRAM, those read first, as the footprint has them."""
    times = [1] * 5
    if ins.op == "matmul":
        array = machine.mac_array
        most_m, most_n = {
            "weight_stationary": (array.acc_rows, array.cols),
            "input_stationary": (array.cols, array.acc_rows),
            "output_stationary": (array.rows, array.cols),
        }[array.dataflow]
        times[:2] = len(range(0, ins.n, most_n)), len(range(0, ins.m, most_m))
    if ins.op in ("smexp", "rtquant"):
        times[0] = 2
    return list(zip(elements(ins), times, strict=False))


def elements(ins: Decoded) -> list[int]:
    """Bytes of all elements of each operand, whether repeated or not."""
    match ins.op:
        case "load" | "store":
            return [ins.planes * ins.rows * ins.row_bytes]
        case "matmul":
            a = ins.m * size(ins.a_dtype, ins.k)
            b = ins.n * size(ins.b_dtype, ins.k)
            records = {2: [] if ins.acc_hold else [4 * ins.m], 4: [8 * ins.m]}.get(ins.rq_mode, [])
            one = [a, b, *records, *([] if ins.acc_hold else [ins.m * size(ins.out_dtype, ins.n)])]
            return [ins.batch0 * ins.batch1 * count for count in one]
        case "ewlin" | "ewmul":
            names = "a out" if ins.b_addr == NO_ADDRESS else "a b out"
            return [ins.batch * ins.rows * size(getattr(ins, f"{n}_dtype"), ins.cols) for n in names.split()]
        case "transpose":
            return [ins.batch * ins.rows * size(ins.out_dtype, ins.cols)] * 2
        case "recip":
            return [4 * ins.rows, 4 * ins.rows]
    source = ins.rows * (size(ins.a_dtype, ins.cols) if ins.op == "table8" else 2 * ins.cols)
    result = ins.rows * size(ins.out_dtype, ins.cols) if ins.op != "lnstat" else 0
    match ins.op:
        case "table" | "table8":
            return [source, result]
        case "lnstat":
            return [source, 12 * ins.rows]
        case "lnapply":
            return [source, 12 * ins.rows, result]
        case "smexp":
            return [source, *([4] if ins.valid_addr != NO_ADDRESS else []), result, 4 * ins.rows]
        case "rtquant":
            return [source, result, 8 * ins.rows]
    raise AssertionError(ins.op)


def asked_by(ins: Decoded, machine: Machine, cycles: int) -> Counter[tuple[int, str]]:
    """What an instruction that works ``cycles`` cycles asks of each port."""
    sram, asked = machine.sram, Counter[tuple[int, str]]()
    reads, writes = ([r for r in regions if r.memory == "sram"] for regions in BY_MNEMONIC[ins.op].footprint(ins))
    if ins.op == "pswitch" or not reads + writes or sram.ports == "unlimited":
        return asked
    ways = ["read"] * len(reads) + ["write"] * len(writes)
    for region, (count, times), way in zip(reads + writes, moved(ins, machine), ways, strict=True):
        granule = sram.bytes_per_cycle if sram.mapping == "interleaved" else sram.capacity_bytes // sram.banks
        banks = {address // granule % sram.banks for address in range(region.start, region.end)}
        rate = ceil(min(count, region.end - region.start) * times * FULL / cycles)
        for bank in banks:
            asked[bank, way if sram.ports == "1r1w" else "any"] += ceil(rate / len(banks))
    return asked


class Ports:
    """All ports of the SRAM."""

    def __init__(self, machine: Machine) -> None:
        self.capacity = machine.sram.bytes_per_cycle * (2 if machine.sram.ports == "2rw" else 1) * FULL

    def work(self, jobs: Iterable[Job]) -> None:
        """One cycle: every job that is not done gets as far as its slowest port lets it."""
        active = [job for job in jobs if job.left > 0]
        total: Counter[tuple[int, str]] = Counter()
        for job in active:
            total.update(job.asked)
        for job in active:
            offers = [FULL * self.capacity // total[port] for port in job.asked if total[port] > self.capacity]
            job.left -= max(1, min([FULL, *offers]))
