"""Matrix products of narrow integers: operands are packed as `npusim.engine.dot.tile` reads them, then multiplied.

b is packed once, column by column. a is packed anew for each block of rows, which then meets all columns of b while it
lies in the second cache. Whatever the elements are in memory (4, 6, 8 or 16 bits, any stride and alignment), packing
makes units of bytes or of 16-bit words of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import inlined, kernel
from npusim.engine.dot import TILE_ROWS, VARIANT, tile
from npusim.engine.threads import in_threads

BLOCK_ROWS = 8 * TILE_ROWS
"""Rows of a that are packed together: each vector of b that comes from an outer cache serves all of them."""
ROW_GAP = 16
"""Units between two packed rows, so that rows of 4096 bytes do not compete for the same lines of the first cache."""
MACS_PER_OPERATION = 16
"""Multiply-accumulates in the time of one elementary operation of `npusim.engine.threads`."""
LONGEST_K = (2**31 - 1) // (255 * 128)
"""Products of 8 bits whose sum always fits int32."""


class Elements(NamedTuple):
    """Rows of elements in a memory, in batches (i0, i1).

    ``memory``: uint8 (bytes,). Row i starts at byte ``start + i0 * b0 + i1 * b1 + i * row``, with i1 below ``batch1``;
    its elements lie ``step`` bytes apart. ``bits``: 4 or 6, packed as the machine packs them (``step`` then means
    nothing), 8, 16 or 32, in little-endian order; ``signed``: 0 or 1.
    """

    memory: NDArray[np.uint8]
    start: int
    batch1: int
    b0: int
    b1: int
    row: int
    step: int
    bits: int
    signed: int


class Columns(NamedTuple):
    """Operand b, packed.

    ``units``: int32 (batch, vectors, units of k, lanes), zeros behind the last k and the last column; ``sums``: int64
    (batch, n), of the elements of each column; ``as_bytes``: 1 where a unit is four bytes, 0 where it is two words.
    """

    units: NDArray[np.int32]
    sums: NDArray[np.int64]
    as_bytes: int


@inlined
def copy(source: Any, out: Any) -> None:
    """Convert every element; a loop, because Numba's assignment to a slice does not become vector instructions."""
    for i in range(out.size):
        out[i] = source[i]


