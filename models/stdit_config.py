"""What an STDiT's constructor arguments may be when they are read from a file, checked before anything is built.

The bounds keep a damaged or hostile file from asking for memory without end; STDiT-XL/2 on 16 frames of 512 x 512
pixels (1152 channels, 28 blocks, latents of 16 x 64 x 64) is at least 8 times below every one of them.
"""

import math
from collections.abc import Mapping

from models.errors import ModelError

# Least and greatest value of each argument; those that shape the network must stand in the file.
_SIZES = {
    "in_channels": (1, 64),
    "hidden_size": (4, 16_384),
    "depth": (1, 256),
    "num_heads": (1, 256),
    "caption_channels": (1, 65_536),
    "model_max_length": (1, 4_096),
}
_TRIPLES = {"input_size": (1, 1_024), "patch_size": (1, 16)}
_RATIOS = {"mlp_ratio": (0.125, 32.0)}
_OPTIONAL_RATIOS = {
    "class_dropout_prob": (0.0, 1.0),
    "drop_path": (0.0, 1.0),
    "space_scale": (1e-3, 1e3),
    "time_scale": (1e-3, 1e3),
}
_FLAGS = ("pred_sigma",)
_OPTIONAL_FLAGS = ("no_temporal_pos_emb",)
POSITION_VALUES_MAX = 2**24


def check_config(config: Mapping[str, object]) -> None:
    """Check the constructor arguments of an STDiT: names, types, bounds, and that they fit each other.

    Raises:
        ModelError: names the first bad argument, its value and what is allowed; the caller adds the file.
    """
    required = {*_SIZES, *_TRIPLES, *_RATIOS, *_FLAGS}
    optional = {*_OPTIONAL_RATIOS, *_OPTIONAL_FLAGS}
    if unknown := sorted(set(config) - required - optional):
        raise ModelError(f"unknown argument '{unknown[0][:60]}'; allowed: {', '.join(sorted(required | optional))}")
    if missing := sorted(required - set(config)):
        raise ModelError(f"argument '{missing[0]}' is missing")
    for name, value in config.items():
        if (allowed := _allowed(name, value)) is not None:
            raise ModelError(f"{name}={repr(value)[:60]}: allowed is {allowed}")
    _check_fit(config)


def _allowed(name: str, value: object) -> str | None:
    """What the argument may be, or None where the value is that already."""
    if name in _FLAGS or name in _OPTIONAL_FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if name in _SIZES:
        low, high = _SIZES[name]
        return None if _is_size(value, low, high) else f"an integer from {low} to {high}"
    if name in _TRIPLES:
        low, high = _TRIPLES[name]
        good = isinstance(value, list | tuple) and len(value) == 3 and all(_is_size(size, low, high) for size in value)
        return None if good else f"three integers from {low} to {high}"
    least, most = {**_RATIOS, **_OPTIONAL_RATIOS}[name]
    good = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    return None if good else f"a number from {least} to {most}"


def _is_size(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check_fit(config: Mapping[str, object]) -> None:
    sizes, patches = config["input_size"], config["patch_size"]
    hidden, heads = config["hidden_size"], config["num_heads"]
    assert isinstance(sizes, list | tuple)
    assert isinstance(patches, list | tuple)
    assert isinstance(hidden, int)
    assert isinstance(heads, int)
    if any(size % patch for size, patch in zip(sizes, patches, strict=True)):
        raise ModelError(f"input_size={list(sizes)}: must be a multiple of patch_size={list(patches)}")
    if hidden % heads or hidden % 4:
        raise ModelError(f"hidden_size={hidden}: must be a multiple of num_heads={heads} and of 4")
    grid = [size // patch for size, patch in zip(sizes, patches, strict=True)]
    values = max(grid[0], math.prod(grid[1:])) * hidden
    if values > POSITION_VALUES_MAX:
        raise ModelError(
            f"input_size={list(sizes)} makes position tables of {values} values; allowed are {POSITION_VALUES_MAX}"
        )
