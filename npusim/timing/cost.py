"""What each instruction costs by itself: cycles, bytes at each level of memory, products.

Everything but the bytes on the DRAM's bus follows from an instruction's shape fields and the machine; addresses do not
matter, only whether an optional operand is there. So instructions that differ in nothing else share one calculation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.engine.cache import kernel
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, BY_OPCODE
from npusim.isa.addressing import BASES, span
from npusim.isa.control import JOINS
from npusim.isa.dma import MEMORIES, dma_bytes
from npusim.isa.encoding import (
    HEADER,
    INSTRUCTION_BYTES,
    NO_ADDRESS,
    TOKEN_WORDS,
    TOKENS,
    WORDS,
    Decoded,
    Field,
    decode_row,
    row_bytes,
)
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import ROW_RECORD, SCALARS, record_regions
from npusim.timing import dram, sram, storage

Int64 = NDArray[np.int64]

TRAFFIC = (
    "dram_read_bytes", "dram_write_bytes", "load_bytes", "store_bytes", "param_load_bytes",
    "sram_read_bytes", "sram_write_bytes", "param_read_bytes", "instruction_fetch_bytes", "mac_operations",
    "storage_read_bytes", "fetch_bytes", "decoded_bytes", "dram_fetch_bytes",
)  # fmt: skip
"""Columns of `Costs.traffic`; `npusim.timing.results.Traffic` says what each counts."""

DMA = {
    "load": TRAFFIC.index("dram_read_bytes"), "store": TRAFFIC.index("dram_write_bytes"),
    "fetch": TRAFFIC.index("dram_fetch_bytes"),
}  # fmt: skip
"""Mnemonics that copy from and to DRAM, with the column of their bytes on the bus."""
MAX_ADDRESS = 1 << 48
"""What an entry of the DRAM's queues has room for; more than a machine file allows."""

_UNIT_BITS, _LAYER_BITS = ((f.word, f.lo, f.bits) for f in HEADER if f.name in ("unit", "layer"))
_DRAM_WORD = {op: BY_MNEMONIC[op].by_name["dram_addr"].word for op in DMA}
_OLD_WORD = BY_MNEMONIC["fetch"].by_name["old_addr"].word
_TOKEN_BITS = {f.name: (f.word, f.lo, f.bits) for f in TOKENS}


@dataclass(frozen=True)
class Costs:
    """Cost of ``count`` instructions, all int64.

    ``unit``, ``layer`` and ``busy`` (cycles of execution or DMA set-up), ``transfer`` (cycles at the DRAM's peak rate,
    of FETCH with the storage alone, 0 for everything but DMA): (count,). ``geometry``: (count, `dram.GEOMETRY`), of
    FETCH as `storage.geometry`, 0 for everything but DMA. ``wait`` and
    ``signal``: (count, 2) unit masks [raw, war]. ``traffic``: (count, len(TRAFFIC)). ``demand``: (count,
    `sram.OPERANDS`), see `npusim.timing.sram`. ``barrier``: (count,) bool, of BARRIER and HALT.
    """

    unit: Int64
    layer: Int64
    barrier: NDArray[np.bool_]
    busy: Int64
    transfer: Int64
    geometry: Int64
    wait: Int64
    signal: Int64
    traffic: Int64
    demand: Int64


def geometry(ins: Decoded) -> list[int]:
    """What a LOAD or STORE copies, as `npusim.timing.dram` wants it, with its base register at 0.

    Rows that touch are one run, and so are planes that touch.

    Raises UserError for bytes beyond what the model counts with.
    """
    run, rows, planes = ins.row_bytes, ins.rows, ins.planes
    if rows == 1 or ins.dram_row == run:
        run, rows = rows * run, 1
        if planes == 1 or ins.dram_plane == run:
            run, planes = planes * run, 1
    start, end = span(ins.dram_addr, ins.row_bytes, (ins.planes, ins.dram_plane), (ins.rows, ins.dram_row))
    if end > MAX_ADDRESS:
        raise UserError(f"{ins.op}: reaches DRAM up to byte {end}: allowed {MAX_ADDRESS}")
    return [start, run, rows, ins.dram_row, planes, ins.dram_plane]


