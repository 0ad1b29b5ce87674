"""How many bytes a method's parameters take: what the paper calls the model size.

Counted are the executed linears only (the rest is the same for every method): weights packed to their bits, and beside
them, as a device would store them,

* per weight set: scale (4 bytes) and zero point (1) of every output channel, smoothing (4) of every input channel
  unless it is 1 throughout;
* per time range: scale (4) and zero point (2) of the input, and 2 bits of input shift per input channel where a method
  has them;
* biases, 4 bytes each, once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from models.quantize import QuantizedLinear, QuantizedModel
from models.quantize.weights import QuantizedWeight
from models.stats import executed_linears, input_channels
from models.stdit import STDiT

SCALE_BYTES, WEIGHT_ZERO_POINT_BYTES, INPUT_ZERO_POINT_BYTES, BIAS_BYTES = 4, 1, 2, 4
SHIFT_BITS = 2


@dataclass(frozen=True)
class ModelSize:
    """Bytes.

    weight_sets: of the linear that has most; weight_bytes: packed weights of all sets; parameter_bytes: all else.
    """

    weight_sets: int
    weight_bytes: int
    parameter_bytes: int

    def as_dict(self) -> dict[str, int]:
        """By name, with the sum."""
        return asdict(self) | {"total_bytes": self.weight_bytes + self.parameter_bytes}


def float_size(model: STDiT, bytes_each: int) -> ModelSize:
    """Of the same linears in floating point."""
    linears = executed_linears(model).values()
    weights = sum(len(linear.weight) * input_channels(linear) for linear in linears)
    biases = sum(len(linear.weight) for linear in linears)
    return ModelSize(1, bytes_each * weights, bytes_each * biases)


def quantized_size(model: QuantizedModel) -> ModelSize:
    """Of a quantized model, all weight sets and ranges together."""
    linears = model.linears.values()
    weights = sum(_packed_bytes(weight) for linear in linears for weight in linear.weights)
    sets = sum(_set_bytes(weight) for linear in linears for weight in linear.weights)
    ranges = sum(_range_bytes(linear) * _ranges(linear) for linear in linears)
    biases = sum(BIAS_BYTES * len(linear.bias) for linear in linears)
    return ModelSize(max(len(linear.weights) for linear in linears), weights, sets + ranges + biases)


def _packed_bytes(weight: QuantizedWeight) -> int:
    return math.ceil(weight.q.size * weight.bits / 8)


def _set_bytes(weight: QuantizedWeight) -> int:
    smoothing = SCALE_BYTES * len(weight.smoothing) if (weight.smoothing != 1.0).any() else 0
    return (SCALE_BYTES + WEIGHT_ZERO_POINT_BYTES) * len(weight.scale) + smoothing


def _ranges(linear: QuantizedLinear) -> int:
    """Different parameter sets of a linear's input; a linear that runs once per prompt has one."""
    if linear.dynamic:
        return 0
    shifts = linear.input_shift
    rows = [b""] * len(linear.act_scale) if shifts is None else [row.tobytes() for row in shifts]
    return len(set(zip(linear.act_scale.tolist(), linear.act_zp.tolist(), rows, strict=True)))


def _range_bytes(linear: QuantizedLinear) -> int:
    shift = 0 if linear.input_shift is None else math.ceil(SHIFT_BITS * linear.input_shift.shape[1] / 8)
    return SCALE_BYTES + INPUT_ZERO_POINT_BYTES + shift
