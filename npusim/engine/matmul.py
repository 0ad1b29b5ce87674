"""MATMUL: sums of products, four rows at a time against all columns, then the requantizers."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import (
    INT32_HIGH,
    INT32_LOW,
    OVERFLOW,
    TRAP,
    clamp,
    narrow_accumulator,
    rescale,
    rescale_double,
)
from npusim.engine.threads import in_threads
from npusim.engine.windows import contiguous, limits, scratch
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, Decoded
from npusim.isa.matmul import (
    RQ_MODES,
    fold_height,
    held_sums,
    input_shifts,
    input_zero_point,
    is_factored,
    operands,
    requantization,
    stationary,
)
from npusim.memory import Sums

ROWS = 4
"""Rows of the product that are formed together, so that one read of b serves four multiplications."""


@kernel
def product(
    a: Any, b: Any, segment: int, acc_low: int, acc_high: int, overflow: int,
    acc: Any, row_sums: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Add the groups first..last - 1 of four rows of products to ``acc``; return how often an accumulator overflowed.

    a: (batch * m, k), b: (batch, k, n); the type of ``a`` is that of the sums within a segment. After each ``segment``
    columns of k the sums go to the accumulators ``acc`` int64 (batch * m, n), which are then narrowed. The sums of the
    rows of a are added to ``row_sums`` int64 (batch * m,).
    """
    k, n = b.shape[1], b.shape[2]
    m = a.shape[0] // b.shape[0]
    groups = (m + ROWS - 1) // ROWS
    overflows = 0
    sums = np.empty((ROWS, n), a.dtype)
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    for group in range(first, last):
        batch, start = group // groups, group % groups * ROWS
        rows, row = min(ROWS, m - start), group // groups * m + start
        # A group at the end computes its last row more than once and writes it once.
        a0, a1, a2, a3 = a[row], a[row + min(1, rows - 1)], a[row + min(2, rows - 1)], a[row + min(3, rows - 1)]
        for k0 in range(0, k, segment):
            k1 = min(k, k0 + segment)
            even = k0 + (k1 - k0) // 2 * 2
            sums[:] = 0
            for p in range(k0, even, 2):
                b0, b1 = b[batch, p], b[batch, p + 1]
                a00, a01, a10, a11 = a0[p], a0[p + 1], a1[p], a1[p + 1]
                a20, a21, a30, a31 = a2[p], a2[p + 1], a3[p], a3[p + 1]
                for j in range(n):
                    v0, v1 = b0[j], b1[j]
                    s0[j] += a00 * v0 + a01 * v1
                    s1[j] += a10 * v0 + a11 * v1
                    s2[j] += a20 * v0 + a21 * v1
                    s3[j] += a30 * v0 + a31 * v1
            for p in range(even, k1):
                for j in range(n):
                    s0[j] += a0[p] * b[batch, p, j]
                    s1[j] += a1[p] * b[batch, p, j]
                    s2[j] += a2[p] * b[batch, p, j]
                    s3[j] += a3[p] * b[batch, p, j]
            for r in range(rows):
                for j in range(n):
                    value = acc[row + r, j] + sums[r, j]
                    overflows += value < acc_low or value > acc_high
                    acc[row + r, j] = narrow_accumulator(value, acc_low, acc_high, overflow)
        for r in range(rows):
            for p in range(k):
                row_sums[row + r] += a[row + r, p]
    return overflows


