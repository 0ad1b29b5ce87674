"""MATMUL: decides how an instruction's sums are formed, and hands its operands to the kernels.

Where no accumulator can overflow, every order of summation gives the same bits, and the sums come from the dot products
of `npusim.engine.gemm`. Else they are added fold by fold and narrowed after each, as the array does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine.dot import TILE_ROWS, VARIANT
from npusim.engine.gemm import MACS_PER_OPERATION, Columns, Elements
from npusim.engine.matmul_rows import (
    FOLD_ROWS,
    Accumulators,
    Left,
    Plan,
    Requantizers,
    add_folds,
    execute_rows,
)
from npusim.engine.packed_weights import packed
from npusim.engine.scalar import INT32_HIGH, INT32_LOW, OVERFLOW, TRAP
from npusim.engine.threads import in_threads
from npusim.engine.windows import contiguous, limits
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, ELEMENT_BITS, Decoded
from npusim.isa.matmul import (
    RQ_MODES,
    Requantization,
    fold_height,
    footprint,
    held_sums,
    input_shifts,
    input_zero_point,
    operands,
    requantization,
    stationary,
)
from npusim.memory import Sums


def plan(ins: Decoded, machine: Any, zero: Any, held: Sums | None) -> Plan | None:
    """Return how the sums are formed, or None where an accumulator could overflow on the way.

    ``zero``: int64, the input zero points. An accumulator holds at most k times the largest product, and what it starts
    from, whatever the order of summation.
    """
    largest_x, largest_b = _largest_input(ins, zero), _largest_weight(ins)
    start = 0 if held is None else int(np.abs(held.products).max())
    if start + ins.k * largest_x * largest_b >= 1 << (machine.mac_array.acc_bits - 1):
        return None
    bits = ELEMENT_BITS[DTYPE_NAMES[ins.a_dtype]]
    shifted_b = largest_b << (3 if ins.shifted else 0)
    if VARIANT.takes_bytes and bits <= 8 and shifted_b <= 128:
        return Plan(1, 1, INT32_HIGH // (255 * shifted_b) // 4)
    largest_word = 32768 if bits == 16 else 255
    if 2 * largest_word * shifted_b <= INT32_HIGH:
        return Plan(0, 1, INT32_HIGH // (largest_word * shifted_b) // 2)
    return Plan(0, 2, INT32_HIGH // (255 * shifted_b) // 2)


def _largest_input(ins: Decoded, zero: Any) -> int:
    """Greatest magnitude of a streamed operand, with its zero point and shift."""
    _, low, high = DTYPES[DTYPE_NAMES[ins.a_dtype]]
    return max(int(zero.max()) - low, high - int(zero.min())) << (3 if ins.shifted else 0)


def _largest_weight(ins: Decoded) -> int:
    return -DTYPES[DTYPE_NAMES[ins.b_dtype]][1]


def _operand_a(state: Any, ins: Decoded, zero: Any, sum_rows: bool) -> Left:
    name = DTYPE_NAMES[ins.a_dtype]
    bits, signed = ELEMENT_BITS[name], int(name[0] == "i")
    elements = Elements(state.sram, ins.a_addr, ins.batch1, ins.a_b0, ins.a_b1, ins.a_row, bits // 8, bits, signed)
    lost = 32768 if name == "u16" else 0
    return Left(elements, ins.k, zero - lost, _shifts(state, ins), int(sum_rows))


def _operand_b(state: Any, ins: Decoded, how: Plan) -> Columns:
    bits = ELEMENT_BITS[DTYPE_NAMES[ins.b_dtype]]
    elements = Elements(state.sram, ins.b_addr, ins.batch1, ins.b_b0, ins.b_b1, ins.b_n, ins.b_k, bits, 1)
    return packed(elements, ins.batch0 * ins.batch1, ins.n, ins.k, _shifts(state, ins), bool(how.as_bytes))


def _shifts(state: Any, ins: Decoded) -> NDArray[np.int16]:
    return input_shifts(state, ins).astype(np.int16) if ins.shifted else np.zeros(0, np.int16)


def _requantizers(ins: Decoded, rq: Requantization | None, rows: int, double: bool) -> Requantizers:
    """Expand the records; those of an instruction that holds its sums are never read."""
    # Results are clamped to 32 bits before the zero point is added and to their type behind it: one clamp does both.
    least, most = limits(ins.out_dtype)
    low, high = (min(max(bound + ins.out_zp, least), most) for bound in (INT32_LOW, INT32_HIGH))
    none, second = np.zeros(ins.n, np.int64), np.zeros((0, 2), np.int64)
    if rq is None:
        return Requantizers(none, none, none, none, 0, 0, second, none, 0, 0, 0, 0)
    by_row = RQ_MODES[ins.rq_mode] == "row"
    multiplier, shift = (np.full(rows if by_row else ins.n, scale.reshape(-1)) for scale in (rq.multiplier, rq.shift))
    bias, late_bias = np.full(ins.n, rq.bias), none
    if rq.second is not None:
        bias, late_bias = none, bias
        second = np.stack([np.full(rows, scale.reshape(-1)) for scale in rq.second], axis=1)
    return Requantizers(
        bias, np.full(ins.n, rq.weight_zero), multiplier, shift, int(by_row), int(double), second, late_bias,
        ins.fraction_bits, ins.out_zp, low, high,
    )  # fmt: skip


def _fold_sums(state: Any, ins: Decoded, zero: Any, acc: Accumulators, sums: Any, row_sums: Any) -> int:
    """Add the products to ``sums`` and the rows of a to ``row_sums`` as the array does; return the overflows."""
    a, b, _ = operands(state, ins)
    fold = min(ins.k, fold_height(ins, state.machine))
    fits = fold * _largest_input(ins, zero) * _largest_weight(ins) <= INT32_HIGH
    kind = np.int32 if fits else np.int64
    zero, shifts = zero.reshape(ins.batch0, ins.batch1, ins.m, 1).astype(kind), input_shifts(state, ins).astype(kind)
    left = contiguous((a.values(kind) - zero) << shifts, kind)
    right = contiguous(np.swapaxes(stationary(b), -1, -2), kind).reshape(-1, ins.k, ins.n)
    groups = len(right) * -(-ins.m // FOLD_ROWS)
    work = left.size * ins.n // 8
    return in_threads(add_folds, groups, work, left, right, fold, *acc[:3], sums, row_sums)


def execute(state: Any, ins: Decoded) -> None:
    array, rows, batches = state.machine.mac_array, ins.batch0 * ins.batch1 * ins.m, ins.batch0 * ins.batch1
    operands(state, ins)  # refuses what lies outside the memory
    rq = None if ins.acc_hold else requantization(state, ins)
    zero = np.full((ins.batch0, ins.batch1, ins.m, 1), input_zero_point(state, ins)).reshape(-1)
    held = held_sums(state, ins)
    how = plan(ins, state.machine, zero, held)
    # Sums that start as zeros and go to the requantizers at once need no memory of their own.
    sums, row_sums = np.zeros((rows if ins.acc_hold or how is None else 0, ins.n), np.int64), np.zeros(rows, np.int64)
    if held is not None:
        sums, row_sums = held.products.copy(), held.rows.reshape(-1).copy()
    low = -(1 << (array.acc_bits - 1))
    acc = Accumulators(low, -low - 1, OVERFLOW[array.overflow], ins.acc_hold)
    overflows = 0
    if how is None:
        overflows = _fold_sums(state, ins, zero, acc, sums, row_sums)
        how, nothing = Plan(0, 1, 1), (batches, -(-ins.n // VARIANT.lanes), 0, VARIANT.lanes)
        right = Columns(np.zeros(nothing, np.int32), np.zeros((batches, ins.n), np.int64), 0)
    else:
        right = _operand_b(state, ins, how)
    left = _operand_a(state, ins, zero, rq is None or bool(rq.weight_zero.any()))
    records = _requantizers(ins, rq, rows, array.requant_rounding == "double")
    # Everything is read before anything is written, and nothing is written where an accumulator traps.
    reads, writes = footprint(ins)
    aside = acc.overflow == TRAP or any(region.meets(written) for region in reads for written in writes)
    target, saturated = state.sram.copy() if aside else state.sram, np.zeros(rows, np.int64)
    bits = ELEMENT_BITS[DTYPE_NAMES[ins.out_dtype]]
    out = Elements(target, ins.out_addr, ins.batch1, ins.out_b0, ins.out_b1, ins.out_row, bits // 8, bits, 0)
    groups, work = batches * -(-ins.m // TILE_ROWS), rows * ins.n * (ins.k // MACS_PER_OPERATION + 4)
    overflows += in_threads(
        execute_rows, groups, work, left, right, how, VARIANT.vectors, sums, row_sums, acc, records, out, saturated
    )
    if overflows and acc.overflow == TRAP:
        raise OverflowError(f"accumulator of {array.acc_bits} bits overflows")
    if aside:
        state.sram[:] = target
    state.held.pop(ins.unit, None)
    if rq is None:
        state.held[ins.unit] = Sums(sums, row_sums.reshape(-1, 1))
    state.count(ins, saturated.sum(), 0 if rq is None else rows * ins.n, overflows)
