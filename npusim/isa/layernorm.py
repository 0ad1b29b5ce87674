"""LNSTAT and LNAPPLY: LayerNorm without affine parameters, and the modulation that follows it.

With D columns, S = sum x and Q = sum x^2, exact integers:
``(x - mean) / sqrt(var + eps) = (D x - S) / sqrt(D Q - S^2 + eps D^2)``.

LNSTAT writes per row S and the reciprocal square root (mantissa, shift): count of leading zeros, a table of 192 seeds,
two Newton steps (`numerics.rsqrt`). LNAPPLY forms LayerNorm with ``fraction_bits`` fractional bits,
``n = clamp16(rescale(D x - S, mantissa, shift - fraction_bits))``, and then
``out = clamp((n * g + b + 2^(shift-1) >> shift) + out_zp)``, with a signed 16-bit ``g`` and an int32 ``b`` per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart_rule, vector, window
from npusim.isa.encoding import (
    DTYPE_NAMES,
    DTYPES,
    MAX_SHIFT,
    SHIFT_RULE,
    Decoded,
    Field,
    Instruction,
    Region,
    Rule,
    at_least_one,
    row_bytes,
)

MAX_COLS = 16384
STATISTICS = np.dtype([("sum", "<i4"), ("mantissa", "<i4"), ("shift", "<i4")])
"""What LNSTAT leaves for one row, 12 bytes."""
I16 = DTYPE_NAMES.index("i16")

_ROWS = (
    Field("a_addr", 2, doc="SRAM: the input, int16"),
    Field("a_row", 3, doc="byte distance of the input's rows"),
    Field("rows", 4, doc="rows, one LayerNorm each"),
    Field("cols", 5, doc="D, elements of a row"),
    Field("stat_addr", 6, doc="SRAM: 12 bytes per row, int32 S, mantissa and shift"),
)
_STAT = (Field("epsilon", 7, 0, 64, doc="eps D^2 / scale^2 of the input, at least 1"),)
_APPLY = (
    Field("out_addr", 7, doc="SRAM: the result"),
    Field("out_row", 8, doc="byte distance of the result's rows"),
    Field("fraction_bits", 9, 0, 4, doc="fractional bits of LayerNorm before the modulation"),
    Field("shift", 9, 8, 6, doc="right shift that ends in the rounding"),
    Field("out_dtype", 9, 16, 4, names=DTYPE_NAMES, doc="element type of the result"),
    Field("g_addr", 10, doc="parameter memory: factor, int16 per channel"),
    Field("b_addr", 11, doc="parameter memory: offset, int32 per channel"),
    Field("out_zp", 12, signed=True, doc="zero point of the result"),
)


def input_rows(state: Any, ins: Decoded) -> Any:
    """The input (rows, cols) int16, an `npusim.memory.Operand`."""
    return state.operand("sram", ins.a_addr, I16, (ins.rows, ins.cols), (ins.a_row,))


def output_rows(state: Any, ins: Decoded) -> Any:
    """LNAPPLY's result (rows, cols), an `npusim.memory.Operand`."""
    return state.operand("sram", ins.out_addr, ins.out_dtype, (ins.rows, ins.cols), (ins.out_row,))


def records(state: Any, ins: Decoded) -> Any:
    """The row statistics (rows,)."""
    return state.vector("sram", ins.stat_addr, STATISTICS, ins.rows)


def execute_statistics(state: Any, ins: Decoded) -> None:
    x, statistics = input_rows(state, ins).values(), records(state, ins)
    total = x.sum(axis=1)
    mantissa, shift = numerics.rsqrt(ins.cols * (x * x).sum(axis=1) - total * total + ins.epsilon)
    statistics["sum"], statistics["mantissa"], statistics["shift"] = total, mantissa, shift


def modulation(state: Any, ins: Decoded) -> tuple[Any, Any]:
    """Factors g and offsets b of the channels, int64 (cols,)."""
    g = state.vector("param", ins.g_addr, np.int16, ins.cols)
    return g.astype(np.int64), state.vector("param", ins.b_addr, np.int32, ins.cols).astype(np.int64)


