"""The committed checkpoints: complete, of the frozen architecture, small enough, and trained on the stored data."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint import config_of, read_tensors
from models.clips import data_sha256, load_digits, load_emoji
from models.errors import ModelError
from models.iddpm import linear_betas
from models.stdit import EMOJI_CONFIG, STDiT, load_checkpoint
from models.stdit_config import check_config
from models.text import TextStates
from models.train import CHECKPOINT_DIR
from models.vae import load_autoencoder

STDIT_FILE = CHECKPOINT_DIR / "emoji_stdit.safetensors"
VAE_FILE = CHECKPOINT_DIR / "emoji_vae.safetensors"


def test_all_checkpoints_fit_the_size_allowed() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT_DIR.iterdir()) <= 28_000_000


def test_stdit_is_of_the_frozen_architecture() -> None:
    model, metadata = load_checkpoint(STDIT_FILE)
    assert json.loads(metadata["config"]) == json.loads(json.dumps(EMOJI_CONFIG))
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_603_424
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("file", [STDIT_FILE, VAE_FILE])
def test_checkpoint_was_trained_on_the_stored_data(file: Path) -> None:
    assert read_tensors(file)[1]["data_sha256"] == data_sha256()


@pytest.mark.parametrize("name", ["emoji_stdit", "emoji_vae"])
def test_loss_curve_falls(name: str) -> None:
    rows = list(csv.reader((CHECKPOINT_DIR / f"{name}_curve.csv").read_text().splitlines()))[1:]
    assert float(rows[-1][1]) < 0.5 * float(rows[0][1])


@torch.inference_mode()
def test_autoencoder_gives_the_frames_back() -> None:
    vae, _ = load_autoencoder(VAE_FILE)
    for clip_set, least_psnr_db in ((load_emoji(), 24.0), (load_digits(), 27.0)):
        frames = clip_set.frames[:: len(clip_set.frames) // 12]
        back = vae.decode(vae.encode(torch.from_numpy(frames))).numpy()
        error = np.square(back.astype(np.float64) - frames).mean()
        assert 10 * np.log10(255**2 / error) > least_psnr_db


@torch.inference_mode()
def test_stdit_predicts_noise_better_than_chance() -> None:
    """On noisy clips of the set, the prediction explains most of the noise."""
    model, _ = load_checkpoint(STDIT_FILE)
    emoji = load_emoji()
    index = list(range(0, 363, 60))
    latents = load_autoencoder(VAE_FILE)[0].encode(torch.from_numpy(emoji.frames[index]))
    states, mask = TextStates().batch([emoji.captions[i] for i in index])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    acp = float(np.cumprod(1 - linear_betas())[300])
    t = torch.full((len(index),), 300)
    x = acp**0.5 * latents + (1 - acp) ** 0.5 * noise
    out = model(x, t, torch.from_numpy(states)[:, None], torch.from_numpy(mask))
    assert (out[:, :4] - noise).square().mean() < 0.35


# ---------------------------------------------------------------------------------------------------------------------
# Bad checkpoints


def saved(path: Path, **changes: torch.Tensor | None) -> Path:
    """A tiny checkpoint with tensors replaced (or, by None, removed); __ stands for a dot."""
    config = {**EMOJI_CONFIG, "hidden_size": 8, "depth": 1}
    tensors = STDiT(**config).state_dict()
    for name, value in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, path / "bad.safetensors", metadata={"config": json.dumps(config)})
    return path / "bad.safetensors"


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, blocks__0__mlp__fc1__bias=None)
    with pytest.raises(ModelError, match=r"bad\.safetensors: tensor 'blocks\.0\.mlp\.fc1\.bias' is missing; .*\(32,\)"):
        load_checkpoint(path)


def test_misshapen_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, final_layer__linear__weight=torch.zeros(8, 32))
    message = r"tensor 'final_layer\.linear\.weight' has shape \(8, 32\); expected \(32, 8\)"
    with pytest.raises(ModelError, match=message):
        load_checkpoint(path)


def test_unknown_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown tensor 'other'"):
        load_checkpoint(saved(tmp_path, other=torch.zeros(1)))


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"bad\.safetensors: not a readable safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no readable 'config'"),
        ("[]", "'config' is list; expected an object"),
        ('{"hidden": 3}', "does not fit STDiT.*hidden"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, config: str, message: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"config": config})
    with pytest.raises(ModelError, match=f"bad.safetensors: metadata.*{message}"):
        load_checkpoint(tmp_path / "bad.safetensors")


# None of these may take time or memory in proportion to what they ask for.
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads=0: allowed is an integer from 1 to 256"),
        ({"num_heads": True}, "num_heads=True: allowed is an integer"),
        ({"num_heads": 3}, "hidden_size=8: must be a multiple of num_heads=3 and of 4"),
        ({"hidden_size": 0}, "hidden_size=0: allowed is"),
        ({"hidden_size": 40_000_000}, "hidden_size=40000000: allowed is an integer from 4 to 16384"),
        ({"hidden_size": 8.0}, r"hidden_size=8\.0: allowed is an integer"),
        ({"patch_size": [0, 2, 2]}, r"patch_size=\[0, 2, 2\]: allowed is three integers from 1 to 16"),
        ({"patch_size": [2, 2]}, "patch_size=.*three integers"),
        ({"input_size": [4, 400_000, 400_000]}, "input_size=.*three integers from 1 to 1024"),
        ({"input_size": [8, 8, 7]}, "input_size=.*must be a multiple of patch_size"),
        ({"input_size": "888"}, "input_size='888': allowed is three integers"),
        ({"input_size": [4, 1024, 1024], "hidden_size": 16_384}, "position tables of 4294967296 values"),
        ({"hidden_size": 16_384, "depth": 256}, r"tensor 'pos_embed' has shape"),
        ({"mlp_ratio": math.nan}, "mlp_ratio=nan: allowed is a number from"),
        ({"space_scale": 0}, "space_scale=0: allowed is a number from"),
        ({"pred_sigma": 1}, "pred_sigma=1: allowed is true or false"),
        ({"hidden": 8}, "unknown argument 'hidden'; allowed: .*hidden_size"),
    ],
)
def test_config_that_asks_for_the_impossible_is_refused_before_building(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = saved(tmp_path)
    tensors, metadata = read_tensors(path)
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **change})
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ModelError, match=rf"bad\.safetensors: .*{message}"):
        load_checkpoint(path)


def test_missing_argument_is_named() -> None:
    config = {name: value for name, value in EMOJI_CONFIG.items() if name != "depth"}
    with pytest.raises(ModelError, match="argument 'depth' is missing"):
        check_config(config)


def test_bounds_leave_room_for_the_released_model() -> None:
    released = {
        **EMOJI_CONFIG,
        "input_size": (16, 64, 64),
        "hidden_size": 1152,
        "depth": 28,
        "num_heads": 16,
        "caption_channels": 4096,
        "model_max_length": 120,
        "space_scale": 0.5,
    }
    check_config(released)
    check_config({**released, "input_size": (128, 128, 128)})


def test_missing_config_is_named() -> None:
    with pytest.raises(ModelError, match=r"x\.safetensors: metadata holds no readable 'config'"):
        config_of({}, Path("x.safetensors"))
