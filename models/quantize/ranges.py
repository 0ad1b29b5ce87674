"""Time ranges: groups of consecutive executed steps that share quantization parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.grid import Float64, Int64
from models.quantize.methods import DP_RANGES, Method
from models.stats import CalibrationStats, mean_square

Ranges = int | Sequence[int]
"""A number of ranges, or the first executed step of each (0 first, rising)."""


def parse_ranges(text: str) -> int | tuple[int, ...]:
    """`"4"` is a number of ranges, `"0,5,12"` are the first steps of three.

    Raises:
        ModelError: anything else.
    """
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and len(part) < 6 for part in parts):
        raise ModelError(f"ranges={text[:60]!r}: allowed is a number, as 4, or the first step of each, as 0,5,12")
    numbers = tuple(int(part) for part in parts)
    return numbers[0] if len(numbers) == 1 else numbers


def check_ranges(method: Method, ranges: Ranges | None, steps: int) -> Ranges:
    """The ranges asked for, or the method's own, found possible.

    Raises:
        ModelError: names the value and what is allowed.
    """
    if ranges is None:
        if method.chosen_ranges:
            return min(DP_RANGES, steps)
        return steps if method.stepwise else 1
    if not isinstance(ranges, int):
        _check_starts(ranges, steps)
        if method.chosen_ranges:
            raise ModelError(f"ranges={_text(ranges)}: method '{method.name}' chooses the boundaries; give a number")
        count = len(ranges)
    else:
        allowed = [n for n in range(1, steps + 1) if method.chosen_ranges or steps % n == 0]
        if ranges not in allowed:
            nearest = min(allowed, key=lambda n: abs(n - ranges))
            raise ModelError(f"ranges={ranges}: allowed of {steps} steps: {_text(allowed)}; nearest: {nearest}")
        count = ranges
    if method.dynamic and count != 1:
        raise ModelError(f"ranges={_text(ranges)}: method '{method.name}' has no parameters per range; allowed: 1")
    return ranges


def _check_starts(starts: Sequence[int], steps: int) -> None:
    rising = all(a < b for a, b in pairwise(starts))
    if not starts or starts[0] != 0 or not rising or starts[-1] >= steps:
        raise ModelError(f"ranges={_text(starts)}: first steps must begin with 0 and rise, below {steps}")


def _text(ranges: Ranges) -> str:
    return str(ranges) if isinstance(ranges, int) else ",".join(map(str, ranges))


def range_of_step(ranges: Ranges, steps: int) -> Int64:
    """(steps,) index of each step's range, for a number of equal ranges or their first steps."""
    if isinstance(ranges, int):
        return np.arange(steps) // (steps // ranges)
    return np.searchsorted(np.asarray(ranges), np.arange(steps), side="right") - 1


def choose_ranges(cost: Float64, count: int) -> Int64:
    """Divide the steps into `count` ranges of least total cost, by dynamic programming: (steps,) range of each step.

    Args:
        cost: (steps, steps) float64; cost[i, j] is that of one range of steps i..j, both included.
        count: 1..steps.
    """
    steps = len(cost)
    best = cost[0].copy()  # of the steps 0..j in one range
    first = np.zeros((count, steps), np.int64)
    for index in range(1, count):
        # total[i, j]: the last range is i..j, the ones before it divide 0..i-1.
        total = np.full((steps, steps), np.inf)
        for i in range(index, steps):
            total[i, i:] = best[i - 1] + cost[i, i:]
        first[index] = total.argmin(axis=0)
        best = total.min(axis=0)
    found = np.zeros(steps, np.int64)
    end = steps
    for index in range(count - 1, -1, -1):
        start = int(first[index, end - 1])
        found[start:end] = index
        end = start
    return found


def range_costs(
    stats: CalibrationStats, names: Iterable[str], act_bits: int, scales: Callable[[str, slice], Float64]
) -> Float64:
    """Activation noise of every possible range (steps, steps), from the calibration statistics; inf below the diagonal.

    A grid of step D rounds a value by D^2 / 12 on average; in front of the smoothing, channel j by s_j^2 times that.
    A range's cost is this noise over the mean square of the inputs (from the histograms), over steps and linears.

    Args:
        stats: calibration statistics.
        names: the linears whose grids follow the ranges.
        act_bits: of the activation grids.
        scales: a linear's smoothing scales (K,) if the given steps were one range.
    """
    steps = stats.steps
    cost = np.full((steps, steps), np.inf)
    cost[np.triu_indices(steps)] = 0.0
    for name in names:
        point = f"{name}:in"
        power = mean_square(stats.histogram[point].sum(axis=1))
        weight = np.where(power > 0, 1.0 / np.maximum(power, np.finfo(np.float64).tiny), 0.0)
        low, high = (values[point].astype(np.float64) for values in (stats.channel_min, stats.channel_max))
        for first in range(steps):
            for last in range(first, steps):
                part = slice(first, last + 1)
                scale = scales(name, part)
                noise = _noise(low[part] / scale, high[part] / scale, scale, act_bits)
                cost[first, last] += noise * weight[part].sum()
    return cost


def _noise(low: Float64, high: Float64, scale: Float64, bits: int) -> float:
    step = (max(float(high.max()), 0.0) - min(float(low.min()), 0.0)) / (2**bits - 1)
    return float(step**2 / 12.0 * np.mean(scale**2))


def refine(coarse: Int64, settings: Sequence[object]) -> tuple[Int64, NDArray[np.int64]]:
    """Split ranges further wherever a step's settings differ from those of the step before.

    Returns:
        (steps,) the range of each step, and (ranges,) the coarse range that each lies in.
    """
    fine = np.zeros(len(coarse), np.int64)
    for step in range(1, len(coarse)):
        new = coarse[step] != coarse[step - 1] or settings[step] != settings[step - 1]
        fine[step] = fine[step - 1] + int(new)
    return fine, coarse[np.unique(fine, return_index=True)[1]]
