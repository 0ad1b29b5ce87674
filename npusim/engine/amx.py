"""Products of bytes on processors that multiply whole tiles (AMX): 16 rows by 64 bytes, by 64 bytes of 16 columns.

The operands are packed as for `npusim.engine.dot`: a vector of 16 columns is one tile for each 16 units of k. The sums
are int32 and wrap, as there. 16-bit elements are multiplied as bytes, too: four products for low and high bytes of a
and of b. Linux gives a process the tiles' registers on request only.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.registry import cpu_target

from npusim.engine.dot import I8, I64, VARIANT, get_or_insert_function, out_of_line
from npusim.engine.native import intrinsic

ROWS, UNITS = 16, 16
TILE_BYTES = 1024
FEATURES = ("+amx-tile", "+amx-int8")
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
POINTER, NOTHING = I8.as_pointer(), ir.VoidType()


def _compiles() -> bool:
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    present = features.split(",")
    return VARIANT.takes_bytes and VARIANT.lanes == UNITS and all(feature in present for feature in FEATURES)


COMPILES = _compiles()
"""Whether Numba compiles for a processor that has tiles."""


def _shape() -> Any:
    """What LDTILECFG loads: eight tiles of 16 rows of 64 bytes."""
    shape = np.zeros(64, np.uint8)
    shape[0] = 1
    shape[16:32].view(np.uint16)[:] = 64
    shape[48:56] = ROWS
    return shape


SHAPE = _shape()


@cache
def available() -> bool:
    """Whether this process may use tiles."""
    if not COMPILES or sys.platform != "linux":
        return False
    return int(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)) == 0


def _call(builder: Any, name: str, *arguments: Any) -> None:
    if COMPILES:
        kind = ir.FunctionType(NOTHING, [value.type for value in arguments])
        builder.call(get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


@intrinsic
def configure(typing_context: Any, shape: Any) -> Any:
    """Take the tiles' registers in the shape at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "ldtilecfg", builder.inttoptr(arguments[0], POINTER))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(typing_context: Any) -> Any:
    """Give them back: a thread that holds them is dear to switch."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, POINTER)


@contextmanager
def _blocks(builder: Any, a: Any, b: Any, blocks: Any) -> Iterator[tuple[Any, Any]]:
    """Emit a loop over ``blocks`` of k, at least one: what is emitted inside, with the places of a and b."""
    before, loop, after = builder.block, builder.append_basic_block("blocks"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    block = builder.phi(I64)
    yield builder.add(a, builder.mul(block, I64(4 * UNITS))), builder.add(b, builder.mul(block, I64(TILE_BYTES)))
    following = builder.add(block, I64(1))
    block.add_incoming(I64(0), before)
    block.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, blocks), loop, after)
    builder.position_at_end(after)


def _emit(builder: Any, tall: int, wide: int, arguments: Any) -> None:
    """Emit the loop over k for ``tall`` tiles of rows by ``wide`` of columns; tiles 0..3 hold sums, then a, then b."""
    a, a_row, b, b_vector, blocks, start, c, c_row = arguments

    for row in range(tall):
        for column in range(wide):
            # A stride of 0 repeats one row.
            _call(
                builder,
                "tileloadd64",
                I8(2 * row + column),
                _pointer(builder, builder.add(start, I64(64 * column))),
                I64(0),
            )
    with _blocks(builder, a, b, blocks) as (a_at, b_at):
        for column in range(wide):
            place = builder.add(b_at, builder.mul(b_vector, I64(column)))
            _call(builder, "tileloadd64", I8(6 + column), _pointer(builder, place), I64(64))
        for row in range(tall):
            place = builder.add(a_at, builder.mul(a_row, I64(ROWS * row)))
            _call(builder, "tileloadd64", I8(4 + row), _pointer(builder, place), a_row)
            for column in range(wide):
                _call(builder, "tdpbusd", I8(2 * row + column), I8(4 + row), I8(6 + column))
    for row in range(tall):
        for column in range(wide):
            place = builder.add(builder.add(c, builder.mul(c_row, I64(ROWS * row))), I64(64 * column))
            _call(builder, "tilestored64", I8(2 * row + column), _pointer(builder, place), c_row)


def _multiply(module: Any) -> Any:
    function, builder = out_of_line(module, ir.FunctionType(NOTHING, [I64] * 10), "multiply_tiles")
    if builder is None:
        return function
    tall, wide, *rest = function.args
    for rows in (1, 2):
        for columns in (1, 2):
            matches = builder.and_(
                builder.icmp_signed("==", tall, I64(rows)), builder.icmp_signed("==", wide, I64(columns))
            )
            with builder.if_then(matches):
                _emit(builder, rows, columns, rest)
    builder.ret_void()
    return function


@intrinsic
def multiply_tiles(
    typing_context: Any, tall: Any, wide: Any, a: Any, a_row: Any, b: Any, b_vector: Any, blocks: Any, start: Any,
    c: Any, c_row: Any,
) -> Any:  # fmt: skip
    """As `npusim.engine.dot.tile` for bytes: 16 rows or 32 by one vector of columns or two, ``blocks`` of 16 units."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(_multiply(builder.module), arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


def _emit_digits(builder: Any, arguments: Any) -> None:
    """Emit one tile's loop over k; tiles 0..3 hold sums, 4 and 5 low and high bytes of a, 6 and 7 of b."""
    a, a_high, a_row, b, b_high, blocks, c, c_plane, c_row = arguments

    for tile in range(4):
        _call(builder, "tilezero", I8(tile))
    with _blocks(builder, a, b, blocks) as (a_at, b_at):
        for tile, place, row in (
            (4, a_at, a_row), (6, b_at, I64(64)), (5, builder.add(a_at, a_high), a_row),
            (7, builder.add(b_at, b_high), I64(64)),
        ):  # fmt: skip
            _call(builder, "tileloadd64", I8(tile), _pointer(builder, place), row)
        for tile, (name, left, right) in enumerate((("uu", 4, 6), ("us", 4, 7), ("su", 5, 6), ("ss", 5, 7))):
            _call(builder, f"tdpb{name}d", I8(tile), I8(left), I8(right))
    for tile in range(4):
        _call(
            builder, "tilestored64", I8(tile), _pointer(builder, builder.add(c, builder.mul(c_plane, I64(tile)))), c_row
        )


@intrinsic
def multiply_digits(
    typing_context: Any, a: Any, a_high: Any, a_row: Any, b: Any, b_high: Any, blocks: Any, c: Any, c_plane: Any,
    c_row: Any,
) -> Any:  # fmt: skip
    """Multiply 16 rows of signed words by one vector of columns; low bytes lie at ``a``, ``b``, high ones behind.

    Writes four planes of sums, ``c_plane`` bytes apart: low by low, low by high, high by low, high by high bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, body = out_of_line(builder.module, ir.FunctionType(NOTHING, [I64] * 9), "multiply_digits")
        if body is not None:
            _emit_digits(body, function.args)
            body.ret_void()
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate
