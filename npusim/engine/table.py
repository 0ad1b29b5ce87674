"""TABLE, interpolating lookup and rescale; TABLE8, a lookup."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import INT32_HIGH, INT32_LOW, clamp, rescale, table_lookup_16
from npusim.engine.threads import in_threads
from npusim.engine.windows import gather, limits, put, scratch
from npusim.isa.encoding import Decoded
from npusim.isa.table import operands, output


@kernel
def look_up(
    a: Any, table: Any, multiplier: int, shift: int, zero_point: int, low: int, high: int,
    out: Any, first: int, last: int,
) -> int:  # fmt: skip
    """``out = requantize(table_lookup_16(a))`` for rows first..last - 1; ``table`` is int64 (513,).

    Returns how many results a clamp changed.
    """
    clamped = 0
    for i in range(first, last):
        for j in range(a.shape[1]):
            out[i, j] = table_lookup_16(np.int64(a[i, j]), table)
        # A loop of its own: the compiler vectorises two short loops, not one long one.
        for j in range(a.shape[1]):
            scaled = rescale(np.int64(out[i, j]), multiplier, shift)
            result = clamp(clamp(scaled, INT32_LOW, INT32_HIGH) + zero_point, low, high)
            out[i, j] = result
            clamped += result != scaled + zero_point
    return clamped


def execute(state: Any, ins: Decoded) -> None:
    source, table = operands(state, ins)
    target = output(state, ins)
    a, out, (low, high) = gather(source), scratch(target.shape), limits(ins.out_dtype)
    parameters = table.astype(np.int64), ins.multiplier, ins.shift, ins.out_zp, low, high
    put(state, ins, target, out, in_threads(look_up, len(a), a.size, a, *parameters, out))
