"""Whole quantized models: what each method changes, what it shares, and the identities that tie methods together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibrate import collect_moments
from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.moments import InputMoments
from models.quantize import METHODS, SIDE_LINEARS, Override, QuantizedModel, QuantizedWeight, quantize
from models.quantize.smoothing import smoothing_scales
from models.quantize.structure import DEFAULT_ALPHA
from models.sample import denoise, fakequant_predictor, float_predictor, replay
from models.stats import CalibrationStats, block_linears, executed_linears
from models.stdit import STDiT
from models.workloads import get_workload

TINY = get_workload("tiny")
PROMPT_LINEARS = {f"blocks.{index}.cross_attn.kv_linear" for index in range(2)}


@pytest.fixture(scope="module")
def moments(model: STDiT) -> InputMoments:
    return collect_moments(model, TINY)


def _same(first: QuantizedModel, second: QuantizedModel) -> bool:
    """Whether two models compute the same, whatever they are called."""
    if not np.array_equal(first.range_of_step, second.range_of_step):
        return False
    for name, one in first.linears.items():
        other = second.linears[name]
        for time_range in range(first.num_ranges):
            pairs = [(one.divisor(time_range), other.divisor(time_range)), (one.act_scale, other.act_scale)]
            pairs += [
                (getattr(one.weight(time_range), f), getattr(other.weight(time_range), f)) for f in _WEIGHT_FIELDS
            ]
            if not all(np.array_equal(a, b) for a, b in [*pairs, (one.act_zp, other.act_zp)]):
                return False
    return True


_WEIGHT_FIELDS = [field.name for field in dataclasses.fields(QuantizedWeight)]


@pytest.mark.parametrize(("one", "other"), [("tsw", "cw_tw"), ("tsq", "asq")])
def test_one_range_for_all_steps_is_the_aggregated_method(
    model: STDiT, stats: CalibrationStats, one: str, other: str
) -> None:
    assert _same(quantize(model, stats, one, ranges=1), quantize(model, stats, other))
    assert not _same(quantize(model, stats, one, ranges=2), quantize(model, stats, other, ranges=2)) or one == "tsw"


def test_what_methods_share(model: STDiT, stats: CalibrationStats) -> None:
    """One weight set wherever weights need not differ; the layers that run once per prompt never change."""
    for method in ("cw_tw", "tsw", "asq", "ssq", "dynamic", "tsq_pot"):
        made = quantize(model, stats, method)
        assert all(len(linear.weights) == 1 for linear in made.linears.values())
    made = quantize(model, stats, "tsq")
    assert {n for n, linear in made.linears.items() if len(linear.weights) == 1} == {*PROMPT_LINEARS, *SIDE_LINEARS}
    for name in (*PROMPT_LINEARS, "y_embedder.y_proj.fc2"):
        assert len(np.unique(made.linears[name].act_scale)) == 1
    assert len(np.unique(made.linears["blocks.1.mlp.fc1"].act_scale)) == 4


def test_powers_of_two_keep_the_aggregated_weights(model: STDiT, stats: CalibrationStats) -> None:
    shared, aggregated = quantize(model, stats, "tsq_pot"), quantize(model, stats, "asq")
    seen = set()
    for name, linear in shared.linears.items():
        for field in _WEIGHT_FIELDS:
            np.testing.assert_array_equal(
                getattr(linear.weights[0], field), getattr(aggregated.linears[name].weights[0], field)
            )
        if name in SIDE_LINEARS:
            assert linear.input_shift is None
            continue
        assert linear.input_shift is not None
        seen |= set(np.unique(linear.input_shift).tolist())
        for time_range in range(4):
            ratio = linear.divisor(time_range) / linear.weights[0].smoothing
            np.testing.assert_array_equal(ratio, 2.0 ** linear.input_shift[time_range])
    assert seen == {0, 1, 2, 3}


def test_smoothing_is_equation_two_over_the_ranges_steps(model: STDiT, stats: CalibrationStats) -> None:
    made = quantize(model, stats, "tsq", alpha=0.7)
    for name, layer in block_linears(model).items():
        if name in PROMPT_LINEARS:
            continue
        weight = layer.weight.abs().amax(0).double().numpy()
        for step in range(4):
            absmax = stats.channel_absmax[f"{name}:in"][step].astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(made.linears[name].divisor(step), smoothing_scales(absmax, weight, 0.7))


@pytest.mark.parametrize("method", ["tsw", "asq", "ssq", "tsq", "tsq_pot"])
@pytest.mark.parametrize("ranges", [1, 2, 4, (0, 1)])
def test_grids_span_what_calibration_saw_in_their_range(
    model: STDiT, stats: CalibrationStats, method: str, ranges: int | tuple[int, ...]
) -> None:
    made = quantize(model, stats, method, ranges=ranges)
    for name, linear in made.linears.items():
        low, high = (values[f"{name}:in"].astype(np.float64) for values in (stats.channel_min, stats.channel_max))
        one_grid = name in PROMPT_LINEARS or name in SIDE_LINEARS
        for time_range in range(made.num_ranges):
            steps = np.ones(4, bool) if one_grid else made.range_of_step == time_range
            grid, divisor = linear.act_grid(time_range), linear.divisor(time_range)
            least, most = grid.dequantize(np.array([0, 2**grid.bits - 1]))
            slack = float(grid.scale) * 0.51 + 2**-10 * float(most - least)
            assert least == pytest.approx(min((low[steps] / divisor).min(), 0.0), abs=slack)
            assert most == pytest.approx(max((high[steps] / divisor).max(), 0.0), abs=slack)


def test_dynamic_has_no_grids_and_smooths_only_when_asked(model: STDiT, stats: CalibrationStats) -> None:
    plain, smoothed = quantize(model, stats, "dynamic"), quantize(model, stats, "dynamic", alpha=0.5)
    assert plain.alpha is None
    for name, linear in plain.linears.items():
        assert linear.dynamic == (name not in SIDE_LINEARS)
        assert not linear.smoothed
        assert smoothed.linears[name].smoothed == (name not in SIDE_LINEARS)
    assert quantize(model, stats, "asq").alpha == DEFAULT_ALPHA


def test_overrides_change_bits_and_nothing_else(model: STDiT, stats: CalibrationStats) -> None:
    """An early-steps override splits the one range in two; grids still span what the method's range spans."""
    overrides = (
        Override(("mlp.fc1", "mlp.fc2"), weight_bits=8),
        Override(("attn_temp.qkv",), (0, 1), weight_bits=6, act_bits=16),
        Override(("attn_temp.qkv",), (1, 1), act_bits=6),
    )
    made, plain = quantize(model, stats, "asq", 4, 8, overrides=overrides), quantize(model, stats, "asq", 4, 8)
    assert made.range_of_step.tolist() == [0, 1, 2, 2]
    linear = made.linears["blocks.1.attn_temp.qkv"]
    assert [weight.bits for weight in linear.weights] == [6, 4]
    assert linear.set_of_range.tolist() == [0, 0, 1]
    assert linear.act_bits.tolist() == [16, 6, 8]
    span = linear.act_scale * (2.0**linear.act_bits - 1)
    np.testing.assert_allclose(span, span[0])
    assert [weight.bits for weight in made.linears["blocks.0.mlp.fc1"].weights] == [8]
    for name, other in plain.linears.items():
        np.testing.assert_array_equal(made.linears[name].divisor(0), other.divisor(0))
        if not name.endswith(("attn_temp.qkv", "mlp.fc1", "mlp.fc2")):
            np.testing.assert_array_equal(made.linears[name].weights[0].q, other.weights[0].q)
    with pytest.raises(ModelError, match=r"steps \[0, 4\]: allowed are executed steps 0\.\.3"):
        quantize(model, stats, overrides=[Override(("mlp.fc1",), (0, 4), act_bits=8)])


