"""Fidelity metrics: signal-to-noise of tensors, PSNR and SSIM of frames.

Every function is a pure function of two arrays of one shape, the reference first. Identical inputs have an
infinite ratio: `math.inf` is returned, never a large stand-in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from models.errors import ModelError

PEAK_UINT8 = 255.0


def sqnr_db(reference: NDArray[np.generic], test: NDArray[np.generic]) -> float:
    """Signal to quantization noise ratio, 10 log10(sum(reference^2) / sum((reference - test)^2)), in dB.

    Both arrays have one shape (any) and any real dtype; sums are float64. Returns `math.inf` when the arrays are
    equal and `-math.inf` when the reference is all zeros but the test is not.

    Raises:
        ModelError: shapes differ, the arrays are empty, or a value is NaN or infinite.
    """
    ref, tst = _pair(reference, test, "sqnr_db")
    # One common factor keeps squares of very large or very small values inside float64's range.
    peak = max(float(np.abs(ref).max()), float(np.abs(ref - tst).max()))
    if peak == 0.0:
        return math.inf
    signal = float(np.sum(np.square(ref / peak)))
    noise = float(np.sum(np.square((ref - tst) / peak)))
    return _ratio_db(signal, noise)


def psnr_db(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of frames, 10 log10(255^2 / mean((reference - test)^2)), in dB.

    Both arrays are uint8 of one shape, usually (frames, height, width, 3); the mean runs over the whole clip.
    Returns `math.inf` for equal clips.

    Raises:
        ModelError: shapes differ, the arrays are empty, or a dtype is not uint8.
    """
    ref, tst = check_uint8_pair(reference, test, "psnr_db")
    mean_square = float(np.mean(np.square(ref.astype(np.float64) - tst.astype(np.float64))))
    return _ratio_db(PEAK_UINT8**2, mean_square)


def ssim(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> float:
    """Mean structural similarity (Wang et al. 2004) over the frames of a clip; 1.0 for equal clips.

    Both arrays are uint8 (frames, height, width, channels), at least 7 x 7 pixels. Each frame's value is
    scikit-image's `structural_similarity` with a uniform 7 x 7 window, data range 255, averaged over channels;
    the frames are then averaged.

    Raises:
        ModelError: shapes differ, are not 4-dimensional or are under 7 x 7 pixels, or a dtype is not uint8.
    """
    ref, tst = check_uint8_pair(reference, test, "ssim")
    if ref.ndim != 4 or min(ref.shape[1:3]) < 7:
        raise ModelError(f"ssim: frames must be (frames, height >= 7, width >= 7, channels), got {ref.shape}")
    similarity: Callable[..., float] = structural_similarity  # scikit-image is untyped
    values = [
        similarity(frame_ref, frame_test, channel_axis=-1, data_range=PEAK_UINT8)
        for frame_ref, frame_test in zip(ref, tst, strict=True)
    ]
    return float(np.mean(values))


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    if signal == 0.0:
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def _check_shapes(reference: NDArray[np.generic], test: NDArray[np.generic], name: str) -> None:
    if reference.shape != test.shape:
        raise ModelError(f"{name}: reference has shape {reference.shape}, test has {test.shape}; they must be equal")
    if reference.size == 0:
        raise ModelError(f"{name}: the arrays are empty (shape {reference.shape})")


def _pair(
    reference: NDArray[np.generic], test: NDArray[np.generic], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _check_shapes(reference, test, name)
    ref, tst = reference.astype(np.float64), test.astype(np.float64)
    for label, array in (("reference", ref), ("test", tst)):
        if not np.isfinite(array).all():
            raise ModelError(f"{name}: {label} holds NaN or infinity; only finite values can be compared")
    return ref, tst


def check_uint8_pair(
    reference: NDArray[np.uint8], test: NDArray[np.uint8], name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    _check_shapes(reference, test, name)
    for label, array in (("reference", reference), ("test", test)):
        if array.dtype != np.uint8:
            raise ModelError(f"{name}: {label} has dtype {array.dtype}, allowed is uint8")
    return reference, test
