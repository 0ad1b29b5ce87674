"""RTQUANT."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import clamp, normalised_multiplier, reciprocal, rescale
from npusim.engine.threads import in_threads
from npusim.engine.windows import gather, put, scratch
from npusim.isa.encoding import Decoded
from npusim.isa.runtime_quantization import levels, operands


@kernel
def quantize(a: Any, top: int, factor: int, shift: int, out: Any, scalars: Any, first: int, last: int) -> int:
    """Quantize rows first..last - 1; zero point, multiplier and shift of each to ``scalars`` int32 (rows, 3).

    Returns how many results the clamp changed.
    """
    clamped = 0
    for i in range(first, last):
        low, high = np.int64(0), np.int64(0)
        for j in range(a.shape[1]):
            low, high = min(low, np.int64(a[i, j])), max(high, np.int64(a[i, j]))
        reach = max(high - low, np.int64(1))
        mantissa, down = reciprocal(reach)
        zero_point = rescale(-low * top, mantissa, down)
        for j in range(a.shape[1]):
            exact = rescale(a[i, j] * top, mantissa, down) + zero_point
            out[i, j] = clamp(exact, 0, top)
            clamped += exact < 0 or exact > top
        scalars[i, 0] = zero_point
        scalars[i, 1], scalars[i, 2] = normalised_multiplier(reach * factor, shift, 16)
        if low == high:
            scalars[i, 1], scalars[i, 2] = 0, 1
    return clamped


def execute(state: Any, ins: Decoded) -> None:
    source, target, records = operands(state, ins)
    a, out, scalars = gather(source), scratch(target.shape), np.empty((ins.rows, 3), np.int32)
    clamped = in_threads(quantize, len(a), 2 * a.size, a, levels(ins), ins.multiplier, ins.shift, out, scalars)
    put(state, ins, target, out, clamped)
    records["zero_point"], records["multiplier"], records["shift"] = scalars.T
