"""The outline of a quantized model: what a method makes of a network, without weights or calibration statistics.

All shapes, types, bits, weight sets and time ranges are those that `models.quantize.quantize` gives; the numbers are
placeholders. Arrays that grow with the network are one number seen everywhere (stride 0), so they take no memory. A
program compiled from an outline takes the time of the real one (`compiler.compile_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.errors import ModelError
from models.quantize.constants import model_config
from models.quantize.files import attentions, constant_shapes, linear_shapes
from models.quantize.model import QuantizedLinear, QuantizedModel
from models.quantize.overrides import Override
from models.quantize.ranges import Ranges, range_of_step
from models.quantize.structure import Structure, checked_settings, refined
from models.quantize.weights import QuantizedWeight
from models.stats import calibrated_points
from models.stdit import skeleton
from models.workloads import Workload

STEP = 2.0**-6
"""Of every placeholder grid: ratios of such steps are factors that any requantizer can express."""


def outline(
    work: Workload,
    method: str = "cw_tw",
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    ranges: Ranges | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
) -> QuantizedModel:
    """The outline of a workload's model; arguments as of `models.quantize.quantize`.

    Raises:
        ModelError: as `quantize`; or a method that chooses its ranges by calibration statistics.
    """
    bits, steps = (weight_bits, act_bits), work.num_steps
    known, ranges, alpha = checked_settings(method, bits, ranges, alpha, overrides, steps)
    if known.chosen_ranges:
        raise ModelError(
            f"method '{method}' chooses its time ranges by calibration statistics, which an outline has not; "
            f"allowed: '{method.replace('_dp', '')}', with the ranges' first steps given"
        )
    coarse = range_of_step(ranges, steps)
    plan = Structure(known, bits, alpha, tuple(overrides), coarse, *refined(coarse, overrides))
    network = skeleton(work.network)
    count = len(plan.coarse_of_range)
    shapes = linear_shapes(network)
    points = [*calibrated_points(network), *(f"{name}:divided" for name in shapes if plan.finds_grids(name))]
    settings = {"num_sampling_steps": steps, "cfg_scale": work.cfg_scale, "cfg_channels": work.cfg_channels}
    constants: dict[str, Any] = {
        name: everywhere(1.0, shape) for name, shape in constant_shapes(network, steps).items()
    }
    return QuantizedModel(
        method=method,
        weight_bits=weight_bits,
        act_bits=act_bits,
        alpha=alpha,
        num_steps=steps,
        range_of_step=plan.range_of_step,
        linears={name: _linear(plan, name, shape) for name, shape in shapes.items()},
        point_absmax={point: everywhere(1.0, (count,)) for point in points},
        value_absmax={name: everywhere(1.0, (count, network.hidden_size)) for name in attentions(network)},
        config=model_config(network),
        iddpm=settings,
        workload=work.name,
        weights_sha256="",
        contents=False,
        **constants,
    )


def everywhere(value: float, shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """One number as an array of any shape, without memory of its own."""
    return np.broadcast_to(np.asarray(value, dtype), shape)


def _linear(plan: Structure, name: str, shape: tuple[int, int]) -> QuantizedLinear:
    outputs, inputs = shape
    sets, set_of_range = plan.sets(name)
    count = len(set_of_range)
    grids = 0 if plan.finds_grids(name) else count
    smoothing = everywhere(2.0 if plan.smooths(name) else 1.0, (inputs,))
    return QuantizedLinear(
        weights=tuple(
            QuantizedWeight(
                bits, everywhere(0, shape, np.uint8), everywhere(STEP, (outputs,)), everywhere(0, (outputs,), np.int64),
                smoothing,
            )
            for _, bits in sets
        ),
        set_of_range=set_of_range,
        bias=everywhere(0.0, (outputs,)),
        act_bits=np.array([plan.layer_bits(name, r)[1] for r in range(count)], np.int64),
        act_scale=everywhere(STEP, (grids,)),
        act_zp=everywhere(0, (grids,), np.int64),
        input_shift=everywhere(0, (count, inputs), np.uint8) if plan.shifts(name) else None,
    )  # fmt: skip
