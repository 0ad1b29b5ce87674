"""Reading checkpoints: every tensor is checked by name and shape before a model takes it."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import ModelError


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file whole; raises ModelError if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Reads a safetensors file's metadata alone; raises ModelError if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error


def check_tensors(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Checks that names and shapes are exactly the model's; the model may be on the meta device.

    Raises:
        ModelError: names the file, the first offending tensor, and the expected and given shape.
    """
    expected = model.state_dict()
    for name, target in expected.items():
        if name not in tensors:
            raise ModelError(f"{path}: tensor '{name}' is missing; expected shape {tuple(target.shape)}")
        if tensors[name].shape != target.shape:
            given = tuple(tensors[name].shape)
            raise ModelError(f"{path}: tensor '{name}' has shape {given}; expected {tuple(target.shape)}")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ModelError(f"{path}: unknown tensor '{unknown[0]}' ({len(unknown)} in all)")


def copy_into(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies tensors into a model, by name, after `check_tensors`, whose ModelError it raises."""
    check_tensors(model, tensors, path)
    model.load_state_dict(tensors)


def config_of(metadata: dict[str, str], path: Path) -> dict[str, object]:
    """Returns the constructor arguments stored in a checkpoint's metadata under `config` (JSON)."""
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: metadata holds no readable 'config': {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: metadata 'config' is {type(config).__name__}; expected an object")
    return config
