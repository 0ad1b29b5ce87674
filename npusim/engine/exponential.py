"""Rows of SMEXP in registers: the maximum, powers of two below it and their sum."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from npusim.engine import lanes
from npusim.engine.dot import I16, I32, I64, broadcast, get_or_insert_function, out_of_line, vector
from npusim.engine.lanes import SIZES, WIDTH, WORDS, Columns, Counter
from npusim.engine.native import intrinsic
from npusim.engine.scalar import EXP2_KNOTS

LOGITS = vector(I16, WIDTH)
LOWEST = -(1 << 15)
NO_BITS_LEFT = 17
"""Halved so often, a knot of 30 bits rounds to 0."""
KNOTS = EXP2_KNOTS.tolist()
FALLS = (EXP2_KNOTS[:-1] - EXP2_KNOTS[1:]).tolist()
"""From each knot to the next."""


def _table(builder: Any, name: str, values: list[int]) -> Any:
    """The address of a constant array of int32."""
    module = builder.module
    if name not in module.globals:
        kind = ir.ArrayType(I32, len(values))
        table = ir.GlobalVariable(module, kind, name)
        table.global_constant, table.linkage, table.initializer = True, "internal", ir.Constant(kind, values)
    return builder.ptrtoint(module.globals[name], I64)


def _power(builder: Any, distance: Any, amount: Any, rest: Any, most: Any) -> Any:
    """`npusim.numerics.exp2_negative` of distances below 2^16, in 32 bits but for one product.

    ``amount``: fraction bits of a distance, ``rest`` what they lack of 16, both in all lanes; ``most``: int64 likewise.
    """
    whole = builder.lshr(distance, amount)
    limit = lanes.repeated(WORDS, NO_BITS_LEFT)
    whole = builder.select(builder.icmp_unsigned("<", whole, limit), whole, limit)
    wide = builder.and_(builder.shl(distance, rest), lanes.repeated(WORDS, 0xFFFF))
    segment = builder.lshr(wide, lanes.repeated(WORDS, 9))
    fraction = builder.and_(wide, lanes.repeated(WORDS, 511))
    knot = lanes.looked_up(builder, _table(builder, "exp2_knots", KNOTS), segment, 4)
    fall = lanes.looked_up(builder, _table(builder, "exp2_falls", FALLS), segment, 4)
    value = builder.sub(knot, builder.lshr(builder.mul(fall, fraction), lanes.repeated(WORDS, 9)))
    products = (builder.mul(side(builder, value), most) for side in lanes.HALVES)
    by = lanes.repeated(lanes.HALF, 16)
    scaled = lanes.merged(builder, *(builder.lshr(product, by) for product in products))
    doubled = builder.lshr(scaled, builder.add(whole, lanes.repeated(WORDS, 13)))
    one = lanes.repeated(WORDS, 1)
    return builder.lshr(builder.add(doubled, one), one)


def _greatest(builder: Any, row: Any, count: Any) -> Any:
    """The greatest of ``count`` logits."""
    most = lanes.variable(builder, LOGITS)
    builder.store(lanes.repeated(LOGITS, LOWEST), most)

    def compare(columns: Columns) -> None:
        values, before = columns.read(row, LOGITS, LOWEST), builder.load(most)
        builder.store(builder.select(builder.icmp_signed(">", values, before), values, before), most)

    lanes.over_columns(builder, count, compare)
    kind = ir.FunctionType(I16, [LOGITS])
    reduce_max = get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.smax.v{WIDTH}i16")
    return builder.call(reduce_max, [builder.load(most)])


def _body(builder: Any, function: Any, size: int) -> Any:
    rows, cols, valid, a, a_row, out, out_row, sums, fraction_bits, p_bits = function.args[1:]
    amount = builder.trunc(fraction_bits, I32)
    amount, rest = (broadcast(builder, value, WIDTH) for value in (amount, builder.sub(I32(16), amount)))
    top_bit = builder.shl(I64(1), p_bits)
    most = broadcast(builder, builder.sub(top_bit, I64(1)), lanes.HALF.count)
    place, total = vector(SIZES[size], WIDTH), Counter(builder)
    with cgutils.for_range(builder, rows, intp=I64) as loop:
        source = builder.add(a, builder.mul(loop.index, a_row))
        target = builder.add(out, builder.mul(loop.index, out_row))
        top = broadcast(builder, builder.sext(_greatest(builder, source, valid), I32), WIDTH)
        total.clear()

        def power_columns(columns: Columns) -> None:
            distance = builder.sub(top, builder.sext(columns.read(source, LOGITS), WORDS))
            value = _power(builder, distance, amount, rest, most)
            columns.write(target, lanes.narrowed(builder, value, place))
            if columns.inside is not None:
                value = builder.select(columns.inside, value, lanes.repeated(WORDS, 0))
            total.add(value)

        lanes.over_columns(builder, valid, power_columns)
        behind = builder.add(target, builder.mul(valid, I64(size)))
        lanes.over_columns(
            builder, builder.sub(cols, valid), lambda columns: columns.write(behind, lanes.repeated(place, 0))
        )
        at = builder.add(sums, builder.shl(loop.index, I64(2)))
        builder.store(total.total(), builder.inttoptr(at, I32.as_pointer()))
    return I64(1)


def _exponentials(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(I64, [I64] * 11), "exponentials")
    if builder is not None:
        lanes.emit_cases(function, builder, ((1,), (2,)), partial(_body, builder, function))
    return function


@intrinsic
def exponentials(
    typing_context: Any, size: Any, rows: Any, cols: Any, valid: Any, a: Any, a_row: Any, out: Any, out_row: Any,
    sums: Any, fraction_bits: Any, p_bits: Any,
) -> Any:  # fmt: skip
    """Execute an SMEXP on rows of int16 at ``a``: ``cols`` results of ``size`` bytes at ``out``, an int32 at ``sums``.

    ``valid``: columns that count, at least one; the results of others are 0. ``a_row``, ``out_row``: bytes from row to
    row. ``fraction_bits``: up to 16, ``p_bits`` likewise. ``out`` may be ``a``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_exponentials(builder.module), arguments)

    return types.int64(*[types.int64] * 11), generate
