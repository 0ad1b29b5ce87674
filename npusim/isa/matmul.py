"""MATMUL: batched matrix product on the MAC array, drained through the column requantizers.

For each batch (i0, i1): ``sum[m, n] = sum_k x[m, k] b[k, n]`` with ``x[m, k] = (a[m, k] - input zero point) << s[k]``.
The input zero point is 0 except in the factored modes; ``s`` is 0 except with the flag ``shifted``, where two bits for
each k say by how far (0 to 3, for smoothing by powers of two). ``b`` is the stationary operand (weights, keys or
values); ``a`` streams, k contiguous.

The array adds fold by fold of k. After each fold, and after the correction below, the accumulators saturate, wrap or
trap. A fold is what a cell column holds: ``rows`` values of k on a weight-stationary or input-stationary array, one on
an output-stationary one; times ``a4w4_per_cell`` where both operands have at most 4 bits. ``acc_continue`` starts from
the sums that the MATMUL before it on its array held instead of 0, ``acc_hold`` leaves them in the accumulators of its
array and writes nothing.

Then, per output: ``acc = sum + bias - zero_point * sum_k x[m, k]`` and ``out = requantize(acc)``, with one record for
all (``tensor``), one per output channel (``channel``), or a multiplier and shift per output row without bias (``row``).
In the factored modes the record of a channel is fixed, and what changes with the time range is one record per layer
(``factored``) or per row (``factored_row``): with (m, s) and bias of the channel, (M, S) of the layer or row, and
``r(v, m, s)`` for the rounded ``v m / 2^s`` saturated to 32 bits,
``out = clamp(r(sat32(r(r(acc, m, s), M, S) + bias), 1, fraction_bits) + out_zp)``, ``acc`` without a bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from npusim import numerics
from npusim.exact_product import exact_product, largest
from npusim.isa.addressing import apart_rule, vector, window
from npusim.isa.encoding import (
    DTYPE_NAMES,
    DTYPES,
    ELEMENT_BITS,
    MAX_SHIFT,
    Decoded,
    Field,
    Instruction,
    Region,
    Rule,
    at_least_one,
    is_packed,
    row_bytes,
)
from npusim.memory import Sums

RQ_MODES = ("tensor", "channel", "row", "factored", "factored_row")
RECORD = np.dtype(
    [("bias_low", "<u4"), ("bias_high", "<i2"), ("zero_point", "i1"), ("shift", "u1"), ("multiplier", "<i4")]
)
"""Requantization record of one output channel, 12 bytes: 48-bit bias, weight zero point, right shift, multiplier."""
ROW_RECORD = np.dtype([("multiplier", "<i2"), ("shift", "<i2")])
"""Requantization record of one output row, 4 bytes, written by RECIP."""
FACTORED = np.dtype([("bias", "<i4"), ("multiplier", "<i2"), ("shift", "u1"), ("zero_point", "i1")])
"""Fixed record of one output channel in the factored modes, 8 bytes; the bias has ``fraction_bits`` fractional bits of
the output's step."""
SCALARS = np.dtype([("zero_point", "<i4"), ("multiplier", "<i2"), ("shift", "<i2")])
"""What a layer (or, written by RTQUANT, a row) adds in the factored modes, 8 bytes: input zero point, second scale."""

A_TYPES = {"u4": 4, "u6": 6, "u8": 8, "i8": 8, "u16": 16, "i16": 16}
"""Activations the array takes, with their width."""
B_TYPES = {"i4": 4, "i6": 6, "i8": 8, "i16": 16}

