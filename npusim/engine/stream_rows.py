"""Rows of elements between a memory and int32 arrays, and what handlers of the vector unit ask of an operand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from npusim.engine.cache import helper
from npusim.engine.context import ARENA, ELEMENT_BYTES, I8, I16, I32, U8, U16, Words
from npusim.engine.native import carray, pointer

SIGNATURE = types.int64(types.int64, types.int64)


@helper
def read_values(address: int, kind: int, out: Any, count: int) -> None:
    """Read ``count`` consecutive elements of type number ``kind`` to int32 ``out``."""
    at = pointer(address)
    if kind == I16:
        i16 = carray(at, count, np.int16)
        for j in range(count):
            out[j] = i16[j]
    elif kind == I32:
        i32 = carray(at, count, np.int32)
        for j in range(count):
            out[j] = i32[j]
    elif kind == U8:
        u8 = carray(at, count, np.uint8)
        for j in range(count):
            out[j] = u8[j]
    elif kind == I8:
        i8 = carray(at, count, np.int8)
        for j in range(count):
            out[j] = i8[j]
    else:
        u16 = carray(at, count, np.uint16)
        for j in range(count):
            out[j] = u16[j]


@helper
def write_values(address: int, kind: int, values: Any, count: int) -> None:
    """Write int32 ``values``, which fit, as ``count`` consecutive elements of type number ``kind``."""
    at = pointer(address)
    if kind in (I16, U16):
        i16 = carray(at, count, np.int16)
        for j in range(count):
            i16[j] = values[j]
    elif kind == I32:
        i32 = carray(at, count, np.int32)
        for j in range(count):
            i32[j] = values[j]
    else:
        u8 = carray(at, count, np.uint8)
        for j in range(count):
            u8[j] = values[j]


@helper
def aligned(kind: int, start: int, stride0: int, stride1: int) -> bool:
    """Whether elements are of a type that is not packed, and lie at multiples of their size."""
    size = ELEMENT_BYTES[kind]
    return size > 0 and (start | stride0 | stride1) & (size - 1) == 0


@helper
def place32(c: Words, number: int) -> Any:
    """Address of scratch array ``number`` of `scratch32`."""
    return c[ARENA] + (number << 16)


@helper
def place64(c: Words, number: int) -> Any:
    """The same of `scratch64`."""
    return c[ARENA] + (1 << 20) + (number << 17)


@helper
def scratch32(c: Words, number: int, count: int) -> Any:
    """int32 scratch array ``number`` of a handler; arrays of 64 KiB."""
    return carray(pointer(place32(c, number)), count, np.int32)


@helper
def scratch64(c: Words, number: int, count: int) -> Any:
    """int64 scratch array behind the int32 ones; arrays of 128 KiB."""
    return carray(pointer(place64(c, number)), count, np.int64)
