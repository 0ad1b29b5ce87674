"""VMAF through ffmpeg: known value of equal clips, order by noise, which stream is the reference, and failures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from models.clips import load_emoji
from models.errors import ModelError
from models.metrics.vmaf import vmaf_vs_fp


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return load_emoji().frames[5]


def _noisy(clip: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.0, sigma, clip.shape)
    return np.clip(np.rint(clip + noise), 0, 255).astype(np.uint8)


def _blurred(clip: np.ndarray) -> np.ndarray:
    padded = np.pad(clip.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, i : i + 64, j : j + 64] for i in range(3) for j in range(3)]
    return np.rint(np.mean(shifted, axis=0)).astype(np.uint8)


def test_equal_clips_have_the_models_known_top(clip: np.ndarray) -> None:
    # What the tool itself logs per frame: 97.43 for the first, whose motion counts as 0, and 100 for the others.
    assert vmaf_vs_fp(clip, clip) == pytest.approx((97.428 + 7 * 100.0) / 8, abs=0.01)


def test_noise_lowers_it_in_order(clip: np.ndarray) -> None:
    scores = [vmaf_vs_fp(clip, _noisy(clip, sigma)) for sigma in (0, 3, 10, 30)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 99.0 > 60.0 > scores[3] > 0.0
    assert vmaf_vs_fp(clip, _noisy(clip, 10)) == scores[2]  # nothing random in it


def test_the_first_clip_is_the_reference(clip: np.ndarray) -> None:
    # VMAF punishes detail that is lost, and does not punish detail that was added: the order of streams shows.
    assert vmaf_vs_fp(clip, _blurred(clip)) < vmaf_vs_fp(_blurred(clip), clip) - 10.0


def test_bad_clips_are_refused(clip: np.ndarray) -> None:
    with pytest.raises(ModelError, match="vmaf_vs_fp: reference has shape"):
        vmaf_vs_fp(clip, clip[:4])
    with pytest.raises(ModelError, match="dtype float64, allowed is uint8"):
        vmaf_vs_fp(clip.astype(float), clip)
    with pytest.raises(ModelError, match="must be"):
        vmaf_vs_fp(clip[0], clip[0])


def test_a_failing_or_missing_ffmpeg_is_named(
    clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho first >&2\necho 'No such filter: libvmaf' >&2\nexit 8\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(ModelError, match=r"ffmpeg failed with exit code 8: No such filter: libvmaf"):
        vmaf_vs_fp(clip, clip)
    program.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(ModelError, match="no readable VMAF log"):
        vmaf_vs_fp(clip, clip)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="cannot be run"):
        vmaf_vs_fp(clip, clip)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ModelError, match=r"package 'imageio_ffmpeg' is not installed; add it with: pip install"):
        vmaf_vs_fp(clip, clip)
