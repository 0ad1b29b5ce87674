"""Every metric orders real clips before mildly noisy ones before very noisy ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.clips import load_emoji
from models.metrics import psnr_db, sqnr_db, ssim
from models.metrics.features import clip_means, feature_frechet, frame_features, temp_consistency
from models.metrics.text_sim import TextHeads, text_sim
from models.metrics.vmaf import vmaf_vs_fp

CLIPS, REFERENCE = 32, 96
SIGMAS = (0.0, 8.0, 30.0)


@pytest.mark.slow
def test_noise_worsens_every_metric_in_order() -> None:
    emoji, heads = load_emoji(), TextHeads.load()
    # Scored are clips that the heads have not seen; the Frechet distance is to other real clips.
    held_out = heads.metadata["held_out_captions"]
    scored = [index for index, caption in enumerate(emoji.captions) if caption in held_out][:CLIPS]
    others = [index for index, caption in enumerate(emoji.captions) if caption not in held_out][:REFERENCE]
    real, captions = emoji.frames[scored], [emoji.captions[index] for index in scored]
    noise = np.random.default_rng(0).normal(size=real.shape)
    degraded = [np.clip(np.rint(real + sigma * noise), 0, 255).astype(np.uint8) for sigma in SIGMAS]
    features = [frame_features(clips) for clips in degraded]
    reference = clip_means(frame_features(emoji.frames[others]))

    def mean_over_clips(metric: Callable[[np.ndarray, np.ndarray], float]) -> list[float]:
        return [float(np.mean([metric(a, b) for a, b in zip(real, clips, strict=True)])) for clips in degraded]

    figures = {
        "psnr_db": mean_over_clips(psnr_db),
        "ssim": mean_over_clips(ssim),
        "sqnr_db": mean_over_clips(sqnr_db),
        "vmaf_vs_fp": mean_over_clips(vmaf_vs_fp),
        "temp_consistency": [float(np.mean([temp_consistency(clip) for clip in f])) for f in features],
        "text_sim": [float(text_sim(f, captions, heads).mean()) for f in features],
        "feature_frechet": [-feature_frechet(clip_means(f), reference) for f in features],
    }
    for name, (best, mild, strong) in figures.items():
        print(f"{name}: {best:.3f}, {mild:.3f}, {strong:.3f}")  # shown by pytest -s; stands in the metrics' README
        assert best > mild > strong, f"{name}: {best}, {mild}, {strong}"