@inlined
def _unpack(packed: Any, bits: int, out: Any) -> None:
    """Unpack unsigned elements of 4 or 6 bits; whole groups first, which become vector instructions."""
    done = out.size // 4 * 4 if bits == 6 else out.size // 2 * 2
    if bits == 6:
        for i in range(done // 4):
            low, middle, high = packed[3 * i], packed[3 * i + 1], packed[3 * i + 2]
            out[4 * i] = low & 63
            out[4 * i + 1] = low >> 6 | (middle & 15) << 2
            out[4 * i + 2] = middle >> 4 | (high & 3) << 4
            out[4 * i + 3] = high >> 2
    else:
        for i in range(done // 2):
            out[2 * i], out[2 * i + 1] = packed[i] & 15, packed[i] >> 4
    for i in range(done, out.size):
        byte, shift = i * bits >> 3, i * bits & 7
        value = packed[byte] >> shift
        if shift + bits > 8:
            value |= packed[byte + 1] << (8 - shift)
        out[i] = value & ((1 << bits) - 1)


@inlined
def address(elements: Elements, batch: int, row: int) -> int:
    """Byte at which a row of a batch starts, batches counted through."""
    i0, i1 = batch // elements.batch1, batch % elements.batch1
    return elements.start + i0 * elements.b0 + i1 * elements.b1 + row * elements.row


@inlined
def read_row(elements: Elements, batch: int, row: int, out: Any) -> None:
    """Read one row to ``out`` int16 (k,). Unsigned elements of 16 bits lose 32768."""
    # Slices, because indices that may be negative for all Numba knows keep LLVM from vector instructions.
    k, at, memory = out.size, address(elements, batch, row), elements.memory
    step, bits, signed = elements.step, elements.bits, elements.signed
    if bits < 8:
        sign = signed << (bits - 1)
        _unpack(memory[at : at + (k * bits + 7 >> 3)], bits, out)
        for i in range(k):
            out[i] = (out[i] ^ sign) - sign
        return
    if bits == 16 and step == 2:
        copy(memory[at : at + 2 * k], out.view(np.uint8))
    elif bits == 16:
        for i in range(k):
            out[i] = memory[at + step * i] | memory[at + step * i + 1] << 8
    elif step == 1:
        copy(memory[at : at + k], out)
    else:
        for i in range(k):
            out[i] = memory[at + step * i]
    if bits == 8 and signed:
        for i in range(k):
            out[i] = np.int8(out[i])
    if bits == 16 and not signed:
        for i in range(k):
            out[i] ^= np.int16(-0x8000)


@kernel
def pack_columns(b: Elements, k: int, shifts: Any, as_bytes: int, units: Any, sums: Any, first: int, last: int) -> int:
    """Pack the vectors of columns first..last - 1 to ``units`` and ``sums``, which are those of `Columns`."""
    _, vectors, count, lanes = units.shape
    n = sums.shape[1]
    words = np.zeros(count * (4 if as_bytes else 2), np.int16)
    row = words[:k]
    block = np.zeros((lanes, count), np.int32)
    block_bytes, block_words = block.view(np.int8), block.view(np.int16)
    for index in range(first, last):
        batch, vector = index // vectors, index % vectors
        for lane in range(lanes):
            column = vector * lanes + lane
            if column >= n:
                for i in range(count):
                    block[lane, i] = 0
                continue
            read_row(b, batch, column, row)
            for i in range(shifts.size):
                row[i] <<= shifts[i]
            total = np.int64(0)
            for i in range(k):
                total += row[i]
            sums[batch, column] = total
            if as_bytes:
                for i in range(words.size):
                    block_bytes[lane, i] = words[i]
            else:
                for i in range(words.size):
                    block_words[lane, i] = words[i]
        for unit in range(count):
            for lane in range(lanes):
                units[batch, vector, unit, lane] = block[lane, unit]
    return 0


def pack(b: Elements, batches: int, n: int, k: int, shifts: NDArray[np.int16], as_bytes: bool) -> Columns:
    """Pack operand b. The rows of ``b`` are its columns, n in each batch, of k elements.

    ``shifts``: left shift of each element, (k,), or (0,). The shifted elements fit 16 bits, or 8 with ``as_bytes``.
    """
    vectors, count = -(-n // VARIANT.lanes), -(-k // (4 if as_bytes else 2))
    units = np.empty((batches, vectors, count, VARIANT.lanes), np.int32)
    sums = np.empty((batches, n), np.int64)
    in_threads(pack_columns, batches * vectors, 2 * batches * n * k, b, k, shifts, int(as_bytes), units, sums)
    return Columns(units, sums, int(as_bytes))


@inlined
def multiply(
    left: Any, row: int, rows: int, right: Any, vector: int, vectors: int, unit: int, units: int, as_bytes: int,
    start: Any, c: int, c_row: int,
) -> None:  # fmt: skip
    """Multiply packed rows from ``row`` on by ``vectors`` vectors of columns, over ``units`` units from ``unit`` on.

    left: int32 (rows, units and gap); right: int32 (vectors, units, lanes); start: int32 (columns,), which the sums
    begin with; c, c_row: address of the result and bytes between its rows. All of the last tile's rows are written.
    """
    a_row, b_unit = left.shape[1] * 4, right.shape[2] * 4
    b_vector = right.shape[1] * b_unit
    a = left.ctypes.data + row * a_row + unit * 4
    b = right.ctypes.data + vector * b_vector + unit * b_unit
    for r in range(0, rows, TILE_ROWS):
        tile(
            as_bytes, vectors, a + r * a_row, a_row, b, b_vector, units, start[vector * right.shape[2] :].ctypes.data,
            c + r * c_row, c_row,
        )  # fmt: skip


@kernel
def product(
    a: Elements, k: int, units: Any, as_bytes: int, panel: int, start: Any, out: Any, first: int, last: int
) -> int:
    """Write rows of ``out`` int32 (m, n): the product of 8-bit rows and packed columns, plus ``start``.

    It does the groups of ``TILE_ROWS`` rows first..last - 1. ``panel``: vectors of columns that a tile takes.
    """
    m, n = out.shape
    _, vectors, count, lanes = units.shape
    left = np.zeros((BLOCK_ROWS, count + ROW_GAP), np.int32)
    left_bytes, left_words = left.view(np.uint8), left.view(np.int16)
    edge = np.empty((BLOCK_ROWS, panel * lanes), np.int32)
    flip = np.uint8(0x80 * a.signed)
    end = min(last * TILE_ROWS, m)
    for top in range(first * TILE_ROWS, end, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, end - top)
        for r in range(rows):
            if as_bytes:
                at = address(a, 0, top + r)
                source, row = a.memory[at : at + k], left_bytes[r]
                for i in range(k):
                    row[i] = source[i] ^ flip
            else:
                read_row(a, 0, top + r, left_words[r, :k])
        for vector in range(0, vectors, panel):
            wide, column = min(panel, vectors - vector), vector * lanes
            width = min(n - column, wide * lanes)
            # Whole tiles go to their place; the others hold more rows or columns than there are.
            whole = rows // TILE_ROWS * TILE_ROWS if width == wide * lanes else 0
            place = out.ctypes.data + (top * n + column) * 4
            multiply(left, 0, whole, units[0], vector, wide, 0, count, as_bytes, start, place, n * 4)
            place = edge.ctypes.data
            multiply(
                left, whole, rows - whole, units[0], vector, wide, 0, count, as_bytes, start, place, edge.shape[1] * 4
            )
            for r in range(whole, rows):
                copy(edge[r - whole], out[top + r, column : column + width])
    return 0


def pack_weights(b: NDArray[np.int8]) -> Columns:
    """Pack weights (k, n) for any number of calls of `gemm`. Raises ValueError beyond `LONGEST_K`, or if not int8."""
    if b.ndim != 2 or b.dtype != np.int8:
        raise ValueError(f"weights are {b.dtype}{list(b.shape)}; allowed: int8 (k, n)")
    k, n = b.shape
    if not 1 <= k <= LONGEST_K:
        raise ValueError(f"k = {k}: allowed 1..{LONGEST_K}, where sums of products of 8 bits fit int32")
    return pack(_rows(b.T), 1, n, k, np.zeros(0, np.int16), VARIANT.takes_bytes)


def gemm(a: NDArray[Any], b: Columns) -> NDArray[np.int32]:
    """Return the exact product int32 (m, n) of uint8 or int8 ``a`` (m, k) and of b (k, n) from `pack_weights`.

    Raises ValueError for another type of ``a``, or a k that needs another number of units than b has.
    """
    per_unit = 4 if b.as_bytes else 2
    if a.ndim != 2 or a.dtype not in (np.uint8, np.int8) or -(-a.shape[1] // per_unit) != b.units.shape[2]:
        raise ValueError(f"a is {a.dtype}{list(a.shape)}; allowed: uint8 or int8 (m, k) with the k of the weights")
    (m, k), n, rows = a.shape, b.sums.shape[1], _rows(a)
    start = np.zeros(b.units.shape[1] * VARIANT.lanes, np.int32)
    if rows.signed and b.as_bytes:  # a + 128 is multiplied instead of a
        start[:n] = -128 * b.sums[0]
    out = np.empty((m, n), np.int32)
    work = m * n * k // MACS_PER_OPERATION
    in_threads(product, -(-m // TILE_ROWS), work, rows, k, b.units, b.as_bytes, VARIANT.vectors, start, out)
    return out


def _rows(values: NDArray[Any]) -> Elements:
    """The rows of a matrix of 8-bit elements, copied where they are not contiguous."""
    memory = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    return Elements(memory, 0, 1, 0, 0, values.shape[1], 1, 8, int(values.dtype == np.int8))