FIELDS = (
    Field("a_addr", 2, doc="SRAM: operand a, k contiguous"),
    Field("a_row", 3, doc="byte distance of a's rows m; 0 repeats one"),
    Field("a_b0", 4, doc="byte distance of a's matrices along batch0; 0 repeats one"),
    Field("a_b1", 5, doc="byte distance of a's matrices along batch1; 0 repeats one"),
    Field("b_addr", 6, doc="SRAM: operand b"),
    Field("b_k", 7, doc="byte distance of b's elements along k; 0 for packed types, which are contiguous along k"),
    Field("b_n", 8, doc="byte distance of b's elements (rows of packed ones) along n"),
    Field("b_b0", 9, doc="byte distance of b's matrices along batch0; 0 repeats one"),
    Field("b_b1", 10, doc="byte distance of b's matrices along batch1; 0 repeats one"),
    Field("out_addr", 11, doc="SRAM: the result, n contiguous"),
    Field("out_row", 12, doc="byte distance of the result's rows m"),
    Field("out_b0", 13, doc="byte distance of the result's matrices along batch0"),
    Field("out_b1", 14, doc="byte distance of the result's matrices along batch1"),
    Field("m", 15, doc="rows of a and of the result"),
    Field("k", 16, doc="reduction dimension"),
    Field("n", 17, doc="output channels: columns of b and of the result"),
    Field("batch0", 18, 0, 16, doc="outer batches"),
    Field("batch1", 18, 16, 16, doc="inner batches"),
    Field("rq_addr", 19, doc="parameter memory: records (tensor: one); row: SRAM, one ROW_RECORD per (i0, i1, m)"),
    Field("a_dtype", 20, 0, 4, names=DTYPE_NAMES, doc="element type of a"),
    Field("b_dtype", 20, 4, 4, names=DTYPE_NAMES, doc="element type of b"),
    Field("out_dtype", 20, 8, 4, names=DTYPE_NAMES, doc="element type of the result"),
    Field("rq_mode", 20, 12, 4, names=RQ_MODES, doc="which records the requantizers take"),
    Field("acc_continue", 20, 16, 1, doc="1: start from the sums that this array's MATMUL before this one held"),
    Field("acc_hold", 20, 17, 1, doc="1: leave the sums in the accumulators; nothing is written"),
    Field("shifted", 20, 18, 1, doc="1: shift the input channels left by the table at shift_addr"),
    Field("fraction_bits", 20, 20, 4, doc="factored modes: fractional bits of the biases"),
    Field("out_zp", 21, signed=True, doc="zero point of the result"),
    Field("shift_addr", 22, doc="parameter memory: two bits per k, four to a byte, lowest bits first"),
    Field("scalars_addr", 23, doc="factored: parameter memory, one SCALARS; factored_row: SRAM, one per (i0, i1, m)"),
)


def is_factored(ins: Decoded) -> bool:
    """Whether the requantization is one of the two factored modes."""
    return RQ_MODES[ins.rq_mode].startswith("factored")


class Requantization(NamedTuple):
    """What the requantizers read: int64 arrays that broadcast to (batch0, batch1, m, n).

    ``second``: (M, S) of the factored modes, else None.
    """

    bias: Any
    weight_zero: Any
    multiplier: Any
    shift: Any
    second: tuple[Any, Any] | None = None


def bias_of(records: Any) -> Any:
    """The signed 48-bit bias of each record, int64."""
    return (records["bias_high"].astype(np.int64) << 32) | records["bias_low"].astype(np.int64)


def requantization(state: Any, ins: Decoded) -> Requantization:
    """Read an instruction's records.

    Raises ValueError where one holds a multiplier, a shift or a weight zero point that the hardware does not have.
    """
    mode, zero = RQ_MODES[ins.rq_mode], np.zeros(1, np.int64)
    if mode == "row":
        rows = state.vector("sram", ins.rq_addr, ROW_RECORD, ins.batch0 * ins.batch1 * ins.m)
        rows = rows.reshape(ins.batch0, ins.batch1, ins.m, 1)
        return Requantization(zero, zero, *_scale(rows, ins.rq_addr, 16))
    if mode in ("tensor", "channel"):
        records = state.vector("param", ins.rq_addr, RECORD, ins.n if mode == "channel" else 1)
        bits = state.machine.mac_array.requant_multiplier_bits
        scale = _scale(records, ins.rq_addr, bits)
        return Requantization(bias_of(records), _weight_zero(state, ins, records), *scale)
    records = state.vector("param", ins.rq_addr, FACTORED, ins.n)
    bias, weight_zero = records["bias"].astype(np.int64), _weight_zero(state, ins, records)
    second = _scale(_scalars(state, ins), ins.scalars_addr, 16)
    return Requantization(bias, weight_zero, *_scale(records, ins.rq_addr, 16), second)


def _weight_zero(state: Any, ins: Decoded, records: Any) -> Any:
    zero_point = records["zero_point"].astype(np.int64)
    if zero_point.any() and not state.machine.mac_array.row_sum_column:
        rule = "weight zero point 0 without mac_array.row_sum_column"
        raise ValueError(f"a requantization record at {ins.rq_addr:#x} is undefined: {rule}")
    return zero_point


