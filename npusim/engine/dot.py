"""Dot products of short vectors, as the processor has them, and the register-blocked product of one tile.

`tile` multiplies ``TILE_ROWS`` rows of a by up to ``vectors`` vectors of columns of b and keeps all sums in registers.
Operands come in units of 32 bits along k. A unit is two signed 16-bit elements, or, where the processor has VNNI's
``vpdpbusd``, four bytes: unsigned ones of a, signed ones of b. The sums are int32 and wrap; the caller proves that
they cannot.

A unit of words is written as plain LLVM: LLVM makes ``vpdpwssd`` or ``vpmaddwd`` of it where there is one, and single
instructions elsewhere. ``vpmaddubsw`` is not used, because it saturates at 16 bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

TILE_ROWS = 6
get_or_insert_function: Any = cgutils.get_or_insert_function  # Numba has no types
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


class Variant(NamedTuple):
    """How a tile is computed: int32 ``lanes`` of a vector, ``vectors`` of columns, whether units of bytes exist.

    ``features``: sets of LLVM's names for processor features, of which one whole set is needed.
    """

    lanes: int
    vectors: int
    takes_bytes: bool
    features: tuple[frozenset[str], ...]

    @property
    def per_unit(self) -> int:
        """Elements of at most 8 bits in a unit."""
        return 4 if self.takes_bytes else 2


VARIANTS = {
    "vnni512": Variant(16, 4, True, (frozenset({"avx512vnni"}),)),
    "vnni256": Variant(8, 2, True, (frozenset({"avxvnni"}), frozenset({"avx512vnni", "avx512vl"}))),
    "words512": Variant(16, 4, False, (frozenset({"avx512bw"}),)),
    "words256": Variant(8, 2, False, (frozenset(),)),
}
"""Fastest first. 24 sums of 512 bits leave 8 of 32 registers for operands, 12 of 256 bits leave 4 of 16. The last one
is for any processor; LLVM splits its vectors where they are too long."""


def available() -> list[str]:
    """Names of the variants that the processor for which Numba compiles can execute, fastest first."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    present = {name[1:] for name in features.split(",") if name.startswith("+")}
    return [name for name, variant in VARIANTS.items() if any(needed <= present for needed in variant.features)]


def vector(element: Any, count: int) -> Any:
    return ir.VectorType(element, count)


def broadcast(builder: Any, value: Any, lanes: int) -> Any:
    nothing = ir.Constant(vector(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, I32(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(vector(I32, lanes), [0] * lanes))


def dot_bytes(builder: Any, sums: Any, x: Any, y: Any) -> Any:
    """Add the four products u8 * i8 of each unit to the sums."""
    lanes = sums.type.count
    kind = vector(I8, 4 * lanes)
    signature = ir.FunctionType(sums.type, [sums.type, kind, kind])
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    function = get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [sums, builder.bitcast(x, kind), builder.bitcast(y, kind)])


def dot_words(builder: Any, sums: Any, x: Any, y: Any) -> Any:
    """Add the two products i16 * i16 of each unit to the sums."""
    lanes = sums.type.count
    narrow, wide, part = vector(I16, 2 * lanes), vector(I32, 2 * lanes), vector(I32, lanes)
    x, y = (builder.sext(builder.bitcast(v, narrow), wide) for v in (x, y))
    products = builder.mul(x, y)
    even, odd = (
        builder.shuffle_vector(products, products, ir.Constant(part, list(range(start, 2 * lanes, 2))))
        for start in (0, 1)
    )
    return builder.add(sums, builder.add(even, odd))


def _emit_tile(builder: Any, dot: Any, lanes: int, vectors: int, arguments: Any) -> None:
    """Emit the loop over k for ``vectors`` vectors of columns, and the stores of its sums."""
    a, a_row, b, b_vector, units, start, c, c_row = arguments
    kind, rows = vector(I32, lanes), range(TILE_ROWS)

    def load(address: Any, kind: Any) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

    a_rows = [builder.add(a, builder.mul(a_row, I64(r))) for r in rows]
    columns = [builder.add(b, builder.mul(b_vector, I64(v))) for v in range(vectors)]
    first = [load(builder.add(start, I64(4 * lanes * v)), kind) for v in range(vectors)]
    before, loop, after = builder.block, builder.append_basic_block("units"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    unit = builder.phi(I64)
    sums = [[builder.phi(kind) for _ in columns] for _ in rows]
    b_at, a_at = builder.mul(unit, I64(4 * lanes)), builder.mul(unit, I64(4))
    y = [load(builder.add(column, b_at), kind) for column in columns]
    added = []
    for r in rows:
        x = broadcast(builder, load(builder.add(a_rows[r], a_at), I32), lanes)
        added.append([dot(builder, sums[r][v], x, y[v]) for v in range(vectors)])
    following = builder.add(unit, I64(1))
    unit.add_incoming(I64(0), before)
    unit.add_incoming(following, loop)
    for r in rows:
        for v in range(vectors):
            sums[r][v].add_incoming(first[v], before)
            sums[r][v].add_incoming(added[r][v], loop)
    builder.cbranch(builder.icmp_signed("<", following, units), loop, after)
    builder.position_at_end(after)
    for r in rows:
        row = builder.add(c, builder.mul(c_row, I64(r)))
        for v in range(vectors):
            address = builder.inttoptr(builder.add(row, I64(4 * lanes * v)), kind.as_pointer())
            builder.store(added[r][v], address, align=1)


def out_of_line(module: Any, kind: Any, name: str) -> tuple[Any, Any]:
    """The function ``name`` of LLVM's ``module``, and a builder of its body; None for that where it has one.

    It is never inlined: functions that are emitted so are long.
    """
    function = get_or_insert_function(module, kind, name)
    if not function.is_declaration:
        return function, None
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function, ir.IRBuilder(function.append_basic_block())


def _tile_function(module: Any, variant: Variant) -> Any:
    """Return the function in LLVM's ``module`` that `make_tile` describes. It is not inlined: it is long."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 10)
    function, builder = out_of_line(module, kind, f"tile_{variant.lanes}_{variant.per_unit}")
    if builder is None:
        return function
    as_bytes, vectors, *rest = function.args
    for takes_bytes, dot in enumerate([dot_words] + [dot_bytes] * variant.takes_bytes):
        with builder.if_then(builder.icmp_signed("==", as_bytes, I64(takes_bytes))):
            for count in range(1, variant.vectors + 1):
                with builder.if_then(builder.icmp_signed("==", vectors, I64(count))):
                    _emit_tile(builder, dot, variant.lanes, count, rest)
    builder.ret_void()
    return function


def make_tile(variant: Variant) -> Any:
    """Return ``tile(as_bytes, vectors, a, a_row, b, b_vector, units, start, c, c_row)`` of a variant, for kernels.

    It writes int32 sums over ``units`` units, at least one: ``TILE_ROWS`` rows of ``vectors * lanes`` columns. Every
    row's sums begin with the row of int32 at start. a, b, start and c are addresses and need no alignment; a_row and
    c_row are the bytes from one row to the next. b has ``lanes`` units, one for each column, for each unit of k;
    b_vector is the bytes from one vector of columns to the next. ``as_bytes``: whether the units are bytes.
    """

    @intrinsic
    def tile(
        typing_context: Any, as_bytes: Any, vectors: Any, a: Any, a_row: Any, b: Any, b_vector: Any, units: Any,
        start: Any, c: Any, c_row: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.call(_tile_function(builder.module, variant), arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return tile


VARIANT = VARIANTS[available()[0]]
"""The variant that the engine uses."""
tile = make_tile(VARIANT)
