"""Weights in the form the kernels read, kept for the next instruction that finds the same bytes in SRAM.

Row tiles of a layer stream through the same weights, and a program that works by blocks of rows loads the same weights
several times; packing them costs about as much as multiplying a tile by them. An entry is looked up by shape and first
bytes and used only where all bytes are equal, so nothing needs to know who wrote to SRAM in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from npusim.engine import gemm
from npusim.engine.gemm import Columns, Elements

LIMIT_BYTES = 1 << 26
"""Of weights and packed weights that are kept: more than a block of STDiT-XL/2 has, 27 MB and as much packed."""
LEAST_BYTES = 1 << 12
SAMPLE_BYTES = 64

_lock = Lock()
_kept: OrderedDict[Hashable, tuple[bytes, Columns]] = OrderedDict()
_kept_bytes = 0


def packed(b: Elements, batches: int, n: int, k: int, shifts: NDArray[np.int16], as_bytes: bool) -> Columns:
    """As `npusim.engine.gemm.pack`, from what is kept where it is there. Arguments as of ``pack``."""
    row = (k * b.bits + 7) // 8
    if batches != 1 or b.row != row or (b.bits >= 8 and b.step * 8 != b.bits) or n * row < LEAST_BYTES:
        return gemm.pack(b, batches, n, k, shifts, as_bytes)
    place = b.memory[b.start : b.start + n * row]
    key = n, k, b.bits, as_bytes, shifts.tobytes(), place[:SAMPLE_BYTES].tobytes()
    content = place.tobytes()
    with _lock:
        found = _kept.get(key)
        if found is not None and found[0] == content:
            _kept.move_to_end(key)
            return found[1]
    columns = gemm.pack(b, batches, n, k, shifts, as_bytes)
    _keep(key, content, columns)
    return columns


def _keep(key: Hashable, content: bytes, columns: Columns) -> None:
    """Keep an entry in place of one with the same key; drop those unused for longest beyond ``LIMIT_BYTES``."""
    global _kept_bytes
    with _lock:
        replaced = _kept.pop(key, None)
        _kept[key] = content, columns
        _kept_bytes += _size(_kept[key]) - (0 if replaced is None else _size(replaced))
        while _kept_bytes > LIMIT_BYTES:
            _kept_bytes -= _size(_kept.popitem(last=False)[1])


def _size(entry: tuple[bytes, Columns]) -> int:
    return len(entry[0]) + entry[1].units.nbytes + entry[1].sums.nbytes