def test_attention_values_are_measured_per_channel_and_range(model: STDiT, stats: CalibrationStats) -> None:
    made = quantize(model, stats, "tsq")
    assert set(made.value_absmax) == {f"blocks.{i}.{a}" for i in range(2) for a in ("attn", "attn_temp", "cross_attn")}
    for name, values in made.value_absmax.items():
        np.testing.assert_allclose(values.max(axis=1), made.point_absmax[f"{name}.tap_v:out"], rtol=2**-10)


def _step_sqnr_db(model: STDiT, quantized: QuantizedModel) -> float:
    sampler, text = TINY.sampler(), (*TINY.text("fire"), model.y_embedder.y_embedding)
    clip = denoise(float_predictor(model, sampler, *text), *draw_noise(3, TINY.latent_shape, 4), sampler)
    eps = replay(fakequant_predictor(FakeQuantSTDiT(model, quantized), sampler, *text), clip, sampler)
    return float(np.mean([sqnr_db(a, b) for a, b in zip(clip.eps, eps, strict=True)]))


def test_methods_rank_as_the_paper_has_them(model: STDiT, stats: CalibrationStats) -> None:
    found = {name: _step_sqnr_db(model, quantize(model, stats, name)) for name in ("dynamic", "cw_tw", "tsw", "tsq")}
    assert found["tsw"] > found["cw_tw"] + 1
    assert found["dynamic"] > found["cw_tw"] + 1
    assert found["tsq"] > found["cw_tw"] + 1


