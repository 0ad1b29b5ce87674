"""Requantization of a row of sums in registers: correct, multiply, round, shift, clamp, count, narrow and write.

Emitted as LLVM code, eight results at a time in int64, because a loop of Numba's takes several times as long.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from npusim.engine.dot import I8, I16, I32, I64, broadcast, get_or_insert_function, out_of_line, vector
from npusim.engine.native import intrinsic

WIDTH = 8
PAIR = ir.VectorType(I32, WIDTH)
WIDE = ir.VectorType(I64, WIDTH)
BITS = ir.IntType(1)
NARROW_SUMS, TWO_DIGITS, WIDE_SUMS = range(3)
"""Forms of sums: int32; int32 of the low and of the high bytes of operand a, which lie ``high`` bytes behind; int64."""
FORMS = (NARROW_SUMS, TWO_DIGITS, WIDE_SUMS)
SIZES = {1: I8, 2: I16, 4: I32}


def narrowed(builder: Any, value: Any, kind: Any) -> Any:
    """The low bits of each element of a vector, as the vector ``kind``. LLVM makes one instruction of it."""
    ratio = value.type.element.width // kind.element.width
    parts = builder.bitcast(value, vector(kind.element, ratio * kind.count))
    return builder.shuffle_vector(
        parts, parts, ir.Constant(vector(I32, kind.count), list(range(0, ratio * kind.count, ratio)))
    )


def rounded(builder: Any, product: Any, rounding: Any, shift: Any) -> Any:
    """``(product + rounding) >> shift``, which keeps the sign."""
    return builder.ashr(builder.add(product, rounding), shift)


def _load(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    """``WIDTH`` elements from number ``index`` on of an array of the vector ``kind``'s elements."""
    place = builder.add(address, builder.mul(index, I64(kind.element.width // 8)))
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def _sums(builder: Any, form: int, zeros: int, arguments: Any, index: Any) -> Any:
    """Corrected sums, int64."""
    sums, high, bias, weight_zero, row_sum = arguments
    if form == NARROW_SUMS:
        value = _load(builder, sums, index, PAIR)
        if zeros:
            factor = narrowed(builder, broadcast(builder, row_sum, WIDTH), PAIR)
            value = builder.sub(value, builder.mul(_load(builder, weight_zero, index, PAIR), factor))
        return builder.sext(value, WIDE)
    if form == WIDE_SUMS:
        value = _load(builder, sums, index, WIDE)
    else:
        low = builder.sext(_load(builder, sums, index, PAIR), WIDE)
        upper = builder.sext(_load(builder, builder.add(sums, high), index, PAIR), WIDE)
        upper = builder.shl(upper, ir.Constant(WIDE, [8] * WIDTH))
        value = builder.add(_load(builder, bias, index, WIDE), builder.add(low, upper))
    if zeros:
        zero = builder.sext(_load(builder, weight_zero, index, PAIR), WIDE)
        value = builder.sub(value, builder.mul(zero, broadcast(builder, row_sum, WIDTH)))
    return value


def _results(builder: Any, form: int, zeros: int, arguments: Any, scale: Any, limits: Any, index: Any) -> Any:
    """Clamped results, int64, and where the clamp changed them."""
    value = _sums(builder, form, zeros, arguments, index)
    multiplier, rounding, shift = (
        builder.sext(_load(builder, scale[0], index, PAIR), WIDE),
        _load(builder, scale[1], index, WIDE),
        _load(builder, scale[2], index, WIDE),
    )
    zero_point, low, high = (broadcast(builder, limit, WIDTH) for limit in limits)
    exact = builder.add(rounded(builder, builder.mul(value, multiplier), rounding, shift), zero_point)
    result = builder.select(builder.icmp_signed("<", exact, low), low, exact)
    result = builder.select(builder.icmp_signed(">", result, high), high, result)
    return result, builder.icmp_signed("!=", result, exact)


def _body(builder: Any, form: int, zeros: int, size: int, function: Any) -> None:
    """Emit whole vectors in a loop, then the rest under a mask, and return how many results the clamp changed."""
    count, out, *rest = function.args[3:]
    arguments, scale, limits = rest[:5], rest[5:8], rest[8:]
    place = vector(SIZES[size], WIDTH)
    whole = builder.and_(count, I64(-WIDTH))
    nothing = ir.Constant(WIDE, [0] * WIDTH)

    def address(index: Any) -> Any:
        return builder.inttoptr(builder.add(out, builder.mul(index, I64(size))), place.as_pointer())

    before, loop, after = builder.block, builder.append_basic_block("whole"), builder.append_basic_block("rest")
    builder.cbranch(builder.icmp_signed(">", whole, I64(0)), loop, after)
    builder.position_at_end(loop)
    index, changed = builder.phi(I64), builder.phi(WIDE)
    result, differs = _results(builder, form, zeros, arguments, scale, limits, index)
    builder.store(narrowed(builder, result, place), address(index), align=1)
    more = builder.select(differs, builder.add(changed, ir.Constant(WIDE, [1] * WIDTH)), changed)  # one masked addition
    following = builder.add(index, I64(WIDTH))
    for phi, first, next_one in ((index, I64(0), following), (changed, nothing, more)):
        phi.add_incoming(first, before)
        phi.add_incoming(next_one, loop)
    builder.cbranch(builder.icmp_signed("<", following, whole), loop, after)
    builder.position_at_end(after)
    total = builder.phi(WIDE)
    total.add_incoming(nothing, before)
    total.add_incoming(more, loop)
    lanes = ir.Constant(WIDE, list(range(WIDTH)))
    inside = builder.icmp_signed("<", lanes, broadcast(builder, builder.sub(count, whole), WIDTH))
    result, differs = _results(builder, form, zeros, arguments, scale, limits, whole)
    name = f"llvm.masked.store.v{WIDTH}i{8 * size}.p0"
    kind = ir.FunctionType(ir.VoidType(), [place, place.as_pointer(), I32, vector(BITS, WIDTH)])
    masked_store = get_or_insert_function(builder.module, kind, name)
    builder.call(masked_store, [narrowed(builder, result, place), address(whole), I32(1), inside])
    total = builder.sub(total, builder.sext(builder.and_(differs, inside), WIDE))
    answer = I64(0)
    for lane in range(WIDTH):
        answer = builder.add(answer, builder.extract_element(total, I32(lane)))
    builder.ret(answer)


def _finish(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(I64, [I64] * 16), "finish")
    if builder is None:
        return function
    for form in FORMS:
        for zeros in (0, 1):
            for size in SIZES:
                wanted = zip(function.args[:3], (form, zeros, size), strict=True)
                tests = [builder.icmp_signed("==", given, I64(value)) for given, value in wanted]
                matches = builder.and_(builder.and_(tests[0], tests[1]), tests[2])
                with builder.if_then(matches):
                    _body(builder, form, zeros, size, function)
                    builder.position_at_end(builder.append_basic_block("unreached"))
    builder.ret(I64(0))
    return function


@intrinsic
def finish(
    typing_context: Any, form: Any, zeros: Any, size: Any, count: Any, out: Any, sums: Any, high: Any, bias: Any,
    weight_zero: Any, row_sum: Any, multiplier: Any, rounding: Any, shift: Any, zero_point: Any, low: Any, most: Any,
) -> Any:  # fmt: skip
    """Write ``count`` results of ``size`` bytes at ``out``; return how many the clamp changed.

    ``zeros``: 1 where the weights have zero points, int32 at ``weight_zero``, times ``row_sum``; ``bias`` int64, with
    two digits only; ``multiplier`` int32; ``rounding``, ``shift`` int64. Arrays are given by address and are read up
    to a multiple of eight elements. ``low``, ``most``: what results are clamped to behind ``zero_point``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_finish(builder.module), arguments)

    return types.int64(*[types.int64] * 16), generate
