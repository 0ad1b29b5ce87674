"""The autoencoder: shapes, statistics, and that it learns."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.errors import ModelError
from models.vae import Autoencoder, load_autoencoder


def test_size() -> None:
    assert sum(parameter.numel() for parameter in Autoencoder().parameters()) == 1_840_775


@torch.inference_mode()
def test_encode_normalises_each_frame_on_its_own() -> None:
    torch.manual_seed(0)
    vae = Autoencoder().eval()
    frames = torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8)
    plain = vae.encode(frames)
    assert plain.shape == (2, 4, 3, 8, 8)
    vae.latent_mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    vae.latent_std.copy_(torch.tensor([2.0, 4.0, 5.0, 8.0]))
    shifted = vae.encode(frames)
    torch.testing.assert_close(shifted[:, 1], (plain[:, 1] - 2.0) / 4.0)
    torch.testing.assert_close(vae.encode(frames[1:, 2:])[0, :, 0], shifted[1, :, 2], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_decode_undoes_the_normalisation() -> None:
    torch.manual_seed(0)
    vae = Autoencoder().eval()
    raw = torch.randn(1, 4, 2, 8, 8)
    plain = vae.decode(raw)
    assert plain.shape == (1, 2, 64, 64, 3)
    assert plain.dtype == torch.uint8
    vae.latent_mean.fill_(0.5)
    vae.latent_std.fill_(2.0)
    difference = vae.decode((raw - 0.5) / 2.0).int() - plain.int()
    assert difference.abs().max() <= 1


def test_it_learns_one_picture() -> None:
    torch.manual_seed(0)
    vae = Autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    frames = torch.rand(1, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
    losses = []
    for _ in range(60):
        loss = vae.loss(frames, torch.randn(1, 4, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_checkpoint_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    tensors = Autoencoder().state_dict()
    del tensors["decoder.0.weight"]
    save_file(tensors, tmp_path / "vae.safetensors")
    message = r"vae\.safetensors: tensor 'decoder\.0\.weight' is missing; expected shape \(128, 4, 3, 3\)"
    with pytest.raises(ModelError, match=message):
        load_autoencoder(tmp_path / "vae.safetensors")


def test_checkpoint_with_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    save_file({**Autoencoder().state_dict(), "extra": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match="unknown tensor 'extra'"):
        load_autoencoder(tmp_path / "vae.safetensors")
