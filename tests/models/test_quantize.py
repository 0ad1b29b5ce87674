"""Quantization: grids fit weights and ranges, constants equal the float model's, files are exact and checked."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from models.errors import ModelError
from models.quantize import FILE_KIND, FILE_VERSION, SIDE_LINEARS, QuantizedModel, model_config, quantize, set_path
from models.quantize.files import sealed
from models.stats import CalibrationStats, executed_linears, weights_sha256
from models.stdit import STDiT
from models.store import load_arrays, save_arrays
from models.workloads import get_workload

TINY = get_workload("tiny")


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
        assert len(linear.weights) == 1
        one = linear.weights[0]
        assert one.q.shape == weight.shape
        assert (np.abs(one.values() - weight) <= one.scale[:, None] * (0.5 + 1e-9)).all()
        span = np.maximum(weight.max(1), 0) - np.minimum(weight.min(1), 0)
        np.testing.assert_allclose(one.scale, span / 255, rtol=1e-12)
        assert not linear.smoothed
        np.testing.assert_array_equal(linear.bias, linears[name].bias.double().numpy())


@pytest.mark.parametrize("act_bits", [8, 16])
def test_activation_grids_cover_the_calibrated_range(model: STDiT, stats: CalibrationStats, act_bits: int) -> None:
    for name, linear in quantize(model, stats, act_bits=act_bits).linears.items():
        assert linear.act_bits.tolist() == [16 if name in SIDE_LINEARS else act_bits]
        grid = linear.act_grid(0)
        low, high = grid.dequantize(np.array([0, 2**grid.bits - 1]))
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


@pytest.mark.parametrize("method", ["dynamic", "tsw", "asq", "tsq", "tsq_pot"])
def test_every_method_survives_its_files(model: STDiT, stats: CalibrationStats, tmp_path: Path, method: str) -> None:
    """Saved whole, and written while it is made: both files read back as what is in memory."""
    made = quantize(model, stats, method, 4, 8)
    made.save(tmp_path / "a.safetensors")
    written = quantize(model, stats, method, 4, 8, out=tmp_path / "b.safetensors")
    for found in (written, QuantizedModel.load(tmp_path / "a.safetensors")):
        _assert_equal(dataclasses.asdict(found), dataclasses.asdict(made))
    sets = sorted(path.name for path in tmp_path.glob("a.set*"))
    assert sets == ([f"a.set0{index}.safetensors" for index in range(4)] if method == "tsq" else [])


def test_set_files_are_mapped_and_hold_just_the_weights_that_change(
    model: STDiT, stats: CalibrationStats, tmp_path: Path
) -> None:
    path = tmp_path / "tsq.safetensors"
    loaded = quantize(model, stats, "tsq", ranges=2, out=path)
    weight = loaded.linears["blocks.0.mlp.fc1"].weights[1].q
    assert not weight.flags.owndata
    assert not weight.flags.writeable
    assert len(loaded.linears["blocks.0.cross_attn.kv_linear"].weights) == 1  # runs once per prompt
    tensors = load_file(set_path(path, 1))
    np.testing.assert_array_equal(tensors["blocks.0.mlp.fc1/q"], weight)
    changing = [name for name, linear in loaded.linears.items() if len(linear.weights) == 2]
    assert len(changing) == 8 * 2
    assert {name.rpartition("/")[0] for name in tensors} == set(changing)


def test_set_files_of_another_model_are_refused(model: STDiT, stats: CalibrationStats, tmp_path: Path) -> None:
    for name, alpha, ranges in (("a", 0.3, 4), ("b", 0.6, 4), ("c", 0.3, (0, 1, 2))):
        quantize(model, stats, "tsq", alpha=alpha, ranges=ranges, out=tmp_path / f"{name}.safetensors")
    for other in "bc":
        shutil.copy(tmp_path / "a.set02.safetensors", tmp_path / f"{other}.set02.safetensors")
        with pytest.raises(ModelError, match=rf"{other}\.set02\.safetensors: belongs to another quantized model than"):
            QuantizedModel.load(tmp_path / f"{other}.safetensors")
    (tmp_path / "a.set02.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a\.set02\.safetensors: no such quantized weights file"):
        QuantizedModel.load(tmp_path / "a.safetensors")


def _assert_equal(found: Any, expected: Any) -> None:
    assert isinstance(found, type(expected))
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            _assert_equal(found[key], value)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_equal(one, other)
    else:
        assert found == expected


LINEAR = "linears/blocks.0.mlp.fc1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a.pop(f"{LINEAR}/q"), "fc1/q' is missing"),
        (lambda a, m: a.pop(f"{LINEAR}/act_zp"), "fc1/act_zp' is missing"),
        (lambda a, m: a.update({f"{LINEAR}/bias": np.zeros(3)}), r"fc1/bias' is float64\[3\]"),
        (lambda a, m: a.update({f"{LINEAR}/act_scale": np.zeros(1)}), "fc1/act_scale' must be positive"),
        (lambda a, m: a.update({f"{LINEAR}/act_zp": np.full(1, 256)}), r"fc1/act_zp' must lie in 0\.\.255"),
        (lambda a, m: a.update({f"{LINEAR}/zero_point": np.full(128, -1)}), r"fc1/zero_point' must lie in 0\.\.255"),
        (lambda a, m: a.update({f"{LINEAR}/smoothing": np.zeros(32)}), "fc1/smoothing' must be positive"),
        (lambda a, m: a.update({f"{LINEAR}/scale": np.zeros(128)}), "fc1/scale' must be positive"),
        (
            lambda a, m: a.update({f"{LINEAR}/set_of_range": np.ones(1, int)}),
            r"set_of_range' must use every set of 0\.\.0",
        ),
        (lambda a, m: a.update({"t0": np.full((4, 6, 32), np.inf)}), "'t0' holds NaN or infinity"),
        (lambda a, m: a.update({"extra": np.zeros(1)}), "unknown tensor 'extra'"),
        (lambda a, m: a.update({"range_of_step": np.array([0, 0, 2, 2])}), "allowed are ranges"),
        (lambda a, m: a.update({"range_of_step": np.array([-1, 0, 0, 0])}), "allowed are ranges"),
        (lambda a, m: a.update({f"{LINEAR}/act_bits": np.full(1, 7)}), r"act_bits' is \[7\]; allowed: \(4, 6, 8, 16\)"),
        (
            lambda a, m: m["linears"].update({"blocks.0.mlp.fc1": 7}),
            r"linear 'blocks\.0\.mlp\.fc1' is not \{weight_bits",
        ),
        (lambda a, m: m["linears"]["blocks.0.mlp.fc1"].update(weight_bits=[5]), r"weight_bits=\[5\], allowed: 4, 6, 8"),
        (lambda a, m: m["linears"]["blocks.0.mlp.fc1"].update(weight_bits=[4]), r"fc1/q' must lie in 0\.\.15"),
        (lambda a, m: m["linears"]["blocks.0.mlp.fc1"].update(shifted=True), r"fc1/input_shift' is missing"),
        (lambda a, m: m.update(alpha="0.5"), "field 'alpha' is neither a number nor null"),
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
        (lambda a, m: m["config"].update(caption_channels=99), r"y_embedding' is .*allowed is float64\[16, 99\]"),
    ],
)
def test_altered_files_are_refused(quantized: QuantizedModel, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    quantized.save(path)
    arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
    del metadata["sha256"]
    change(arrays, metadata)
    save_arrays(path, FILE_KIND, FILE_VERSION, arrays, sealed(arrays, metadata))
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{message}"):
        QuantizedModel.load(path)


def test_a_flipped_bit_is_noticed_in_either_file(model: STDiT, stats: CalibrationStats, tmp_path: Path) -> None:
    """A weight is as good as its neighbour: nothing but the digest tells them apart."""
    path = tmp_path / "a.safetensors"
    quantize(model, stats, method="tsq", ranges=2, out=path)
    sets = set_path(path, 1)
    for file, message in (
        (path, r"a\.safetensors: contents do not match their SHA-256; the file was altered$"),
        (sets, r"a\.set01\.safetensors: contents do not match their SHA-256 in .*a\.safetensors; one of them was"),
    ):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1  # of bytes: the last weight of a linear
        file.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            QuantizedModel.load(path)
        content[-1] ^= 1
        file.write_bytes(content)
        QuantizedModel.load(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'\\"weight_bits\\": 8', b'\\"weight_bits\\": 4', 1))  # of the metadata
    assert path.read_bytes() != content
    with pytest.raises(ModelError, match=r"a\.safetensors: contents do not match their SHA-256"):
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
        ({"method": "cwtw"}, "method 'cwtw' is unknown; allowed: dynamic, cw_tw, tsw, .*; nearest: cw_tw"),
        ({"method": ""}, "method '' is unknown"),
        ({"method": "asq_dp"}, "method 'asq_dp' is unknown; .*, each with _gptq, and tsw, tsq, tsq_pot with _dp"),
        ({"method": "fp16"}, "method 'fp16' is floating-point and runs in torch only; allowed: dynamic, cw_tw"),
        ({"weight_bits": 5}, "weight_bits=5: allowed: 4, 6, 8; nearest: 4"),
        ({"act_bits": 14}, "act_bits=14: allowed: 4, 6, 8, 16; nearest: 16"),
        ({"method": "tsw", "ranges": 3}, "ranges=3: allowed of 4 steps: 1,2,4; nearest: 2"),
        ({"method": "tsw", "ranges": (1, 2)}, "ranges=1,2: first steps must begin with 0 and rise, below 4"),
        ({"method": "tsw", "ranges": (0, 4)}, "ranges=0,4: first steps must begin with 0 and rise, below 4"),
        ({"method": "tsw_dp", "ranges": (0, 2)}, "method 'tsw_dp' chooses the boundaries; give a number"),
        ({"method": "tsw_dp", "ranges": 5}, "ranges=5: allowed of 4 steps: 1,2,3,4; nearest: 4"),
        ({"method": "dynamic", "ranges": 2}, "ranges=2: method 'dynamic' has no parameters per range; allowed: 1"),
        ({"method": "tsw", "alpha": 0.5}, r"alpha=0\.5: method 'tsw' does not smooth; leave it out"),
        ({"method": "asq", "alpha": 0.0}, r"alpha=0\.0: allowed is a number above 0 and up to 1"),
        ({"method": "asq", "alpha": np.nan}, "alpha=nan: allowed is a number above 0 and up to 1"),
        ({"method": "asq_gptq"}, "method 'asq_gptq' needs the inputs' second moments"),
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
