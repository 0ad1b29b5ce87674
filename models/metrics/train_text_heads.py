"""Trains the heads of `text_sim` on four fifths of the real clips and measures them on the rest.

    python -m models.metrics.train_text_heads

Held out are 73 of the 363 emoji with their captions, those that workloads evaluate or show among them, and 200 of the
1,000 digits; the digits' 40 captions are all known from other clips. The diffusion model was trained on all clips.
A head is one linear map; its inputs are standardised by the training clips, which is folded into the stored weights.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from models.clips import ClipSet, data_sha256, digit_captions, load_digits, load_emoji
from models.errors import ModelError
from models.metrics.features import CACHE_DIR, Features, real_features
from models.metrics.text_sim import HEADS_FILE, WIDTH, TextHeads, caption_vectors, clip_vectors
from models.workloads import EVALUATION_CAPTIONS, SHEET_CAPTIONS

STEPS = 600
BATCH_EMOJI, BATCH_DIGITS = 192, 64
PEAK_LR, WEIGHT_DECAY = 1e-3, 1.0
DROPOUT = 0.5
TEMPERATURE = 0.1
HELD_OUT_SHARE = 5
SMALLEST_DEVIATION = 1e-3

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RealClips:
    """The captions of a clip set and its clips' features (clips, frames, 1280)."""

    captions: tuple[str, ...]
    features: Features

    @classmethod
    def of(cls, clip_set: ClipSet, cache_dir: Path) -> RealClips:
        """With features from `real_features`."""
        return cls(clip_set.captions, real_features(clip_set, cache_dir))


@dataclass(frozen=True)
class Split:
    """Indices of the emoji and of the digits: those trained on, and those held out."""

    train_emoji: Indices
    held_emoji: Indices
    train_digits: Indices
    held_digits: Indices


