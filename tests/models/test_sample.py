"""The denoising loop against closed forms and a spelled-out loop, and the pictures it ends in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from models import workloads
from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.iddpm import draw_noise
from models.metrics import sqnr_db
from models.prepare import quantize_for
from models.sample import (
    ClipBatch,
    decode_frames,
    denoise,
    denoise_clips,
    fakequant_predictor,
    float_predictor,
    main,
    replay,
    replay_clips,
    save_gif,
    save_strip,
)
from models.vae import Autoencoder
from models.workloads import get_workload

TINY = get_workload("tiny")
SHAPE = TINY.latent_shape


def test_float_predictor_equals_the_branches_on_their_own() -> None:
    model, sampler = TINY.load_model(), TINY.sampler()
    states, mask = TINY.text("fire")
    null = model.y_embedder.y_embedding
    x, _ = draw_noise(0, SHAPE, 4)
    eps_cond, eps_uncond, v = float_predictor(model, sampler, states, mask, null)(1, x)
    timestep = torch.tensor([666.0])
    conditional = model(x[None], timestep, states[None, None], mask[None])[0]
    unconditional = model(x[None], timestep, null[mask][None, None])[0]  # cut to the prompt's length, not masked
    torch.testing.assert_close(eps_cond, conditional[:4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v, conditional[4:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(eps_uncond, unconditional[:4], atol=1e-4, rtol=1e-4)
    assert (eps_cond - eps_uncond).abs().max() > 0.01


@pytest.mark.parametrize("change", [{"in_channels": 3}, {"pred_sigma": False}])
def test_networks_with_other_latent_channels_are_refused_early(change: dict[str, Any]) -> None:
    work = dataclasses.replace(TINY, config={**TINY.config, **change})
    model = work.load_model()
    null = model.y_embedder.y_embedding
    message = "sampling needs in_channels=4 and pred_sigma=True"
    with pytest.raises(ModelError, match=message):
        float_predictor(model, work.sampler(), *work.text("fire"), null)
    with pytest.raises(ModelError, match=message):
        work.load_stats()


def test_a_perfect_predictor_ends_in_the_clip_it_knows() -> None:
    sampler = dataclasses.replace(TINY, num_steps=20).sampler()
    clip = draw_noise(9, SHAPE, 1)[0]
    order = []

    def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        order.append(step)
        acp = float(sampler.alphas_cumprod[19 - step])
        eps = (x - acp**0.5 * clip) / (1 - acp) ** 0.5
        return eps, eps, torch.zeros_like(x)

    trajectory = denoise(predict, *draw_noise(1, SHAPE, 20), sampler)
    assert order == list(range(20))
    np.testing.assert_allclose(trajectory.states[-1], clip, atol=1e-3)


def test_denoise_equals_the_loop_written_out_and_replay_its_predictions() -> None:
    sampler = TINY.sampler()
    x_first, noises = draw_noise(2, SHAPE, 4)

    def predict(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.sin() + step, 0.5 * x.cos(), (x * 3).tanh()

    trajectory = denoise(predict, x_first, noises, sampler)
    x = x_first.numpy()
    for step in range(4):
        cond, uncond, v = (part.numpy() for part in predict(step, torch.from_numpy(x)))
        eps = cond.copy()
        eps[:3] = uncond[:3] + 4.0 * (cond[:3] - uncond[:3])
        np.testing.assert_array_equal(trajectory.states[step], x)
        np.testing.assert_allclose(trajectory.eps[step], eps, rtol=1e-6)
        as_batch = [torch.from_numpy(part)[None] for part in (x, eps, v)]
        x = sampler.step(3 - step, *as_batch, noises[step][None])[0].numpy()
    np.testing.assert_allclose(trajectory.states[-1], x, rtol=1e-5)
    assert trajectory.states.shape == (5, *SHAPE)
    assert trajectory.states.dtype == trajectory.eps.dtype == np.float32
    np.testing.assert_array_equal(replay(predict, trajectory, sampler), trajectory.eps)
    # Replayed on given states, one step's mistake does not reach the next.
    wrong = replay(lambda step, x: predict(step, x + (step == 1)), trajectory, sampler)
    assert [bool((wrong[step] == trajectory.eps[step]).all()) for step in range(4)] == [True, False, True, True]


def test_pictures_hold_the_frames(tmp_path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    for index in range(3):
        frames[index, :, :, index] = 255
    save_strip(frames, tmp_path / "new" / "clip.png")
    save_gif(frames, tmp_path / "new" / "clip.gif")
    with Image.open(tmp_path / "new" / "clip.png") as strip:
        np.testing.assert_array_equal(np.asarray(strip), np.concatenate(list(frames), axis=1))
    with Image.open(tmp_path / "new" / "clip.gif") as gif:
        assert gif.n_frames == 3
        for index in range(3):
            gif.seek(index)
            assert gif.info["duration"] in (120, 125, 130)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frames[index])


def test_decode_frames_gives_one_picture_per_latent_frame() -> None:
    frames = decode_frames(Autoencoder().eval(), draw_noise(0, SHAPE, 1)[0].numpy())
    assert frames.shape == (4, 64, 64, 3)
    assert frames.dtype == np.uint8


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(Autoencoder().state_dict(), tmp_path / "vae.safetensors")
    shown = dataclasses.replace(TINY, name="shown", vae=tmp_path / "vae.safetensors")
    monkeypatch.setitem(workloads.WORKLOADS, "shown", shown)
    out = tmp_path / "out"
    assert main(["--workload", "shown", "--prompt", "fire", "--seed", "3", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["clip.gif", "clip.png"]
    first = (out / "clip.png").read_bytes()
    assert main(["--workload", "shown", "--prompt", "fire", "--seed", "3", "--out", str(out)]) == 0
    assert (out / "clip.png").read_bytes() == first
    capsys.readouterr()
    for arguments, message in (
        (["--workload", "shown", "--prompt", "fyre"], "unknown caption 'fyre'"),
        (["--workload", "shwon", "--prompt", "fire"], "nearest: shown"),
        (["--workload", "tiny", "--prompt", "fire"], "has no autoencoder"),
        (["--workload", "shown", "--prompt", "fire", "--seed", "-1"], "must not be negative"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("method", ["fp32", "tsq", "dynamic"])
def test_clips_sampled_together_equal_single_ones(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of different lengths, and more clips than one piece holds; ranges that change with the step."""
    monkeypatch.setattr("models.sample.BATCH", 2)
    captions, seeds = ("fire", "family of man and woman and girl and boy", "rainbow"), (3, 4, 5)
    model, sampler = TINY.load_model(), TINY.sampler()
    null = model.y_embedder.y_embedding
    network: torch.nn.Module = model
    if method != "fp32":
        network = FakeQuantSTDiT(model, quantize_for(TINY, model, TINY.load_stats(), method, act_bits=16))
    batch = ClipBatch.of(TINY, captions, seeds, null)
    together = denoise_clips(network, sampler, batch)
    repeated = replay_clips(network, sampler, batch.first(2), together.states[:, :2])
    for index, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
        text = (sampler, *TINY.text(caption), null)
        single = fakequant_predictor(network, *text) if method != "fp32" else float_predictor(model, *text)
        expected = denoise(single, *draw_noise(seed, SHAPE, 4), sampler)
        # Float32 sums in another order differ in the last bit, a rounding may turn on it, and steps amplify that.
        assert sqnr_db(expected.eps[0], together.eps[0, index]) > 60
        assert sqnr_db(expected.states, together.states[:, index]) > 45
        if index < 2:
            assert sqnr_db(together.eps[:, index], repeated[:, index]) > 60
