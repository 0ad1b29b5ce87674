"""What instructions ask of the SRAM's banks. `npusim.timing.core` shares the ports among those that ask at once.

The rules, in full:

* *Ports.* With ``1r1w`` a bank has a port for reads and one for writes, else one for both. A port moves
  ``bytes_per_cycle``, with ``2rw`` twice that. A bank is the granule of an address (a word of ``bytes_per_cycle`` where
  banks are interleaved, a block of ``bank_bytes`` where not) modulo ``banks``.
* *Demand.* An instruction moves the bytes of each of its operands in SRAM evenly over its ``busy`` cycles, a copy over
  its ``transfer`` cycles, and evenly over the banks that the operand touches, from its first byte to its last. So it
  asks ``ceil(ceil(bytes 2^16 / cycles) / banks touched)`` of each of them, in 2^-16 bytes per cycle. Strides,
  alignment and the order of addresses inside an operand cost nothing; parameter memory has ports of its own.
* *Bytes.* Every element of an operand once, but no more than lie between its first byte and its last: what a stride of
  0 repeats is fetched once. The array fetches an operand again for every tile of the other one, as its dataflow makes
  it (`_matmul`); SMEXP and RTQUANT read their rows in both of their passes.
* *Speed.* In each cycle, where the demands on a port sum to more than it moves, it offers
  ``floor(2^16 capacity / sum)``, at least 1, else 2^16. An instruction's speed is the least offer of all ports that it
  asks. It has done its work in the cycle in which its speeds add up to ``2^16`` times its busy cycles. A copy is over
  when the DRAM is done and its share of the ports is.
* ``unlimited`` ports: nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.config_sram import Sram
from npusim.isa import BY_MNEMONIC
from npusim.isa.dma import MEMORIES, dma_bytes
from npusim.isa.encoding import NO_ADDRESS, Decoded, Field, row_bytes
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import ROW_RECORD, RQ_MODES, SCALARS

Int64 = NDArray[np.int64]
UNIT_SHIFT = 16
UNIT = 1 << UNIT_SHIFT
"""Full speed; and the parts of a byte per cycle in which demands are counted."""
OPERANDS = 5
"""The most operands that an instruction has in SRAM."""
MOST_RATE = 1 << 42

WRITE_BIT, FIRST_SHIFT, TOUCHED_SHIFT, RATE_SHIFT = 1, 1, 10, 20
"""A demand is rate << 20 | banks touched << 10 | first bank << 1 | write; 0: none."""

Moved = list[tuple[str, int, int]]
"""(address field, bytes of its elements, how often they are moved), in the order of the footprint's regions in SRAM."""


