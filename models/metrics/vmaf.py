"""VMAF of a clip against the float model's clip, by the ffmpeg of PyPI `imageio-ffmpeg` (extra `metrics`).

That ffmpeg is a GPL program with libvmaf and its models built in. It is run as a program of its own and talked to
through files; nothing of it is linked or copied here.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.metrics.extra import missing_extra
from models.metrics.fidelity import check_uint8_pair

MODEL = "vmaf_v0.6.1"
UPSCALE = 8
FRAMES_PER_SECOND = 8
TIMEOUT_S = 120


def vmaf_vs_fp(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> float:
    """VMAF (Netflix, model vmaf_v0.6.1) of a clip with the float model's clip as reference, mean over the frames.

    0 is bad, 100 is no visible difference. The model was fitted to viewers of full-screen video, so the small frames
    are upscaled 8 times (bicubic) first; it judges luma only. Equal clips get a little less than 100, because
    the first frame has no motion: 99.68 for 8 frames.

    Args:
        reference: (frames, height, width, 3) uint8 RGB, the float model's clip.
        test: the same shape and type.

    Raises:
        ModelError: shapes differ or are no clip's, a dtype is not uint8, the extra `metrics` is not installed, or
            ffmpeg fails.
    """
    ref, tst = check_uint8_pair(reference, test, "vmaf_vs_fp")
    if ref.ndim != 4 or ref.shape[3] != 3:
        raise ModelError(f"vmaf_vs_fp: clips must be (frames, height, width, 3), got {ref.shape}")
    with tempfile.TemporaryDirectory(prefix="vmaf-") as folder:
        (Path(folder) / "reference.rgb").write_bytes(ref.tobytes())
        (Path(folder) / "test.rgb").write_bytes(tst.tobytes())
        _run_ffmpeg(ref.shape[1], ref.shape[2], Path(folder))
        try:
            log = json.loads((Path(folder) / "log.json").read_text(encoding="utf-8"))
            return float(log["pooled_metrics"]["vmaf"]["mean"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"vmaf_vs_fp: ffmpeg wrote no readable VMAF log: {error}") from error


def _run_ffmpeg(height: int, width: int, folder: Path) -> None:
    """Compare test.rgb with reference.rgb in `folder`; libvmaf writes log.json beside them."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise missing_extra("vmaf_vs_fp", error) from error
    source = f"-f rawvideo -pixel_format rgb24 -video_size {width}x{height} -framerate {FRAMES_PER_SECOND} -i".split()
    scale = f"scale={width * UPSCALE}:{height * UPSCALE}:flags=bicubic,format=yuv420p"
    # libvmaf takes the tested stream first. Its log path is relative, because ":" would need escapes.
    vmaf = f"libvmaf=model=version={MODEL}:log_fmt=json:log_path=log.json:n_threads=1"
    graph = f"[0:v]{scale}[test];[1:v]{scale}[reference];[test][reference]{vmaf}"
    inputs = [*source, "test.rgb", *source, "reference.rgb"]
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        command = [program, *"-hide_banner -nostdin -loglevel error".split(), *inputs, "-filter_complex", graph]
        done = subprocess.run(
            [*command, "-f", "null", "-"], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"vmaf_vs_fp: ffmpeg cannot be run: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"vmaf_vs_fp: {program} failed with exit code {done.returncode}: {last}")
