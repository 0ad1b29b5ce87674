"""LNSTAT and LNAPPLY."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import clamp, rescale, rsqrt
from npusim.engine.threads import in_threads
from npusim.engine.windows import gather, limits, put, scratch
from npusim.isa.encoding import Decoded
from npusim.isa.layernorm import input_rows, modulation, output_rows, records, statistics_of


@kernel
def measure(a: Any, epsilon: int, out: Any, first: int, last: int) -> int:
    """Sum, and mantissa and shift of ``1 / sqrt(cols * sum(a^2) - sum(a)^2 + epsilon)``, to ``out`` int32 (rows, 3)."""
    for i in range(first, last):
        total, squares = np.int64(0), np.int64(0)
        for j in range(a.shape[1]):
            value = np.int64(a[i, j])
            total += value
            squares += value * value
        mantissa, shift = rsqrt(a.shape[1] * squares - total * total + epsilon)
        out[i, 0], out[i, 1], out[i, 2] = total, mantissa, shift
    return 0


@kernel
def modulate(
    a: Any, statistics: Any, g: Any, b: Any, fraction_bits: int, shift: int, zero_point: int, low: int, high: int,
    out: Any, first: int, last: int,
) -> int:  # fmt: skip
    """Normalise with ``statistics`` int64 (rows, 3); ``out = clamp(rescale(n * g + b, 1, shift) + zero_point)``.

    Returns how many results the last clamp changed.
    """
    cols, clamped = a.shape[1], 0
    for i in range(first, last):
        total, mantissa, down = statistics[i, 0], statistics[i, 1], max(statistics[i, 2] - fraction_bits, 1)
        for j in range(cols):
            n = clamp(rescale(cols * a[i, j] - total, mantissa, down), -32768, 32767)
            exact = rescale(n * g[j] + b[j], 1, shift) + zero_point
            out[i, j] = clamp(exact, low, high)
            clamped += exact < low or exact > high
    return clamped


def execute_statistics(state: Any, ins: Decoded) -> None:
    a, out, statistics = gather(input_rows(state, ins)), np.empty((ins.rows, 3), np.int32), records(state, ins)
    in_threads(measure, len(a), a.size, a, ins.epsilon, out)
    statistics["sum"], statistics["mantissa"], statistics["shift"] = out.T


def execute_apply(state: Any, ins: Decoded) -> None:
    target = output_rows(state, ins)
    a, out, (low, high) = gather(input_rows(state, ins)), scratch(target.shape), limits(ins.out_dtype)
    statistics = np.concatenate(statistics_of(state, ins), axis=1)
    parameters = ins.fraction_bits, ins.shift, ins.out_zp, low, high
    clamped = in_threads(modulate, len(a), 2 * a.size, a, statistics, *modulation(state, ins), *parameters, out)
    put(state, ins, target, out, clamped)
