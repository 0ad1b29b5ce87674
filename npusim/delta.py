"""A code for a parameter set as its difference to the set before: what storage may hold instead of the set.

Simple enough for hardware: one pass, no tables, a byte of state. `npusim.isa.storage_dma` states the code, whose
decoder FETCH has; here are encoder and decoder as kernels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from npusim.engine.cache import kernel
from npusim.errors import UserError
from npusim.isa.storage_dma import BLOCK, MOST_ZEROS, RAW, ZEROS

Bytes = NDArray[np.uint8]


@kernel
def _put(out: Bytes, bit: int, count: int, value: int) -> int:
    """Write ``count`` bits of ``value``, lowest first, at ``bit``; the next free bit."""
    for index in range(count):
        if (value >> index) & 1:
            out[(bit + index) >> 3] |= np.uint8(1 << ((bit + index) & 7))
    return bit + count


@kernel
def _encode(numbers: Bytes, out: Bytes) -> int:
    """Fill ``out``, zeros at first, with the code of ``numbers``; its bytes."""
    at, zeros = 0, 0
    for start in range(0, numbers.size, BLOCK):
        block = numbers[start : start + BLOCK]
        if not block.any():
            if zeros == 0 or zeros == MOST_ZEROS:
                at, zeros = at + 1, 0
            zeros += 1
            out[at - 1] = np.uint8(ZEROS + zeros)
            continue
        zeros, best, least = 0, RAW, 8 * block.size
        for low in range(RAW):
            bits = block.size * (1 + low)
            for number in block:
                bits += number >> low
            if bits < least:
                best, least = low, bits
        out[at] = np.uint8(best)
        bit = 8 * (at + 1)
        for number in block:
            value = int(number)
            if best == RAW:
                bit = _put(out, bit, 8, value)
            else:
                for _ in range(value >> best):
                    bit = _put(out, bit, 1, 1)
                bit = _put(out, bit + 1, best, value & ((1 << best) - 1))
        at = (bit + 7) >> 3
    return at


@kernel
def _decode(coded: Bytes, out: Bytes) -> int:
    """Fill ``out`` with the numbers in ``coded``; bytes used, or -1 where ``coded`` ends before."""
    at, place = 0, 0
    while place < out.size:
        if at >= coded.size:
            return -1
        header = int(coded[at])
        at += 1
        if header > ZEROS:
            for _ in range(min(out.size - place, (header - ZEROS) * BLOCK)):
                out[place] = 0
                place += 1
            continue
        bit = 8 * at
        for _ in range(min(out.size - place, BLOCK)):
            low, high = (8, 0) if header == RAW else (header, 0)
            while header != RAW:
                if bit >> 3 >= coded.size:
                    return -1
                one = (coded[bit >> 3] >> (bit & 7)) & 1
                bit += 1
                if one == 0:
                    break
                high += 1
            if low and (bit + low - 1) >> 3 >= coded.size:
                return -1
            value = high << low if header != RAW else 0
            for index in range(low):
                value |= ((coded[(bit + index) >> 3] >> ((bit + index) & 7)) & 1) << index
            bit += low
            out[place] = np.uint8(value)
            place += 1
        at = (bit + 7) >> 3
    return at


def encode(new: Bytes, old: Bytes) -> Bytes:
    """The code of ``new`` (n,) uint8, given ``old`` of the same size."""
    difference = (new - old).view(np.int8).astype(np.int16)
    numbers = np.where(difference < 0, -2 * difference - 1, 2 * difference).astype(np.uint8)
    out = np.zeros(new.size + -(-new.size // BLOCK), np.uint8)
    return out[: _encode(numbers, out)].copy()


def decode(coded: Bytes, old: Bytes) -> Bytes:
    """The set that ``coded`` stands for, given the one before; bytes behind the code are ignored.

    Raises UserError for code that ends too early.
    """
    numbers = np.zeros(old.size, np.uint8)
    if _decode(coded, numbers) < 0:
        raise UserError(f"code of {coded.size} bytes for a set of {old.size}: it ends too early; allowed: its length")
    wide = numbers.astype(np.int16)
    difference = np.where(wide & 1, -((wide + 1) >> 1), wide >> 1).astype(np.int8)
    return np.asarray(old + difference.view(np.uint8))


def coded_share(sets: NDArray[np.uint8]) -> float | None:
    """Bytes of the codes of all sets (count, n) but the first over those of the sets; None where there are none."""
    if len(sets) < 2 or not sets.shape[1]:
        return None
    coded = sum(encode(new, old).size for old, new in pairwise(sets))
    return float(coded / (sets.size - sets.shape[1]))
