"""Channels without weights, and models that the lowering cannot express."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compiler.lower import lower
from compiler.pipeline import compile_model, integer_graph
from models.grid import MIN_STEP
from models.quantize import QuantizedModel
from npusim.config import Machine
from npusim.errors import UserError
from tests.compiler.runs import Inputs, assert_same_bits, run_graph, run_program

LAYER = "blocks.0.attn.proj"
DEAD = 3


def with_dead_channel(qm: QuantizedModel, weight: int, bias: float) -> QuantizedModel:
    """One channel as quantization leaves it when its weights are 0, or so small that their step is ``MIN_STEP``."""
    q = qm.linears[LAYER]
    (w,), new_bias = q.weights, q.bias.copy()
    changed = {name: getattr(w, name).copy() for name in ("q", "scale", "zero_point")}
    changed["q"][DEAD], changed["zero_point"][DEAD] = 50 + weight, 50
    changed["scale"][DEAD], new_bias[DEAD] = MIN_STEP, bias
    linear = replace(q, weights=(replace(w, **changed),), bias=new_bias)
    return replace(qm, linears={**qm.linears, LAYER: linear})


@pytest.mark.parametrize("weight", [0, 100])
@pytest.mark.parametrize("bias", [0.4, -0.02])
def test_channel_without_weights_gives_its_bias(qm: QuantizedModel, weight: int, bias: float) -> None:
    before, after = lower(qm).values, lower(with_dead_channel(qm, weight, bias)).values
    parts: dict[str, Any] = {}
    for name in ("weight", "weight_zp", "bias", "multiplier", "shift"):
        old, parts[name] = before[f"{LAYER}.{name}"].data, after[f"{LAYER}.{name}"].data
        assert old is not None
        np.testing.assert_array_equal(np.delete(parts[name], DEAD, 0), np.delete(old, DEAD, 0))  # the others stay
    assert np.unique(parts["weight"][DEAD]).tolist() == [50]
    dead = {name: int(parts[name][DEAD]) for name in ("bias", "multiplier", "shift")}
    assert 2**30 < abs(dead["bias"]) < 2**31
    steps = dead["bias"] * dead["multiplier"] / 2.0 ** dead["shift"]
    assert abs(steps * after[f"{LAYER}.out"].scale - bias) < abs(bias) * 2**-13


def test_channel_without_weights_and_bias_is_left_alone(qm: QuantizedModel) -> None:
    data = lower(with_dead_channel(qm, 100, 0.0)).values[f"{LAYER}.weight"].data
    assert data is not None
    assert np.unique(data[DEAD]).tolist() == [150]


def test_program_with_a_dead_channel_equals_its_graph(
    qm: QuantizedModel, inputs: Inputs, tiny_machine: Machine
) -> None:
    model = with_dead_channel(qm, 0, 0.4)
    program = compile_model(model, tiny_machine)
    assert_same_bits(run_program(program, inputs), run_graph(integer_graph(model), inputs))


@pytest.mark.parametrize(
    ("field", "changes", "message"),
    [
        ("config", {"in_channels": 3}, "in_channels 3: the compiler takes 4"),
        ("config", {"pred_sigma": False}, "pred_sigma False: the compiler takes True"),
        ("config", {"patch_size": [1, 2, 4]}, r"patch_size \[1, 2, 4\]: the compiler takes \[1, 2, 2\]"),
    ],
)
def test_config_that_cannot_be_lowered(qm: QuantizedModel, field: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        lower(replace(qm, **{field: {**getattr(qm, field), **changes}}))


@pytest.mark.parametrize("key", ["num_sampling_steps", "cfg_scale", "cfg_channels"])
def test_sampler_setting_that_is_missing(qm: QuantizedModel, key: str) -> None:
    settings = {name: value for name, value in qm.iddpm.items() if name != key}
    with pytest.raises(UserError, match=f"^quantized model has no sampler setting '{key}'$"):
        lower(replace(qm, iddpm=settings))
