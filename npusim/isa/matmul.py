"""MATMUL: batched matrix product on the weight-stationary MAC array, drained through the column requantizers.

For each batch (i0, i1): ``acc[m, n] = sum_k a[m, k] * b[k, n]``, then ``out = requantize(acc + correction)`` with the
correction ``bias[n] - zero_point[n] * sum_k a[m, k]``. The array holds ``rows`` values of k and ``cols`` of n; a fold
over k adds to the accumulators, which saturate, wrap or trap after each fold and after the correction. ``b`` is the
stationary operand (weights, keys or values) and is read with both strides free; ``a`` streams, k contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, MAX_SHIFT, Decoded, Field, Instruction, Region
from npusim.memory import apart, span

RQ_MODES = ("tensor", "channel", "row")
RECORD = np.dtype(
    [("bias_low", "<u4"), ("bias_high", "<i2"), ("zero_point", "i1"), ("shift", "u1"), ("multiplier", "<i4")]
)
"""Requantization record of one output channel, 12 bytes: 48-bit bias, weight zero point, right shift, multiplier."""
ROW_RECORD = np.dtype([("multiplier", "<i2"), ("shift", "<i2")])
"""Requantization record of one output row, 4 bytes, written by RECIP."""

FIELDS = (
    Field("a_addr", 2), Field("a_row", 3), Field("a_b0", 4), Field("a_b1", 5),
    Field("b_addr", 6), Field("b_k", 7), Field("b_n", 8), Field("b_b0", 9), Field("b_b1", 10),
    Field("out_addr", 11), Field("out_row", 12), Field("out_b0", 13), Field("out_b1", 14),
    Field("m", 15), Field("k", 16), Field("n", 17), Field("batch0", 18, 0, 16), Field("batch1", 18, 16, 16),
    Field("rq_addr", 19, doc="param memory; in mode row: SRAM, one ROW_RECORD per (i0, i1, m)"),
    Field("a_dtype", 20, 0, 4, names=DTYPE_NAMES), Field("b_dtype", 20, 4, 4, names=DTYPE_NAMES),
    Field("out_dtype", 20, 8, 4, names=DTYPE_NAMES), Field("rq_mode", 20, 12, 4, names=RQ_MODES),
    Field("out_zp", 21, signed=True),
)  # fmt: skip


def bias_of(records: Any) -> Any:
    """The signed 48-bit bias of each record, int64."""
    return (records["bias_high"].astype(np.int64) << 32) | records["bias_low"].astype(np.int64)


def requantization(state: Any, ins: Decoded) -> tuple[Any, Any, Any, Any]:
    """(bias, weight zero point, multiplier, shift), each int64 and broadcastable to (batch0, batch1, m, n).

    Raises ValueError where a record holds a multiplier or a shift that the requantizer does not have.
    """
    if RQ_MODES[ins.rq_mode] == "row":
        count = ins.batch0 * ins.batch1 * ins.m
        rows = state.vector("sram", ins.rq_addr, ROW_RECORD, count).reshape(ins.batch0, ins.batch1, ins.m, 1)
        zero = np.zeros(1, np.int64)
        scale = rows["multiplier"].astype(np.int64), rows["shift"].astype(np.int64)
        return zero, zero, *_defined(state, ins, *scale)
    count = ins.n if RQ_MODES[ins.rq_mode] == "channel" else 1
    records = state.vector("param", ins.rq_addr, RECORD, count)
    wide = [records[name].astype(np.int64) for name in ("zero_point", "multiplier", "shift")]
    return bias_of(records), wide[0], *_defined(state, ins, wide[1], wide[2])


def _defined(state: Any, ins: Decoded, multiplier: Any, shift: Any) -> tuple[Any, Any]:
    limit = 1 << (state.machine.mac_array.requant_multiplier_bits - 1)
    if (multiplier < 0).any() or (multiplier >= limit).any() or (shift < 1).any() or (shift > MAX_SHIFT).any():
        rule = f"multiplier 0..{limit - 1}, shift 1..{MAX_SHIFT}"
        raise ValueError(f"a requantization record at {ins.rq_addr:#x} ({RQ_MODES[ins.rq_mode]}) is undefined: {rule}")
    return multiplier, shift


def operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """Windows of a (batch0, batch1, m, k), b (batch0, batch1, k, n) and out (batch0, batch1, m, n)."""
    a_type, b_type, out_type = (np.dtype(DTYPES[DTYPE_NAMES[d]][0]) for d in (ins.a_dtype, ins.b_dtype, ins.out_dtype))
    batch = (ins.batch0, ins.batch1)
    a = state.window(
        "sram", ins.a_addr, a_type, (*batch, ins.m, ins.k), (ins.a_b0, ins.a_b1, ins.a_row, a_type.itemsize)
    )
    b = state.window("sram", ins.b_addr, b_type, (*batch, ins.k, ins.n), (ins.b_b0, ins.b_b1, ins.b_k, ins.b_n))
    out = state.window(
        "sram", ins.out_addr, out_type, (*batch, ins.m, ins.n), (ins.out_b0, ins.out_b1, ins.out_row, out_type.itemsize)
    )
    return a, b, out


def execute(state: Any, ins: Decoded) -> None:
    array = state.machine.mac_array
    a, b, out = operands(state, ins)
    bias, zero_point, multiplier, shift = requantization(state, ins)
    acc = np.zeros(out.shape, np.int64)
    for k0 in range(0, ins.k, array.rows):
        fold = slice(k0, k0 + array.rows)
        acc = acc + a[..., fold].astype(np.int64) @ b[..., fold, :].astype(np.int64)
        acc = numerics.narrow_accumulator(acc, array.acc_bits, array.overflow)
    row_sum = a.astype(np.int64).sum(axis=-1, keepdims=True)
    acc = numerics.narrow_accumulator(acc + bias - zero_point * row_sum, array.acc_bits, array.overflow)
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    out[...] = numerics.requantize(acc, multiplier, shift, ins.out_zp, low, high, array.requant_rounding == "double")


def pass_cycles(ins: Decoded, machine: Any) -> int:
    """Cycles that one streamed row occupies the array, by operand widths."""
    wide_a, wide_b = DTYPE_NAMES[ins.a_dtype] == "i16", DTYPE_NAMES[ins.b_dtype] == "i16"
    array = machine.mac_array
    return int((array.pass_cycles_a16w16 if wide_b else array.pass_cycles_a16w8) if wide_a else array.pass_cycles_a8w8)


def cycles(ins: Decoded, machine: Any) -> int:
    """Closed form, from the first weight row's cycle to the last result's; the RTL in npusim/rtl takes exactly as long.

    * First load: ``rows`` cycles, one row of weights each, before the first activation row can enter.
    * Folds, over k innermost, then n, then rounds of ``acc_rows`` rows (all that a bank holds), then batches: each
      streams its rows for ``pass_cycles`` each. With a shadow weight register the next fold's weights load meanwhile,
      so a fold lasts at least as long as a load; the last fold has no load to wait for. Without one, every fold loads,
      then streams.
    * Skew and drain: from the cycle in which the last row enters at the first cell to that in which the farthest one,
      ``rows - 1`` further down and ``cols - 1`` to the right, adds its product. Folds follow each other without a gap.
    * Requantizer: its first register takes the accumulator's new sum, so accumulation costs no cycle of its own.
    """
    array = machine.mac_array
    load = array.rows
    folds = -(-ins.k // array.rows) * -(-ins.n // array.cols) * ins.batch0 * ins.batch1
    full, rest = divmod(ins.m, array.acc_rows)
    rounds = [(count, m * pass_cycles(ins, machine)) for count, m in ((full, array.acc_rows), (1, rest)) if count * m]
    if array.shadow_weights:
        last = rounds[-1][1]
        total = load + sum(count * folds * max(stream, load) for count, stream in rounds) - max(last, load) + last
    else:
        total = sum(count * folds * (load + stream) for count, stream in rounds)
    return int(total + array.rows + array.cols - 2 + array.requant_latency_cycles)


def check(ins: Decoded, machine: Any) -> list[str]:
    broken = [f"{name} is 0" for name in ("m", "k", "n", "batch0", "batch1") if getattr(ins, name) == 0]
    pair = DTYPE_NAMES[ins.a_dtype], DTYPE_NAMES[ins.b_dtype]
    if pair not in {("u8", "i8"), ("i8", "i8"), ("i16", "i8"), ("i16", "i16")}:
        broken.append(f"operand types {pair[0]} x {pair[1]} are not a mode of the array")
    size = np.dtype(DTYPES[DTYPE_NAMES[ins.out_dtype]][0]).itemsize
    batches = (ins.batch0, ins.out_b0), (ins.batch1, ins.out_b1)
    return broken + apart(size, *batches, (ins.m, ins.out_row), (ins.n, size))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    a, b, out = (np.dtype(DTYPES[DTYPE_NAMES[d]][0]).itemsize for d in (ins.a_dtype, ins.b_dtype, ins.out_dtype))
    batch = ins.batch0, ins.batch1
    reads = [
        Region(
            "sram", *span(ins.a_addr, a, (batch[0], ins.a_b0), (batch[1], ins.a_b1), (ins.m, ins.a_row), (ins.k, a))
        ),
        Region(
            "sram", *span(ins.b_addr, b, (batch[0], ins.b_b0), (batch[1], ins.b_b1), (ins.k, ins.b_k), (ins.n, ins.b_n))
        ),
    ]
    if RQ_MODES[ins.rq_mode] == "row":
        reads.append(Region("sram", ins.rq_addr, ins.rq_addr + batch[0] * batch[1] * ins.m * ROW_RECORD.itemsize))
    else:
        count = ins.n if RQ_MODES[ins.rq_mode] == "channel" else 1
        reads.append(Region("param", ins.rq_addr, ins.rq_addr + count * RECORD.itemsize))
    out_span = span(
        ins.out_addr, out, (batch[0], ins.out_b0), (batch[1], ins.out_b1), (ins.m, ins.out_row), (ins.n, out)
    )
    return reads, [Region("sram", *out_span)]


MATMUL = Instruction("matmul", 0x10, FIELDS, ("mac",), execute, check, footprint, cycles, doc=__doc__)
