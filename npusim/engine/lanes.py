"""LLVM code over rows of elements, 16 columns at a time, with the last ones under a mask.

A loop of Numba's takes several times as long: its vectors have half the length, and int64 in every step. Products
have 64 bits, so even columns are multiplied in one vector and odd ones in another, which needs no shuffles before and
one behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils

from npusim.engine.cache import helper
from npusim.engine.dot import I8, I16, I32, I64, broadcast, get_or_insert_function, vector

WIDTH = 16
variable: Any = cgutils.alloca_once  # Numba has no types
WORDS, HALF = vector(I32, WIDTH), vector(I64, WIDTH // 2)
SIZES = {1: I8, 2: I16, 4: I32}
PAIRED_ROW = 8 * HALF.count
"""Bytes of a parameter of a row, repeated so often that both halves of a vector read the same."""


@helper
def paired(column: int) -> int:
    """Where int64 parameters of a column lie: of 16 columns, the even ones come before the odd ones."""
    return column & ~15 | (column & 1) << 3 | (column & 15) >> 1


def repeated(kind: Any, value: int) -> Any:
    """A vector that has one value everywhere."""
    return ir.Constant(kind, [value] * kind.count)


def load(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    """Elements from number ``index`` on of an array of the vector ``kind``'s."""
    place = builder.add(address, builder.mul(index, I64(kind.element.width // 8)))
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def narrowed(builder: Any, value: Any, kind: Any) -> Any:
    """The low bits of each element of a vector, as the vector ``kind``. LLVM makes one instruction of it."""
    ratio = value.type.element.width // kind.element.width
    if ratio == 1:
        return value
    parts = builder.bitcast(value, vector(kind.element, ratio * kind.count))
    return builder.shuffle_vector(
        parts, parts, ir.Constant(vector(I32, kind.count), list(range(0, ratio * kind.count, ratio)))
    )


def even(builder: Any, words: Any) -> Any:
    """int32 of even number in a vector, as int64; of a product, LLVM multiplies these bits alone."""
    by = repeated(HALF, 32)
    return builder.ashr(builder.shl(builder.bitcast(words, HALF), by), by)


def odd(builder: Any, words: Any) -> Any:
    return builder.ashr(builder.bitcast(words, HALF), repeated(HALF, 32))


HALVES = even, odd


def merged(builder: Any, first: Any, second: Any) -> Any:
    """The low words of even and odd columns, in the order of columns."""
    order = [i + (WIDTH - 1 if i % 2 else 0) for i in range(WIDTH)]
    words = (builder.bitcast(side, WORDS) for side in (first, second))
    return builder.shuffle_vector(*words, ir.Constant(WORDS, order))


def looked_up(builder: Any, table: Any, index: Any, step: int) -> Any:
    """The int32 at an address plus ``step`` bytes times each index of a vector."""
    wide = vector(I64, WIDTH)
    offsets = builder.mul(builder.zext(index, wide), repeated(wide, step))
    places = builder.inttoptr(builder.add(broadcast(builder, table, WIDTH), offsets), vector(I32.as_pointer(), WIDTH))
    mask = vector(ir.IntType(1), WIDTH)
    signature = ir.FunctionType(WORDS, [places.type, I32, mask, WORDS])
    gather = get_or_insert_function(builder.module, signature, f"llvm.masked.gather.v{WIDTH}i32.v{WIDTH}p0")
    return builder.call(gather, [places, I32(step), repeated(mask, 1), repeated(WORDS, 0)])


def emit_cases(function: Any, builder: Any, cases: Iterable[tuple[int, ...]], body: Callable[..., Any]) -> None:
    """Emit ``body(*case)``, which returns from the function, for each case that the first arguments may be."""
    for case in cases:
        tests = [
            builder.icmp_signed("==", given, I64(value)) for given, value in zip(function.args, case, strict=False)
        ]
        with builder.if_then(reduce(builder.and_, tests)):
            builder.ret(body(*case))
            builder.position_at_end(builder.append_basic_block("unreached"))
    builder.ret(I64(0))


def same(builder: Any, one: Any, lanes: int) -> Any:
    """The one element of a vector in all ``lanes``."""
    return builder.shuffle_vector(one, one, ir.Constant(vector(I32, lanes), [0] * lanes))


def rounded(builder: Any, product: Any, rounding: Any, shift: Any) -> Any:
    """``(product + rounding) >> shift``, which keeps the sign."""
    return builder.ashr(builder.add(product, rounding), shift)


def half_unit(builder: Any, shift: Any) -> Any:
    """What `rounded` adds for shifts of at least 1."""
    one = repeated(shift.type, 1)
    return builder.shl(one, builder.sub(shift, one))


def clamped(builder: Any, value: Any, limits: Any) -> tuple[Any, Any]:
    """A vector plus zero point, clamped between two more, and where the clamp changed it; the three are int64."""
    count, kind = value.type.count, value.type.element
    narrow = (builder.trunc(limit, kind) if kind.width < 64 else limit for limit in limits)
    zero_point, low, high = (broadcast(builder, limit, count) for limit in narrow)
    exact = builder.add(value, zero_point)
    result = builder.select(builder.icmp_signed("<", exact, low), low, exact)
    result = builder.select(builder.icmp_signed(">", result, high), high, result)
    return result, builder.icmp_signed("!=", result, exact)


def requantized(builder: Any, products: Any, roundings: Any, shifts: Any, limits: Any, wide: bool) -> tuple[Any, Any]:
    """Products of even and of odd columns, rounded and clamped: int32 in the columns' order, and where the clamp bit.

    ``wide``: results may exceed int32 before the clamp.
    """
    halves = [rounded(builder, *terms) for terms in zip(products, roundings, shifts, strict=True)]
    if not wide:
        return clamped(builder, merged(builder, *halves), limits)
    results, differs = zip(*(clamped(builder, side, limits) for side in halves), strict=True)
    changed = merged(builder, *(builder.sext(where, HALF) for where in differs))
    return merged(builder, *results), builder.icmp_signed("!=", changed, repeated(WORDS, 0))


class Counter:
    """A sum of int32 vectors, which stays in a register."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._place = variable(builder, WORDS)
        self.clear()

    def clear(self) -> None:
        self._builder.store(repeated(WORDS, 0), self._place)

    def count(self, where: Any) -> None:
        """Count the lanes where a condition holds."""
        builder = self._builder
        before = builder.load(self._place)
        after = builder.select(where, builder.add(before, repeated(WORDS, 1)), before)  # one masked addition
        builder.store(after, self._place)

    def add(self, words: Any) -> None:
        self._builder.store(self._builder.add(self._builder.load(self._place), words), self._place)

    def total(self) -> Any:
        """The sum of all lanes, int32."""
        kind = ir.FunctionType(I32, [WORDS])
        reduce_add = get_or_insert_function(self._builder.module, kind, f"llvm.vector.reduce.add.v{WIDTH}i32")
        return self._builder.call(reduce_add, [self._builder.load(self._place)])


class Columns:
    """Columns of a row, 16 at a time: what they read and write, all of them or under the mask of the last ones."""

    def __init__(self, builder: Any, index: Any, inside: Any = None) -> None:
        self._builder, self.index, self.inside = builder, index, inside

    def _place(self, row: Any, kind: Any) -> Any:
        at = self._builder.add(row, self._builder.mul(self.index, I64(kind.element.width // 8)))
        return self._builder.inttoptr(at, kind.as_pointer())

    def read(self, row: Any, kind: Any, beyond: int = 0) -> Any:
        """Elements of the row at an address, of the vector ``kind``; ``beyond`` the mask's columns a constant."""
        place = self._place(row, kind)
        if self.inside is None:
            return self._builder.load(place, align=1)
        nothing = repeated(kind, beyond)
        signature = ir.FunctionType(kind, [place.type, I32, self.inside.type, kind])
        name = f"llvm.masked.load.v{kind.count}i{kind.element.width}.p0"
        masked = get_or_insert_function(self._builder.module, signature, name)
        return self._builder.call(masked, [place, I32(1), self.inside, nothing])

    def write(self, row: Any, value: Any) -> None:
        """Write a vector to the row at an address."""
        place = self._place(row, value.type)
        if self.inside is None:
            self._builder.store(value, place, align=1)
            return
        signature = ir.FunctionType(ir.VoidType(), [value.type, place.type, I32, self.inside.type])
        name = f"llvm.masked.store.v{value.type.count}i{value.type.element.width}.p0"
        masked = get_or_insert_function(self._builder.module, signature, name)
        self._builder.call(masked, [value, place, I32(1), self.inside])

    def only(self, where: Any) -> Any:
        """A condition, and that columns are there."""
        return where if self.inside is None else self._builder.and_(where, self.inside)


def deliver(builder: Any, columns: Columns, row: Any, size: int, found: tuple[Any, Any], changed: Counter) -> None:
    """Write results of `requantized`, of ``size`` bytes each, to the row at an address; count where the clamp bit."""
    results, differs = found
    columns.write(row, narrowed(builder, results, vector(SIZES[size], WIDTH)))
    changed.count(columns.only(differs))


def over_columns(builder: Any, count: Any, each: Callable[[Columns], None]) -> None:
    """Emit the loop over whole vectors of ``count`` columns, and the rest under a mask."""
    whole = builder.and_(count, I64(-WIDTH))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(WIDTH), intp=I64) as (index, _):
        each(Columns(builder, index))
    left = builder.sub(count, whole)
    with builder.if_then(builder.icmp_signed(">", left, I64(0))):
        lanes = ir.Constant(WORDS, list(range(WIDTH)))
        inside = builder.icmp_signed("<", lanes, broadcast(builder, builder.trunc(left, I32), WIDTH))
        each(Columns(builder, whole, inside))
