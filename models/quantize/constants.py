"""What a quantized model holds beside its linears: constants of the network and of every step, exact as float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from models.grid import Float64
from models.iddpm import IDDPM
from models.stats import CalibrationStats
from models.stdit import STDiT, STDiTBlock


def constants(model: STDiT, stats: CalibrationStats) -> dict[str, Any]:
    """The fields of a quantized model that do not depend on the method."""
    t0, te = time_embeddings(model, IDDPM(stats.steps, stats.cfg_scale, stats.cfg_channels))
    settings = {"num_sampling_steps": stats.steps, "cfg_scale": stats.cfg_scale, "cfg_channels": stats.cfg_channels}
    return {
        "t0": t0,
        "te": te,
        "scale_shift_table": np.stack([float64(block.scale_shift_table) for block in _blocks(model)]),
        "final_table": float64(model.final_layer.scale_shift_table),
        "pos_embed": float64(model.pos_embed)[0],
        "pos_embed_temporal": float64(model.pos_embed_temporal)[0],
        "y_embedding": float64(model.y_embedder.y_embedding),
        "config": model_config(model),
        "iddpm": settings,
        "workload": stats.workload,
        "weights_sha256": stats.weights_sha256,
    }


def model_config(model: STDiT) -> dict[str, Any]:
    """The constructor arguments that the network's shape shows."""
    block = _blocks(model)[0]
    tokens, channels = model.y_embedder.y_embedding.shape
    return {
        "input_size": list(model.input_size),
        "in_channels": model.in_channels,
        "patch_size": list(model.patch_size),
        "hidden_size": model.hidden_size,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.hidden_size,
        "pred_sigma": model.out_channels != model.in_channels,
        "caption_channels": channels,
        "model_max_length": tokens,
    }


def time_embeddings(model: STDiT, sampler: IDDPM) -> tuple[Float64, Float64]:
    """t0 (steps, 6, C) and te (steps, C) of the steps in order of execution, evaluated in float64.

    te is the time embedding before `t_block` (the final layer uses it), t0 the six modulation vectors after it.
    """
    timesteps = torch.from_numpy(sampler.timesteps[::-1].copy())
    t_embedder, t_block = copy.deepcopy(model.t_embedder).double(), copy.deepcopy(model.t_block).double()
    with torch.inference_mode():
        te = t_embedder(timesteps, torch.float64)
        t0 = t_block(te)
    return t0.numpy().reshape(len(timesteps), 6, -1), te.numpy()


def float64(tensor: torch.Tensor) -> Float64:
    """The values of a tensor, float64."""
    return tensor.detach().to(torch.float64).numpy()


def _blocks(model: STDiT) -> list[STDiTBlock]:
    return [block for block in model.blocks if isinstance(block, STDiTBlock)]