def _scalars(state: Any, ins: Decoded) -> Any:
    """The SCALARS of a factored mode, (1,) or (batch0, batch1, m, 1)."""
    if RQ_MODES[ins.rq_mode] == "factored":
        return state.vector("param", ins.scalars_addr, SCALARS, 1)
    rows = state.vector("sram", ins.scalars_addr, SCALARS, ins.batch0 * ins.batch1 * ins.m)
    return rows.reshape(ins.batch0, ins.batch1, ins.m, 1)


def input_zero_point(state: Any, ins: Decoded) -> Any:
    """What is subtracted from operand a, int64 (1,) or (batch0, batch1, m, 1).

    Raises ValueError where it lies outside the type of a.
    """
    if not is_factored(ins):
        return np.zeros(1, np.int64)
    zero_point = _scalars(state, ins)["zero_point"].astype(np.int64)
    _, low, high = DTYPES[DTYPE_NAMES[ins.a_dtype]]
    if (zero_point < low).any() or (zero_point > high).any():
        raise ValueError(f"an input zero point at {ins.scalars_addr:#x} is undefined: allowed {low}..{high}")
    return zero_point


def _scale(records: Any, address: int, bits: int) -> tuple[Any, Any]:
    multiplier, shift = records["multiplier"].astype(np.int64), records["shift"].astype(np.int64)
    limit = 1 << (bits - 1)
    if (multiplier < 0).any() or (multiplier >= limit).any() or (shift < 1).any() or (shift > MAX_SHIFT).any():
        rule = f"multiplier 0..{limit - 1}, shift 1..{MAX_SHIFT}"
        raise ValueError(f"a requantization record at {address:#x} is undefined: {rule}")
    return multiplier, shift


def operands(state: Any, ins: Decoded) -> tuple[Any, Any, Any]:
    """Operands a (batch0, batch1, m, k), b as stored (batch0, batch1, n, k) and out (batch0, batch1, m, n).

    ``a`` and ``out`` are `npusim.memory.Operand`; ``b`` too where it is packed, else a view. ``out`` is None where the
    sums are held.
    """
    batch = (ins.batch0, ins.batch1)
    a = state.operand("sram", ins.a_addr, ins.a_dtype, (*batch, ins.m, ins.k), (ins.a_b0, ins.a_b1, ins.a_row))
    shape, strides = (*batch, ins.n, ins.k), (ins.b_b0, ins.b_b1, ins.b_n)
    if is_packed(ins.b_dtype):
        b = state.operand("sram", ins.b_addr, ins.b_dtype, shape, strides)
    else:
        b = state.window("sram", ins.b_addr, DTYPES[DTYPE_NAMES[ins.b_dtype]][0], shape, (*strides, ins.b_k))
    if ins.acc_hold:
        return a, b, None
    strides = (ins.out_b0, ins.out_b1, ins.out_row)
    return a, b, state.operand("sram", ins.out_addr, ins.out_dtype, (*batch, ins.m, ins.n), strides)


def stationary(b: Any) -> Any:
    """The elements of operand b as `operands` gives it, (batch0, batch1, n, k)."""
    return b if isinstance(b, np.ndarray) else b.values(np.int8)


