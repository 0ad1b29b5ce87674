"""What a schedule costs on a machine, in closed form: cycles of each unit, and bytes to and from DRAM.

Every choice of the compiler is made with these numbers. Of several arrays or vector units, each is taken to do its
share. The cycle model of `npusim.timing` is not asked: it wants a finished program, and a search tries thousands of
schedules.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from types import SimpleNamespace

from npusim.config import Machine
from npusim.isa.encoding import DTYPE_NAMES
from npusim.isa.matmul import MATMUL

DRAM_SHARE = 0.9
"""Share of its peak rate that a DRAM streams at: refresh and opened rows cost the rest."""
DMA_LATENCY_NS = 40
"""An activate and a read, beside the interconnect."""


@dataclass(frozen=True)
class Cost:
    """Cycles of array, vector unit and DRAM, and of what nothing overlaps; bytes moved."""

    mac: float = 0
    vector: float = 0
    dram: float = 0
    exposed: float = 0
    dram_bytes: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def key(self) -> tuple[float, float]:
        """Cycles first, then bytes."""
        return max(self.mac, self.vector, self.dram) + self.exposed, self.dram_bytes


def transfer(machine: Machine, size: float, copies: float) -> Cost:
    """Moving ``size`` bytes in ``copies`` instructions."""
    latency = machine.dma.setup_cycles + machine.interconnect_cycles + DMA_LATENCY_NS * machine.clock_mhz / 1000
    cycles = size / (machine.dram_bytes_per_cycle * DRAM_SHARE) + copies * latency
    return Cost(dram=cycles, dram_bytes=size)


def matmul_cycles(machine: Machine, m: int, k: int, n: int, a_dtype: str, b_dtype: str, batches: int = 1) -> int:
    """Cycles of one MATMUL, shared by all arrays."""
    return -(-_matmul_cycles(_Array(machine), m, k, n, a_dtype, b_dtype, batches) // machine.mac_array.count)


class _Array:
    """A machine that a cache can hold."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.key = machine, machine.mac_array.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Array) and self.key == other.key


@lru_cache(maxsize=4096)
def _matmul_cycles(array: _Array, m: int, k: int, n: int, a_dtype: str, b_dtype: str, batches: int) -> int:
    shape = {"m": m, "k": k, "n": n, "batch0": batches, "batch1": 1, "acc_hold": 0}
    types = {"a_dtype": DTYPE_NAMES.index(a_dtype), "b_dtype": DTYPE_NAMES.index(b_dtype)}
    return MATMUL.cycles(SimpleNamespace(**shape, **types), array.machine)


def vector_pass(machine: Machine, op: str, rows: int, cols: int, passes: int = 1) -> int:
    """Cycles of a vector instruction with the mnemonic ``op``, shared by all vector units."""
    unit = machine.vector_unit
    return -(-(passes * -(-rows * cols // unit.lanes) + unit.latency_cycles(op)) // unit.count)
