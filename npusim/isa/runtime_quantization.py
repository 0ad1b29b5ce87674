"""RTQUANT: quantization of each row (token) by its own range, for the dynamic baseline.

Only on machines with ``vector_unit.runtime_quantization``; a mobile NPU has none, which is why the paper quantizes
statically. Per row of a 16-bit tensor, by Eq. 1 of the paper with b bits, L = 2^b - 1:
``low = min(0, min a)``, ``high = max(0, max a)``, ``R = high - low``, and with ``q(v) = (v L y + 2^(s-1)) >> s``, where
``y 2^-s`` is the reciprocal of R (`numerics.reciprocal`): zero point ``z = q(-low)``,
``out = clamp(q(a) + z, 0, L)``.
One step of the row's grid is R / L steps of the input. So the row's SCALARS record for a MATMUL in mode
``factored_row`` is z with (multiplier, shift) of ``R * multiplier * 2^-shift``; the immediates hold what is the same
for all rows, the input's step over L. A row of zeros gives z = 0 and a multiplier of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart_rule, disjoint_rule, vector, window
from npusim.isa.encoding import (
    DTYPE_NAMES,
    DTYPES,
    MAX_SHIFT,
    Decoded,
    Field,
    Instruction,
    Region,
    Rule,
    at_least_one,
    one_of,
    row_bytes,
)
from npusim.isa.matmul import SCALARS

I16 = DTYPE_NAMES.index("i16")
FIELDS = (
    Field("a_addr", 2, doc="SRAM: the input, int16"),
    Field("a_row", 3, doc="byte distance of the input's rows"),
    Field("out_addr", 4, doc="SRAM: the quantized rows"),
    Field("out_row", 5, doc="byte distance of the quantized rows"),
    Field("rows", 6, doc="rows, each with a grid of its own"),
    Field("cols", 7, doc="elements of a row"),
    Field("scalars_addr", 8, doc="SRAM: one SCALARS record per row"),
    Field("multiplier", 9, doc="of the factor that all rows share"),
    Field("shift", 10, 0, 6, doc="of the factor that all rows share"),
    Field("out_dtype", 10, 8, 4, names=DTYPE_NAMES, doc="element type of the quantized rows: its width is b"),
)


def operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """Operands a int16 and out (rows, cols), and the SCALARS records (rows,)."""
    shape = (ins.rows, ins.cols)
    a = state.operand("sram", ins.a_addr, I16, shape, (ins.a_row,))
    out = state.operand("sram", ins.out_addr, ins.out_dtype, shape, (ins.out_row,))
    return a, out, state.vector("sram", ins.scalars_addr, SCALARS, ins.rows)


def levels(ins: Decoded) -> int:
    """L, the number of steps of the grid."""
    return DTYPES[DTYPE_NAMES[ins.out_dtype]][2]


def quantized_rows(x: Any, top: int, multiplier: int, shift: int) -> tuple[Any, Any, Any, Any]:
    """Rows x (rows, cols) int64 on grids of their own, before the clamp to 0..top; zero point, multiplier and shift.

    The last three are (rows, 1), of each row's SCALARS; ``multiplier`` and ``shift`` are the instruction's.
    """
    low, high = np.minimum(x.min(axis=1), 0)[:, None], np.maximum(x.max(axis=1), 0)[:, None]
    reach = np.maximum(high - low, 1)
    mantissa, down = numerics.reciprocal(reach)
    zero_point = numerics.rescale(-low * top, mantissa, down)
    exact = numerics.rescale(x * top, mantissa, down) + zero_point
    m, s = numerics.normalised_multiplier(reach * multiplier, np.asarray(shift, np.int64), 16)
    flat = low == high
    return exact, zero_point, np.where(flat, 0, m), np.where(flat, 1, s)


def execute(state: Any, ins: Decoded) -> None:
    a, out, scalars = operands(state, ins)
    top = levels(ins)
    exact, *row = quantized_rows(a.values(), top, ins.multiplier, ins.shift)
    state.write(ins, out, np.clip(exact, 0, top), exact)
    for name, values in zip(("zero_point", "multiplier", "shift"), row, strict=True):
        scalars[name] = values[:, 0]


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    shape = (ins.rows, ins.cols)
    out = window("sram", ins.out_addr, ins.out_dtype, shape, (ins.out_row,))
    scalars = vector("sram", ins.scalars_addr, ins.rows * SCALARS.itemsize)
    return [window("sram", ins.a_addr, I16, shape, (ins.a_row,))], [out, scalars]


def cycles(ins: Decoded, machine: Any) -> int:
    """Two passes, range and rounding; one row a cycle through the reciprocal in between; the pipeline twice."""
    passes = 2 * -(-ins.rows * ins.cols // machine.vector_unit.lanes)
    return int(passes + ins.rows + 2 * machine.vector_unit.latency_cycles(ins.op))


RULES = (
    Rule(
        ("out_dtype",),
        "on a machine with vector_unit.runtime_quantization only",
        lambda ins, machine: bool(machine.vector_unit.runtime_quantization),
    ),
    *at_least_one("rows", "cols"),
    one_of("out_dtype", "u4", "u6", "u8"),
    Rule(("multiplier",), "2^30..2^31 - 1", lambda ins, machine: bool(1 << 30 <= ins.multiplier < 1 << 31)),
    # The product has 31 to 47 bits, of which 15 remain: 16 to 32 bits go, and one more in a carry.
    Rule(("shift",), f"34..{MAX_SHIFT}", lambda ins, machine: bool(34 <= ins.shift <= MAX_SHIFT)),
    apart_rule(("out_row",), lambda ins: (row_bytes(ins.out_dtype, ins.cols), ((ins.rows, ins.out_row),))),
    disjoint_rule(("out_addr", "scalars_addr"), footprint),
)
RTQUANT = Instruction(
    "rtquant", 0x60, "quantize each row by its own range, and leave its grid for MATMUL", FIELDS, ("vector",),
    execute, RULES, footprint, cycles, __doc__,
)  # fmt: skip