def _matmul(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    array, batch = machine.mac_array, ins.batch0 * ins.batch1
    held_m, held_n = {
        "weight_stationary": (array.acc_rows, array.cols),
        "input_stationary": (array.cols, array.acc_rows),
        "output_stationary": (array.rows, array.cols),
    }[array.dataflow]
    reads = [
        ("a_addr", batch * ins.m * row_bytes(ins.a_dtype, ins.k), -(-ins.n // held_n)),
        ("b_addr", batch * ins.n * row_bytes(ins.b_dtype, ins.k), -(-ins.m // held_m)),
    ]
    mode = RQ_MODES[ins.rq_mode]
    if mode == "row" and not ins.acc_hold:
        reads.append(("rq_addr", batch * ins.m * ROW_RECORD.itemsize, 1))
    if mode == "factored_row":
        reads.append(("scalars_addr", batch * ins.m * SCALARS.itemsize, 1))
    return reads, [] if ins.acc_hold else [("out_addr", batch * ins.m * row_bytes(ins.out_dtype, ins.n), 1)]


def _elementwise(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    rows = ins.batch * ins.rows
    reads = [(f"{name}_addr", rows * row_bytes(getattr(ins, f"{name}_dtype"), ins.cols), 1) for name in "ab"]
    out = [("out_addr", rows * row_bytes(ins.out_dtype, ins.cols), 1)]
    return reads if ins.b_addr != NO_ADDRESS else reads[:1], out


def _transpose(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    moved = ins.batch * ins.rows * row_bytes(ins.out_dtype, ins.cols)
    return [("a_addr", moved, 1)], [("out_addr", moved, 1)]


def _source(ins: Decoded, times: int = 1) -> tuple[str, int, int]:
    """Rows of ``a``, which have 16 bits unless ``a_dtype`` says otherwise."""
    size = row_bytes(ins.a_dtype, ins.cols) if hasattr(ins, "a_dtype") else 2 * ins.cols
    return "a_addr", ins.rows * size, times


def _result(ins: Decoded) -> tuple[str, int, int]:
    return "out_addr", ins.rows * row_bytes(ins.out_dtype, ins.cols), 1


def _lnstat(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    return [_source(ins)], [("stat_addr", ins.rows * STATISTICS.itemsize, 1)]


def _lnapply(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    return [_source(ins), ("stat_addr", ins.rows * STATISTICS.itemsize, 1)], [_result(ins)]


def _smexp(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    valid = [("valid_addr", 4, 1)] if ins.valid_addr != NO_ADDRESS else []
    return [_source(ins, 2), *valid], [_result(ins), ("sum_addr", 4 * ins.rows, 1)]


def _recip(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    return [("sum_addr", 4 * ins.rows, 1)], [("out_addr", ROW_RECORD.itemsize * ins.rows, 1)]


def _rtquant(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    return [_source(ins, 2)], [_result(ins), ("scalars_addr", ins.rows * SCALARS.itemsize, 1)]


def _load(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    return [], [("local_addr", dma_bytes(ins), 1)] if MEMORIES[ins.memory] == "sram" else []


def _store(ins: Decoded, machine: Machine) -> tuple[Moved, Moved]:
    return [("local_addr", dma_bytes(ins), 1)] if MEMORIES[ins.memory] == "sram" else [], []


_MOVED_OF: dict[str, Callable[[Decoded, Machine], tuple[Moved, Moved]]] = {
    "load": _load,
    "store": _store,
    "matmul": _matmul,
    "ewlin": _elementwise,
    "ewmul": _elementwise,
    "transpose": _transpose,
    "table": lambda ins, machine: ([_source(ins)], [_result(ins)]),
    "table8": lambda ins, machine: ([_source(ins)], [_result(ins)]),
    "lnstat": _lnstat,
    "lnapply": _lnapply,
    "smexp": _smexp,
    "recip": _recip,
    "rtquant": _rtquant,
}


def operands(ins: Decoded, machine: Machine) -> list[tuple[Field, int, int, bool]]:
    """(address field, bytes from its first to its last, bytes moved, whether written) of each operand in SRAM."""
    if ins.op not in _MOVED_OF or machine.sram.ports == "unlimited":
        return []
    spec, found = BY_MNEMONIC[ins.op], []
    moved = _MOVED_OF[ins.op](ins, machine)
    for regions, operands_, write in zip(spec.footprint(ins), moved, (False, True), strict=True):
        on_chip = [region for region in regions if region.memory == "sram"]
        for region, (name, count, times) in zip(on_chip, operands_, strict=True):
            length = region.end - region.start
            found.append((spec.by_name[name], length, min(count, length) * times, write))
    return found


def demands(sram: Sram, start: Int64, length: int, moved: int, cycles: Int64, write: bool) -> Int64:
    """The demands (count,) of operands that begin at ``start`` and move ``moved`` bytes in ``cycles`` cycles each."""
    granule = sram.bytes_per_cycle if sram.mapping == "interleaved" else sram.bank_bytes
    first, last = start // granule, (start + length - 1) // granule
    touched = np.minimum(last - first + 1, sram.banks)
    rate = -(-min(moved, 1 << 46) * UNIT // np.maximum(cycles, 1))
    rate = np.clip(-(-rate // touched), 1, MOST_RATE)
    out: Int64 = rate << RATE_SHIFT | touched << TOUCHED_SHIFT | (first % sram.banks) << FIRST_SHIFT | int(write)
    return out


def ports(sram: Sram) -> Int64:
    """(banks, ports of a bank, bytes that a port moves in a cycle times `UNIT`; 0: unlimited)."""
    kinds = 2 if sram.ports == "1r1w" else 1
    capacity = 0 if sram.ports == "unlimited" else sram.bytes_per_cycle * (2 if sram.ports == "2rw" else 1) * UNIT
    return np.array([sram.banks, kinds, capacity], np.int64)
