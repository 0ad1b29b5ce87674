"""EWLIN and EWMUL, row by row; integer multipliers and bias are per channel, an immediate repeated."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.engine.cache import kernel
from npusim.engine.scalar import clamp, rescale
from npusim.engine.threads import in_threads
from npusim.engine.windows import gather, limits, put, scratch
from npusim.isa.elementwise import bias, multiplier, operand
from npusim.isa.encoding import NO_ADDRESS, Decoded


@kernel
def linear(
    a: Any, b: Any, a_mul: Any, b_mul: Any, offset: Any, shift: int, zero_point: int, low: int, high: int,
    out: Any, first: int, last: int,
) -> int:  # fmt: skip
    """``out = clamp(rescale(a * a_mul + b * b_mul + offset, 1, shift) + zero_point)`` for rows first..last - 1.

    Returns how many results the clamp changed.
    """
    clamped = 0
    for i in range(first, last):
        for j in range(a.shape[1]):
            total = a[i, j] * a_mul[j] + b[i, j] * b_mul[j] + offset[j]
            exact = rescale(total, 1, shift) + zero_point
            out[i, j] = clamp(exact, low, high)
            clamped += exact < low or exact > high
    return clamped


@kernel
def product(a: Any, b: Any, shift: int, zero_point: int, low: int, high: int, out: Any, first: int, last: int) -> int:
    """``out = clamp(rescale(a * b, 1, shift) + zero_point)`` for rows first..last - 1; returns as ``linear``."""
    clamped = 0
    for i in range(first, last):
        for j in range(a.shape[1]):
            exact = rescale(np.int64(a[i, j]) * np.int64(b[i, j]), 1, shift) + zero_point
            out[i, j] = clamp(exact, low, high)
            clamped += exact < low or exact > high
    return clamped


def _channels(value: Any, cols: int) -> Any:
    return np.full(cols, value, np.int64)


def execute_linear(state: Any, ins: Decoded) -> None:
    target = operand(state, ins, "out")
    a, out, (low, high) = gather(operand(state, ins, "a")), scratch(target.shape), limits(ins.out_dtype)
    a_mul, offset = _channels(multiplier(state, ins, "a"), ins.cols), _channels(bias(state, ins), ins.cols)
    if ins.b_addr == NO_ADDRESS:
        b, b_mul = a, _channels(0, ins.cols)
    else:
        b, b_mul = gather(operand(state, ins, "b")), _channels(multiplier(state, ins, "b"), ins.cols)
    parameters = a_mul, b_mul, offset, ins.shift, ins.out_zp, low, high
    put(state, ins, target, out, in_threads(linear, len(a), a.size, a, b, *parameters, out))


def execute_product(state: Any, ins: Decoded) -> None:
    target = operand(state, ins, "out")
    a, b = gather(operand(state, ins, "a")), gather(operand(state, ins, "b"))
    out, (low, high) = scratch(target.shape), limits(ins.out_dtype)
    clamped = in_threads(product, len(a), a.size, a, b, ins.shift, ins.out_zp, low, high, out)
    put(state, ins, target, out, clamped)