@kernel
def _bursts(geometries: Int64, burst_bytes: int) -> Int64:
    """Bursts of each copy of (count, dram.GEOMETRY): each run of bytes from its first burst to its last."""
    bursts = np.zeros(geometries.shape[0], np.int64)
    for index in range(geometries.shape[0]):
        start, run, rows, row_stride, planes, plane_stride = geometries[index]
        if run:
            for plane in range(planes):
                for row in range(rows):
                    first = start + row * row_stride + plane * plane_stride
                    bursts[index] += (first + run - 1) // burst_bytes - first // burst_bytes + 1
    return bursts


def _dma(ins: Decoded) -> dict[str, int]:
    """What a LOAD writes on chip and a STORE reads there."""
    moved, memory = dma_bytes(ins), MEMORIES[ins.memory]
    if ins.op == "load":
        return {"load_bytes": moved, "sram_write_bytes" if memory == "sram" else "param_load_bytes": moved}
    return {"store_bytes": moved, f"{memory.removesuffix('_next')}_read_bytes": moved}


def _matmul(ins: Decoded) -> dict[str, int]:
    batch = ins.batch0 * ins.batch1
    stationary = ins.n * row_bytes(ins.b_dtype, ins.k)
    # Records that lie in SRAM are read once for each row; the others are counted with parameter memory.
    records = sum(r.end - r.start for r in record_regions(ins) if r.memory == "sram")
    written = 0 if ins.acc_hold else ins.m * row_bytes(ins.out_dtype, ins.n)
    return {
        "sram_read_bytes": batch * (ins.m * row_bytes(ins.a_dtype, ins.k) + stationary) + records,
        "sram_write_bytes": batch * written,
        "mac_operations": batch * ins.m * ins.k * ins.n,
    }


def _elementwise(ins: Decoded) -> dict[str, int]:
    read = row_bytes(ins.a_dtype, ins.cols)
    read += row_bytes(ins.b_dtype, ins.cols) if ins.b_addr != NO_ADDRESS else 0
    rows = ins.batch * ins.rows
    return {"sram_read_bytes": rows * read, "sram_write_bytes": rows * row_bytes(ins.out_dtype, ins.cols)}


def _transpose(ins: Decoded) -> dict[str, int]:
    moved = ins.batch * ins.rows * row_bytes(ins.out_dtype, ins.cols)
    return {"sram_read_bytes": moved, "sram_write_bytes": moved}


def _rows(ins: Decoded, read: int, written: int) -> dict[str, int]:
    """``read`` and ``written`` bytes beside the rows themselves, which are 16-bit unless ``a_dtype`` says otherwise."""
    source = row_bytes(ins.a_dtype, ins.cols) if hasattr(ins, "a_dtype") else 2 * ins.cols
    result = ins.rows * row_bytes(ins.out_dtype, ins.cols) if hasattr(ins, "out_dtype") else 0
    return {"sram_read_bytes": ins.rows * source + read, "sram_write_bytes": result + written}


def _recip(ins: Decoded) -> dict[str, int]:
    return {"sram_read_bytes": 4 * ins.rows, "sram_write_bytes": ROW_RECORD.itemsize * ins.rows}


def _nothing(ins: Decoded) -> dict[str, int]:
    return {}


_TRAFFIC_OF: dict[str, Callable[[Decoded], dict[str, int]]] = {
    "load": _dma,
    "store": _dma,
    "fetch": lambda ins: {
        "storage_read_bytes": ins.coded_bytes or ins.bytes,
        "fetch_bytes": ins.bytes,
        "decoded_bytes": ins.bytes if ins.coded_bytes else 0,
    },
    "pswitch": _nothing,
    "matmul": _matmul,
    "ewlin": _elementwise,
    "ewmul": _elementwise,
    "transpose": _transpose,
    "table": lambda ins: _rows(ins, 0, 0),
    "table8": lambda ins: _rows(ins, 0, 0),
    "lnstat": lambda ins: _rows(ins, 0, ins.rows * STATISTICS.itemsize),
    "lnapply": lambda ins: _rows(ins, ins.rows * STATISTICS.itemsize, 0),
    "smexp": lambda ins: _rows(ins, 4 if ins.valid_addr != NO_ADDRESS else 0, 4 * ins.rows),
    "recip": _recip,
    "rtquant": lambda ins: _rows(ins, 0, ins.rows * SCALARS.itemsize),
    "token": _nothing,
    "barrier": _nothing,
    "halt": _nothing,
}


