"""Quantization: grids fit weights and ranges, constants equal the float model's, files are exact and checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.quantize import FILE_KIND, SIDE_LINEARS, QuantizedModel, model_config, quantize
from models.stats import CalibrationStats, executed_linears, weights_sha256
from models.stdit import STDiT
from models.store import load_arrays, save_arrays
from models.workloads import get_workload

TINY = get_workload("tiny")


@pytest.fixture(scope="module")
def model() -> STDiT:
    return TINY.load_model()


@pytest.fixture(scope="module")
def stats() -> CalibrationStats:
    return TINY.load_stats()


@pytest.fixture(scope="module")
def quantized(model: STDiT, stats: CalibrationStats) -> QuantizedModel:
    return quantize(model, stats)


def test_settings(quantized: QuantizedModel) -> None:
    assert (quantized.method, quantized.weight_bits, quantized.act_bits, quantized.num_steps) == ("cw_tw", 8, 8, 4)
    assert quantized.num_ranges == 1
    assert quantized.range_of_step.tolist() == [0, 0, 0, 0]
    assert quantized.iddpm == {"num_sampling_steps": 4, "cfg_scale": 4.0, "cfg_channels": 3}


def test_weights_are_within_half_a_step_of_their_rows_grid(model: STDiT, quantized: QuantizedModel) -> None:
    linears = executed_linears(model)
    assert list(quantized.linears) == list(linears)
    for name, linear in quantized.linears.items():
        weight = linears[name].weight.double().flatten(1).numpy()
        assert linear.weight_q.shape == weight.shape
        assert (np.abs(linear.weight() - weight) <= linear.weight_scale[:, None] * (0.5 + 1e-9)).all()
        span = np.maximum(weight.max(1), 0) - np.minimum(weight.min(1), 0)
        np.testing.assert_allclose(linear.weight_scale, span / 255, rtol=1e-12)
        np.testing.assert_array_equal(linear.bias, linears[name].bias.double().numpy())


@pytest.mark.parametrize("act_bits", [8, 16])
def test_activation_grids_cover_the_calibrated_range(model: STDiT, stats: CalibrationStats, act_bits: int) -> None:
    for name, linear in quantize(model, stats, act_bits=act_bits).linears.items():
        assert linear.act_bits == (16 if name in SIDE_LINEARS else act_bits)
        grid = linear.act_grid(0)
        low, high = grid.dequantize(np.array([0, 2**linear.act_bits - 1]))
        step = float(grid.scale)
        assert low == pytest.approx(min(float(stats.minimum[f"{name}:in"].min()), 0.0), abs=step)
        assert high == pytest.approx(max(float(stats.maximum[f"{name}:in"].max()), 0.0), abs=step)


def test_point_magnitudes(stats: CalibrationStats, quantized: QuantizedModel) -> None:
    assert list(quantized.point_absmax) == list(stats.minimum)
    for point, largest in quantized.point_absmax.items():
        both = np.concatenate([stats.minimum[point], stats.maximum[point]])
        np.testing.assert_array_equal(largest, [np.abs(both).max().astype(np.float64)])


def test_time_values_are_those_of_a_float_forward_in_execution_order(model: STDiT, quantized: QuantizedModel) -> None:
    seen: list[Tensor] = []
    handle = model.t_block.register_forward_hook(lambda module, args, out: seen.extend([args[0], out]))
    text = torch.zeros(1, 1, 16, 384)
    for step, timestep in enumerate(TINY.sampler().timesteps[::-1].tolist()):
        model(torch.zeros(1, *TINY.latent_shape), torch.tensor([float(timestep)]), text)
        te, t0 = seen[-2:]
        np.testing.assert_allclose(quantized.te[step], te[0], atol=1e-5)
        np.testing.assert_allclose(quantized.t0[step].reshape(-1), t0[0], atol=1e-5)
    handle.remove()
    assert quantized.t0.shape == (4, 6, 32)
    assert model.t_block[1].weight.dtype == torch.float32


def test_constants_and_config_rebuild_the_model(model: STDiT, quantized: QuantizedModel) -> None:
    np.testing.assert_array_equal(quantized.pos_embed, model.pos_embed[0].double())
    np.testing.assert_array_equal(quantized.pos_embed_temporal, model.pos_embed_temporal[0].double())
    np.testing.assert_array_equal(quantized.y_embedding, model.y_embedder.y_embedding.double())
    np.testing.assert_array_equal(quantized.final_table, model.final_layer.scale_shift_table.double())
    np.testing.assert_array_equal(quantized.scale_shift_table[1], model.blocks[1].scale_shift_table.double())
    rebuilt = STDiT(**quantized.config)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert quantized.config == model_config(model)


def test_round_trip_is_exact(quantized: QuantizedModel, tmp_path: Path) -> None:
    quantized.save(tmp_path / "a")
    loaded = QuantizedModel.load(tmp_path / "a")
    _assert_equal(dataclasses.asdict(loaded), dataclasses.asdict(quantized))
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            _assert_equal(found[key], value)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


LINEAR = "linears/blocks.0.mlp.fc1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a.pop(f"{LINEAR}/weight_q"), "fc1/weight_q' is missing"),
        (lambda a, m: a.pop(f"{LINEAR}/act_zp"), "fc1/act_zp' is missing"),
        (lambda a, m: a.update({f"{LINEAR}/bias": np.zeros(3)}), r"fc1/bias' is float64\[3\]"),
        (lambda a, m: a.update({f"{LINEAR}/act_scale": np.zeros(1)}), "fc1/act_scale' must be positive"),
        (lambda a, m: a.update({f"{LINEAR}/act_zp": np.full(1, 256)}), r"fc1/act_zp' must lie in 0\.\.255"),
        (lambda a, m: a.update({f"{LINEAR}/weight_zp": np.full(128, -1)}), r"fc1/weight_zp' must lie in 0\.\.255"),
        (lambda a, m: a.update({"t0": np.full((4, 6, 32), np.inf)}), "'t0' holds NaN or infinity"),
        (lambda a, m: a.update({"extra": np.zeros(1)}), "unknown tensor 'extra'"),
        (lambda a, m: a.update({"range_of_step": np.array([0, 0, 2, 2])}), "allowed are ranges"),
        (lambda a, m: a.update({"range_of_step": np.array([-1, 0, 0, 0])}), "allowed are ranges"),
        (lambda a, m: m["linears"].update({"blocks.0.mlp.fc1": 7}), "act_bits=7, allowed: 8, 16"),
        (lambda a, m: m.pop("method"), "field 'method' is missing"),
        (lambda a, m: m.update(linears=[]), "field 'linears' is missing or not of type dict"),
        (lambda a, m: m["linears"].pop("blocks.0.mlp.fc1"), r"field 'linears' lacks or adds 'blocks\.0\.mlp\.fc1'"),
        (lambda a, m: m["points"].remove("tap_embed:out"), "field 'points' lacks or adds 'tap_embed:out'"),
        (lambda a, m: m["config"].update(hidden=3), "field 'config' does not describe an STDiT"),
        (lambda a, m: m["config"].update(num_heads=3), r"field 'config' does not .* must be a multiple of num_heads=3"),
        (lambda a, m: m["config"].update(num_heads=0), "field 'config' does not describe an STDiT"),
        (lambda a, m: m["config"].update(input_size=[4, 2_000_000, 2_000_000]), "field 'config' .*input_size="),
        (lambda a, m: m["config"].update(patch_size=[0, 2, 2]), "field 'config' .*patch_size="),
        (lambda a, m: m["points"].append(["x"]), "field 'points' lacks or adds"),
        (lambda a, m: m.update(iddpm={}), "field 'iddpm' lacks or adds 'cfg_channels'"),
        (lambda a, m: m["iddpm"].update(eta=1), "field 'iddpm' lacks or adds 'eta'"),
        (lambda a, m: m["iddpm"].update(cfg_scale="4"), r"field 'iddpm\.cfg_scale' is not of type float"),
        (lambda a, m: m["iddpm"].update(cfg_scale=np.nan), "field 'iddpm': cfg_scale=nan: must be a finite number"),
        (lambda a, m: m["iddpm"].update(cfg_channels=5), "field 'iddpm': cfg_channels=5: must be from 0 to 4"),
        (lambda a, m: m["iddpm"].update(num_sampling_steps=5), r"'iddpm\.num_sampling_steps' is 5, 'num_steps' is 4"),
        (lambda a, m: a.update({"t0": np.full((4, 6, 32), -1e6)}), r"'t0' holds magnitude 1e\+06; allowed is < 1e\+06"),
        (lambda a, m: m["config"].update(depth=3), r"field 'linears' lacks or adds 'blocks\.2"),
        (lambda a, m: m["config"].update(caption_channels=99), r"fc1/weight_q' is .*allowed is uint8\[32, 99\]"),
    ],
)
def test_altered_files_are_refused(quantized: QuantizedModel, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    quantized.save(path)
    arrays, metadata = load_arrays(path, FILE_KIND, 1)
    change(arrays, metadata)
    save_arrays(path, FILE_KIND, 1, arrays, metadata)
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{message}"):
        QuantizedModel.load(path)


def test_truncated_file_is_refused(quantized: QuantizedModel, tmp_path: Path) -> None:
    quantized.save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    (tmp_path / "model").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="model: not a readable safetensors file"):
        QuantizedModel.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"method": "cwtw"}, "method 'cwtw' is unknown; allowed: cw_tw; nearest: cw_tw"),
        ({"method": ""}, "nearest: cw_tw"),
        ({"weight_bits": 4}, "weight_bits=4: allowed: 8; nearest: 8"),
        ({"act_bits": 14}, "act_bits=14: allowed: 8, 16; nearest: 16"),
    ],
)
def test_unknown_requests_name_what_is_allowed(
    model: STDiT, stats: CalibrationStats, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        quantize(model, stats, **request_)


def test_statistics_of_other_weights_are_refused(stats: CalibrationStats) -> None:
    other = TINY.load_model()
    other.pos_embed += 1.0
    with pytest.raises(ModelError, match="collected with weights sha256"):
        quantize(other, stats)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_non_finite_weights_are_refused_by_layer(stats: CalibrationStats, kind: str) -> None:
    broken = TINY.load_model()
    broken.get_parameter(f"blocks.1.attn.proj.{kind}")[3] = torch.nan
    forced = dataclasses.replace(stats, weights_sha256=weights_sha256(broken))
    with pytest.raises(ModelError, match=rf"blocks\.1\.attn\.proj\.{kind}: NaN or infinity"):
        quantize(broken, forced)
