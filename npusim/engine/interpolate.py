"""Rows of TABLE in registers: two entries around each value, interpolated and requantized."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from npusim.engine import lanes
from npusim.engine.dot import I16, I64, broadcast, dot_words, out_of_line, vector
from npusim.engine.lanes import HALF, HALVES, WIDTH, WORDS, Columns, Counter
from npusim.engine.native import intrinsic

ARGUMENTS = 12


def _interpolated(builder: Any, values: Any, table: Any) -> Any:
    """``npusim.numerics.table_lookup_16`` of a vector: both entries times 128 in all, by their distance."""
    place = builder.add(builder.sext(values, WORDS), lanes.repeated(WORDS, 1 << 15))
    index, behind = builder.lshr(place, lanes.repeated(WORDS, 7)), builder.and_(place, lanes.repeated(WORDS, 127))
    entries = lanes.looked_up(builder, table, index, 2)  # this one and the next
    before = builder.sub(lanes.repeated(WORDS, 128), behind)
    weights = builder.or_(before, builder.shl(behind, lanes.repeated(WORDS, 16)))
    return dot_words(builder, lanes.repeated(WORDS, 0), entries, weights)


def _body(builder: Any, function: Any, size: int) -> Any:
    rows, cols, a, a_row, out, out_row, table, multiplier, shift, *limits = function.args[1:]
    factor, down = (broadcast(builder, value, HALF.count) for value in (multiplier, shift))
    rounding = lanes.half_unit(builder, down)
    factor = lanes.even(builder, factor)  # it has 32 bits
    changed = Counter(builder)
    with cgutils.for_range(builder, rows, intp=I64) as loop:
        source = builder.add(a, builder.mul(loop.index, a_row))
        target = builder.add(out, builder.mul(loop.index, out_row))

        def look_up(columns: Columns) -> None:
            values = _interpolated(builder, columns.read(source, vector(I16, WIDTH)), table)
            products = [builder.mul(side(builder, values), factor) for side in HALVES]
            found = lanes.requantized(builder, products, [rounding] * 2, [down] * 2, limits, False)
            lanes.deliver(builder, columns, target, size, found, changed)

        lanes.over_columns(builder, cols, look_up)
    return builder.sext(changed.total(), I64)


def _interpolate(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(I64, [I64] * (1 + ARGUMENTS)), "interpolate")
    if builder is not None:
        lanes.emit_cases(function, builder, ((1,), (2,)), partial(_body, builder, function))
    return function


@intrinsic
def interpolate(
    typing_context: Any, size: Any, rows: Any, cols: Any, a: Any, a_row: Any, out: Any, out_row: Any, table: Any,
    multiplier: Any, shift: Any, zero_point: Any, low: Any, high: Any,
) -> Any:  # fmt: skip
    """Execute a TABLE on rows of int16 at ``a``: results of ``size`` bytes at ``out``; return how many were clamped.

    ``table``: address of 513 int16. ``a_row``, ``out_row``: bytes from row to row. Results fit int32 before the clamp
    to ``low`` and ``high``. ``out`` may be ``a``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_interpolate(builder.module), arguments)

    return types.int64(*[types.int64] * (1 + ARGUMENTS)), generate