@kernel
def drain(
    acc: Any, row_sums: Any, acc_low: int, acc_high: int, overflow: int, bias: Any, weight_zero: Any,
    multiplier: Any, shift: Any, by_row: int, double: int, second: Any, late_bias: Any, fraction_bits: int,
    zero_point: int, low: int, high: int, out: Any, saturated: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Correct, narrow and requantize the rows first..last - 1; return how often an accumulator overflowed.

    bias, weight_zero: int64 (n,); multiplier, shift: int64 (n,), or (rows,) with ``by_row``. The factored modes have
    ``second`` int64 (rows, 2), the second multiplier and shift, and add ``late_bias`` (n,) behind it; else (0, 2).
    ``saturated`` int64 (rows,) gets the number of outputs that the clamp changed.
    """
    overflows = 0
    for i in range(first, last):
        clipped = 0
        for j in range(acc.shape[1]):
            value = acc[i, j] + bias[j] - weight_zero[j] * row_sums[i]
            overflows += value < acc_low or value > acc_high
            value = narrow_accumulator(value, acc_low, acc_high, overflow)
            index = i if by_row else j
            if double:
                value = rescale_double(value, multiplier[index], shift[index])
            else:
                value = rescale(value, multiplier[index], shift[index])
            if second.shape[0]:
                value = rescale(clamp(value, INT32_LOW, INT32_HIGH), second[i, 0], second[i, 1])
                value = clamp(clamp(value, INT32_LOW, INT32_HIGH) + late_bias[j], INT32_LOW, INT32_HIGH)
                value = rescale(value, 1, fraction_bits)
            result = clamp(clamp(value, INT32_LOW, INT32_HIGH) + zero_point, low, high)
            clipped += result != value + zero_point
            out[i, j] = result
        saturated[i] = clipped
    return overflows


def largest(dtype: Any) -> int:
    """Greatest magnitude of an element type."""
    return max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def plan(ins: Decoded, state: Any, x_bound: int) -> tuple[int, Any]:
    """Return the length of a segment of k and the type of the sums within it.

    Where no sum of products can leave the accumulator, every order of summation gives the same bits, and a segment is
    as long as the int32 sums allow. Else a segment is one fold of the array, so that the accumulators narrow where the
    array's do. ``x_bound`` is the greatest magnitude of a streamed operand.
    """
    _, low, _ = DTYPES[DTYPE_NAMES[ins.b_dtype]]
    product_bound = x_bound * -low
    fits_int32 = (2**31 - 1) // product_bound
    if ins.acc_continue or ins.k * product_bound > (1 << (state.machine.mac_array.acc_bits - 1)) - 1:
        fold = min(ins.k, fold_height(ins, state.machine))
        return fold, np.int32 if fold <= fits_int32 else np.int64
    if fits_int32 < 2:
        return ins.k, np.int64
    return min(ins.k, fits_int32), np.int32


def streamed(state: Any, ins: Decoded, a: Any) -> tuple[Any, int]:
    """The operand as it is multiplied, (batch * m, k), and its greatest possible magnitude."""
    _, low, high = DTYPES[DTYPE_NAMES[ins.a_dtype]]
    x = a.values(np.int32).reshape(-1, ins.k)
    if is_factored(ins):
        zero_point = input_zero_point(state, ins).astype(np.int32)
        x = (x.reshape(a.shape) - zero_point).reshape(x.shape)
        low, high = low - int(zero_point.max()), high - int(zero_point.min())
    if ins.shifted:
        x, low, high = x << input_shifts(state, ins).astype(np.int32), low << 3, high << 3
    return x, max(-low, high)


def execute(state: Any, ins: Decoded) -> None:
    array = state.machine.mac_array
    low, high, mode = -(1 << (array.acc_bits - 1)), (1 << (array.acc_bits - 1)) - 1, OVERFLOW[array.overflow]
    a, b, target = operands(state, ins)
    rq = None if ins.acc_hold else requantization(state, ins)
    x, x_bound = streamed(state, ins, a)
    segment, sum_type = plan(ins, state, x_bound)
    left = contiguous(x, sum_type)
    right = contiguous(np.swapaxes(stationary(b), -1, -2), sum_type).reshape(-1, ins.k, ins.n)
    held = held_sums(state, ins)
    if held is None:
        held = Sums(np.zeros((len(left), ins.n), np.int64), np.zeros((len(left), 1), np.int64))
    acc, row_sums = held.products.copy(), held.rows.reshape(-1).copy()
    groups = len(right) * -(-ins.m // ROWS)
    overflows = in_threads(
        product, groups, left.size * ins.n // 8, left, right, segment, low, high, mode, acc, row_sums
    )
    if rq is None:
        _trap(overflows, array)
        state.held = Sums(acc, row_sums.reshape(-1, 1))
        state.count(ins, 0, 0, overflows)
        return
    out, saturated, by_row = scratch(target.shape), np.zeros(len(acc), np.int64), RQ_MODES[ins.rq_mode] == "row"
    scale = [np.full(len(acc) if by_row else ins.n, value.reshape(-1)) for value in (rq.multiplier, rq.shift)]
    second = np.zeros((0, 2), np.int64)
    if rq.second is not None:
        second = np.stack([np.full(len(acc), value.reshape(-1)) for value in rq.second], axis=1)
    bias, none = np.full(ins.n, rq.bias), np.zeros(ins.n, np.int64)
    overflows += in_threads(
        drain, len(acc), 4 * acc.size, acc, row_sums, low, high, mode, none if rq.second else bias,
        np.full(ins.n, rq.weight_zero), *scale, int(by_row), int(array.requant_rounding == "double"), second, bias,
        ins.fraction_bits, ins.out_zp, *limits(ins.out_dtype), out, saturated,
    )  # fmt: skip
    _trap(overflows, array)
    state.held = None
    state.count(ins, saturated.sum(), out.size, overflows)
    target.assign(out.reshape(target.shape))


def _trap(overflows: int, array: Any) -> None:
    if overflows and OVERFLOW[array.overflow] == TRAP:
        raise OverflowError(f"accumulator of {array.acc_bits} bits overflows")
