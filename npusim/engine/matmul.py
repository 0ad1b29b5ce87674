"""MATMUL: four rows at a time against all columns, in int32 as far as the sums provably fit, then requantization."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import OVERFLOW, TRAP, narrow_accumulator, requantize, requantize_double
from npusim.engine.threads import in_threads
from npusim.engine.windows import gather, limits, scatter, scratch
from npusim.isa.encoding import Decoded
from npusim.isa.matmul import RQ_MODES, operands, requantization

ROWS = 4
"""Rows of the product that are formed together, so that one read of b serves four multiplications."""


@kernel
def product(
    a: Any, b: Any, segment: int, acc_low: int, acc_high: int, overflow: int,
    bias: Any, weight_zero: Any, multiplier: Any, shift: Any, by_row: int, double: int,
    zero_point: int, low: int, high: int, out: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Form the groups first..last - 1 of four rows of ``out`` (batch * m, n); return how many accumulators overflowed.

    a: (batch * m, k), b: (batch, k, n); the type of ``a`` is that of the sums within a segment. After each ``segment``
    columns of k the sums go to the int64 accumulators, which are then narrowed. bias, weight_zero: int64 (n,);
    multiplier, shift: int64 (n,), or (batch * m,) with ``by_row``.
    """
    k, n = b.shape[1], b.shape[2]
    m = a.shape[0] // b.shape[0]
    groups = (m + ROWS - 1) // ROWS
    overflows = 0
    sums, acc = np.empty((ROWS, n), a.dtype), np.empty((ROWS, n), np.int64)
    s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
    for group in range(first, last):
        batch, start = group // groups, group % groups * ROWS
        rows, row = min(ROWS, m - start), group // groups * m + start
        # A group at the end computes its last row more than once and writes it once.
        a0, a1, a2, a3 = a[row], a[row + min(1, rows - 1)], a[row + min(2, rows - 1)], a[row + min(3, rows - 1)]
        acc[:] = 0
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
                    value = acc[r, j] + sums[r, j]
                    overflows += value < acc_low or value > acc_high
                    acc[r, j] = narrow_accumulator(value, acc_low, acc_high, overflow)
        for r in range(rows):
            row_sum = np.int64(0)
            for p in range(k):
                row_sum += a[row + r, p]
            for j in range(n):
                value = acc[r, j] + bias[j] - weight_zero[j] * row_sum
                overflows += value < acc_low or value > acc_high
                value = narrow_accumulator(value, acc_low, acc_high, overflow)
                index = row + r if by_row else j
                if double:
                    out[row + r, j] = requantize_double(value, multiplier[index], shift[index], zero_point, low, high)
                else:
                    out[row + r, j] = requantize(value, multiplier[index], shift[index], zero_point, low, high)
    return overflows


def largest(dtype: Any) -> int:
    """Greatest magnitude of an element type."""
    return max(-int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def plan(ins: Decoded, array: Any, a_dtype: Any, b_dtype: Any) -> tuple[int, Any]:
    """Return the length of a segment of k and the type of the sums within it.

    Where no sum of products can leave the accumulator, every order of summation gives the same bits, and a segment is
    as long as the int32 sums allow. Else a segment is one fold of the array, so that the accumulators narrow where the
    array's do.
    """
    product_bound = largest(a_dtype) * largest(b_dtype)
    fits_int32 = (2**31 - 1) // product_bound
    if ins.k * product_bound > (1 << (array.acc_bits - 1)) - 1:
        fold = min(ins.k, array.rows)
        return fold, np.int32 if fold <= fits_int32 else np.int64
    if fits_int32 < 2:
        return ins.k, np.int64
    return min(ins.k, fits_int32), np.int32


def execute(state: Any, ins: Decoded) -> None:
    array = state.machine.mac_array
    a, b, target = operands(state, ins)
    bias, weight_zero, multiplier, shift = requantization(state, ins)
    segment, sum_type = plan(ins, array, a.dtype, b.dtype)
    by_row = RQ_MODES[ins.rq_mode] == "row"
    per_row = a.size // ins.k if by_row else ins.n
    left, right, out = gather(a, sum_type), gather(b, sum_type).reshape(-1, ins.k, ins.n), scratch(target)
    groups = len(right) * -(-ins.m // ROWS)
    overflows = in_threads(
        product, groups, left.size * ins.n // 8, left, right, segment,
        -(1 << (array.acc_bits - 1)), (1 << (array.acc_bits - 1)) - 1, OVERFLOW[array.overflow],
        np.full(ins.n, bias), np.full(ins.n, weight_zero),
        np.full(per_row, multiplier.reshape(-1)), np.full(per_row, shift.reshape(-1)),
        int(by_row), int(array.requant_rounding == "double"), ins.out_zp, *limits(ins.out_dtype), out,
    )  # fmt: skip
    if overflows and OVERFLOW[array.overflow] == TRAP:
        raise OverflowError(f"accumulator of {array.acc_bits} bits overflows")
    scatter(out, target)
