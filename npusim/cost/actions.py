"""What the instructions of a layer do that costs energy: counted from shapes, as timing is, without data."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, BY_OPCODE
from npusim.isa.encoding import DTYPE_NAMES, ELEMENT_BITS, HEADER, Decoded, decode_row, row_bytes
from npusim.isa.matmul import RQ_MODES, fold_height
from npusim.timing.cost import distinct_shapes

MATMUL = BY_MNEMONIC["matmul"].opcode
LAYER = next(f for f in HEADER if f.name == "layer")


@dataclass
class ArrayActions:
    """Of the matrix unit.

    Attributes:
        products: by (bits of the activation, bits of the weight).
        accumulations: values read from and written to the accumulator memory, one for each fold behind the first.
        row_sums: additions of the row-sum column.
        requantizations: multiplications of results by a multiplier's width in bits; two for a result in two factors.
        refetched_bytes: SRAM reads beyond once for each instruction, because a streamed operand passes once for each
            block of columns, and a stationary one is loaded once for each block of rows.
    """

    products: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    accumulations: int = 0
    row_sums: int = 0
    requantizations: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    refetched_bytes: int = 0


def array_actions(code: NDArray[np.uint32], machine: Machine) -> dict[int, ArrayActions]:
    """Count the actions of MATMUL by layer number in ``code`` (count, 32), legal on ``machine``."""
    rows = code[(code[:, 0] & 0xFF) == MATMUL]
    if not len(rows):
        return {}
    layers = (rows[:, LAYER.word] >> np.uint32(LAYER.lo)) & np.uint32((1 << LAYER.bits) - 1)
    kinds, which = distinct_shapes(rows)
    decoded = [decode_row(kind, BY_OPCODE) for kind in kinds.tolist()]
    found: dict[int, ArrayActions] = {}
    pairs, counts = np.unique(np.stack([layers.astype(np.int64), which]), axis=1, return_counts=True)
    for layer, kind, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        _add(found.setdefault(layer, ArrayActions()), decoded[kind], machine, count)
    return found


def _add(total: ArrayActions, ins: Decoded, machine: Machine, count: int) -> None:
    """Add ``count`` executions of ``ins`` to ``total``."""
    array, times = machine.mac_array, count * ins.batch0 * ins.batch1
    bits = ELEMENT_BITS[DTYPE_NAMES[ins.a_dtype]], ELEMENT_BITS[DTYPE_NAMES[ins.b_dtype]]
    total.products[bits] += times * ins.m * ins.k * ins.n
    a_bytes, b_bytes = ins.m * row_bytes(ins.a_dtype, ins.k), ins.n * row_bytes(ins.b_dtype, ins.k)
    if array.dataflow == "weight_stationary":
        a_times, b_times = -(-ins.n // array.cols), -(-ins.m // array.acc_rows)
    elif array.dataflow == "input_stationary":
        a_times, b_times = -(-ins.n // array.acc_rows), -(-ins.m // array.cols)
    else:
        a_times, b_times = -(-ins.n // array.cols), -(-ins.m // array.rows)
    total.refetched_bytes += times * (a_bytes * (a_times - 1) + b_bytes * (b_times - 1))
    if array.row_sum_column:
        total.row_sums += times * ins.m * ins.k * a_times
    if array.dataflow != "output_stationary":
        folds = -(-ins.k // fold_height(ins, machine))
        total.accumulations += times * ins.m * ins.n * (folds - 1 + ins.acc_continue)
    if not ins.acc_hold:
        mode = RQ_MODES[ins.rq_mode]
        width = array.requant_multiplier_bits if mode in ("tensor", "channel") else 16
        total.requantizations[width] += times * ins.m * ins.n * (2 if mode.startswith("factored") else 1)
