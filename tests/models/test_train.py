"""Training: resumable to the bit, refusing what does not fit, and its variance bound against an integral."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import train
from models.errors import ModelError
from models.iddpm import DiffusionTables, linear_betas
from models.objectives import StditObjective, draw_mixed, noise_weight
from models.stdit import EMOJI_CONFIG, STDiT, load_checkpoint
from models.train import Settings, Trainer, learning_rate, main
from models.vae import load_autoencoder

CPU = torch.device("cpu")


class SmallObjective(StditObjective):
    """The real objective on random latents and a one-block model."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self._count_emoji = 5
        self._latents = torch.randn(9, 4, 2, 4, 4, generator=g)
        self._states = torch.randn(9, 16, 384, generator=g)
        self._mask = torch.arange(16)[None] < torch.randint(3, 9, (9, 1), generator=g)
        self._tables = DiffusionTables.of(linear_betas())
        self.data_sha256 = "0" * 64

    def config(self) -> dict[str, object]:
        return {**EMOJI_CONFIG, "input_size": (2, 4, 4), "hidden_size": 32, "depth": 1}

    def build(self) -> nn.Module:
        return STDiT(**self.config())


def make(path: Path, **changes: object) -> Trainer:
    settings = Settings("stdit", **{"total_steps": 20, "batch": 4, "warmup_steps": 3, **changes})
    return Trainer(settings, SmallObjective(), path / "stdit.pt", CPU)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    for _ in range(6):
        whole.train_step()
    first = make(tmp_path / "parts")
    for _ in range(2):
        first.train_step()
    first.save()
    second = make(tmp_path / "parts")
    assert second.step == 2
    for _ in range(4):
        second.train_step()
    for ours, theirs in ((whole.model, second.model), (whole.ema, second.ema)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_the_loss_falls_and_the_average_follows(tmp_path: Path) -> None:
    trainer = make(tmp_path, total_steps=60)
    losses = [float(trainer.train_step()) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    linear, average = (model.get_submodule("final_layer.linear").weight for model in (trainer.model, trainer.ema))
    assert 0 < (average - linear).norm() < linear.norm()


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path).save()
    with pytest.raises(ModelError, match=r"stdit\.pt: belongs to a run with batch=4, not 8; give the same value"):
        make(tmp_path, batch=8)


def test_the_schedule_may_be_stretched_on_resuming(tmp_path: Path) -> None:
    make(tmp_path).save()
    assert make(tmp_path, total_steps=40).settings.total_steps == 40


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    make(tmp_path).save()
    content = (tmp_path / "stdit.pt").read_bytes()
    (tmp_path / "stdit.pt").write_bytes(content[:1000])
    with pytest.raises(ModelError, match=r"stdit\.pt: not a readable training state"):
        make(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02garbage.", bytes(1000)])
def test_garbage_for_a_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stdit.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"stdit\.pt: not a readable training state") as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"optimizer": {}}, {"model": {}}, {"step": "x"}, {"settings": {}}, {"curve": [1]}])
def test_state_with_other_contents_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    make(tmp_path).save()
    state = torch.load(tmp_path / "stdit.pt", weights_only=True)
    torch.save({**state, **change}, tmp_path / "stdit.pt")
    with pytest.raises(ModelError, match=r"stdit\.pt: is no state of this training") as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)
    torch.save(torch.zeros(3), tmp_path / "stdit.pt")
    with pytest.raises(ModelError, match=r"stdit\.pt: is no state of this training"):
        make(tmp_path)


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    trainer = make(tmp_path)
    with pytest.raises(ModelError, match=r"file/emoji_stdit\.safetensors: cannot be written"):
        trainer.export(tmp_path / "file")
    trainer.state_path = tmp_path / "file" / "stdit.pt"
    with pytest.raises(ModelError, match=r"file/stdit\.pt: cannot be written"):
        trainer.save()


def test_run_exports_a_loadable_checkpoint_and_its_curve(tmp_path: Path) -> None:
    trainer = make(tmp_path, total_steps=5)
    train.run(trainer, tmp_path / "out", math.inf, train.Console(quiet=True))
    assert trainer.step == 5
    model, metadata = load_checkpoint(tmp_path / "out" / "emoji_stdit.safetensors")
    assert json.loads(metadata["training"])["step"] == 5
    assert metadata["data_sha256"] == "0" * 64
    for name, value in trainer.ema.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    rows = list(csv.reader((tmp_path / "out" / "emoji_stdit_curve.csv").read_text().splitlines()))
    assert rows[0] == ["step", "mean_loss_of_last_50_steps"]
    assert rows[1][0] == "5"
    assert not list(tmp_path.glob("**/*.tmp"))


