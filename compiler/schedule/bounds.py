"""What no schedule can beat: for each layer of a piece of code, the least cycles of each unit, and the bytes of DRAM.

    rows = layer_bounds(program.step, program.machine)
    total(rows.values()).bound_cycles  # beside time_program(program).step.total_cycles

Nothing here knows the order of instructions. The chosen fusion is taken as given: what it passes through DRAM is
compulsory once, what it copies again is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, BY_OPCODE
from npusim.isa.dma import dma_bytes
from npusim.isa.encoding import HEADER, Decoded, decode_row
from npusim.isa.matmul import fold_height, pass_cycles
from npusim.timing.cost import DMA, distinct_shapes
from npusim.units import kind_of

_LAYER = next(f for f in HEADER if f.name == "layer")
FETCH = "fetch"
_DRAM_SIDE = ("unit", "dram_addr", "base", "row_bytes", "rows", "planes", "dram_row", "dram_plane")
"""Fields of a copy that say which bytes of DRAM it moves, and in which direction."""


@dataclass(frozen=True)
class Bounds:
    """One row of the report.

    Attributes:
        compulsory_dram_bytes: distinct copies from and to DRAM; one that is made again (weights for another block of
            rows) counts once.
        moved_dram_bytes: all copies.
        array_bound_cycles: products over what all cells of all arrays do in a cycle, at the widths of the operands.
        padding_cycles: what cells without work add, at ragged edges: a head of 72 on 64 rows, 120 keys on 128 columns.
        fill_cycles: first loads, skew and drain of each instruction, and folds shorter than a load of weights.
        vector_bound_cycles: of all vector instructions, shared by all vector units.
        dram_bound_cycles: the compulsory bytes at the DRAM's peak rate.
    """

    compulsory_dram_bytes: int = 0
    moved_dram_bytes: int = 0
    array_bound_cycles: float = 0
    padding_cycles: float = 0
    fill_cycles: float = 0
    vector_bound_cycles: int = 0
    dram_bound_cycles: float = 0

    @property
    def bound_cycles(self) -> float:
        """The largest of array, vector unit and compulsory DRAM."""
        return max(self.array_bound_cycles, self.vector_bound_cycles, self.dram_bound_cycles)

    def row(self) -> dict[str, int]:
        """By name in `COLUMNS`, cycles rounded."""
        return {name: round(value) for name, value in {**asdict(self), "bound_cycles": self.bound_cycles}.items()}


COLUMNS = (*(f.name for f in fields(Bounds)), "bound_cycles")
"""Columns of a table of `Bounds`."""


def layer_bounds(code: NDArray[np.uint32], machine: Machine) -> dict[int, Bounds]:
    """Bounds by number of layer of ``code`` (count, 32), in the order in which they begin."""
    layer = code[:, _LAYER.word].astype(np.int64) >> _LAYER.lo & ((1 << _LAYER.bits) - 1)
    costs, which = _costs(code, machine)
    _, first, numbers = np.unique(layer, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), costs.shape[1]))
    np.add.at(sums, numbers, costs[which])
    once = _distinct_copies(code, layer)
    compulsory = np.bincount(numbers[once], costs[which[once], 0], len(first))
    arrays, vectors = machine.mac_array.count, machine.vector_unit.count
    counts, rows = np.array([1, arrays, arrays, arrays, vectors]), {}
    for number in np.argsort(first, kind="stable").tolist():
        moved, array, padding, fill, vector = (sums[number] / counts).tolist()
        cycles = float(compulsory[number] / machine.dram_bytes_per_cycle)
        rows[int(layer[first[number]])] = Bounds(
            int(compulsory[number]), int(moved), array, padding, fill, ceil(vector), cycles
        )
    return rows


def _costs(code: NDArray[np.uint32], machine: Machine) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Bytes of DRAM, cycles of the array (three), of the vector unit: a row for each shape; the shapes' numbers."""
    kinds, which = distinct_shapes(code)
    return np.array([_cost(decode_row(kind, BY_OPCODE), machine) for kind in kinds.tolist()]), which


def _cost(ins: Decoded, machine: Machine) -> list[float]:
    if ins.op in DMA:
        return [ins.bytes if ins.op == FETCH else dma_bytes(ins), 0, 0, 0, 0]
    if ins.op == "matmul":
        return [0, *array_cycles(ins, machine), 0]
    vector = kind_of(ins.unit) == "vector" and ins.op not in ("barrier", "halt")
    return [0, 0, 0, 0, BY_MNEMONIC[ins.op].cycles(ins, machine) if vector else 0]


def _distinct_copies(code: NDArray[np.uint32], layer: NDArray[np.int64]) -> NDArray[Any]:
    """Places in ``code`` of one copy each of those that move the same bytes of DRAM in one direction for one layer."""
    opcodes = code[:, 0] & 0xFF
    fetches = np.flatnonzero(opcodes == BY_MNEMONIC[FETCH].opcode)  # a policy fetches every byte once
    copies = np.flatnonzero(np.isin(opcodes, [BY_MNEMONIC[op].opcode for op in DMA if op != FETCH]))
    known = {f.name: f for f in (*HEADER, *BY_MNEMONIC["load"].fields)}
    columns = [layer[copies], opcodes[copies]]
    for field in (known[name] for name in _DRAM_SIDE):
        for word in range(field.word, field.word + -(-(field.lo + field.bits) // 32)):
            low = field.lo if word == field.word else 0
            bits = min(field.bits, 32)
            columns.append(code[copies, word].astype(np.int64) >> low & ((1 << bits) - 1))
    _, first = np.unique(np.stack(columns, axis=1).astype(np.int64), axis=0, return_index=True)
    return np.concatenate([copies[first], fetches])


def array_cycles(ins: Decoded, machine: Machine) -> tuple[float, float, float]:
    """Cycles of a MATMUL's products, of its padding, and of filling and draining the array."""
    array, height = machine.mac_array, fold_height(ins, machine)
    streamed, held = (ins.n, ins.m) if array.dataflow == "input_stationary" else (ins.m, ins.n)
    each = pass_cycles(ins, machine) * ins.batch0 * ins.batch1
    if array.dataflow == "output_stationary":
        useful = each * ins.k / height * (ins.m / array.rows) * (ins.n / array.cols)
        taken = each * -(-ins.k // height) * -(-ins.m // array.rows) * -(-ins.n // array.cols)
    else:
        useful = each * streamed * ins.k / height * (held / array.cols)
        taken = each * streamed * -(-ins.k // height) * -(-held // array.cols)
    busy = BY_MNEMONIC["matmul"].cycles(ins, machine)
    return useful, taken - useful, busy - taken


def total(rows: Iterable[Bounds]) -> Bounds:
    """The sum of all layers."""
    each = list(rows)
    return Bounds(*(sum(getattr(row, f.name) for row in each) for f in fields(Bounds)))
