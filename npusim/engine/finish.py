"""Requantization of rows of sums in registers: correct, multiply, round, shift, clamp, count, narrow and write.

Where results fit int32 before the clamp, all that follows the shift has 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from npusim.engine import lanes
from npusim.engine.dot import I32, I64, out_of_line, vector
from npusim.engine.lanes import HALF, HALVES, SIZES, WIDTH, WORDS, Columns, Counter
from npusim.engine.native import intrinsic

NARROW_SUMS, TWO_DIGITS, FOUR_DIGITS, WIDE_SUMS = range(4)
"""Forms of sums: int32; int32 in units of 1 and, ``plane`` bytes behind, of 2^8; int32 in units of 1, 2^8, 2^8 and 2^16
in four planes; int64. Results of int32 sums fit int32, of int64 ones int64."""
UNITS_OF_PLANES = {TWO_DIGITS: ((1,),), FOUR_DIGITS: ((1, 2), (3,))}
"""Of planes behind the first: those that are in units of 2^8, then those of 2^16."""
CASES = ((NARROW_SUMS, 0), (NARROW_SUMS, 1), (TWO_DIGITS, 0), (FOUR_DIGITS, 0), (WIDE_SUMS, 0), (WIDE_SUMS, 1))
"""Forms with and without zero points of weights."""
ARGUMENTS = 20


def _products(builder: Any, form: int, zeros: int, arguments: Any, multipliers: Any, index: Any) -> Iterable[Any]:
    """Corrected sums times multipliers, of even and of odd columns."""
    sums, plane, weight_zero, row_sum = arguments
    zero = lanes.load(builder, weight_zero, index, WORDS) if zeros else None
    if form == WIDE_SUMS:
        first, second = (lanes.load(builder, sums, builder.add(index, I64(i)), HALF) for i in (0, HALF.count))
        for number, side in enumerate(HALVES):
            order = ir.Constant(vector(I32, HALF.count), list(range(number, WIDTH, 2)))
            value = builder.shuffle_vector(first, second, order)
            if zeros:
                correction = builder.mul(side(builder, zero), lanes.same(builder, row_sum, HALF.count))
                value = builder.sub(value, correction)
            yield builder.mul(value, multipliers[number])
        return
    value = lanes.load(builder, sums, index, WORDS)
    if zeros:
        factor = lanes.same(builder, builder.trunc(row_sum, vector(I32, 1)), WIDTH)
        value = builder.sub(value, builder.mul(zero, factor))
    uppers = []
    for planes in UNITS_OF_PLANES.get(form, ()):
        places = (builder.add(sums, builder.mul(plane, I64(number))) for number in planes)
        uppers.append(reduce(builder.add, [lanes.load(builder, place, index, WORDS) for place in places]))
    for side, multiplier in zip(HALVES, multipliers, strict=True):
        factor = lanes.even(builder, multiplier)  # it has 32 bits
        product = builder.mul(side(builder, value), factor)
        for digit, upper in enumerate(uppers, 1):
            more = builder.mul(side(builder, upper), factor)
            product = builder.add(product, builder.shl(more, lanes.repeated(HALF, 8 * digit)))
        yield product


def _results(builder: Any, form: int, zeros: int, arguments: Any, scale: Any, limits: Any, index: Any) -> Any:
    """Clamped results, int32 in the order of columns, and where the clamp changed them."""
    *arrays, each = scale
    multipliers, roundings, shifts = (
        [lanes.load(builder, array, builder.mul(builder.add(index, I64(i)), each), HALF) for i in (0, HALF.count)]
        for array in arrays
    )
    products = _products(builder, form, zeros, arguments, multipliers, index)
    return lanes.requantized(builder, products, roundings, shifts, limits, form == WIDE_SUMS)


def _body(builder: Any, function: Any, form: int, zeros: int, size: int) -> Any:
    """Emit the loop over rows; return how many results the clamp changed."""
    rows, count, out, out_row, sums, sums_row, plane, weight_zero, row_sums, *rest = function.args[3:]
    *scale, scale_row, each, zero_point, low, most = rest
    changed = Counter(builder)
    with cgutils.for_range(builder, rows, intp=I64) as loop:
        row = loop.index
        row_sum = lanes.load(builder, row_sums, row, vector(I64, 1)) if zeros else None
        arguments = builder.add(sums, builder.mul(row, sums_row)), plane, weight_zero, row_sum
        scales = [*(builder.add(array, builder.mul(row, scale_row)) for array in scale), each]
        target = builder.add(out, builder.mul(row, out_row))

        def finish_columns(columns: Columns) -> None:
            limits = zero_point, low, most
            found = _results(builder, form, zeros, arguments, scales, limits, columns.index)
            lanes.deliver(builder, columns, target, size, found, changed)

        lanes.over_columns(builder, count, finish_columns)
    return builder.sext(changed.total(), I64)


def _finish(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(I64, [I64] * ARGUMENTS), "finish")
    if builder is None:
        return function
    cases = ((*case, size) for case in CASES for size in SIZES)
    lanes.emit_cases(function, builder, cases, partial(_body, builder, function))
    return function


@intrinsic
def finish(
    typing_context: Any, form: Any, zeros: Any, size: Any, rows: Any, count: Any, out: Any, out_row: Any, sums: Any,
    sums_row: Any, plane: Any, weight_zero: Any, row_sums: Any, multiplier: Any, rounding: Any, shift: Any,
    scale_row: Any, each: Any, zero_point: Any, low: Any, most: Any,
) -> Any:  # fmt: skip
    """Write rows of ``count`` results of ``size`` bytes at ``out``; return how many the clamp changed.

    ``out_row``, ``sums_row``: bytes from row to row. ``zeros``: 1 where the weights have zero points, int32 at
    ``weight_zero``, times int64 ``row_sums``. ``multiplier``, ``rounding`` and ``shift``: int64, `paired`, one for each
    column (``each`` 1, ``scale_row`` 0), or the same eight times for each row (0 and ``PAIRED_ROW``). Arrays are given
    by address and are read up to a multiple of 16 columns. ``low``, ``most``: what results are clamped to behind
    ``zero_point``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_finish(builder.module), arguments)

    return types.int64(*[types.int64] * ARGUMENTS), generate
