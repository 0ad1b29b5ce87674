"""Metrics against hand-computed values and their definitions' edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ModelError
from models.metrics import psnr_db, sqnr_db, ssim


def _clip(seed: int = 0, frames: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)


def test_sqnr_matches_hand_value() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, np.array([3.0, 3.5])) == pytest.approx(20.0)


def test_sqnr_edges() -> None:
    ones = np.ones(4)
    assert sqnr_db(ones, ones) == math.inf
    assert sqnr_db(np.zeros(4), np.zeros(4)) == math.inf
    assert sqnr_db(np.zeros(4), ones) == -math.inf
    assert sqnr_db(ones * 1e200, ones * 1.1e200) == pytest.approx(20.0)
    assert sqnr_db(ones * 1e-200, ones * 1.1e-200) == pytest.approx(20.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-4, 1.0))
def test_sqnr_is_scale_free_and_follows_the_noise(scale: float, noise: float) -> None:
    rng = np.random.default_rng(1)
    reference, error = rng.normal(size=64), rng.normal(size=64)
    base = sqnr_db(reference, reference + error)
    assert sqnr_db(reference * scale, (reference + error) * scale) == pytest.approx(base, abs=1e-6)
    assert sqnr_db(reference, reference + noise * error) == pytest.approx(base - 20 * math.log10(noise), abs=1e-6)


def test_integer_inputs_do_not_wrap() -> None:
    assert sqnr_db(np.array([0, 255], np.uint8), np.array([255, 255], np.uint8)) == pytest.approx(0.0)
    assert psnr_db(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)) == pytest.approx(0.0)


def test_psnr_matches_hand_value() -> None:
    clip = np.full((2, 8, 8, 3), 100, np.uint8)
    assert psnr_db(clip, clip) == math.inf
    assert psnr_db(clip, clip + 1) == pytest.approx(20 * math.log10(255))


def test_ssim_is_one_for_equal_clips_and_the_mean_over_frames() -> None:
    clip, other = _clip(0), _clip(1)
    assert ssim(clip, clip) == pytest.approx(1.0)
    per_frame = [ssim(clip[f : f + 1], other[f : f + 1]) for f in range(2)]
    assert ssim(clip, other) == pytest.approx(np.mean(per_frame))
    assert ssim(clip, other) < 0.2


def test_ssim_falls_with_noise() -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None, None], (1, 32, 32, 3)).copy()
    rng = np.random.default_rng(0)
    values = []
    for sigma in (2, 8, 32):
        noisy = np.clip(ramp + rng.normal(0, sigma, ramp.shape), 0, 255).astype(np.uint8)
        values.append(ssim(ramp, noisy))
    assert 1.0 > values[0] > values[1] > values[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sqnr_db(np.ones(3), np.ones(4)), "shape"),
        (lambda: sqnr_db(np.ones(0), np.ones(0)), "empty"),
        (lambda: sqnr_db(np.ones(2), np.array([1.0, np.nan])), "NaN"),
        (lambda: sqnr_db(np.array([np.inf]), np.ones(1)), "reference holds NaN or infinity"),
        (lambda: psnr_db(_clip().astype(np.float32), _clip()), "uint8"),
        (lambda: psnr_db(_clip(frames=1), _clip(frames=2)), "shape"),
        (lambda: ssim(_clip()[0], _clip()[0]), "frames must be"),
        (lambda: ssim(_clip()[:, :4], _clip()[:, :4]), "7"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match=message):
        call()
