"""LNSTAT and LNAPPLY: LayerNorm without affine parameters, and the modulation that follows it.

With D columns, S = sum x and Q = sum x^2, exact integers:
``(x - mean) / sqrt(var + eps) = (D x - S) / sqrt(D Q - S^2 + eps D^2)``.

LNSTAT writes per row S and the reciprocal square root (mantissa, shift). LNAPPLY forms LayerNorm with ``fraction_bits``
fractional bits, ``n = clamp16(rescale(D x - S, mantissa, shift - fraction_bits))``, and then
``out = clamp((n * g + b + 2^(shift-1) >> shift) + out_zp)``, with a signed 16-bit ``g`` and an int32 ``b`` per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart, span
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, MAX_SHIFT, Decoded, Field, Instruction, Region, shift_rules

MAX_COLS = 16384
STATISTICS = np.dtype([("sum", "<i4"), ("mantissa", "<i4"), ("shift", "<i4")])
"""What LNSTAT leaves for one row, 12 bytes."""

_ROWS = (
    Field("a_addr", 2),
    Field("a_row", 3),
    Field("rows", 4),
    Field("cols", 5),
    Field("stat_addr", 6, doc="SRAM, 12 bytes per row"),
)
_STAT = (Field("epsilon", 7, 0, 64, doc="eps * D^2 / scale^2 of the input, at least 1"),)
_APPLY = (
    Field("out_addr", 7), Field("out_row", 8), Field("fraction_bits", 9, 0, 4), Field("shift", 9, 8, 6),
    Field("out_dtype", 9, 16, 4, names=DTYPE_NAMES), Field("g_addr", 10, doc="int16 per channel in parameter memory"),
    Field("b_addr", 11, doc="int32 per channel in parameter memory"), Field("out_zp", 12, signed=True),
)  # fmt: skip


def rows_of(state: Any, ins: Decoded) -> tuple[Any, Any]:
    """Windows of the input (rows, cols) int16 and of its statistics (rows,)."""
    return state.window("sram", ins.a_addr, np.int16, (ins.rows, ins.cols), (ins.a_row, 2)), state.vector(
        "sram", ins.stat_addr, STATISTICS, ins.rows
    )


def execute_statistics(state: Any, ins: Decoded) -> None:
    a, statistics = rows_of(state, ins)
    x = a.astype(np.int64)
    total = x.sum(axis=1)
    mantissa, shift = numerics.rsqrt(ins.cols * (x * x).sum(axis=1) - total * total + ins.epsilon)
    statistics["sum"], statistics["mantissa"], statistics["shift"] = total, mantissa, shift


def apply_operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """Windows of the output (rows, cols), g (cols,) int16 and b (cols,) int32."""
    kind = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0])
    out = state.window("sram", ins.out_addr, kind, (ins.rows, ins.cols), (ins.out_row, kind.itemsize))
    return (
        out,
        state.vector("param", ins.g_addr, np.int16, ins.cols),
        state.vector("param", ins.b_addr, np.int32, ins.cols),
    )


def normalise(x: Any, total: Any, mantissa: Any, shift: Any, fraction_bits: int) -> Any:
    """LayerNorm of int64 rows to int16 range with ``fraction_bits`` fractional bits; statistics shaped (rows, 1)."""
    down = np.maximum(shift - fraction_bits, 1)
    return np.clip(numerics.rescale(x.shape[-1] * x - total, mantissa, down), -32768, 32767)


def statistics_of(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """(sum, mantissa, shift) that LNSTAT left, int64 (rows, 1) each.

    Raises ValueError where LNSTAT cannot have written them.
    """
    _, records = rows_of(state, ins)
    total, mantissa, shift = (records[name].astype(np.int64)[:, None] for name in ("sum", "mantissa", "shift"))
    if (mantissa < 0).any() or (shift < 1).any() or (shift > MAX_SHIFT).any():
        raise ValueError(f"no row statistics at sram byte {ins.stat_addr}: mantissa at least 0, shift 1..{MAX_SHIFT}")
    return total, mantissa, shift


def execute_apply(state: Any, ins: Decoded) -> None:
    a, _ = rows_of(state, ins)
    out, g, b = apply_operands(state, ins)
    total, mantissa, shift = statistics_of(state, ins)
    n = normalise(a.astype(np.int64), total, mantissa, shift, ins.fraction_bits)
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    out[...] = np.clip(
        numerics.rescale(n * g.astype(np.int64) + b.astype(np.int64), 1, ins.shift) + ins.out_zp, low, high
    )


def _columns(ins: Decoded) -> list[str]:
    """D x - S stays below 2^31 and D Q below 2^59."""
    return [f"cols = {ins.cols}: at most {MAX_COLS}"] if ins.cols > MAX_COLS else []


def check_statistics(ins: Decoded, machine: Any) -> list[str]:
    broken = [f"{name} is 0" for name in ("rows", "cols", "epsilon") if getattr(ins, name) == 0]
    broken += _columns(ins)
    if ins.epsilon >= 1 << 58:
        broken.append(f"epsilon = {ins.epsilon}: at most 2^58 - 1")
    return broken


def check_apply(ins: Decoded, machine: Any) -> list[str]:
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    broken = [f"{name} is 0" for name in ("rows", "cols") if getattr(ins, name) == 0] + _columns(ins) + shift_rules(ins)
    return broken + apart(size, (ins.rows, ins.out_row), (ins.cols, size))


def _inputs(ins: Decoded) -> tuple[Region, Region]:
    x = Region("sram", *span(ins.a_addr, 2, (ins.rows, ins.a_row), (ins.cols, 2)))
    return x, Region("sram", ins.stat_addr, ins.stat_addr + ins.rows * STATISTICS.itemsize)


def footprint_statistics(ins: Decoded) -> tuple[list[Region], list[Region]]:
    x, statistics = _inputs(ins)
    return [x], [statistics]


def footprint_apply(ins: Decoded) -> tuple[list[Region], list[Region]]:
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    constants = [
        Region("param", ins.g_addr, ins.g_addr + 2 * ins.cols),
        Region("param", ins.b_addr, ins.b_addr + 4 * ins.cols),
    ]
    return [*_inputs(ins), *constants], [
        Region("sram", *span(ins.out_addr, size, (ins.rows, ins.out_row), (ins.cols, size)))
    ]


def _pass(ins: Decoded, machine: Any) -> int:
    return -int(-ins.rows * ins.cols // machine.vector_unit.lanes)


def cycles_statistics(ins: Decoded, machine: Any) -> int:
    """One pass for both sums, and the reciprocal square root of each row pipelined behind it (one row per cycle)."""
    return _pass(ins, machine) + int(ins.rows) + int(machine.vector_unit.op_latency_cycles)


def cycles_apply(ins: Decoded, machine: Any) -> int:
    """Two passes: normalise, modulate."""
    return 2 * _pass(ins, machine) + int(machine.vector_unit.op_latency_cycles)


LNSTAT = Instruction(
    "lnstat",
    0x40,
    _ROWS + _STAT,
    ("vector",),
    execute_statistics,
    check_statistics,
    footprint_statistics,
    cycles_statistics,
    doc=__doc__,
)
LNAPPLY = Instruction(
    "lnapply", 0x41, _ROWS + _APPLY, ("vector",), execute_apply, check_apply, footprint_apply, cycles_apply, doc=__doc__
)
