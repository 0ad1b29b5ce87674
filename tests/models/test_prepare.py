"""Networks by a method's name, and the files that a method needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.calibrate import calibrate
from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.moments import InputMoments
from models.prepare import network_for, predictor_for, quantize_for
from models.sample import denoise, replay
from models.stats import weights_sha256
from models.workloads import get_workload

TINY = get_workload("tiny")


def test_networks_of_all_kinds_predict() -> None:
    model, stats, sampler = TINY.load_model(), TINY.load_stats(), TINY.sampler()
    before = weights_sha256(model)
    text = (*TINY.text("fire"), model.y_embedder.y_embedding)
    noise = draw_noise(3, TINY.latent_shape, 4)
    networks = {name: network_for(TINY, model, stats, name) for name in ("fp32", "fp16", "tsw")}
    assert networks["fp32"] is model
    assert networks["fp16"].x_embedder.proj.weight.dtype == torch.float16
    assert isinstance(networks["tsw"], FakeQuantSTDiT)
    assert weights_sha256(model) == before
    clip = denoise(predictor_for(model, sampler, *text), *noise, sampler)
    found = {name: replay(predictor_for(net, sampler, *text), clip, sampler) for name, net in networks.items()}
    ratio_db = {name: sqnr_db(clip.eps, eps) for name, eps in found.items()}
    assert ratio_db["fp32"] > 100
    assert 40 < ratio_db["fp16"] < 80
    assert ratio_db["tsw"] > 12


def test_moments_are_collected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, stats = TINY.load_model(), TINY.load_stats()
    first = quantize_for(TINY, model, stats, "asq_gptq", 4, 8)
    (path,) = (tmp_path / "build" / "calibration").iterdir()
    assert path.name == f"tiny-{stats.weights_sha256[:12]}-4-4.safetensors"
    written = path.stat().st_mtime_ns
    again = quantize_for(TINY, model, stats, "asq_gptq", 4, 8)
    assert path.stat().st_mtime_ns == written
    name = "blocks.1.mlp.fc2"
    assert (first.linears[name].weights[0].q == again.linears[name].weights[0].q).all()
    path.unlink()
    calibrate("tiny", tmp_path / "stats", moments=True)
    found = InputMoments.load(path)
    assert found.weights_sha256 == stats.weights_sha256
    bad = dataclasses.replace(found, moments={**found.moments, name: found.moments[name][:, :3]})
    bad.save(path)
    with pytest.raises(ModelError, match=rf"{path.name}: tensor 'blocks\.1\.mlp\.fc2' is float32\[128, 3\]"):
        quantize_for(TINY, model, stats, "asq_gptq")
