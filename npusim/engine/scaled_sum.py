"""A row of EWLIN in registers: one operand or two, each times a factor of its column, plus an offset, requantized."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from npusim.engine import lanes
from npusim.engine.dot import I64, broadcast, out_of_line
from npusim.engine.lanes import HALF, HALVES, SIZES, WORDS, Columns, Counter
from npusim.engine.native import intrinsic

ARGUMENTS = 14


def _body(builder: Any, function: Any, two: int, wide: int, size: int) -> Any:
    cols, left, right, left_factor, right_factor, offset, out, shift, *limits = function.args[3:]
    down = broadcast(builder, shift, HALF.count)
    rounding = lanes.half_unit(builder, down)
    changed = Counter(builder)

    def add_columns(columns: Columns) -> None:
        terms = [(left, left_factor), (right, right_factor)][: 1 + two]
        operands = [[lanes.load(builder, array, columns.index, WORDS) for array in term] for term in terms]
        offsets = lanes.load(builder, offset, columns.index, WORDS)
        sums = []
        for side in HALVES:
            total = side(builder, offsets)
            for value, factor in operands:
                total = builder.add(total, builder.mul(side(builder, value), side(builder, factor)))
            sums.append(total)
        found = lanes.requantized(builder, sums, [rounding] * 2, [down] * 2, limits, bool(wide))
        lanes.deliver(builder, columns, out, size, found, changed)

    lanes.over_columns(builder, cols, add_columns)
    return builder.sext(changed.total(), I64)


def _scaled_sum(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(I64, [I64] * ARGUMENTS), "scaled_sum")
    if builder is not None:
        cases = product((0, 1), (0, 1), SIZES)
        lanes.emit_cases(function, builder, cases, partial(_body, builder, function))
    return function


@intrinsic
def scaled_sum(
    typing_context: Any, two: Any, wide: Any, size: Any, cols: Any, left: Any, right: Any, left_factor: Any,
    right_factor: Any, offset: Any, out: Any, shift: Any, zero_point: Any, low: Any, high: Any,
) -> Any:  # fmt: skip
    """Write ``cols`` results of ``size`` bytes at ``out``; return how many the clamp to ``low`` and ``high`` changed.

    ``two``: whether there is a right operand; ``wide``: whether results may exceed int32 before the clamp. Operands,
    factors and offsets are int32, at addresses, and are read up to a multiple of 16.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_scaled_sum(builder.module), arguments)

    return types.int64(*[types.int64] * ARGUMENTS), generate
