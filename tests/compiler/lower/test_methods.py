"""Every method and width: the program is the graph, and computes what the fake-quantized model does."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from compiler.lower import lower
from compiler.pipeline import compile_model, integer_graph
from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.quantize import Override, QuantizedModel, quantize
from models.sample import fakequant_predictor
from models.workloads import get_workload
from npusim import engine
from npusim.config import Machine
from npusim.errors import UserError
from npusim.host import Host
from npusim.simulate import Simulation
from tests.compiler.runs import Inputs, assert_same_bits, machine_like, run_graph, run_program

WORK = get_workload("tiny")
CASES = [
    ("cw_tw", 8, 8, None), ("cw_tw", 4, 8, None), ("cw_tw", 6, 6, 2), ("tsw", 8, 8, None), ("tsw", 8, 16, None),
    ("asq", 8, 8, None), ("asq", 4, 4, 2), ("asq", 8, 16, None), ("ssq", 8, 8, None), ("tsq", 8, 8, None),
    ("tsq", 6, 4, (0, 3)), ("tsq", 8, 16, 2), ("tsq_pot", 8, 8, None), ("tsq_pot", 4, 6, 2), ("dynamic", 8, 8, None),
    ("dynamic", 4, 6, None), ("dynamic", 6, 4, None),
]  # fmt: skip


@cache
def quantized(method: str, weight_bits: int, act_bits: int, ranges: int | tuple[int, ...] | None) -> QuantizedModel:
    return quantize(WORK.load_model(), WORK.load_stats(), method, weight_bits, act_bits, ranges=ranges)


def able(machine: Machine) -> Machine:
    return machine_like(machine, vector_unit={"runtime_quantization": True}, param_memory={"capacity_bytes": 16384})


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_program_equals_its_graph(
    case: tuple[str, int, int, int | None], inputs: Inputs, tiny_machine: Machine
) -> None:
    model = quantized(*case)
    expected = run_graph(integer_graph(model), inputs, (0, 3))
    assert np.unique(expected[0]["raw"]).size > 200
    program = compile_model(model, able(tiny_machine))
    assert len(program.range_sets) == model.num_ranges
    assert_same_bits(run_program(program, inputs, (0, 3), engine.execute), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_noise_prediction_is_that_of_the_fake_quantized_model(
    case: tuple[str, int, int, int | None], edge_machine: Machine
) -> None:
    """One network evaluation a step on equal inputs, by the engine and by torch, both against the float model."""
    model, quant = WORK.load_model(), quantized(*case)
    sampler, (states, mask) = WORK.sampler(), WORK.text(WORK.calibration_captions[0])
    conditions = sampler, states, mask, model.y_embedder.y_embedding.detach()
    start, noises = draw_noise(WORK.calibration_seeds[0], WORK.latent_shape, WORK.num_steps)
    program = compile_model(quant, able(edge_machine))
    host = Host(program, WORK.latent_shape)
    contents = host.inputs(*(tensor.numpy() for tensor in (states, mask, start, noises)))
    simulation = Simulation(program, contents)
    simulation.prologue()
    predict = fakequant_predictor(FakeQuantSTDiT(model, quant), *conditions)
    for step in (0, 2, 3):
        state = noises[step - 1] if step else start  # random weights predict no noise: a fresh one for each step
        simulation.write("state", host.state_in(state.numpy()))
        simulation.step(step)
        made = host.raw_out(simulation.read("raw"))[0]
        with torch.inference_mode():
            expected = predict(step, state)[0].numpy().astype(float)
        noise = ((made - expected) ** 2).sum()
        assert 10 * np.log10((expected**2).sum() / noise) > {16: 38.0, 8: 26.0, 6: 14.0, 4: 9.0}[case[2]], step


def test_sets_hold_what_changes_with_the_range() -> None:
    """`tsw` swaps grids and records, `tsq` weights too; `tsq_pot` shares the weights and swaps shifts."""
    kinds = {}
    for method in ("tsw", "tsq", "tsq_pot"):
        graph = integer_graph(quantized(method, 8, 8, None))
        ranged = {name for name, value in graph.values.items() if value.kind == "range_const"}
        kinds[method] = {name.rsplit(".", 1)[1] for name in ranged if name.startswith("blocks.")}
        assert not any("kv_linear" in name or name.startswith(("x_embedder", "y_")) for name in ranged)
    assert kinds["tsw"] == {"records", "a_mul", "b_mul", "bias", "table"}
    assert kinds["tsq"] == {"records", "a_mul", "b_mul", "bias", "signed"}
    assert kinds["tsq_pot"] == {"records", "a_mul", "b_mul", "bias", "shifts"}


def test_a_smoothing_costs_no_operation_where_a_producer_takes_it_in() -> None:
    plain, smoothed = (integer_graph(quantized(method, 8, 8, None)) for method in ("cw_tw", "asq"))
    extra = [op.layer for op in smoothed.step]
    for op in plain.step:
        extra.remove(op.layer)
    assert extra == [f"blocks.{i}.mlp.fc2" for i in range(2)]  # a table knows no channels


def test_bits_that_change_between_steps_are_refused() -> None:
    overrides = (Override(("mlp.fc1",), steps=(0, 1), weight_bits=4),)
    made = quantize(WORK.load_model(), WORK.load_stats(), "cw_tw", overrides=overrides)
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc1: weights of 4, 8 bits in different steps; allowed"):
        lower(made)


def test_other_bits_of_a_layer_class_are_compiled() -> None:
    made = quantize(WORK.load_model(), WORK.load_stats(), "asq", overrides=(Override(("mlp.fc1",), weight_bits=4),))
    graph = integer_graph(made)
    assert graph.values["blocks.1.mlp.fc1.signed"].dtype == "i4"
    assert graph.values["blocks.1.mlp.fc2.signed"].dtype == "i8"


@pytest.mark.parametrize(
    ("case", "section", "change", "message"),
    [
        (("dynamic", 8, 8, None), "vector_unit", {"runtime_quantization": False}, "quantizes its input at run time"),
        (("dynamic", 8, 8, None), "mac_array", {"factored_requant": False}, "has a factor for each row"),
        (("tsq_pot", 8, 8, None), "mac_array", {"input_shift": False}, "shifts input channels"),
        (("tsq_pot", 8, 16, 2), "mac_array", {}, "shifts inputs of 16 bits; the array shifts at most 8"),
        (("asq", 4, 4, 2), "mac_array", {"narrowest_activation_bits": 6}, "has 4-bit inputs"),
        (("cw_tw", 4, 8, None), "mac_array", {"narrowest_weight_bits": 6}, "has 4-bit weights"),
    ],
)
def test_what_a_machine_cannot_do_is_refused(
    case: tuple[str, int, int, int | None], section: str, change: dict[str, int], message: str, edge_machine: Machine
) -> None:
    machine = machine_like(able(edge_machine), **{section: change})
    with pytest.raises(UserError, match=rf"^blocks\.0\.\S+ {message}.*; allowed: a machine that can do it"):
        compile_model(quantized(*case), machine)
