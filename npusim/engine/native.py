"""What kernels need beyond Numba: addresses as arrays, calls by address, byte copies, and two vector routines.

Addresses are int64. Nothing here checks a bound; the callers do.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray as numba_carray  # type: ignore[attr-defined]
from numba import extending, types
from numba.core import cgutils

from npusim.engine.dot import I8, I32, I64, VARIANT, dot_bytes, get_or_insert_function, out_of_line, vector

LANES = VARIANT.lanes
carray: Any = numba_carray
intrinsic: Any = extending.intrinsic
raw_memmove: Any = cgutils.raw_memmove


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """The address as a pointer, for ``numba.carray``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def call(typing_context: Any, function: Any, first: Any, second: Any) -> Any:
    """Call the function at an address with two integers; it returns one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(I64, [I64, I64])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def move(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy ``count`` bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = (builder.inttoptr(value, I8.as_pointer()) for value in arguments[:2])
        raw_memmove(builder, target, source, arguments[2], 1, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Fetch the cache line of an address, which need not be valid, for reading and writing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(arguments[0], I8.as_pointer()), I32(1), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def turn(typing_context: Any, source: Any, row: Any, last: Any, target: Any) -> Any:
    """Transpose a block of ``LANES`` x ``LANES`` units of 32 bits, of rows ``row`` bytes apart, to consecutive ones.

    Rows behind number ``last`` repeat that one.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(_turn(builder.module), arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def _turn(module: Any) -> Any:
    kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
    function, builder = out_of_line(module, kind, f"turn_{LANES}")
    if builder is None:
        return function
    source, row, last, target = function.args
    units, middle = vector(I32, LANES), LANES // 2
    rows = []
    for r in range(LANES):
        number = builder.select(builder.icmp_signed("<", last, I64(r)), last, I64(r))
        rows.append(_load(builder, builder.add(source, builder.mul(number, row)), units))
    # Interleaving the rows of both halves rotates the bits of (row, column) by one; rotated log2(LANES) times, row and
    # column have changed places.
    for _ in range(LANES.bit_length() - 1):
        turned = []
        for r in range(middle):
            for start in (0, middle):
                order = [start + i // 2 + i % 2 * LANES for i in range(LANES)]
                mask = ir.Constant(vector(I32, LANES), order)
                turned.append(builder.shuffle_vector(rows[r], rows[r + middle], mask))
        rows = turned
    for r, value in enumerate(rows):
        _store(builder, value, builder.add(target, I64(4 * LANES * r)))
    builder.ret_void()
    return function


@intrinsic
def sum_bytes(typing_context: Any, source: Any, units: Any) -> Any:
    """The sum of unsigned bytes: ``units`` vectors of ``4 * LANES`` of them. Needs a variant that takes bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_sum_bytes(builder.module), arguments)

    return types.int64(types.int64, types.int64), generate


def _sum_bytes(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(I64, [I64, I64]), f"sum_bytes_{LANES}")
    if builder is None:
        return function
    source, units = function.args
    kind, octets = vector(I32, LANES), vector(I8, 4 * LANES)
    before, loop, after = builder.block, builder.append_basic_block("units"), builder.append_basic_block("sum")
    builder.cbranch(builder.icmp_signed(">", units, I64(0)), loop, after)
    builder.position_at_end(loop)
    unit, total = builder.phi(I64), builder.phi(kind)
    value = _load(builder, builder.add(source, builder.mul(unit, I64(4 * LANES))), octets)
    added = dot_bytes(builder, total, value, ir.Constant(octets, [1] * (4 * LANES)))
    following = builder.add(unit, I64(1))
    unit.add_incoming(I64(0), before)
    unit.add_incoming(following, loop)
    total.add_incoming(ir.Constant(kind, [0] * LANES), before)
    total.add_incoming(added, loop)
    builder.cbranch(builder.icmp_signed("<", following, units), loop, after)
    builder.position_at_end(after)
    sums = builder.phi(kind)
    sums.add_incoming(ir.Constant(kind, [0] * LANES), before)
    sums.add_incoming(added, loop)
    wide = builder.sext(sums, vector(I64, LANES))
    reduce_add = get_or_insert_function(
        builder.module, ir.FunctionType(I64, [wide.type]), f"llvm.vector.reduce.add.v{LANES}i64"
    )
    builder.ret(builder.call(reduce_add, [wide]))
    return function
