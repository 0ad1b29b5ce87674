"""Calibration statistics: exact files, strict loading, and checks against the model they are used with."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.calibrate import collect
from models.errors import ModelError
from models.stats import (
    FILE_KIND,
    FILE_VERSION,
    HISTOGRAM_BINS,
    CalibrationStats,
    executed_linears,
    histogram,
    input_channels,
    mean_square,
    weights_sha256,
)
from models.stdit import STDiT
from models.store import load_arrays, save_arrays
from models.workloads import get_workload, random_stdit

TINY = get_workload("tiny")


@pytest.fixture(scope="module")
def stats(model: STDiT) -> CalibrationStats:
    return collect(model, TINY, TINY.calibration_captions[:1], [5])


def _rewrite(path: Path, change: Any) -> None:
    arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
    change(arrays, metadata)
    save_arrays(path, FILE_KIND, FILE_VERSION, arrays, metadata)


def test_executed_linears_leave_out_what_only_the_time_step_decides(model: STDiT) -> None:
    linears = executed_linears(model)
    assert len(linears) == 9 * 2 + 4
    assert not [name for name in linears if name.startswith("t_")]
    assert input_channels(linears["x_embedder.proj"]) == 4 * 1 * 2 * 2
    assert input_channels(linears["blocks.1.mlp.fc2"]) == 128


def test_round_trip_is_exact(stats: CalibrationStats, tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    stats.save(path)
    loaded = CalibrationStats.load(path)
    for field in dataclasses.fields(CalibrationStats):
        before, after = getattr(stats, field.name), getattr(loaded, field.name)
        if not isinstance(before, dict):
            assert after == before
            continue
        assert list(after) == list(before)
        for point in before:
            np.testing.assert_array_equal(after[point], before[point])
            assert after[point].dtype == before[point].dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a.pop("minimum/tap_embed:out"), "'minimum/tap_embed:out' is missing"),
        (
            lambda a, m: a.update({"channel_absmax/final_layer.linear:in": np.zeros((4, 2, 31), np.float16)}),
            r"\[4, 2, 31\]",
        ),
        (lambda a, m: a.pop("histogram/final_layer.linear:in"), "'histogram/final_layer.linear:in' is missing"),
        (
            lambda a, m: a.update({"channel_min/final_layer.linear:in": np.full((4, 32), np.inf, np.float16)}),
            "holds NaN or infinity",
        ),
        (
            lambda a, m: a.update({"channel_min/final_layer.linear:in": np.full((4, 32), 6e4, np.float16)}),
            "'final_layer.linear:in' has a minimum above its maximum",
        ),
        (
            lambda a, m: a.update({"maximum/tap_embed:out": np.full((4, 2), np.nan, np.float32)}),
            "tap_embed:out' holds NaN",
        ),
        (
            lambda a, m: a.update({"maximum/tap_embed:out": np.full((4, 2), -1e9, np.float32)}),
            "minimum above its maximum",
        ),
        (lambda a, m: a.update({"maximum/extra:out": np.zeros(1)}), "unknown tensor 'maximum/extra:out'"),
        (lambda a, m: m.pop("weights_sha256"), "field 'weights_sha256' is missing"),
        (lambda a, m: m.update(steps="4"), "field 'steps' is missing or not of type int"),
        (lambda a, m: m.update(steps=5), r"allowed is float32\[5, 2\]"),
    ],
)
def test_inconsistent_files_are_refused(stats: CalibrationStats, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "stats.safetensors"
    stats.save(path)
    _rewrite(path, change)
    with pytest.raises(ModelError, match=rf"stats\.safetensors: .*{message}"):
        CalibrationStats.load(path)


def test_histogram_counts_by_octave_and_sign() -> None:
    octaves = [0.0, 2.0**-16, -(2.0**-16), 2.0**-15, 1.0, 1.99, -1.0, 2.0, 6e4, -6e4]
    counts = histogram(torch.tensor(octaves))
    # Bins 32.. are positive: below 2^-15, then from 2^-15, 2^-14, ...; 1 is octave 16. Below 32 their mirror image.
    expected = {32: 2, 31: 1, 33: 1, 48: 2, 15: 1, 49: 1, 63: 1, 0: 1}
    assert counts.shape == (HISTOGRAM_BINS,)
    assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == expected


def test_mean_square_of_a_histogram_is_near_the_values() -> None:
    x = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [30.0]])
    counts = np.stack([histogram(row) for row in x])
    np.testing.assert_allclose(mean_square(counts), x.double().square().mean(1), rtol=0.35)
    assert mean_square(np.zeros((3, HISTOGRAM_BINS))).tolist() == [0, 0, 0]


def test_digest_follows_the_weights_not_their_container(model: STDiT) -> None:
    other = TINY.load_model()
    assert weights_sha256(other) == weights_sha256(model)
    with torch.no_grad():
        other.get_parameter("blocks.1.mlp.fc2.bias")[3] += 1e-3
    assert weights_sha256(other) != weights_sha256(model)


def test_other_weights_are_refused(stats: CalibrationStats, model: STDiT) -> None:
    stats.require_weights(weights_sha256(model))
    with pytest.raises(
        ModelError, match=r"collected with weights .* calibrate again: npusim calibrate --workload tiny"
    ):
        stats.require_weights("0" * 64)


def test_points_of_another_model_are_refused(stats: CalibrationStats, model: STDiT) -> None:
    stats.require_points(model)
    lacking = dataclasses.replace(stats, minimum={p: v for p, v in stats.minimum.items() if p != "tap_embed:out"})
    with pytest.raises(ModelError, match="lack point 'tap_embed:out'"):
        lacking.require_points(model)
    deeper = STDiT(**{**TINY.config, "depth": 1})
    with pytest.raises(ModelError, match=r"have unknown point 'blocks\.1"):
        stats.require_points(deeper)
    wider = STDiT(**{**TINY.config, "mlp_ratio": 2.0})
    with pytest.raises(ModelError, match=r"'blocks\.0\.mlp\.fc2:in' have 128 channels, the model has 64"):
        stats.require_points(wider)


def test_histogram_against_the_definition_by_frexp() -> None:
    """Octave by octave, with zeros of both signs, subnormal numbers and the outermost bins."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4000, generator=generator) * torch.exp(torch.randn(4000, generator=generator) * 9)
    edges = torch.tensor(
        [0.0, -0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 2.0**-15, 2.0**-16, -(2.0**-16), 3e38, -3e38, 65535]
    )
    values = torch.cat([wide, edges])
    expected = np.zeros(64)
    for value in values.tolist():
        octave = 0 if value == 0 else min(max(math.frexp(value)[1] + 15, 0), 31)
        expected[31 - octave if value < 0 else 32 + octave] += 1
    np.testing.assert_array_equal(histogram(values), expected)


def test_spread_takes_the_nearest_recorded_step() -> None:
    """Three recorded steps lie at times 999, 500 and 0; of twenty, each takes the nearest one."""
    model = random_stdit(get_workload("tiny").config, 0)
    work = get_workload("tiny").with_files(num_steps=3, prompts=1)
    stats = collect(model, work)
    wide = stats.spread(20)
    assert (wide.steps, wide.recorded_steps, stats.recorded_steps) == (20, 3, 0)
    source = [0] * 5 + [1] * 10 + [2] * 5
    for kind in ("minimum", "channel_max", "histogram"):
        for point, values in getattr(wide, kind).items():
            np.testing.assert_array_equal(values, getattr(stats, kind)[point][source])
