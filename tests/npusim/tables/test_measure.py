"""One cell against the figures that single runs give, and against the definitions of its metrics."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from models.metrics import psnr_db
from models.workloads import Workload
from npusim.run import run
from npusim.tables.cells import Cell, clips_of
from npusim.tables.files import read_frames
from npusim.tables.inputs import Inputs, prepare, prepared_for
from npusim.tables.make import Measured
from npusim.tables.measure import measure_cell, measure_integer


@pytest.fixture
def inputs(measured: Measured, repository: Path) -> Inputs:
    setup = dataclasses.replace(measured.inputs.setup, machine=repository / "hwconfigs" / "tiny_8x8.yaml")
    return Inputs(setup)


def test_a_cell_equals_single_runs(inputs: Inputs, repository: Path) -> None:
    """`npusim run` makes the same clips one by one, and has figures of its own for them."""
    cell = Cell("emoji", "cw_tw")
    figures, frames = measure_cell(inputs, cell)
    integer = measure_integer(inputs, dataclasses.replace(cell, integer=True))
    # The same calibration: the workload's own captions are all of data set 1.
    assert inputs.work.calibration_captions == inputs.setup.workload.calibration_captions
    for index, (caption, seed) in enumerate(zip(*clips_of("emoji", 2), strict=True)):
        single = run(inputs.work, inputs.setup.machine, prompt=caption, seed=seed, verify="none")
        equal = single.fidelity.eps_equal_inputs_sqnr_db
        np.testing.assert_allclose(figures["eps_sqnr_db"][index], equal["fakequant_vs_float"], atol=0.2)
        np.testing.assert_allclose(integer["fakequant_eps_sqnr_db"][index], equal["fakequant_vs_float"], atol=0.2)
        np.testing.assert_allclose(integer["integer_eps_sqnr_db"][index], equal["integer_vs_float"], atol=0.2)
        expected, made = single.clips["fakequant"].frames, frames[index]
        assert expected is not None
        assert psnr_db(expected, made) > 35
        assert single.fidelity.psnr_db is not None
        assert figures["psnr_db"][index] == pytest.approx(single.fidelity.psnr_db["fakequant_vs_float"], abs=0.5)
    assert integer["bit_exact"] is True
    assert integer["steps_compared"] == [0, 3]


def test_equal_settings_give_equal_figures(inputs: Inputs) -> None:
    first, second = (measure_cell(inputs, Cell("emoji", "tsq", ranges=4)) for _ in range(2))
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])


def test_float_clips_are_their_own_reference(inputs: Inputs) -> None:
    figures, frames = measure_cell(inputs, Cell("emoji", "fp32"))
    assert figures["psnr_db"] == [math.inf, math.inf]
    assert figures["ssim"] == [1.0, 1.0]
    assert figures["eps_sqnr_db"] is None
    np.testing.assert_array_equal(frames, inputs.float_clips("emoji").frames)


def test_half_precision_is_closer_than_eight_bits(inputs: Inputs) -> None:
    half, eight = (measure_cell(inputs, Cell("emoji", method))[0] for method in ("fp16", "cw_tw"))
    assert np.min(half["eps_sqnr_db"]) > np.max(eight["eps_sqnr_db"]) + 10
    assert half["size"]["weight_bytes"] == 2 * eight["size"]["weight_bytes"]


def test_real_clips_have_figures_of_the_network_metrics_only(inputs: Inputs) -> None:
    figures, frames = measure_cell(inputs, Cell("emoji", "real"))
    missing = {name for name, found in figures.items() if found is None}
    assert missing == {"eps_sqnr_db", "psnr_db", "ssim", "vmaf_vs_fp", "size"}
    np.testing.assert_array_equal(frames, inputs.real_frames("emoji"))
    assert min(figures["temp_consistency"]) > 0.5


def test_dynamic_smooths_where_an_exponent_was_searched(inputs: Inputs, tmp_path: Path) -> None:
    assert inputs.alpha(Cell("emoji", "dynamic")) is None
    assert inputs.alpha(Cell("emoji", "tsq_gptq", ranges=4)) == 0.5  # the default
    assert inputs.alpha(Cell("emoji", "tsw", ranges=4)) is None
    table = tmp_path / "alphas.json"
    trial = '{"method": "%s", "weight_bits": 8, "act_bits": 8, "alpha": 0.3, "value": 1.0}'
    trials = ", ".join(trial % method for method in ("dynamic", "tsq"))
    table.write_text(f'{{"weights_sha256": "{inputs.weights_sha256}", "metric": "step_sqnr_db", "trials": [{trials}]}}')
    searched = Inputs(dataclasses.replace(inputs.setup, workload=dataclasses.replace(inputs.work, alphas=table)))
    assert searched.alpha(Cell("emoji", "dynamic")) == 0.3
    assert searched.alpha(Cell("emoji", "dynamic", smooth=False)) is None
    assert searched.alpha(Cell("emoji", "tsq_gptq", 4, 4, ranges=4)) == 0.3


def test_a_method_that_does_not_compile_gives_the_reason(inputs: Inputs) -> None:
    unable = Inputs(dataclasses.replace(inputs.setup, dynamic_machine=inputs.setup.machine))
    figures = measure_integer(unable, Cell("emoji", "dynamic", integer=True))
    assert set(figures) == {"refused"}
    assert "quantizes its input at run time; vector_unit.runtime_quantization = False" in figures["refused"]


def test_a_change_of_range_loads_less_with_two_factors(inputs: Inputs) -> None:
    figures = measure_integer(inputs, Cell("emoji", "tsw", ranges=2, integer=True))
    assert figures["bit_exact"] is True
    assert 0 < figures["factored_range_set_bytes"] < figures["range_set_bytes"] / 2
    assert measure_integer(inputs, Cell("emoji", "cw_tw", integer=True))["factored_range_set_bytes"] is None


def test_settings_tell_apart_what_decides_the_figures(inputs: Inputs, work: Workload, tmp_path: Path) -> None:
    cell = Cell("emoji", "tsq", ranges=2)
    settings = inputs.settings(cell)
    for other in (Cell("emoji", "tsq", ranges=4), Cell("emoji", "tsq", 4, ranges=2), Cell("digits", "tsq", ranges=2)):
        assert inputs.settings(other) != settings
    reseeded = dataclasses.replace(inputs.setup, workload=dataclasses.replace(work, weights_seed=1), folder=tmp_path)
    assert Inputs(reseeded).settings(cell) != settings
    # A float cell depends on no calibration.
    assert "calibration_sha256" not in inputs.settings(Cell("emoji", "fp16"))


def test_shared_inputs_are_kept_and_made_anew_for_other_weights(measured: Measured, work: Workload) -> None:
    setup = measured.inputs.setup
    kept = Inputs(setup).float_clips("emoji")
    np.testing.assert_array_equal(kept.frames, measured.inputs.float_clips("emoji").frames)
    np.testing.assert_array_equal(read_frames(setup.folder, Cell("emoji", "asq")).shape, (2, 8, 64, 64, 3))
    other = dataclasses.replace(setup, folder=setup.folder.parent / "other")
    for seed in (0, 1):
        inputs = Inputs(dataclasses.replace(other, workload=dataclasses.replace(work, weights_seed=seed)))
        prepare(inputs, "calibration")
        prepare(inputs, "float-emoji")
        assert Inputs(inputs.setup).stats.weights_sha256 == inputs.weights_sha256
        assert np.array_equal(inputs.float_clips("emoji").frames, kept.frames) == (seed == 0)


def test_only_what_is_needed_is_prepared() -> None:
    assert prepared_for([Cell("digits", "asq")]) == ("calibration", "float-digits", "real-digits")
    assert prepared_for([Cell("emoji", "asq_gptq", 4, 8, integer=True)]) == ("calibration", "moments", "float-emoji")