def input_shifts(state: Any, ins: Decoded) -> Any:
    """Left shift of each input channel, int64 (k,); zeros without the flag ``shifted``."""
    if not ins.shifted:
        return np.zeros(ins.k, np.int64)
    return unpacked_shifts(state.vector("param", ins.shift_addr, np.uint8, -(-ins.k // 4)), ins.k)


def unpacked_shifts(table: Any, k: int) -> Any:
    """Left shifts of ``k`` input channels, int64, from a table of two bits each, four to a byte, lowest bits first."""
    return (table.astype(np.int64)[:, None] >> np.array([0, 2, 4, 6]) & 3).ravel()[:k]


def fold_height(ins: Decoded, machine: Any) -> int:
    """Values of k that are added to an accumulator at once."""
    array = machine.mac_array
    held = 1 if array.dataflow == "output_stationary" else array.rows
    narrow = all(ELEMENT_BITS[DTYPE_NAMES[d]] == 4 for d in (ins.a_dtype, ins.b_dtype))
    return int(held * (array.a4w4_per_cell if narrow else 1))


def held_sums(state: Any, ins: Decoded) -> Sums | None:
    """The sums that an instruction with ``acc_continue`` starts from. Raises ValueError where none of its shape are."""
    if not ins.acc_continue:
        return None
    held = state.held.get(ins.unit)
    if held is None or held.products.shape != (ins.m, ins.n):
        found = "none" if held is None else f"sums {held.products.shape}"
        raise ValueError(f"acc_continue with m, n = {ins.m}, {ins.n}: the accumulators hold {found}")
    return Sums(held.products, held.rows)


def execute(state: Any, ins: Decoded) -> None:
    array = state.machine.mac_array
    a, b, out = operands(state, ins)
    weights = np.swapaxes(stationary(b), -1, -2).astype(np.int64)
    rq = None if ins.acc_hold else requantization(state, ins)
    x = (a.values() - input_zero_point(state, ins)) << input_shifts(state, ins)
    held = held_sums(state, ins)
    shape = ins.batch0, ins.batch1, ins.m, ins.n
    acc = np.zeros(shape, np.int64) if held is None else held.products.reshape(shape)
    row_sum = x.sum(axis=-1, keepdims=True) + (0 if held is None else held.rows)
    overflows = 0
    # Where no accumulator can overflow on the way, it does not matter what is added at once.
    fits = largest(acc) + largest(x) * largest(weights) * ins.k < 1 << (array.acc_bits - 1)
    height = ins.k if fits else fold_height(ins, state.machine)
    for k0 in range(0, ins.k, height):
        fold = slice(k0, k0 + height)
        acc = acc + exact_product(x[..., fold], weights[..., fold, :])
        overflows += numerics.count_overflows(acc, array.acc_bits)
        acc = numerics.narrow_accumulator(acc, array.acc_bits, array.overflow)
    if rq is None:
        state.held[ins.unit] = Sums(acc.reshape(ins.m, ins.n), row_sum.reshape(ins.m, 1))
        state.count(ins, 0, 0, overflows)
        return
    acc = acc + (0 if rq.second else rq.bias) - rq.weight_zero * row_sum
    overflows += numerics.count_overflows(acc, array.acc_bits)
    acc = numerics.narrow_accumulator(acc, array.acc_bits, array.overflow)
    scaled = _scaled(acc, rq, ins, array.requant_rounding == "double")
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    values = np.clip(numerics.saturate_32(scaled) + ins.out_zp, low, high)
    state.held.pop(ins.unit, None)
    state.write(ins, out, values, scaled + ins.out_zp, overflows)


def _scaled(acc: Any, rq: Requantization, ins: Decoded, double: bool) -> Any:
    """The rounded output before its zero point, not saturated."""
    if rq.second is None:
        rescale = numerics.rescale_double if double else numerics.rescale
        return rescale(acc, rq.multiplier, rq.shift)
    return numerics.rescale_twice(acc, (rq.multiplier, rq.shift), rq.second, rq.bias, ins.fraction_bits)


def pass_cycles(ins: Decoded, machine: Any) -> int:
    """Cycles that one streamed row occupies the array, by operand widths."""
    wide_a, wide_b = (ELEMENT_BITS[DTYPE_NAMES[d]] == 16 for d in (ins.a_dtype, ins.b_dtype))
    array = machine.mac_array
    return int((array.pass_cycles_a16w16 if wide_b else array.pass_cycles_a16w8) if wide_a else array.pass_cycles_a8w8)


def cycles(ins: Decoded, machine: Any) -> int:
    """Closed form, from the first operand's cycle to the last result's; the RTL in npusim/rtl takes exactly as long.

    Weight-stationary:

    * First load: ``rows`` cycles, one row of weights each, before the first activation row can enter.
    * Folds, over k innermost, then n, then rounds of ``acc_rows`` rows (all that a bank holds), then batches: each
      streams its rows for ``pass_cycles`` each. With a shadow weight register the next fold's weights load meanwhile,
      so a fold lasts at least as long as a load; the last fold has no load to wait for. Without one, every fold loads,
      then streams.

    Input-stationary: the same with m and n exchanged. A fold holds activations of ``cols`` rows m and streams output
    channels; ``acc_rows`` of them for each column. There is no RTL of it.

    Output-stationary:

    * Tiles, over n innermost, then blocks of ``rows`` output rows, then batches: each streams all of k, one fold for
      ``pass_cycles``. A finished tile moves to the drain registers and leaves them one row a cycle while the next tile
      streams, so a tile lasts at least as many cycles as it has rows; the last one has no successor that waits.
    * The last tile's rows: each enters the requantizer a cycle after the one above, the first one a cycle after its
      copy to the drain register.

    All:

    * Skew and drain: from the cycle in which the last element enters at the first cell to that in which the farthest
      one, ``rows - 1`` further down and ``cols - 1`` to the right, adds its product. With ``fold_overlap`` folds and
      tiles follow each other without a gap, and this is added once. Without it nothing of a fold overlaps the next:
      each loads, streams, and drains (a count of cycles to compare with others; there is no RTL of it).
    * Requantizer: its first register takes the accumulator's new sum, so accumulation costs no cycle of its own. With
      ``acc_hold`` nothing leaves; a cycle passes until the last column's control is through.
    """
    dataflow = machine.mac_array.dataflow
    if dataflow == "output_stationary":
        return _output_stationary_cycles(ins, machine)
    streamed, held = (ins.n, ins.m) if dataflow == "input_stationary" else (ins.m, ins.n)
    return _held_operand_cycles(ins, machine, streamed, held)


def _held_operand_cycles(ins: Decoded, machine: Any, streamed: int, held: int) -> int:
    array = machine.mac_array
    load, skew = array.rows, array.rows + array.cols - 2
    folds = -(-ins.k // fold_height(ins, machine)) * -(-held // array.cols) * ins.batch0 * ins.batch1
    streams = [(count, size * pass_cycles(ins, machine)) for count, size in _blocks(streamed, array.acc_rows)]
    if not array.fold_overlap:
        total = sum(count * folds * (load + stream + skew) for count, stream in streams)
    elif array.shadow_weights:
        last = streams[-1][1]
        total = (
            load + sum(count * folds * max(stream, load) for count, stream in streams) - max(last, load) + last + skew
        )
    else:
        total = sum(count * folds * (load + stream) for count, stream in streams) + skew
    return int(total + (1 if ins.acc_hold else array.requant_latency_cycles))


def _output_stationary_cycles(ins: Decoded, machine: Any) -> int:
    array = machine.mac_array
    skew = array.rows + array.cols - 2
    stream = -(-ins.k // fold_height(ins, machine)) * pass_cycles(ins, machine)
    if ins.acc_hold:
        return int(stream + skew + 1)
    tiles = -(-ins.n // array.cols) * ins.batch0 * ins.batch1
    blocks = _blocks(ins.m, array.rows)
    last = blocks[-1][1]
    if array.fold_overlap:
        total = sum(count * tiles * max(stream, rows) for count, rows in blocks) - max(stream, last) + stream + skew
    else:
        total = sum(count * tiles * (stream + skew) for count, _ in blocks)
    return int(total + last + array.requant_latency_cycles)


def _blocks(rows: int, most: int) -> list[tuple[int, int]]:
    """``rows`` cut into blocks of at most ``most``: (count, rows of each), the last block last."""
    full, rest = divmod(rows, most)
    return [(count, size) for count, size in ((full, most), (1, rest)) if count * size]


def _mode_exists(ins: Decoded, machine: Any) -> bool:
    a, b, array = DTYPE_NAMES[ins.a_dtype], DTYPE_NAMES[ins.b_dtype], machine.mac_array
    if a not in A_TYPES or b not in B_TYPES or (B_TYPES[b] == 16 and A_TYPES[a] < 16):
        return False
    return bool(A_TYPES[a] >= array.narrowest_activation_bits and B_TYPES[b] >= array.narrowest_weight_bits)


def _shifts_exist(ins: Decoded, machine: Any) -> bool:
    return not ins.shifted or bool(machine.mac_array.input_shift and A_TYPES.get(DTYPE_NAMES[ins.a_dtype], 16) <= 8)


def _fits_accumulators(ins: Decoded, machine: Any) -> bool:
    array = machine.mac_array
    most = {
        "weight_stationary": (array.acc_rows, array.cols),
        "input_stationary": (array.cols, array.acc_rows),
        "output_stationary": (array.rows, array.cols),
    }[array.dataflow]
    one_tile = ins.batch0 * ins.batch1 == 1 and ins.m <= most[0] and ins.n <= most[1]
    return one_tile or not (ins.acc_continue or ins.acc_hold)


def _factored_exists(ins: Decoded, machine: Any) -> bool:
    return not is_factored(ins) or bool(machine.mac_array.factored_requant)


RULES = (
    *at_least_one("m", "k", "n", "batch0", "batch1"),
    Rule(
        ("a_dtype", "b_dtype"),
        "a: u4 to u16, i8, i16; b: i4 to i8, i16 with a 16-bit a; not narrower than mac_array.narrowest_*_bits",
        _mode_exists,
    ),
    Rule(("b_dtype", "b_k"), "b_k 0 for packed types", lambda ins, machine: not (is_packed(ins.b_dtype) and ins.b_k)),
    Rule(("shifted", "a_dtype"), "1 with mac_array.input_shift and an a of at most 8 bits", _shifts_exist),
    Rule(
        ("m", "n", "batch0", "batch1"),
        "acc_hold, acc_continue: what the accumulators hold: one batch, n up to cols, m up to acc_rows "
        "(output-stationary: rows; input-stationary: m up to cols, n up to acc_rows)",
        _fits_accumulators,
    ),
    Rule(
        ("rq_mode",),
        "factored modes with mac_array.factored_requant",
        _factored_exists,
    ),
    Rule(
        ("rq_mode", "fraction_bits"),
        "fraction_bits 1..15 in factored modes",
        lambda ins, machine: not is_factored(ins) or bool(1 <= ins.fraction_bits <= 15),
    ),
    apart_rule(
        ("out_row", "out_b0", "out_b1"),
        lambda ins: (
            row_bytes(ins.out_dtype, ins.n),
            () if ins.acc_hold else ((ins.batch0, ins.out_b0), (ins.batch1, ins.out_b1), (ins.m, ins.out_row)),
        ),
    ),
)


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    batch = ins.batch0, ins.batch1
    reads = [window("sram", ins.a_addr, ins.a_dtype, (*batch, ins.m, ins.k), (ins.a_b0, ins.a_b1, ins.a_row))]
    b_strides = ins.b_b0, ins.b_b1, ins.b_n
    if is_packed(ins.b_dtype):
        reads.append(window("sram", ins.b_addr, ins.b_dtype, (*batch, ins.n, ins.k), b_strides))
    else:
        reads.append(window("sram", ins.b_addr, ins.b_dtype, (*batch, ins.n, ins.k, 1), (*b_strides, ins.b_k)))
    if ins.shifted:
        reads.append(vector("param", ins.shift_addr, -(-ins.k // 4)))
    reads += record_regions(ins)
    if ins.acc_hold:
        return reads, []
    strides = ins.out_b0, ins.out_b1, ins.out_row
    return reads, [window("sram", ins.out_addr, ins.out_dtype, (*batch, ins.m, ins.n), strides)]


def record_regions(ins: Decoded) -> list[Region]:
    """Where the records lie that an instruction reads; one that holds needs the input zero point only."""
    mode, rows = RQ_MODES[ins.rq_mode], ins.batch0 * ins.batch1 * ins.m
    if is_factored(ins):
        memory, count = ("param", 1) if mode == "factored" else ("sram", rows)
        found = [vector(memory, ins.scalars_addr, count * SCALARS.itemsize)]
        return found if ins.acc_hold else [*found, vector("param", ins.rq_addr, ins.n * FACTORED.itemsize)]
    if ins.acc_hold:
        return []
    if mode == "row":
        return [vector("sram", ins.rq_addr, rows * ROW_RECORD.itemsize)]
    return [vector("param", ins.rq_addr, (ins.n if mode == "channel" else 1) * RECORD.itemsize)]


MATMUL = Instruction(
    "matmul", 0x10, "multiply matrices on the MAC array and requantize", FIELDS, ("mac",),
    execute, RULES, footprint, cycles, __doc__,
    (
        "a requantization record with a multiplier or shift that the hardware does not have",
        "a weight zero point other than 0 on a machine without row_sum_column",
        "an input zero point outside the type of a",
        "acc_continue where the MATMUL before on the same array held no sums of this shape",
        "an accumulator that overflows on a machine that traps",
    ),
)  # fmt: skip
