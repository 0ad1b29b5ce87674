"""One noise prediction of the trained model, end to end: integer machine against fake-quant and float.

Of one branch, as the network makes it: guidance multiplies the difference of two predictions, and their errors with it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler import compile_model
from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.quantize import quantize
from models.sample import denoise, fakequant_predictor, float_predictor
from models.stats import BRANCHES
from models.workloads import get_workload
from npusim.host import Host
from npusim.run import quantize_workload
from npusim.simulate import Simulation
from tests.npusim.conftest import CAPTION

STEPS = (0, 5, 10, 15, 19)


def branch_predictions(machine, act_bits: int):
    """(float, fake-quant, integer) predictions of the conditional and the unconditional branch at ``STEPS``."""
    work = get_workload("emoji")
    model, sampler = work.load_model(), work.sampler()
    quantized = quantize(model, work.load_stats(), act_bits=act_bits)
    prompt, seed = work.evaluation_captions[0], work.evaluation_seeds[0]
    text, mask = work.text(prompt)
    start, noises = draw_noise(seed, work.latent_shape, work.num_steps)
    conditions = sampler, text, mask, model.y_embedder.y_embedding.detach()
    exact, rounded = (
        float_predictor(model, *conditions),
        fakequant_predictor(FakeQuantSTDiT(model, quantized), *conditions),
    )
    trajectory = denoise(exact, start, noises, sampler)
    program = compile_model(quantized, machine)
    host = Host(program, work.latent_shape)
    machine_run = Simulation(program, host.inputs(*(t.numpy() for t in (text, mask, start, noises))))
    machine_run.prologue()
    for step in STEPS:
        x = trajectory.states[step]
        machine_run.write("state", host.state_in(x))
        machine_run.step(step)
        made = host.raw_out(machine_run.read("raw"))[:2]
        for branch in range(2):
            torch_made = (predict(step, start.new_tensor(x))[branch].numpy() for predict in (exact, rounded))
            yield (*torch_made, np.asarray(made[branch]))


@pytest.mark.slow
def test_sixteen_bit_activations_stay_50_db_from_fake_quant(edge_machine):
    for _, rounded, integer in branch_predictions(edge_machine, 16):
        assert sqnr_db(rounded, integer) >= 50.0


@pytest.mark.slow
def test_eight_bit_activations_lose_no_more_than_fake_quant(edge_machine):
    for exact, rounded, integer in branch_predictions(edge_machine, 8):
        assert sqnr_db(exact, integer) >= sqnr_db(exact, rounded) - 0.5


@pytest.mark.parametrize("branch", [0, 1])
def test_a_branch_alone_predicts_what_it_does_beside_the_other(tiny, tiny_machine, branch: int):
    """Bit for bit: rows of different branches meet in the guidance only. The float predictor likewise, without it."""
    quantized = quantize_workload("tiny")
    alone = Simulation(compile_model(quantized, tiny_machine, branch=BRANCHES[branch]), tiny.inputs)
    both = Simulation(tiny.program, tiny.inputs)
    for simulation in (alone, both):
        simulation.prologue()
        simulation.step(0)
    made, expected = alone.read("raw"), both.read("raw")
    tokens = len(made)
    assert len(expected) == 2 * tokens
    np.testing.assert_array_equal(made, expected[branch * tokens :][:tokens])
    host = Host(alone.program, tiny.workload.latent_shape)
    np.testing.assert_array_equal(host.eps_out(alone.read("eps")), host.raw_out(made)[branch])

    model = tiny.workload.load_model()
    text, mask = tiny.workload.text(CAPTION)
    conditions = model, tiny.workload.sampler(), text, mask, model.y_embedder.y_embedding.detach()
    x = torch.from_numpy(tiny.floats["x_T"])
    one, two = (float_predictor(*conditions, name)(1, x) for name in (BRANCHES[branch], None))
    for index in (0, 1):
        torch.testing.assert_close(one[index], two[branch])
