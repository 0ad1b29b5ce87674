"""Values where roundings differ: exact ties and their neighbours, the ends of each range, the edges of saturation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
INT32 = 1 << 31


def bound_of(multiplier: int, shift: int, scale32: bool, bits: int) -> int:
    """Greatest ``b`` such that TOSA defines the rescale of each value of ``bits`` bits in -b - 1 .. b."""
    limit = (1 << (bits - 1)) - 1
    if scale32:
        return min(limit, (1 << (shift - 1)) - 1)
    # The scaled value, and with the output zero point added, must fit int32.
    fits_int32 = ((INT32 - 512) << shift) // max(multiplier, 1)
    return min(limit, fits_int32 - 1)


def values_for(multiplier: int, shift: int, bound: int, count: int, rng: np.random.Generator) -> Array:
    """``count`` int64 values within ``bound``, about half of them directed."""
    zeros = (multiplier & -multiplier).bit_length() - 1 if multiplier else 0
    step = 1 << max(shift - 1 - zeros, 0)  # an odd multiple of it times the multiplier ends in exactly one half
    most = max(bound // step, 1)
    odd = 2 * rng.integers(-(most + 1) // 2, (most + 1) // 2 + 1, count // 4) + 1
    small = 2 * np.arange(-8, 8) + 1
    ties = np.concatenate([odd, small]) * step
    edges = [-bound - 1, -bound, bound, 0]
    for limit in (-(1 << 15), (1 << 15) - 1, -128, 127, 255):
        centre = (limit << shift) // max(multiplier, 1)
        edges += range(centre - 3, centre + 4)
    directed = np.array([*ties.tolist(), *(ties + 1).tolist(), *(ties - 1).tolist(), *edges], dtype=object)
    kept = [v for v in directed.tolist() if -bound - 1 <= v <= bound]
    logarithmic = np.exp2(rng.uniform(0, max(bound, 1).bit_length(), count)).astype(np.int64) * rng.choice(
        [-1, 1], count
    )
    pool = np.array(kept[: count * 3 // 4], np.int64)
    rest = np.concatenate([rng.integers(-bound - 1, bound + 1, count), np.clip(logarithmic, -bound - 1, bound)])
    return np.concatenate([pool, rng.permutation(rest)[: count - pool.size]])


def scales(bits: int, channels: int, least_shift: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Multipliers of ``bits`` bits and shifts, one for each channel: powers of two, ends of the range, random ones."""
    top = (1 << (bits - 1)) - 1
    fixed = [0, 1, 2, 3, top, top - 1, 1 << (bits - 2), (1 << (bits - 2)) + 1]
    powers = (1 << rng.integers(0, bits - 1, channels)).tolist()
    uniform = rng.integers(top // 2, top + 1, channels).tolist()
    multipliers = np.array(
        [m for group in zip(fixed * channels, powers, uniform, strict=False) for m in group][:channels]
    )
    boundary = [2, 3, 8, bits - 2, bits - 1, bits, bits + 1, 31, 32, 33, 62]
    shifts = np.where(rng.integers(0, 2, channels) == 0, rng.choice(boundary, channels), rng.integers(2, 63, channels))
    return multipliers.astype(np.int64), np.maximum(shifts, least_shift).astype(np.int64)


def inputs_for(
    multipliers: Array, shifts: Array, scale32: bool, bits: int, count: int, rng: np.random.Generator
) -> Array:
    """(count, channels) int64, column c directed at the multiplier and shift of channel c."""
    columns = []
    for multiplier, shift in zip(multipliers.tolist(), shifts.tolist(), strict=True):
        columns.append(values_for(multiplier, shift, bound_of(multiplier, shift, scale32, bits), count, rng))
    return np.stack(columns, axis=1)
