"""Packing of a MATMUL's operands of 16 by 16 bits: low and high bytes apart, for tiles of bytes.

``x y = xl yl + 2^8 (xl yh + xh yl) + 2^16 xh yh`` with low bytes unsigned, high ones signed. Each of the four sums, and
that in parentheses, fits int32 for up to ``MOST_K``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from npusim.engine.cache import helper
from npusim.engine.dot import I8, I16, I32, I64, VARIANT, broadcast, get_or_insert_function, out_of_line, vector
from npusim.engine.lanes import narrowed
from npusim.engine.native import intrinsic, turn

LANES, WORDS = VARIANT.lanes, 32
MOST_K = 1 << 15


def _masked_load(builder: Any, address: Any, count: Any, lanes: int) -> Any:
    """The first ``count`` words at an address, all where it is greater than ``lanes``; zeros behind."""
    kind, numbers = vector(I16, lanes), vector(I64, lanes)
    mask = builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), broadcast(builder, count, lanes))
    signature = ir.FunctionType(kind, [kind.as_pointer(), I32, mask.type, kind])
    load = get_or_insert_function(builder.module, signature, f"llvm.masked.load.v{lanes}i16.p0")
    nothing = ir.Constant(kind, [0] * lanes)
    return builder.call(load, [builder.inttoptr(address, kind.as_pointer()), I32(1), mask, nothing])


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


@intrinsic
def split_row(typing_context: Any, source: Any, k: Any, size: Any, low: Any, high: Any) -> Any:
    """The low and the high bytes of ``k`` words, and zeros up to ``size`` bytes, a multiple of a tile's row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, body = out_of_line(builder.module, ir.FunctionType(ir.VoidType(), [I64] * 5), "split_row")
        if body is not None:
            source, k, size, low, high = function.args
            octets = vector(I8, WORDS)
            with cgutils.for_range(body, body.sdiv(size, I64(WORDS)), intp=I64) as loop:
                first = body.mul(loop.index, I64(WORDS))
                values = _masked_load(body, body.add(source, body.shl(first, I64(1))), body.sub(k, first), WORDS)
                _store(body, narrowed(body, values, octets), body.add(low, first))
                upper = body.lshr(values, ir.Constant(values.type, [8] * WORDS))
                _store(body, narrowed(body, upper, octets), body.add(high, first))
            body.ret_void()
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def split_units(
    typing_context: Any, source: Any, step: Any, k: Any, count: Any, units: Any, low: Any, high: Any
) -> Any:
    """Units of the low and of the high bytes of four words each, ``step`` bytes apart, for ``count`` lanes of them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, body = out_of_line(builder.module, ir.FunctionType(ir.VoidType(), [I64] * 7), "split_units")
        if body is not None:
            source, step, k, count, units, low, high = function.args
            kind = vector(I32, LANES)
            lower_bytes, upper_bytes = (ir.Constant(kind, [mask] * LANES) for mask in (0xFF, 0xFF00))
            some = body.sdiv(body.add(k, I64(3)), I64(4))
            with cgutils.for_range(body, some, intp=I64) as loop:
                lower = upper = ir.Constant(kind, [0] * LANES)
                for i in range(4):
                    number = body.add(body.shl(loop.index, I64(2)), I64(i))
                    lanes = body.select(body.icmp_signed("<", number, k), count, I64(0))
                    words = body.zext(_masked_load(body, body.add(source, body.mul(number, step)), lanes, LANES), kind)
                    low_part, high_part = body.and_(words, lower_bytes), body.and_(words, upper_bytes)
                    lower = body.or_(lower, body.shl(low_part, ir.Constant(kind, [8 * i] * LANES)))
                    shift = ir.Constant(kind, [abs(8 * i - 8)] * LANES)
                    upper = body.or_(upper, body.shl(high_part, shift) if i else body.lshr(high_part, shift))
                at = body.mul(loop.index, I64(4 * LANES))
                _store(body, lower, body.add(low, at))
                _store(body, upper, body.add(high, at))
            with cgutils.for_range_slice(body, some, units, I64(1), intp=I64) as (unit, _):
                at = body.mul(unit, I64(4 * LANES))
                for plane in (low, high):
                    _store(body, ir.Constant(kind, [0] * LANES), body.add(plane, at))
            body.ret_void()
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@helper
def split_columns(
    k: int, n: int, row: int, k_step: int, b: int, along: int, padded: int, target: int, plane: int, rows_at: int
) -> None:
    """Pack b's low bytes as vectors of ``padded`` units, and its high ones ``plane`` bytes behind; zeros behind k.

    Arguments as of `npusim.engine.stream_pack.pack_columns`.
    """
    row_bytes = 4 * padded
    for v in range(0, n, LANES):
        count, place = min(LANES, n - v), target + v * row_bytes
        if not along:
            split_units(b + 2 * v, k_step, k, count, padded, place, place + plane)
            continue
        behind = rows_at + LANES * row_bytes
        for lane in range(count):
            split_row(b + (v + lane) * row, k, row_bytes, rows_at + lane * row_bytes, behind + lane * row_bytes)
        for i in range(padded // LANES):
            at = i * LANES * 4 * LANES
            turn(rows_at + i * 4 * LANES, row_bytes, count - 1, place + at)
            turn(behind + i * 4 * LANES, row_bytes, count - 1, place + plane + at)