def split_clips(emoji_captions: tuple[str, ...], digits: int, seed: int) -> Split:
    """Hold out a fifth of each set by `seed`, the emoji that workloads evaluate or show in any case."""
    rng = np.random.default_rng(seed)
    shown = set(EVALUATION_CAPTIONS + SHEET_CAPTIONS)
    order = sorted(rng.permutation(len(emoji_captions)).tolist(), key=lambda index: emoji_captions[index] not in shown)
    cut, digit_order = len(order) // HELD_OUT_SHARE + 1, rng.permutation(digits)
    return Split(
        train_emoji=np.sort(order[cut:]),
        held_emoji=np.sort(order[:cut]),
        train_digits=np.sort(digit_order[digits // HELD_OUT_SHARE :]),
        held_digits=np.sort(digit_order[: digits // HELD_OUT_SHARE]),
    )


def contrastive_loss(clips: Tensor, captions: Tensor, labels: Tensor) -> Tensor:
    """Symmetric InfoNCE (as CLIP) where several pairs of a batch may bear the same caption.

    Args:
        clips: (B, 64), of any length: compared by cosine over TEMPERATURE with
        captions: (B, 64).
        labels: (B,), equal where captions are; such pairs share the target evenly.
    """
    logits = F.normalize(clips, dim=1) @ F.normalize(captions, dim=1).T / TEMPERATURE
    same = (labels[:, None] == labels[None]).float()
    target = same / same.sum(1, keepdim=True)
    both = (logits, logits.T)
    return torch.stack([-(target * F.log_softmax(x, dim=1)).sum(1).mean() for x in both]).mean()


def retrieval(clips: NDArray[np.float64], captions: NDArray[np.float64], own: Indices) -> dict[str, float]:
    """Share of clips (n, 64) whose own caption, captions[own], is the nearest (R@1) or among the 5 nearest of all."""
    scores = clips @ captions.T
    rank = (scores > scores[np.arange(len(own)), own][:, None]).sum(axis=1)
    found = {f"r_at_{k}": float((rank < k).mean()) for k in (1, 5)}
    return {**found, "clips": len(clips), "captions": len(captions)}


def train_heads(emoji: RealClips, digits: RealClips, seed: int) -> TextHeads:
    """Train on the split of `seed` with AdamW, dropout and a cosine schedule; the same seed gives the same heads."""
    split = split_clips(emoji.captions, len(digits.captions), seed)
    features = np.concatenate([emoji.features[split.train_emoji], digits.features[split.train_digits]])
    captions = [emoji.captions[i] for i in split.train_emoji] + [digits.captions[i] for i in split.train_digits]
    clips, texts = _Standard(clip_vectors(features)), _Standard(caption_vectors(captions))
    labels = torch.from_numpy(np.unique(captions, return_inverse=True)[1])
    clip_head, text_head = _optimize(clips.values, texts.values, labels, len(split.train_emoji), seed)
    heads = TextHeads(*clips.fold(clip_head), *texts.fold(text_head), {})
    heads.metadata.update(
        seed=seed,
        data_sha256=data_sha256(),
        held_out=held_out_accuracy(heads, split, emoji, digits),
        held_out_captions=[emoji.captions[i] for i in split.held_emoji],
        held_out_digits=split.held_digits.tolist(),
    )
    return heads


def _optimize(clips: Tensor, texts: Tensor, labels: Tensor, count_emoji: int, seed: int) -> tuple[Tensor, Tensor]:
    """The two heads (channels, 64) after training.

    Args:
        clips: (n, 2560), standardised, emoji first.
        texts: (n, 384), of the same pairs.
        labels: (n,) int64, equal where captions are.
        count_emoji: how many of the n are emoji.
        seed: of the initial heads and of everything drawn.
    """
    generator = torch.Generator().manual_seed(seed)

    def fresh(channels: int) -> Tensor:
        head: Tensor = torch.randn(channels, WIDTH, generator=generator) / channels**0.5
        return head.requires_grad_()

    def project(rows: Tensor, head: Tensor) -> Tensor:
        keep = torch.rand(rows.shape, generator=generator) >= DROPOUT
        projected: Tensor = rows * keep / (1.0 - DROPOUT) @ head
        return projected

    clip_head, text_head = fresh(clips.shape[1]), fresh(texts.shape[1])
    optimizer = torch.optim.AdamW([clip_head, text_head], lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
        some_emoji = torch.randperm(count_emoji, generator=generator)[:BATCH_EMOJI]
        some_digits = torch.randperm(len(labels) - count_emoji, generator=generator)[:BATCH_DIGITS] + count_emoji
        batch = torch.cat([some_emoji, some_digits])
        loss = contrastive_loss(project(clips[batch], clip_head), project(texts[batch], text_head), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return clip_head.detach(), text_head.detach()


def held_out_accuracy(
    heads: TextHeads, split: Split, emoji: RealClips, digits: RealClips
) -> dict[str, dict[str, float]]:
    """Retrieval of the held-out clips' captions: emoji among the held-out captions, digits among all 40."""
    emoji_texts = heads.embed_captions([emoji.captions[i] for i in split.held_emoji])
    all_digits = digit_captions()
    own = np.array([all_digits.index(digits.captions[i]) for i in split.held_digits])
    emoji_clips = heads.embed_clips(emoji.features[split.held_emoji])
    digit_clips = heads.embed_clips(digits.features[split.held_digits])
    return {
        "emoji": retrieval(emoji_clips, emoji_texts, np.arange(len(emoji_clips))),
        "digits": retrieval(digit_clips, heads.embed_captions(all_digits), own),
    }


class _Standard:
    """Rows (n, channels) with mean 0 and deviation 1 per channel, and the way back into a head's weights."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        self._mean = rows.mean(axis=0)
        self._deviation = rows.std(axis=0) + SMALLEST_DEVIATION
        self.values = torch.from_numpy((rows - self._mean) / self._deviation).float()

    def fold(self, head: Tensor) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Weight and bias that do to raw rows what `head` does to standardised ones."""
        weight = head.double().numpy() / self._deviation[:, None]
        return weight.astype(np.float16), (-self._mean @ weight).astype(np.float16)


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code (2 on a user error)."""
    parser = argparse.ArgumentParser(
        prog="python -m models.metrics.train_text_heads", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HEADS_FILE)
    parser.add_argument("--cache-dir", type=Path, default=CACHE_DIR, help="folder of the real clips' features")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True)
    torch.set_num_threads(1)  # results must not depend on the number of cores
    try:
        with console.status("features of the real clips (about 3 minutes, once), then the heads"):
            emoji, digits = (RealClips.of(clips, options.cache_dir) for clips in (load_emoji(), load_digits()))
            heads = train_heads(emoji, digits, options.seed)
        heads.save(options.out)
    except ModelError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 2
    console.print(f"{options.out}: {heads.describe()}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
