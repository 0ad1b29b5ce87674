import dataclasses
import json

import numpy as np
import pytest

from models.errors import ModelError
from models.metrics import sqnr_db
from models.workloads import Workload, get_workload
from npusim import engine
from npusim.errors import UserError
from npusim.fidelity import PAIRS, Clip, measure
from npusim.run import quantize_workload, run, steps_to_verify, with_files
from npusim.simulate import Simulation


@pytest.mark.parametrize(
    ("verify", "steps"),
    [
        ("none", ()),
        ("all", tuple(range(20))),
        ("1", (0,)),
        ("2", (0, 19)),
        ("3", (0, 10, 19)),
        ("20", tuple(range(20))),
    ],
)
def test_steps_to_verify(verify, steps):
    assert steps_to_verify(verify, 20) == steps


@pytest.mark.parametrize("verify", ["0", "21", "-1", "two", "", "²", "1.5", "9" * 5000], ids=lambda v: v[:9])
def test_bad_verify_is_refused(verify):
    with pytest.raises(UserError, match=r"verify = .*allowed all, none, or a number of steps 1\.\.20"):
        steps_to_verify(verify, 20)
    with pytest.raises(UserError, match="did you mean 'none'"):
        steps_to_verify("non", 20)


def test_the_whole_chain(tiny_result):
    r = tiny_result
    shape = get_workload("tiny").latent_shape
    assert set(r.clips) == {"float", "fakequant", "integer"}
    for clip in r.clips.values():
        assert clip.eps.shape == clip.eps_equal_inputs.shape == (4, *shape)
        assert clip.latent.shape == shape
        assert clip.frames is None
    assert r.timesteps == (999, 666, 333, 0)
    assert (r.bit_exact.equal, r.bit_exact.steps_compared, r.bit_exact.prologue_compared) == (True, (0, 1, 2, 3), True)
    assert r.timing.steps == 4
    assert any(name.startswith("00") for name in r.passes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.config = None


def test_the_first_step_has_equal_inputs_either_way(tiny_result):
    """All three runs start from the same noise, so in step 0 it makes no difference whose states are fed."""
    f = tiny_result.fidelity
    for pair in PAIRS:
        assert f.eps_sqnr_db[pair][0] == f.eps_equal_inputs_sqnr_db[pair][0]
    for clip in tiny_result.clips.values():
        np.testing.assert_array_equal(clip.eps[0], clip.eps_equal_inputs[0])


def test_the_integer_clip_is_the_simulation(tiny, tiny_result):
    """Compiled and simulated apart from `run`, with the same caption and noise: the same clip."""
    simulation = Simulation(tiny.program, tiny.inputs)
    simulation.prologue()
    for step in range(4):
        simulation.step(step)
        eps = tiny.host.eps_out(simulation.read("eps"))
        np.testing.assert_array_equal(eps, tiny_result.clips["integer"].eps[step])
    latent = tiny.host.state_out(simulation.read("state"))
    np.testing.assert_array_equal(latent, tiny_result.clips["integer"].latent)


def test_measure_compares_each_with_each():
    rng = np.random.default_rng(0)
    eps, frames = rng.standard_normal((2, 4, 2, 8, 8)), rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    exact = Clip(eps, eps, eps[0], frames)
    near = Clip(eps + 0.01, eps + 0.02, eps[0] + 0.03, frames // 2)
    f = measure({"float": exact, "fakequant": near, "integer": near})
    assert f.eps_sqnr_db["integer_vs_float"] == tuple(sqnr_db(eps[i], eps[i] + 0.01) for i in range(2))
    assert f.eps_equal_inputs_sqnr_db["fakequant_vs_float"] == tuple(sqnr_db(eps[i], eps[i] + 0.02) for i in range(2))
    assert f.latent_sqnr_db["integer_vs_fakequant"] == float("inf")
    assert f.psnr_db["integer_vs_fakequant"] == float("inf")
    assert f.ssim["integer_vs_fakequant"] == 1.0
    assert f.ssim["integer_vs_float"] < 1.0


def test_the_result_holds_the_statistics_it_was_made_with(tiny_result):
    stats = tiny_result.calibration
    assert (stats.workload, stats.weights_sha256) == ("tiny", tiny_result.quantized.weights_sha256)


def test_nothing_compared_is_not_equal(tiny_machine):
    result = run("tiny", tiny_machine, verify="none", act_bits=16, attention_bits=8)
    assert result.bit_exact.equal is None
    assert (result.config.act_bits, result.config.attention_bits) == (16, 8)
    assert result.config.prompt == get_workload("tiny").sheet_captions[0]
    assert result.config.seed == get_workload("tiny").sheet_seeds[0]


def test_a_planted_slip_makes_the_bit_comparison_false(tiny_machine, monkeypatch, tmp_path):
    exact = engine.EXECUTORS["lnapply"]

    def slip(state, ins):
        exact(state, ins)
        state.sram[ins.out_addr] ^= 1

    monkeypatch.setitem(engine.EXECUTORS, "lnapply", slip)
    out = tmp_path / "run"
    result = run("tiny", tiny_machine, out=out, verify="1")
    assert result.bit_exact.equal is False
    written = json.loads((out / "run.json").read_text())["bit_exact"]
    assert written["equal"] is False
    assert written["first_difference"]["mnemonic"] == "lnapply"
    assert written["first_difference"]["part"] == "step 0"


def test_bad_requests_are_refused_before_anything_is_written(tiny_machine, tmp_path):
    out = tmp_path / "new" / "run"
    for options, error in (
        ({"workload": "emojy"}, "workload 'emojy' is unknown; allowed: emoji, tiny, .*; nearest: emoji"),
        ({"method": "cw_wt"}, "method 'cw_wt' is unknown; allowed: dynamic, cw_tw"),
        ({"prompt": "rianbow"}, "unknown caption 'rianbow'.*nearest.*'rainbow'"),
        ({"verify": "5"}, r"verify = '5': allowed all, none, or a number of steps 1\.\.4"),
        ({"act_bits": 9}, "act_bits=9: allowed: 4, 6, 8, 16"),
        ({"weight_bits": 3}, "weight_bits=3: allowed: 4, 6, 8"),
        ({"attention_bits": 12}, "attention_bits = 12: allowed 8, 16"),
        ({"seed": -1}, "seed=-1"),
        ({"hw": tmp_path / "none.yaml"}, "none.yaml"),
        ({"checkpoint": tmp_path / "none.safetensors"}, "none.safetensors"),
        ({"calibration": tmp_path / "stats.safetensors"}, "stats.safetensors"),
    ):
        with pytest.raises((UserError, ModelError), match=error):
            run(**{"workload": "tiny", "hw": tiny_machine, "method": "cw_tw", "out": out, **options})
        assert list(tmp_path.iterdir()) == []


def test_settings_are_refused_before_the_weights_of_a_large_network_are_drawn(tiny_machine, monkeypatch):
    def draw(self):
        raise AssertionError("drawn")

    monkeypatch.setattr(Workload, "load_model", draw)
    for options, error in (
        ({"method": "nope"}, "method 'nope' is unknown; allowed: dynamic, .* with _dp$"),
        ({"act_bits": 9}, "act_bits=9: allowed: 4, 6, 8, 16"),
        ({"attention_bits": 12}, "attention_bits = 12: allowed 8, 16"),
        ({"ranges": 3}, "ranges=3: allowed of 20 steps"),
        ({"alpha": 0.5}, "does not smooth"),
        ({"policy": "lazy"}, "policy = 'lazy': allowed in_dram, blocking"),
        ({"save_seconds": -1.0}, "save_seconds = -1.0: allowed seconds from 0 on"),
    ):
        with pytest.raises((UserError, ModelError), match=error):
            run("stdit-xl2-16x256x256", tiny_machine, **options)
    with pytest.raises(AssertionError, match="drawn"):
        run("stdit-xl2-16x256x256", tiny_machine)


def test_other_files_take_the_place_of_the_workloads_own(tmp_path):
    own = get_workload("emoji")
    assert with_files("emoji") is own
    other = with_files("emoji", checkpoint="a", calibration=None)
    assert (other.checkpoint.name, other.calibration) == ("a", None)
    assert with_files("emoji", calibration="b").checkpoint == own.checkpoint
    assert with_files("emoji", "a", "b").calibration.name == "b"


def test_saved_statistics_give_the_same_model(tmp_path):
    get_workload("tiny").load_stats().save(tmp_path / "stats.safetensors")
    saved = quantize_workload("tiny", calibration=tmp_path / "stats.safetensors")
    fresh = quantize_workload("tiny")
    for name, linear in fresh.linears.items():
        np.testing.assert_array_equal(linear.weights[0].q, saved.linears[name].weights[0].q)
        np.testing.assert_array_equal(linear.act_scale, saved.linears[name].act_scale)


@pytest.mark.slow
def test_emoji_equals_the_reference_in_all_steps_and_both_branches(edge_machine, tmp_path):
    result = run("emoji", edge_machine, out=tmp_path / "run", verify="all")
    assert result.bit_exact.first_difference is None
    assert result.bit_exact.equal is True
    assert result.bit_exact.prologue_compared
    assert result.bit_exact.steps_compared == tuple(range(20))
    assert {"clips.gif", "clips.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