def test_run_stops_when_its_time_is_up(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    train.run(trainer, tmp_path / "out", 0.0, train.Console(quiet=True))
    assert trainer.step == 0
    assert (tmp_path / "stdit.pt").exists()


def test_learning_rate() -> None:
    settings = Settings("stdit", total_steps=1000, warmup_steps=100, peak_lr=1.0)
    assert learning_rate(settings, 49) == 0.5
    assert learning_rate(settings, 100) == 1.0
    assert learning_rate(settings, 550) == pytest.approx(0.5)
    assert learning_rate(settings, 1000) == pytest.approx(0.0)
    assert learning_rate(settings, 1500) == pytest.approx(0.0)


def test_three_of_four_clips_are_emoji() -> None:
    index = draw_mixed(10, 30, 8000, torch.Generator().manual_seed(0))
    assert abs((index < 10).float().mean() - 0.75) < 0.02
    assert set(index.tolist()) == set(range(40))


def test_noise_weights_are_min_snr_with_more_at_high_noise() -> None:
    weights = noise_weight(torch.tensor([50.0, 5.0, 2.0, 1.0, 0.25, 1e-4]))
    torch.testing.assert_close(weights, torch.tensor([0.1, 1.0, 1.0, 1.0, 2.0, 100.0]))


def bound(objective: SmallObjective, t: int, v: float, error: float) -> float:
    """The variance bound where the prediction misses the true noise by `error` everywhere."""
    g = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 1, 4, 2, 4, 4, generator=g)
    acp = float(objective._tables.alphas_cumprod[t])
    x_t = acp**0.5 * x0 + (1 - acp) ** 0.5 * noise
    variance: Tensor = torch.full_like(x0, v)
    return float(objective._variance_bound(x0, x_t, noise + error, variance, torch.tensor([t])))


@pytest.mark.parametrize(("t", "v", "error"), [(500, -1.0, 0.0), (500, 0.4, 0.0), (2, 1.0, 0.1), (40, -0.5, 0.3)])
def test_variance_bound_is_the_divergence_of_the_two_normals(t: int, v: float, error: float) -> None:
    tables = DiffusionTables.of(linear_betas())
    true_variance = tables.posterior_variance[t]
    model_variance = tables.betas[t] ** ((v + 1) / 2) * true_variance ** ((1 - v) / 2)
    # An error e of the noise moves x_0 by e sqrt(1/acp - 1), and the mean by coef1 times that.
    shift = tables.posterior_mean_coef1[t] * tables.sqrt_recipm1_alphas_cumprod[t] * error
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    x = z * math.sqrt(true_variance)
    log_true = -0.5 * (z**2 + math.log(true_variance))
    log_model = -0.5 * ((x - shift) ** 2 / model_variance + math.log(model_variance))
    divergence = np.sum(density * (log_true - log_model)) * (z[1] - z[0]) / math.log(2)
    assert bound(SmallObjective(), t, v, error) == pytest.approx(divergence, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stdit", "--total-steps", "0"], "--total-steps 0: must be at least 1"),
        (["stdit", "--total-steps", "5", "--batch", "-1"], "--batch -1: must be at least 1"),
        (["stdit", "--total-steps", "5", "--out", "{tmp}/none"], "emoji_vae.safetensors: not a readable safetensors"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert main([*arguments, "--state-dir", str(tmp_path / "state")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "VaeObjective", interrupted)
    assert main(["vae", "--total-steps", "5"]) == 130
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_absent_cuda_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stdit", "--total-steps", "5", "--device", "cuda"]) == 2
    assert "--device cuda: no CUDA device is available; allowed here: auto, cpu" in capsys.readouterr().err


def test_the_autoencoder_stage_trains_on_the_stored_frames(tmp_path: Path) -> None:
    out, state = str(tmp_path / "out"), str(tmp_path / "state")
    assert (
        main(["vae", "--total-steps", "1", "--batch", "2", "--device", "cpu", "--out", out, "--state-dir", state]) == 0
    )
    vae, _ = load_autoencoder(tmp_path / "out" / "emoji_vae.safetensors")
    assert vae.latent_std.min() > 0
    assert vae.latent_std.unique().numel() == 4