def cost_of(ins: Decoded, machine: Machine, base: int = 0) -> tuple[int, int, list[int]]:
    """(busy cycles, cycles of DRAM at its peak rate, counts in the order of `TRAFFIC`) of one decoded instruction.

    Of FETCH the second are those of the storage alone. ``base``: the value of the base register that a LOAD, STORE or
    FETCH names for DRAM.

    Raises UserError for an instruction on a unit that does not execute it, or one that breaks a rule of its family.
    """
    busy, counts = _cost_of_shape(ins, machine)
    transfer = 0
    if ins.op in DMA:
        shape = storage.geometry(ins, machine) if ins.op == "fetch" else geometry(ins)
        shape[0] = base + ins.dram_addr
        cycles, moved = _transfers(ins.op, np.array([shape], np.int64), machine)
        transfer, counts[DMA[ins.op]] = int(cycles[0]), int(moved[0])
    return busy, transfer, counts


def _transfers(op: str, geometries: Int64, machine: Machine) -> tuple[Int64, Int64]:
    """(`Costs.transfer`, bytes on the DRAM's bus) of instructions ``op``; ``geometries``: (count, dram.GEOMETRY)."""
    device = machine.dram.device
    if op == "fetch":
        cycles, bursts = storage.alone(geometries, storage.constants(machine), device.burst_bytes)
    else:
        bursts = _bursts(geometries, device.burst_bytes)
        # The peak rate in NPU cycles, rounded up: `Machine.dram_stream_cycles`.
        clocks = bursts * device.burst_clocks * machine.clock_mhz
        cycles = -(-clocks // (machine.dram.channels * device.clock_mhz))
    return cycles, bursts * device.burst_bytes


def _cost_of_shape(ins: Decoded, machine: Machine) -> tuple[int, list[int]]:
    """What `cost_of` says, without bytes and cycles of DRAM: no address matters."""
    spec = BY_MNEMONIC[ins.op]
    if misplaced := spec.misplaced(ins, machine):
        raise UserError(f"{ins.op}: {misplaced}")
    broken = spec.check(ins, machine)
    if broken:
        raise UserError(f"{ins.op}: {broken[0]}")
    counts = _TRAFFIC_OF[ins.op](ins) | {"instruction_fetch_bytes": INSTRUCTION_BYTES}
    if ins.op not in DMA:
        # Vectors, records and tables lie in parameter memory without gaps, so the regions are the bytes.
        regions = spec.footprint(ins)[0] if ins.op != "pswitch" else []
        counts["param_read_bytes"] = sum(r.end - r.start for r in regions if r.memory == "param")
    return spec.cycles(ins, machine), [counts.get(name, 0) for name in TRAFFIC]


def _address_fields(opcode: int) -> list[Field]:
    """Those on which no rule depends."""
    ruled = {name for rule in BY_OPCODE[opcode].rules for name in rule.fields}
    return [f for f in BY_OPCODE[opcode].fields if f.name.endswith("addr") and f.name not in ruled]


def shapes(code: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The words with layer, tokens and addresses set to 0; an absent optional operand keeps its `NO_ADDRESS`."""
    shapes = code.copy()
    shapes[:, _LAYER_BITS[0]] &= np.uint32(0xFFFF_FFFF ^ (((1 << _LAYER_BITS[2]) - 1) << _LAYER_BITS[1]))
    shapes[:, TOKEN_WORDS] = 0
    opcodes = code[:, 0] & 0xFF
    for opcode in np.unique(opcodes).tolist():
        rows = np.flatnonzero(opcodes == opcode)
        for f in _address_fields(opcode) if opcode in BY_OPCODE else []:
            present = rows[code[rows, f.word] != NO_ADDRESS] if f.bits == 32 else rows
            shapes[present, f.word : f.word + -(-f.bits // 32)] = 0
    return shapes


def distinct_shapes(code: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], Int64]:
    """The different `shapes` of ``code`` as they first come, (kinds, 32); each instruction's kind."""
    numbers: dict[bytes, int] = {}
    every = np.ascontiguousarray(shapes(code))
    which = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in every], np.int64)
    return np.frombuffer(b"".join(numbers), np.uint32).reshape(-1, WORDS), which


