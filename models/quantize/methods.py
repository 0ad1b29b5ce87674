"""The methods by name: what each does with weights, activations, smoothing and time ranges.

A name is a base, then `_dp` if the range boundaries are chosen from the calibration statistics instead of equal, then
`_gptq` if weights are rounded by GPTQ instead of to the nearest integer: `asq`, `tsq_gptq`, `tsq_pot_dp_gptq`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum

from models.errors import ModelError

TORCH_ONLY = ("fp32", "fp16")
DP_RANGES = 4
"""Ranges of a `_dp` method where none are asked for."""


class Average(Enum):
    """How a channel's magnitudes at several steps become the one number of Eq. 2; see `models.quantize.smoothing`."""

    RUNNING = "running"
    SALIENCE = "salience"


@dataclass(frozen=True)
class Method:
    """One quantization method.

    name: as the user gives it; base: without suffixes.
    average: of the magnitudes that smoothing is made of; None for a method without smoothing.
    smooths_ranges: each time range has its own smoothing, and by that its own quantized weights.
    shifts: a range's smoothing differs from the shared one by powers of two only, so that weights are shared.
    stepwise: where no ranges are asked for, every step is one; otherwise all steps are.
    dynamic: activations are quantized per token at run time, by what the token holds.
    chosen_ranges, gptq: the suffixes.
    """

    name: str
    base: str
    average: Average | None = None
    smooths_ranges: bool = False
    shifts: bool = False
    stepwise: bool = False
    dynamic: bool = False
    chosen_ranges: bool = False
    gptq: bool = False

    @property
    def smooths_by_default(self) -> bool:
        """Whether a smoothing exponent is used where none is asked for; `dynamic` then does not smooth."""
        return self.average is not None and not self.dynamic


_BASES = (
    Method("dynamic", "dynamic", Average.RUNNING, dynamic=True),
    Method("cw_tw", "cw_tw"),
    Method("tsw", "tsw", stepwise=True),
    Method("asq", "asq", Average.RUNNING),
    Method("tsq", "tsq", Average.RUNNING, smooths_ranges=True, stepwise=True),
    Method("ssq", "ssq", Average.SALIENCE),
    Method("tsq_pot", "tsq_pot", Average.RUNNING, smooths_ranges=True, shifts=True, stepwise=True),
)


def _variants(base: Method) -> list[Method]:
    fields = {name: getattr(base, name) for name in Method.__dataclass_fields__ if name != "name"}
    found = []
    for chosen in (False, True) if base.stepwise else (False,):
        for gptq in (False, True):
            name = base.base + "_dp" * chosen + "_gptq" * gptq
            found.append(Method(name, **{**fields, "chosen_ranges": chosen, "gptq": gptq}))
    return found


METHODS = {method.name: method for base in _BASES for method in _variants(base)}
"""Every method that makes a quantized model, by name."""


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ModelError: there is none, or it is a float method; names the allowed ones, and one that is spelt much alike.
    """
    if name in TORCH_ONLY:
        raise ModelError(f"method '{name}' is floating-point and runs in torch only; allowed: {_allowed()}")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        raise ModelError(f"method '{name}' is unknown; allowed: {_allowed()}{f'; nearest: {near[0]}' if near else ''}")
    return METHODS[name]


def _allowed() -> str:
    stepwise = ", ".join(base.base for base in _BASES if base.stepwise)
    return f"{', '.join(base.base for base in _BASES)}, each with _gptq, and {stepwise} with _dp"