def normalise(x: Any, total: Any, mantissa: Any, shift: Any, fraction_bits: int) -> Any:
    """LayerNorm of int64 rows to int16 range with ``fraction_bits`` fractional bits; statistics shaped (rows, 1)."""
    down = np.maximum(shift - fraction_bits, 1)
    return np.clip(numerics.rescale(x.shape[-1] * x - total, mantissa, down), -32768, 32767)


def statistics_of(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """(sum, mantissa, shift) that LNSTAT left, int64 (rows, 1) each.

    Raises ValueError where LNSTAT cannot have written them.
    """
    found = records(state, ins)
    total, mantissa, shift = (found[name].astype(np.int64)[:, None] for name in ("sum", "mantissa", "shift"))
    if (mantissa < 0).any() or (shift < 1).any() or (shift > MAX_SHIFT).any():
        raise ValueError(f"no row statistics at sram byte {ins.stat_addr}: mantissa at least 0, shift 1..{MAX_SHIFT}")
    return total, mantissa, shift


def execute_apply(state: Any, ins: Decoded) -> None:
    g, b = modulation(state, ins)
    n = normalise(input_rows(state, ins).values(), *statistics_of(state, ins), ins.fraction_bits)
    exact = numerics.rescale(n * g + b, 1, ins.shift) + ins.out_zp
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    state.write(ins, output_rows(state, ins), np.clip(exact, low, high), exact)


_COUNTS = (
    *at_least_one("rows", "cols"),
    # D x - S stays below 2^31 and D Q below 2^59.
    Rule(("cols",), f"at most {MAX_COLS}", lambda ins, machine: bool(ins.cols <= MAX_COLS)),
)
_EPSILON = Rule(("epsilon",), "1..2^58 - 1", lambda ins, machine: bool(0 < ins.epsilon < 1 << 58))
_APART = apart_rule(("out_row",), lambda ins: (row_bytes(ins.out_dtype, ins.cols), ((ins.rows, ins.out_row),)))


def _regions(ins: Decoded) -> tuple[Region, Region]:
    x = window("sram", ins.a_addr, I16, (ins.rows, ins.cols), (ins.a_row,))
    return x, vector("sram", ins.stat_addr, ins.rows * STATISTICS.itemsize)


def footprint_statistics(ins: Decoded) -> tuple[list[Region], list[Region]]:
    x, statistics = _regions(ins)
    return [x], [statistics]


def footprint_apply(ins: Decoded) -> tuple[list[Region], list[Region]]:
    constants = [vector("param", ins.g_addr, 2 * ins.cols), vector("param", ins.b_addr, 4 * ins.cols)]
    out = window("sram", ins.out_addr, ins.out_dtype, (ins.rows, ins.cols), (ins.out_row,))
    return [*_regions(ins), *constants], [out]


def _pass(ins: Decoded, machine: Any) -> int:
    return -int(-ins.rows * ins.cols // machine.vector_unit.lanes)


def cycles_statistics(ins: Decoded, machine: Any) -> int:
    """One pass for both sums, one row a cycle through the reciprocal square root behind it, and the pipeline."""
    return _pass(ins, machine) + int(ins.rows) + int(machine.vector_unit.latency_cycles(ins.op))


def cycles_apply(ins: Decoded, machine: Any) -> int:
    """Two passes, normalise and modulate, and the pipeline."""
    return 2 * _pass(ins, machine) + int(machine.vector_unit.latency_cycles(ins.op))


LNSTAT = Instruction(
    "lnstat", 0x40, "sum and reciprocal standard deviation of each row", _ROWS + _STAT, ("vector",),
    execute_statistics, (*_COUNTS, _EPSILON), footprint_statistics, cycles_statistics, __doc__,
)  # fmt: skip
LNAPPLY = Instruction(
    "lnapply", 0x41, "normalise each row, scale and shift each channel, round, clamp", _ROWS + _APPLY, ("vector",),
    execute_apply, (*_COUNTS, SHIFT_RULE, _APART), footprint_apply, cycles_apply, __doc__,
    ("statistics that LNSTAT cannot have written: a negative mantissa, a shift outside 1..62",),
)  # fmt: skip