def costs(code: NDArray[np.uint32], machine: Machine, bases: Sequence[int] = (0,) * BASES) -> Costs:
    """Cost every instruction of ``code`` (count, 32), with the base registers at ``bases``.

    Raises UserError, naming the index of the first bad instruction, for words that do not decode, an instruction on the
    wrong unit or outside its family's rules, and a barrier or halt with tokens.
    """
    if code.ndim != 2 or code.shape[1] != WORDS:
        raise UserError(f"code has shape {code.shape}; allowed: (count, {WORDS})")
    words = code.astype(np.int64)
    rows: list[list[int]] = []
    kinds, which = distinct_shapes(code)
    copies: dict[int, tuple[Decoded, list[int]]] = {}
    on_chip: dict[int, list[tuple[Field, int, int, bool]]] = {}
    for number, kind in enumerate(kinds.tolist()):
        try:
            ins = decode_row(kind, BY_OPCODE)
            busy, counts = _cost_of_shape(ins, machine)
            if ins.op in DMA:
                copies[number] = ins, storage.geometry(ins, machine) if ins.op == "fetch" else geometry(ins)
            on_chip[number] = sram.operands(ins, machine)
        except UserError as error:
            raise UserError(f"instruction {np.argmax(which == number)}: {error}") from None
        rows.append([busy, int(ins.op in JOINS), *counts])
    each = np.array(rows, np.int64).reshape(-1, 2 + len(TRAFFIC))[which]

    def field(bits: tuple[int, int, int]) -> Any:
        return words[:, bits[0]] >> bits[1] & ((1 << bits[2]) - 1)

    def masks(kind: str) -> Int64:
        return np.stack([field(_TOKEN_BITS[f"{kind}_{name}"]) for name in ("raw", "war")], axis=1)

    barrier, wait, signal = each[:, 1] == 1, masks("wait"), masks("signal")
    bad = np.flatnonzero(barrier & (wait | signal).any(axis=1))
    if bad.size:  # the token fields are no part of a shape, so the rule about them is checked here
        raise UserError(f"instruction {bad[0]}: barrier and halt take and send no tokens; all token fields must be 0")
    traffic = each[:, 2:].copy()
    geometries, transfer = _copies(code, which, copies, machine, bases, traffic)
    demand = _demands(words, which, on_chip, machine, np.where(transfer, transfer, each[:, 0]))
    return Costs(
        field(_UNIT_BITS), field(_LAYER_BITS), barrier, each[:, 0], transfer, geometries, wait, signal, traffic, demand
    )


def _demands(
    words: Int64,
    which: Int64,
    on_chip: Mapping[int, list[tuple[Field, int, int, bool]]],
    machine: Machine,
    cycles: Int64,
) -> Int64:
    """What each instruction asks of the SRAM's banks in its ``cycles``; ``on_chip``: operands of each shape."""
    out = np.zeros((len(words), sram.OPERANDS), np.int64)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(on_chip) + 1))
    for number, operands in on_chip.items():
        rows = order[bounds[number] : bounds[number + 1]]
        for column, (at, length, moved, write) in enumerate(operands):
            out[rows, column] = sram.demands(machine.sram, words[rows, at.word], length, moved, cycles[rows], write)
    return out


def _copies(
    code: NDArray[np.uint32],
    which: Int64,
    copies: Mapping[int, tuple[Decoded, list[int]]],
    machine: Machine,
    bases: Sequence[int],
    traffic: Int64,
) -> tuple[Int64, Int64]:
    """Geometry and transfer cycles of each instruction, 0 but for DMA; fills in the bytes on the bus in ``traffic``.

    ``copies``: shapes of DMA and their geometries, both without address, by number; ``which``: the number of each
    instruction's shape.
    """
    geometries, transfer = np.zeros((len(code), dram.GEOMETRY), np.int64), np.zeros(len(code), np.int64)
    for number, (ins, shape) in copies.items():
        rows = np.flatnonzero(which == number)
        low, high = (code[rows, _DRAM_WORD[ins.op] + word].astype(np.uint64) for word in range(2))
        address = low | high << np.uint64(32)
        far = np.flatnonzero(address > MAX_ADDRESS - bases[ins.base])
        if far.size:
            raise UserError(f"instruction {rows[far[0]]}: {ins.op}: DRAM address {address[far[0]]}: allowed up to 2^48")
        geometries[rows] = shape
        geometries[rows, 0] = address.astype(np.int64) + bases[ins.base]
        if ins.op == "fetch" and ins.coded_bytes:
            low, high = (code[rows, _OLD_WORD + word].astype(np.int64) for word in range(2))
            old = low | (high & 0xFFFF) << 32
            geometries[rows, storage.OLD] = old + bases[ins.old_base]
        transfer[rows], traffic[rows, DMA[ins.op]] = _transfers(ins.op, geometries[rows], machine)
    return geometries, transfer
