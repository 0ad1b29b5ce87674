"""What each instruction costs by itself: cycles, bytes at each level of memory, products.

Everything here follows from an instruction's shape fields and the machine; addresses do not matter, only whether an
optional operand is there. So instructions that differ in nothing else share one calculation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, BY_OPCODE
from npusim.isa.control import JOINS
from npusim.isa.dma import MEMORIES, dma_bytes
from npusim.isa.encoding import (
    HEADER,
    INSTRUCTION_BYTES,
    NO_ADDRESS,
    UNITS,
    WORDS,
    Decoded,
    Field,
    decode_row,
    row_bytes,
)
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import ROW_RECORD, SCALARS, record_regions

Int64 = NDArray[np.int64]

TRAFFIC = (
    "dram_read_bytes", "dram_write_bytes", "load_bytes", "store_bytes", "param_load_bytes",
    "sram_read_bytes", "sram_write_bytes", "param_read_bytes", "instruction_fetch_bytes", "mac_operations",
)  # fmt: skip
"""Columns of `Costs.traffic`; `npusim.timing.results.Traffic` says what each counts."""

_UNIT_BITS, _LAYER_BITS = ((f.word, f.lo, f.bits) for f in HEADER if f.name in ("unit", "layer"))
_TOKEN_WORD = next(f.word for f in HEADER if f.name == "wait_raw")
_TOKEN_LO = {f.name: f.lo for f in HEADER if f.word == _TOKEN_WORD}


@dataclass(frozen=True)
class Costs:
    """Cost of ``count`` instructions, all int64.

    ``unit``, ``layer`` and ``busy`` (cycles of execution or DMA set-up), ``transfer`` (cycles on the DRAM channel, 0
    for everything but DMA): (count,). ``wait`` and ``signal``: (count, 2) unit masks [raw, war]. ``traffic``: (count,
    len(TRAFFIC)). ``barrier``: (count,) bool, of BARRIER and HALT.
    """

    unit: Int64
    layer: Int64
    barrier: NDArray[np.bool_]
    busy: Int64
    transfer: Int64
    wait: Int64
    signal: Int64
    traffic: Int64


def bus_bytes(ins: Decoded, burst_bytes: int) -> int:
    """Bytes that a LOAD or STORE moves on the DRAM bus: each contiguous run of DRAM bytes rounded up to whole bursts.

    Rows that touch are one run, and so are planes that touch; where in a burst a run begins is not modelled.
    """
    run, runs = ins.row_bytes, ins.rows * ins.planes
    if ins.rows == 1 or ins.dram_row == ins.row_bytes:
        run, runs = ins.rows * ins.row_bytes, ins.planes
        if ins.planes == 1 or ins.dram_plane == run:
            run, runs = ins.planes * run, 1
    return int(runs * -(-run // burst_bytes) * burst_bytes)


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


def cost_of(ins: Decoded, machine: Machine) -> tuple[int, int, list[int]]:
    """(busy cycles, cycles on the DRAM channel, counts in the order of `TRAFFIC`) of one decoded instruction.

    Raises UserError for an instruction on a unit that does not execute it, or one that breaks a rule of its family.
    """
    spec = BY_MNEMONIC[ins.op]
    if UNITS[ins.unit] not in spec.units:
        raise UserError(f"{ins.op} on unit {UNITS[ins.unit]}: allowed {', '.join(spec.units)}")
    broken = spec.check(ins, machine)
    if broken:
        raise UserError(f"{ins.op}: {broken[0]}")
    counts = _TRAFFIC_OF[ins.op](ins) | {"instruction_fetch_bytes": INSTRUCTION_BYTES}
    transfer = 0
    if ins.op not in ("load", "store"):
        # Vectors, records and tables lie in parameter memory without gaps, so the regions are the bytes.
        regions = spec.footprint(ins)[0] if ins.op != "pswitch" else []
        counts["param_read_bytes"] = sum(r.end - r.start for r in regions if r.memory == "param")
    else:
        moved = bus_bytes(ins, machine.dram.burst_bytes)
        counts["dram_read_bytes" if ins.op == "load" else "dram_write_bytes"] = moved
        transfer = machine.dram_stream_cycles(moved)
    return spec.cycles(ins, machine), transfer, [counts.get(name, 0) for name in TRAFFIC]


def _address_fields(opcode: int) -> list[Field]:
    """Those on which no rule depends."""
    ruled = {name for rule in BY_OPCODE[opcode].rules for name in rule.fields}
    return [f for f in BY_OPCODE[opcode].fields if f.name.endswith("addr") and f.name not in ruled]


def _shapes(code: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The words with layer, tokens and addresses set to 0; an absent optional operand keeps its `NO_ADDRESS`."""
    shapes = code.copy()
    shapes[:, _LAYER_BITS[0]] &= np.uint32(0xFFFF_FFFF ^ (((1 << _LAYER_BITS[2]) - 1) << _LAYER_BITS[1]))
    shapes[:, _TOKEN_WORD] = 0
    opcodes = code[:, 0] & 0xFF
    for opcode in np.unique(opcodes).tolist():
        rows = np.flatnonzero(opcodes == opcode)
        for f in _address_fields(opcode) if opcode in BY_OPCODE else []:
            present = rows[code[rows, f.word] != NO_ADDRESS] if f.bits == 32 else rows
            shapes[present, f.word : f.word + -(-f.bits // 32)] = 0
    return shapes


def costs(code: NDArray[np.uint32], machine: Machine) -> Costs:
    """Cost every instruction of ``code`` (count, 32).

    Raises UserError, naming the index of the first bad instruction, for words that do not decode, an instruction on the
    wrong unit or outside its family's rules, and a barrier or halt with tokens.
    """
    if code.ndim != 2 or code.shape[1] != WORDS:
        raise UserError(f"code has shape {code.shape}; allowed: (count, {WORDS})")
    words = code.astype(np.int64)
    table: dict[bytes, int] = {}
    rows: list[list[int]] = []
    which = np.empty(len(code), np.int64)
    for index, shape in enumerate(np.ascontiguousarray(_shapes(code))):
        key = shape.tobytes()
        if key not in table:
            try:
                ins = decode_row(shape.tolist(), BY_OPCODE)
                busy, transfer, counts = cost_of(ins, machine)
            except UserError as error:
                raise UserError(f"instruction {index}: {error}") from None
            table[key] = len(rows)
            rows.append([busy, transfer, int(ins.op in JOINS), *counts])
        which[index] = table[key]
    each = np.array(rows, np.int64).reshape(-1, 3 + len(TRAFFIC))[which]

    def field(bits: tuple[int, int, int]) -> Any:
        return words[:, bits[0]] >> bits[1] & ((1 << bits[2]) - 1)

    def masks(kind: str) -> Int64:
        return np.stack([words[:, _TOKEN_WORD] >> _TOKEN_LO[f"{kind}_{name}"] & 15 for name in ("raw", "war")], axis=1)

    barrier, wait, signal = each[:, 2] == 1, masks("wait"), masks("signal")
    bad = np.flatnonzero(barrier & (wait | signal).any(axis=1))
    if bad.size:  # the token fields are no part of a shape, so the rule about them is checked here
        raise UserError(f"instruction {bad[0]}: barrier and halt take and send no tokens; all token fields must be 0")
    return Costs(
        field(_UNIT_BITS), field(_LAYER_BITS), barrier, each[:, 0], each[:, 1], wait, signal, each[:, 3:].copy()
    )
