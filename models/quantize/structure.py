"""What a method decides by its name and settings alone, before any weight or statistic is seen: bits, sets, ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import ModelError
from models.grid import Int64
from models.quantize.methods import Method, get_method
from models.quantize.overrides import ACT_BITS, PROMPT_CLASS, WEIGHT_BITS, Override, check_bits, check_overrides
from models.quantize.ranges import Ranges, check_ranges, refine

SIDE_LINEARS = ("x_embedder.proj", "y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2", "final_layer.linear")
SIDE_WEIGHT_BITS = 8
SIDE_ACT_BITS = 16
DEFAULT_ALPHA = 0.5
"""Where none is asked for and none was searched: as SmoothQuant's authors and, in effect, PTQ4DiT use it."""


def runs_per_prompt(name: str) -> bool:
    """Whether a linear runs once per prompt, not in every step."""
    return name.startswith("y_embedder.") or name.endswith(PROMPT_CLASS)


def follows_ranges(name: str) -> bool:
    """Whether a linear's parameters may differ by time range.

    Not where 16 bits leave nothing to gain, nor where the layer runs once for all steps.
    """
    return not (name in SIDE_LINEARS or runs_per_prompt(name))


def checked_settings(
    name: str, bits: tuple[int, int], ranges: Ranges | None, alpha: float | None, overrides: Sequence[Override],
    steps: int,
) -> tuple[Method, Ranges, float | None]:  # fmt: skip
    """The method of that name, and its time ranges and exponent, None replaced by what it takes by default.

    Raises:
        ModelError: unknown method, or bits, ranges, alpha or overrides that are not allowed.
    """
    method = get_method(name)
    check_bits("weight_bits", bits[0], WEIGHT_BITS)
    check_bits("act_bits", bits[1], ACT_BITS)
    check_overrides(overrides, steps)
    return method, check_ranges(method, ranges, steps), _checked_alpha(method, alpha)


def _checked_alpha(method: Method, alpha: float | None) -> float | None:
    if alpha is None:
        return DEFAULT_ALPHA if method.smooths_by_default else None
    if method.average is None:
        raise ModelError(f"alpha={alpha}: method '{method.name}' does not smooth; leave it out")
    if not (math.isfinite(alpha) and 0.0 < alpha <= 1.0):
        raise ModelError(f"alpha={alpha}: allowed is a number above 0 and up to 1")
    return float(alpha)


@dataclass(frozen=True)
class Structure:
    """Method and settings, and what follows from them.

    bits: (weight bits, activation bits) of the block linears. alpha: smoothing exponent, None without smoothing.
    coarse: (steps,) the method's time ranges; range_of_step: split further where overrides change the bits.
    coarse_of_range: (R,) the method's range that each range lies in.
    """

    method: Method
    bits: tuple[int, int]
    alpha: float | None
    overrides: tuple[Override, ...]
    coarse: Int64
    range_of_step: Int64
    coarse_of_range: Int64

    def smooths(self, name: str) -> bool:
        """Whether a linear's input channels are divided."""
        return self.alpha is not None and name not in SIDE_LINEARS

    def one_smoothing(self, name: str) -> bool:
        """Whether all ranges divide a linear's input channels by the same, but for shifts."""
        return self.method.shifts or not self.method.smooths_ranges or runs_per_prompt(name)

    def shifts(self, name: str) -> bool:
        """Whether a linear's input channels are shifted."""
        return self.method.shifts and self.smooths(name)

    def finds_grids(self, name: str) -> bool:
        """Whether a linear's input is quantized at run time, row by row."""
        return self.method.dynamic and name not in SIDE_LINEARS

    def layer_bits(self, name: str, time_range: int) -> tuple[int, int]:
        """(weight bits, activation bits) of a linear in a range."""
        if name in SIDE_LINEARS:
            return SIDE_WEIGHT_BITS, SIDE_ACT_BITS
        weight_bits, act_bits = self.bits
        layer_class = name.split(".", 2)[2]
        step = int(np.argmax(self.range_of_step == time_range))
        for override in self.overrides:
            if override.covers(layer_class, step):
                weight_bits = override.weight_bits or weight_bits
                act_bits = override.act_bits or act_bits
        return weight_bits, act_bits

    def sets(self, name: str) -> tuple[list[tuple[int, int]], Int64]:
        """The weight sets of a linear, each (index of its smoothing, bits), and (R,) which of them a range uses."""
        wanted = []
        for time_range, coarse in enumerate(self.coarse_of_range):
            own = self.smooths(name) and not self.one_smoothing(name)
            wanted.append((int(coarse) if own else 0, self.layer_bits(name, time_range)[0]))
        different = list(dict.fromkeys(wanted))
        return different, np.array([different.index(one) for one in wanted], np.int64)


def refined(coarse: Int64, overrides: Sequence[Override]) -> tuple[Int64, Int64]:
    """`Structure.range_of_step` and `coarse_of_range`: the method's ranges, split where overrides begin or end."""
    active = [tuple(o.steps is not None and o.steps[0] <= step <= o.steps[1] for o in overrides)
              for step in range(len(coarse))]  # fmt: skip
    return refine(coarse, active)
