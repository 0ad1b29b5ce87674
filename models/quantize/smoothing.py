"""Smooth quantization: per-channel scales that move the difficulty from activations to weights (the paper's Eq. 2).

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),   X' = X / s,   W' = W * s,   X' W'^T = X W^T

j is an input channel, max|W_j| is over all output rows. max|X_j| is known per step: each clip's largest magnitude over
its tokens, averaged over the clips and both guidance branches. How steps are averaged is a method's choice.
"""

from __future__ import annotations

import numpy as np

from models.grid import Float64

MOMENTUM = 0.95
MIN_MAGNITUDE = 1e-5
"""A channel's magnitude below this is raised to it, channel by channel, so that zeros give finite scales."""


def running_average(absmax: Float64) -> Float64:
    """Running average of (steps, K) magnitudes over the steps: (K,).

    The order is that of rising timesteps, as in ViDiT-Q: the last executed step, the one with the least noise, begins,
    and each earlier executed step enters as average <- 0.95 * average + 0.05 * step. So over 20 steps the last executed
    one weighs 0.95^19 = 0.377, and the others from 0.020 (next to it) to 0.05 (the noisiest).
    """
    average: Float64 = absmax[-1]
    for step in absmax[-2::-1]:
        average = MOMENTUM * average + (1.0 - MOMENTUM) * step
    return average


def salience_average(absmax: Float64, weight_absmax: Float64) -> Float64:
    """Average of (steps, K) magnitudes that favours the steps whose large channels are not the weights': (K,).

    After PTQ4DiT (arXiv 2405.16005): a step weighs exp(-rho), normalised over the steps, where rho is the Spearman
    rank correlation over channels between that step's magnitudes and the weights' (K,).
    """
    weight = np.exp([-spearman(step, weight_absmax) for step in absmax])
    return np.asarray(weight @ absmax / weight.sum())


def spearman(a: Float64, b: Float64) -> float:
    """Spearman's rank correlation of two vectors, equal values sharing their mean rank; 0 if one is constant."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (a, b)]
    norm = np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum())
    return float(ranks[0] @ ranks[1] / norm) if norm > 0 else 0.0


def _ranks(values: Float64) -> Float64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return np.asarray((last - (counts - 1) / 2)[inverse])


def smoothing_scales(act_absmax: Float64, weight_absmax: Float64, alpha: float) -> Float64:
    """s_j of Eq. 2 from (..., K) activation and (K,) weight magnitudes: (..., K), positive and finite."""
    act, weight = np.maximum(act_absmax, MIN_MAGNITUDE), np.maximum(weight_absmax, MIN_MAGNITUDE)
    return np.asarray(act**alpha / weight ** (1.0 - alpha))