def test_gptq_gains_at_four_bits(model: STDiT, stats: CalibrationStats, moments: InputMoments) -> None:
    nearest, rounded = (quantize(model, stats, m, 4, 16, moments=moments) for m in ("asq", "asq_gptq"))
    assert _step_sqnr_db(model, rounded) > _step_sqnr_db(model, nearest) + 0.5
    for name in SIDE_LINEARS:
        np.testing.assert_array_equal(rounded.linears[name].weights[0].q, nearest.linears[name].weights[0].q)


def test_moments_of_another_model_are_refused(model: STDiT, stats: CalibrationStats, moments: InputMoments) -> None:
    with pytest.raises(ModelError, match="input moments: collected with weights sha256 000000000000"):
        quantize(model, stats, "asq_gptq", moments=dataclasses.replace(moments, weights_sha256="0" * 64))
    short = {**moments.moments, "blocks.0.mlp.fc2": np.zeros((3, 3), np.float32)}
    with pytest.raises(ModelError, match=r"'blocks\.0\.mlp\.fc2' has shape \(3, 3\), the model has 128 inputs"):
        quantize(model, stats, "asq_gptq", moments=dataclasses.replace(moments, moments=short))


@settings(max_examples=12)
@given(st.sampled_from(sorted(METHODS)), st.sampled_from([4, 6, 8]), st.sampled_from([4, 6, 8, 16]))
def test_every_method_at_any_bits_stays_on_its_grids(
    model: STDiT, stats: CalibrationStats, moments: InputMoments, method: str, weight_bits: int, act_bits: int
) -> None:
    made = quantize(model, stats, method, weight_bits, act_bits, moments=moments)
    for name, module in executed_linears(model).items():
        linear = made.linears[name]
        assert {weight.bits for weight in linear.weights} == {8 if name in SIDE_LINEARS else weight_bits}
        assert set(linear.act_bits.tolist()) == {16 if name in SIDE_LINEARS else act_bits}
        for weight in linear.weights:
            assert weight.q.shape == module.weight.flatten(1).shape
            assert weight.q.max() < 2**weight.bits
            assert np.isfinite(weight.values()).all()


@pytest.mark.parametrize("method", ["asq", "ssq", "tsq", "tsq_pot", "tsq_gptq"])
def test_dead_and_huge_channels_give_finite_models(
    model: STDiT, stats: CalibrationStats, moments: InputMoments, method: str
) -> None:
    """One input channel silent, another at the file format's limit: their neighbours keep their smoothing."""
    name = "blocks.0.mlp.fc2"
    changed = {}
    for kind in ("channel_min", "channel_max", "channel_absmax"):
        values = getattr(stats, kind)[f"{name}:in"].copy()
        values[..., 5] = 0
        values[..., 7] = -65504 if kind == "channel_min" else 65504
        changed[kind] = {**getattr(stats, kind), f"{name}:in": values}
    made = quantize(model, dataclasses.replace(stats, **changed), method, 4, 8, moments=moments).linears[name]
    plain = quantize(model, stats, method, 4, 8, moments=moments).linears[name]
    for time_range in range(len(made.set_of_range)):
        assert np.isfinite(made.weight(time_range).values()).all()
        assert (made.divisor(time_range) > 0).all()
        if method not in ("ssq", "tsq_pot"):
            others = np.delete(np.arange(128), [5, 7])
            np.testing.assert_array_equal(made.divisor(time_range)[others], plain.divisor(time_range)[others])
    assert (made.act_scale > 0).all()
