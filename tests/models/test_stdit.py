"""STDiT against an independent restatement of its forward, and against the released model's state dict."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import read_tensors
from models.errors import ModelError
from models.stdit import EMOJI_CONFIG, STDiT, load_released

Weights = dict[str, Tensor]


def random_model(**changes: object) -> STDiT:
    """A model whose every parameter is random, the zero-initialised projections included."""
    torch.manual_seed(1)
    model = STDiT(**{**EMOJI_CONFIG, "depth": 2, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# The forward once more, as plain functions on the state dict: text gathered, softmax spelled out, one clip at a time.


def dense(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normalised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    width = q.shape[-1] // heads
    parts = []
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        scores = torch.exp(q[:, columns] @ k[:, columns].T / math.sqrt(width))
        parts.append(scores / scores.sum(-1, keepdim=True) @ v[:, columns])
    return torch.cat(parts, dim=-1)


def self_attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = dense(w, f"{name}.qkv", x).chunk(3, dim=-1)
    return dense(w, f"{name}.proj", attend(q, k, v, heads))


def one_block(w: Weights, i: int, x: Tensor, text: Tensor, t0: Tensor, heads: int) -> Tensor:
    """x (T, S, C), text (kept, C), t0 (6C,)."""
    b = f"blocks.{i}"
    frames, patches, dim = x.shape
    shift1, scale1, gate1, shift2, scale2, gate2 = w[f"{b}.scale_shift_table"] + t0.view(6, dim)
    h = normalised(x) * (1 + scale1) + shift1
    x = x + gate1 * torch.stack([self_attention(w, f"{b}.attn", h[t], heads) for t in range(frames)])
    h = x + w["pos_embed_temporal"][0][:, None] if i == 0 else x
    x = x + gate1 * torch.stack([self_attention(w, f"{b}.attn_temp", h[:, s], heads) for s in range(patches)], dim=1)
    flat = x.reshape(-1, dim)
    k, v = dense(w, f"{b}.cross_attn.kv_linear", text).chunk(2, dim=-1)
    cross = attend(dense(w, f"{b}.cross_attn.q_linear", flat), k, v, heads)
    x = x + dense(w, f"{b}.cross_attn.proj", cross).view(x.shape)
    h = normalised(x) * (1 + scale2) + shift2
    return x + gate2 * dense(w, f"{b}.mlp.fc2", gelu_tanh(dense(w, f"{b}.mlp.fc1", h)))


def one_clip(w: Weights, x: Tensor, t: float, y: Tensor, keep: Tensor, heads: int, depth: int) -> Tensor:
    """x (4, T, H, W), y (L, channels), keep (L,) -> (8, T, H, W)."""
    _, frames, height, width = x.shape
    weight = w["x_embedder.proj.weight"].flatten(1)
    dim = weight.shape[0]
    rows = [
        x[:, f, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
        for f in range(frames)
        for i in range(height // 2)
        for j in range(width // 2)
    ]
    h = torch.stack(rows) @ weight.T + w["x_embedder.proj.bias"]
    h = h.view(frames, -1, dim) + w["pos_embed"]
    angles = t * 10000.0 ** (-torch.arange(128) / 128)
    te = dense(w, "t_embedder.mlp.2", silu(dense(w, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()]))))
    t0 = dense(w, "t_block.1", silu(te))
    text = torch.masked_select(y, keep[:, None]).view(-1, y.shape[1])
    text = dense(w, "y_embedder.y_proj.fc2", gelu_tanh(dense(w, "y_embedder.y_proj.fc1", text)))
    for i in range(depth):
        h = one_block(w, i, h, text, t0, heads)
    shift, scale = w["final_layer.scale_shift_table"] + te
    values = dense(w, "final_layer.linear", normalised(h) * (1 + scale) + shift)
    out = torch.empty(8, frames, height, width)
    for f in range(frames):
        for i in range(height // 2):
            for j in range(width // 2):
                patch = values[f, i * (width // 2) + j].view(2, 2, 8)
                out[:, f, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = patch.permute(2, 0, 1)
    return out


def inputs(model: STDiT, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 4, *model.input_size, generator=g)
    y = torch.randn(batch, 1, 16, 384, generator=g)
    mask = torch.arange(16)[None] < torch.tensor([[5], [16], [3]])[:batch]
    return x, torch.tensor([999.0, 53.0, 0.0])[:batch], y, mask


def restated(model: STDiT, x: Tensor, t: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    w = model.state_dict()
    depth = len(model.blocks)
    return torch.stack([one_clip(w, *clip, 4, depth) for clip in zip(x, t, y[:, 0], mask.bool(), strict=True)])


@torch.inference_mode()
def test_forward_equals_the_restated_forward() -> None:
    model = random_model()
    x, t, y, mask = inputs(model, 3)
    torch.testing.assert_close(model(x, t, y, mask), restated(model, x, t, y, mask), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_forward_on_a_wide_frame_keeps_rows_and_columns_apart() -> None:
    model = random_model(input_size=(3, 4, 8), space_scale=0.5, time_scale=2.0)
    x, t, y, mask = inputs(model, 1)
    torch.testing.assert_close(model(x, t, y, mask), restated(model, x, t, y, mask), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_shorter_mask_is_repeated_over_both_guidance_branches() -> None:
    model = random_model()
    x, t, y, mask = inputs(model, 2)
    both = model(x, t, y, mask[:1])
    torch.testing.assert_close(both, restated(model, x, t, y, mask[:1].repeat(2, 1)), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_masked_text_takes_no_part() -> None:
    model = random_model()
    x, t, y, mask = inputs(model, 1)
    changed = y.clone()
    changed[:, :, 5:] = 1e4
    torch.testing.assert_close(model(x, t, y, mask), model(x, t, changed, mask))


@torch.inference_mode()
def test_hooked_logits_change_nothing_and_are_the_scaled_products() -> None:
    model = random_model()
    x, t, y, mask = inputs(model, 3)
    expected = model(x, t, y, mask)
    seen: dict[str, Tensor] = {}
    for name in ("attn", "attn_temp", "cross_attn"):
        for tap in ("tap_q", "tap_k", "tap_logits"):
            module = model.get_submodule(f"blocks.1.{name}.{tap}")
            module.register_forward_hook(lambda _m, _i, out, key=f"{name}.{tap}": seen.update({key: out}))
    torch.testing.assert_close(model(x, t, y, mask), expected, atol=1e-5, rtol=0)
    for name, shape in (("attn", (24, 4, 16, 16)), ("attn_temp", (48, 4, 8, 8)), ("cross_attn", (3, 4, 128, 16))):
        logits = seen[f"{name}.tap_logits"]
        assert logits.shape == shape
        product = seen[f"{name}.tap_q"] @ seen[f"{name}.tap_k"].transpose(-2, -1) / 8.0
        torch.testing.assert_close(logits, product)


@torch.inference_mode()
def test_dropped_captions_become_the_null_caption() -> None:
    model = random_model()
    x, t, y, mask = inputs(model, 2)
    dropped = model(x, t, y, mask, torch.tensor([True, False]))
    null = y.clone()
    null[0, 0] = model.y_embedder.y_embedding
    torch.testing.assert_close(dropped, model(x, t, null, mask))


# ---------------------------------------------------------------------------------------------------------------------
# The released model


def test_state_dict_of_the_released_size() -> None:
    with torch.device("meta"):
        model = STDiT(space_scale=0.5)
    state = model.state_dict()
    assert len(state) == 550
    assert sum(parameter.numel() for parameter in model.parameters()) == 759_620_768
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["pos_embed"] == (1, 256, 1152)
    assert shapes["pos_embed_temporal"] == (1, 16, 1152)
    assert shapes["x_embedder.proj.weight"] == (1152, 4, 1, 2, 2)
    assert shapes["t_embedder.mlp.0.weight"] == (1152, 256)
    assert shapes["t_block.1.bias"] == (6912,)
    assert shapes["y_embedder.y_embedding"] == (120, 4096)
    assert shapes["y_embedder.y_proj.fc1.weight"] == (1152, 4096)
    assert shapes["final_layer.linear.weight"] == (32, 1152)
    block = {name.removeprefix("blocks.27."): shape for name, shape in shapes.items() if name.startswith("blocks.27.")}
    assert block["scale_shift_table"] == (6, 1152)
    assert block["attn.qkv.weight"] == (3456, 1152)
    assert block["attn_temp.proj.bias"] == (1152,)
    assert block["cross_attn.kv_linear.weight"] == (2304, 1152)
    assert block["mlp.fc2.weight"] == (1152, 4608)
    assert len(block) == 19


def test_position_tables() -> None:
    model = STDiT(**{**EMOJI_CONFIG, "space_scale": 0.5, "depth": 1})
    spatial = model.pos_embed[0].numpy()
    np.testing.assert_array_equal(spatial[0, 128:], spatial[1, 128:])  # tokens 0 and 1 are in the same row
    omega = 10000.0 ** (-np.arange(64) / 64)
    np.testing.assert_allclose(spatial[1, :64], np.sin(2.0 * omega), atol=1e-6)
    np.testing.assert_allclose(spatial[4, 192:], np.cos(2.0 * omega), atol=1e-6)


def test_projections_start_at_zero() -> None:
    model = STDiT(**EMOJI_CONFIG)
    for name, value in model.state_dict().items():
        if name.endswith(("attn_temp.proj.weight", "cross_attn.proj.weight")) or name == "final_layer.linear.weight":
            assert not value.any()


@pytest.mark.parametrize("wrap", [False, True])
def test_released_file_loads_without_its_position_buffers(tmp_path: Path, wrap: bool) -> None:
    source, target = random_model(), random_model(space_scale=2.0)
    flat = {name: value + 1.0 for name, value in source.state_dict().items()}
    torch.save({"ema": flat, "epoch": 3} if wrap else flat, tmp_path / "released.pth")
    table = target.pos_embed.clone()
    load_released(target, tmp_path / "released.pth")
    torch.testing.assert_close(target.state_dict()["blocks.1.mlp.fc1.weight"], flat["blocks.1.mlp.fc1.weight"])
    torch.testing.assert_close(target.pos_embed, table)


def test_released_file_with_a_misshapen_tensor_is_refused(tmp_path: Path) -> None:
    model = random_model()
    state = model.state_dict()
    state["blocks.0.attn.qkv.weight"] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(
        ModelError, match=r"bad\.pth: tensor 'blocks\.0\.attn\.qkv\.weight' has shape \(3, 5\); exp.*768"
    ):
        load_released(model, tmp_path / "bad.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_damaged_released_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.pth: not a readable torch checkpoint"):
        load_released(random_model(), tmp_path / "bad.pth")


def test_released_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"ema": {"a": Path("x")}}, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"bad\.pth"):
        load_released(random_model(), tmp_path / "bad.pth")


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match=r"input_size=\(8, 8, 7\): must be a multiple of patch_size=\(1, 2, 2\)"):
        STDiT(input_size=(8, 8, 7))
    with pytest.raises(ModelError, match="hidden_size=100: must be a multiple of num_heads=16"):
        STDiT(hidden_size=100)


def test_unreadable_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(ModelError, match=r"bad\.safetensors: not a readable safetensors file"):
        read_tensors(tmp_path / "bad.safetensors")
