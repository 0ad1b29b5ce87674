"""What no schedule can beat: for each layer of a piece of code, the least cycles of each unit, and the bytes of DRAM.

    rows = layer_bounds(program.step, program)
    total(rows).bound_cycles  # beside time_program(program).step.total_cycles

Nothing here knows the order of instructions. The chosen fusion is taken as given: what it passes through DRAM is
compulsory once, what it copies again is not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.dma import dma_bytes
from npusim.isa.encoding import UNITS, Decoded
from npusim.isa.matmul import fold_height, pass_cycles
from npusim.program import Program


@dataclass(frozen=True)
class Bounds:
    """One row of the report.

    Attributes:
        layer: its name.
        compulsory_dram_bytes: distinct copies from and to DRAM; one that is made again (weights for another block of
            rows) counts once.
        moved_dram_bytes: all copies.
        array_cycles: products over what all cells of the array do in a cycle, at the widths of the operands.
        padding_cycles: what cells without work add, at ragged edges: a head of 72 on 64 rows, 120 keys on 128 columns.
        fill_cycles: first loads, skew and drain of each instruction, and folds shorter than a load of weights.
        vector_cycles: of all vector instructions.
        dram_cycles: the compulsory bytes at the DRAM's peak rate.
    """

    layer: str
    compulsory_dram_bytes: int = 0
    moved_dram_bytes: int = 0
    array_cycles: float = 0
    padding_cycles: float = 0
    fill_cycles: float = 0
    vector_cycles: int = 0
    dram_cycles: float = 0

    @property
    def bound_cycles(self) -> float:
        """The largest of array, vector unit and compulsory DRAM."""
        return max(self.array_cycles, self.vector_cycles, self.dram_cycles)


COLUMNS = (*(f.name for f in fields(Bounds)), "bound_cycles")
"""Columns of a table of `Bounds`."""


def layer_bounds(code: NDArray[np.uint32], program: Program) -> list[Bounds]:
    """Bounds of each layer of ``code`` (count, 32), in the order in which they begin."""
    numbers: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    seen: set[tuple[int, ...]] = set()
    for ins in decode(code):
        row = numbers[ins.layer]
        if ins.op in ("load", "store"):
            copy = (
                ins.layer, ins.unit, ins.dram_addr, ins.base, ins.row_bytes, ins.rows, ins.planes, ins.dram_row,
                ins.dram_plane,
            )  # fmt: skip
            row["moved_dram_bytes"] += dma_bytes(ins)
            row["compulsory_dram_bytes"] += 0 if copy in seen else dma_bytes(ins)
            seen.add(copy)
        elif ins.op == "matmul":
            for name, cycles in array_cycles(ins, program.machine).items():
                row[name] += cycles
        elif UNITS[ins.unit] == "vector" and ins.op not in ("barrier", "halt"):
            row["vector_cycles"] += BY_MNEMONIC[ins.op].cycles(ins, program.machine)
    for row in numbers.values():
        row["dram_cycles"] = row["compulsory_dram_bytes"] / program.machine.dram_bytes_per_cycle
    whole = ("compulsory_dram_bytes", "moved_dram_bytes", "vector_cycles")
    return [
        Bounds(program.layers[layer], **{name: int(v) if name in whole else v for name, v in row.items()})  # type: ignore[arg-type]
        for layer, row in numbers.items()
    ]


def array_cycles(ins: Decoded, machine: Machine) -> dict[str, float]:
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
    return {"array_cycles": useful, "padding_cycles": taken - useful, "fill_cycles": busy - taken}


def total(rows: Sequence[Bounds]) -> Bounds:
    """The sum of all layers, as layer "total"."""
    sums = {f.name: sum(getattr(row, f.name) for row in rows) for f in fields(Bounds)[1:]}
    return Bounds("total", **sums)
