"""STDiT: the spatial-temporal diffusion transformer of Open-Sora v1.0, in one file.

Same constructor arguments, forward signature, state-dict names and shapes as the released model, so its checkpoints
load here; the small "emoji" model is the same class with smaller numbers. Shapes: B clips, T frames, S patches per
frame, N = T * S tokens, C = hidden_size, L = model_max_length text tokens.

The nn.Identity modules named tap_* compute nothing and hold no state. They are places to hook: calibration reads there
the ranges of tensors that no weight layer produces or consumes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.checkpoint import check_tensors, config_of, copy_into, read_tensors
from models.errors import ModelError
from models.stdit_config import check_config

LAYER_NORM_EPS = 1e-6
TIME_FREQUENCIES = 256
POSITION_BUFFERS = ("pos_embed", "pos_embed_temporal")

# The frozen small model: 8 frames of 8 x 8 latents, 128 tokens, MiniLM text states.
EMOJI_CONFIG: dict[str, object] = {
    "input_size": (8, 8, 8),
    "in_channels": 4,
    "patch_size": (1, 2, 2),
    "hidden_size": 256,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "pred_sigma": True,
    "drop_path": 0.0,
    "no_temporal_pos_emb": False,
    "caption_channels": 384,
    "model_max_length": 16,
    "space_scale": 1.0,
    "time_scale": 1.0,
}
# STDiT-XL/2 as released, for 16 frames of 256 x 256 and of 512 x 512 pixels.
XL2_256_CONFIG: dict[str, object] = {
    **EMOJI_CONFIG,
    "input_size": (16, 32, 32),
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "caption_channels": 4096,
    "model_max_length": 120,
    "space_scale": 0.5,
}
XL2_512_CONFIG: dict[str, object] = {**XL2_256_CONFIG, "input_size": (16, 64, 64), "space_scale": 1.0}

# ---------------------------------------------------------------------------------------------------------------------
# Embeddings


def sincos_1d(dim: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns [sin(p w) | cos(p w)] with w_k = 10000^(-k / (dim/2)): (positions, dim) float64."""
    omega = 1.0 / 10000.0 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = np.outer(positions, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def spatial_position_embedding(dim: int, rows: int, columns: int, scale: float) -> Tensor:
    """Returns (1, rows * columns, dim) float32; the column coordinate fills the first half of the channels."""
    y, x = np.meshgrid(np.arange(rows) / scale, np.arange(columns) / scale, indexing="ij")
    table = np.concatenate([sincos_1d(dim // 2, x.reshape(-1)), sincos_1d(dim // 2, y.reshape(-1))], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def temporal_position_embedding(dim: int, frames: int, scale: float) -> Tensor:
    """Returns (1, frames, dim) float32."""
    return torch.from_numpy(sincos_1d(dim, np.arange(frames) / scale)).float().unsqueeze(0)


class PatchEmbed3D(nn.Module):
    """Cuts the latents in patches and projects each: (B, 4, T, H, W) -> (B, N, C), w fastest in N, then h, then t."""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        embedded: Tensor = self.proj(x)
        return embedded.flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Timesteps (B,) 0..999 -> (B, C): sinusoids (cosines first), then Linear, SiLU, Linear."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """See the class; the sinusoids are computed in float32 and then cast to `dtype`."""
        half = TIME_FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep[:, None].float() * torch.exp(-math.log(10000.0) * exponents)
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return embedded


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class CaptionEmbedder(nn.Module):
    """Projects text states; holds the null caption `y_embedding` (L, caption_channels), a buffer as released."""

    y_embedding: Tensor

    def __init__(self, caption_channels: int, hidden_size: int, dropout: float, length: int) -> None:
        super().__init__()
        self.y_proj = Mlp(caption_channels, hidden_size, hidden_size)
        self.register_buffer("y_embedding", torch.randn(length, caption_channels) / caption_channels**0.5)
        self.dropout = dropout

    def forward(self, y: Tensor, drop: Tensor | None = None) -> Tensor:
        """(B, 1, L, caption_channels) -> (B, 1, L, C); where `drop` (B,) bool is set, the null caption is taken."""
        if drop is not None:
            y = torch.where(drop[:, None, None, None], self.y_embedding.to(y.dtype), y)
        projected: Tensor = self.y_proj(y)
        return projected


# ---------------------------------------------------------------------------------------------------------------------
# Attention


class _AttentionTaps(nn.Module):
    """The attention product with its taps, shared by self- and cross-attention."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.tap_q = nn.Identity()
        self.tap_k = nn.Identity()
        self.tap_v = nn.Identity()
        self.tap_logits = nn.Identity()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(head_dim)) v.

        The fused kernel never forms the logits; so if they are hooked, the product is spelled out instead. So it is in
        training on a CPU, where the fused kernel's backward pass is the slower one for such short sequences.

        Args:
            q: (B, heads, queries, head_dim).
            k: (B, heads, keys, head_dim).
            v: (B, heads, keys, head_dim).
            mask: (B, 1, 1, keys) bool, True where a key takes part; None for all.

        Returns:
            (B, queries, heads * head_dim).
        """
        q, k, v = self.tap_q(q), self.tap_k(k), self.tap_v(v)
        if self.tap_logits._forward_hooks or (self.training and not q.is_cuda):
            logits = self.tap_logits(q @ k.transpose(-2, -1) * self.head_dim**-0.5)
            if mask is not None:
                logits = logits.masked_fill(~mask, -math.inf)
            out = torch.softmax(logits.float(), dim=-1).to(v.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)


class Attention(_AttentionTaps):
    """Multi-head self-attention (B, n, C) -> (B, n, C); rows of qkv are ordered q, k, v."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim // num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(self.attend(qkv[0], qkv[1], qkv[2]))
        return out


class MultiHeadCrossAttention(_AttentionTaps):
    """Tokens (B, N, C) attend to text (B, L, C); masked-out text takes no part at all."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim // num_heads)
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """See the class; mask (B, 1, 1, L) bool or None."""
        batch, length, _ = y.shape
        q = self.q_linear(x).view(batch, x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
        kv = self.kv_linear(y).view(batch, length, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(self.attend(q, kv[0], kv[1], mask))
        return out


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class DropPath(nn.Module):
    """Drops a whole residual branch per clip in training (stochastic depth); nothing at inference."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class STDiTBlock(nn.Module):
    """Spatial attention, temporal attention, cross-attention and MLP, each added to the residual stream.

    Only the first and the last are normalised and modulated; the temporal and cross branches read the raw stream,
    and the temporal branch reuses the gate of the spatial one: so released, so kept.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.attn = Attention(dim, num_heads)
        self.cross_attn = MultiHeadCrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.drop_path = DropPath(drop_path)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn_temp = Attention(dim, num_heads)
        self.tap_spatial = nn.Identity()
        self.tap_temporal = nn.Identity()
        self.tap_cross = nn.Identity()
        self.tap_mlp = nn.Identity()

    def forward(self, x: Tensor, y: Tensor, t0: Tensor, mask: Tensor | None, frames: int, tpe: Tensor | None) -> Tensor:
        """Runs the block.

        Args:
            x: (B, N, C) residual stream.
            y: (B, L, C) projected text.
            t0: (B, 6C) time embedding.
            mask: (B, 1, 1, L) bool or None.
            frames: T.
            tpe: (1, T, C) temporal position embedding for the first block, else None. It enters the temporal
                branch only, not the residual stream.

        Returns:
            (B, N, C).
        """
        batch, tokens, dim = x.shape
        patches = tokens // frames
        modulation = (self.scale_shift_table[None] + t0.view(batch, 6, dim)).chunk(6, dim=1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation

        h = modulate(self.norm1(x), shift_msa, scale_msa).reshape(batch * frames, patches, dim)
        x = self.tap_spatial(x + self.drop_path(gate_msa * self.attn(h).reshape(batch, tokens, dim)))

        h = x.view(batch, frames, patches, dim).transpose(1, 2).reshape(batch * patches, frames, dim)
        h = self.attn_temp(h if tpe is None else h + tpe)
        h = h.view(batch, patches, frames, dim).transpose(1, 2).reshape(batch, tokens, dim)
        x = self.tap_temporal(x + self.drop_path(gate_msa * h))

        x = self.tap_cross(x + self.cross_attn(x, y, mask))

        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))
        out: Tensor = self.tap_mlp(x + self.drop_path(gate_mlp * h))
        return out


class FinalLayer(nn.Module):
    """Normalises, modulates with the time embedding (before t_block) and projects to patches: (B, N, ph*pw*8)."""

    def __init__(self, dim: int, patch_values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.linear = nn.Linear(dim, patch_values)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(self, x: Tensor, te: Tensor) -> Tensor:
        """See the class; te (B, C)."""
        shift, scale = (self.scale_shift_table[None] + te[:, None]).chunk(2, dim=1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


# ---------------------------------------------------------------------------------------------------------------------
# The model


class STDiT(nn.Module):
    """The whole network. Constructor arguments as in Open-Sora v1.0, whose defaults describe STDiT at 16 x 256 x 256.

    Args:
        input_size: latent (T, H, W). patch_size: (1, ph, pw). drop_path: rate of the last block, growing linearly.
        class_dropout_prob: share of captions replaced by the null caption in training.
        pred_sigma: predict variance channels beside the noise.
        space_scale, time_scale: divisors of the position coordinates.

    Raises:
        ModelError: if sizes do not divide.
    """

    pos_embed: Tensor
    pos_embed_temporal: Tensor

    def __init__(
        self,
        input_size: Sequence[int] = (16, 32, 32),
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        drop_path: float = 0.0,
        no_temporal_pos_emb: bool = False,
        caption_channels: int = 4096,
        model_max_length: int = 120,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.input_size = (input_size[0], input_size[1], input_size[2])
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])
        if any(size % patch for size, patch in zip(self.input_size, self.patch_size, strict=True)):
            raise ModelError(f"input_size={self.input_size}: must be a multiple of patch_size={self.patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ModelError(f"hidden_size={hidden_size}: must be a multiple of num_heads={num_heads} and of 4")
        self.in_channels = in_channels
        self.out_channels = 2 * in_channels if pred_sigma else in_channels
        self.hidden_size = hidden_size
        self.class_dropout_prob = class_dropout_prob
        self.grid = tuple(size // patch for size, patch in zip(self.input_size, self.patch_size, strict=True))
        self.num_temporal = self.grid[0]
        self.num_spatial = self.grid[1] * self.grid[2]
        spatial = spatial_position_embedding(hidden_size, self.grid[1], self.grid[2], space_scale)
        temporal = temporal_position_embedding(hidden_size, self.num_temporal, time_scale)
        self.register_buffer("pos_embed", spatial)
        self.register_buffer("pos_embed_temporal", torch.zeros_like(temporal) if no_temporal_pos_emb else temporal)
        self.x_embedder = PatchEmbed3D(self.patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, class_dropout_prob, model_max_length)
        self.tap_embed = nn.Identity()
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(STDiTBlock(hidden_size, num_heads, mlp_ratio, rate) for rate in rates)
        self.final_layer = FinalLayer(hidden_size, math.prod(self.patch_size) * self.out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """PixArt-alpha's initialisation: temporal, cross and final projections start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.hidden_size, -1))
        for linear in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.t_block[1]):
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.y_embedder.y_proj.fc1.weight, std=0.02)
        nn.init.normal_(self.y_embedder.y_proj.fc2.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, STDiTBlock)
            for linear in (block.attn_temp.proj, block.cross_attn.proj):
                nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """Predicts noise and variance.

        Args:
            x: (B, 4, T, H, W) latents.
            timestep: (B,) original timesteps 0..999.
            y: (B, 1, L, caption_channels) text states.
            mask: (B', L), nonzero where there is a text token; repeated if B' < B (so that, under guidance, the null
                caption is cut to the length of the prompt's); None keeps all tokens.
            drop: (B,) bool, captions to replace by the null caption; given in training only.

        Returns:
            (B, 8, T, H, W) float32: noise in channels 0..3, variance in 4..7 (noise only without pred_sigma).
        """
        dtype = self.x_embedder.proj.weight.dtype
        x, y = x.to(dtype), y.to(dtype)
        batch = x.shape[0]
        h = self.x_embedder(x).view(batch, self.num_temporal, self.num_spatial, self.hidden_size)
        h = self.tap_embed((h + self.pos_embed.to(dtype)).flatten(1, 2))
        te = self.t_embedder(timestep.to(dtype), dtype)
        t0 = self.t_block(te)
        text = self.y_embedder(y, drop).squeeze(1)
        if mask is not None:
            mask = mask.bool().repeat(batch // mask.shape[0], 1)[:, None, None, :]
        for index, block in enumerate(self.blocks):
            tpe = self.pos_embed_temporal.to(dtype) if index == 0 else None
            h = block(h, text, t0, mask, self.num_temporal, tpe)
        return self.unpatchify(self.final_layer(h, te)).float()

    def unpatchify(self, x: Tensor) -> Tensor:
        """(B, N, pt*ph*pw*channels), channel fastest -> (B, channels, T, H, W)."""
        shape = (x.shape[0], *self.grid, *self.patch_size, self.out_channels)
        return x.view(shape).permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, self.out_channels, *self.input_size)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def skeleton(config: Mapping[str, object]) -> STDiT:
    """An STDiT of this configuration without memory for its weights: the names and shapes that a file must have.

    Raises:
        ModelError: the configuration is refused by `check_config`.
    """
    check_config(config)
    with torch.device("meta"):
        return STDiT(**config)  # type: ignore[arg-type]


def load_checkpoint(path: Path) -> tuple[STDiT, dict[str, str]]:
    """Loads a safetensors checkpoint written by `models.train`, whose metadata holds the constructor arguments.

    Returns:
        the model in float32, in evaluation mode, without gradients; and the file's metadata.

    Raises:
        ModelError: if the file is unreadable, its configuration is none of an STDiT, or a tensor is missing, unknown
            or misshapen.
    """
    tensors, metadata = read_tensors(path)
    config = config_of(metadata, path)
    try:
        outline = skeleton(config)
    except ModelError as error:
        raise ModelError(f"{path}: metadata 'config' does not fit STDiT: {error}") from error
    check_tensors(outline, tensors, path)  # before memory is taken for a network that the file does not hold
    model = STDiT(**config)  # type: ignore[arg-type]
    copy_into(model, tensors, path)
    return model.eval().requires_grad_(False), metadata


def load_released(model: STDiT, path: Path) -> None:
    """Copies a released Open-Sora v1.0 `.pth` file into a model made with fitting arguments.

    The file is a flat name-to-tensor dict, or one under the key "ema"; its position buffers are dropped, for the model
    computes its own for its input size.

    Raises:
        ModelError: if the file is unreadable, or a tensor is missing, unknown or misshapen.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, by the kind of damage
        raise ModelError(f"{path}: not a readable torch checkpoint: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("ema"), dict):
        content = content["ema"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path}: expected a dict of tensors, flat or under 'ema'")
    own = model.state_dict()
    tensors = {name: value for name, value in content.items() if name not in POSITION_BUFFERS}
    copy_into(model, {**tensors, **{name: own[name] for name in POSITION_BUFFERS}}, path)
