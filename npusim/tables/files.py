"""A cell's file: JSON of settings and figures, beside it the frames of its first clips."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.sample import Frames
from models.store import load_arrays, save_arrays, write_atomically
from npusim.errors import UserError
from npusim.tables.cells import Cell

SCHEMA_VERSION = 1
FRAMES_KIND = "cell frames"


def cell_path(folder: Path, cell: Cell) -> Path:
    """The cell's file; its frames have the same stem."""
    return folder / "cells" / f"{cell.name}.json"


def write_cell(
    folder: Path, cell: Cell, settings: Mapping[str, Any], figures: Mapping[str, Any], frames: Frames | None
) -> None:
    """Write a finished cell; its JSON comes last, so that a cell with one is complete. Raises ModelError."""
    path = cell_path(folder, cell)
    if frames is not None:
        save_arrays(path.with_suffix(".safetensors"), FRAMES_KIND, SCHEMA_VERSION, {"frames": frames}, {})
    body = {"schema_version": SCHEMA_VERSION, "cell": cell.name, "settings": settings, "figures": _encoded(figures)}
    write_atomically(path, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def read_cell(folder: Path, cell: Cell, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of a cell; None where there are none, or they are of other settings.

    Raises:
        UserError: the file is damaged.
    """
    path = cell_path(folder, cell)
    if not path.exists():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        found, figures = body["settings"], _decoded(body["figures"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a cell's file ({error}); delete it, and the cell is measured again") from None
    if body.get("schema_version") != SCHEMA_VERSION or found != json.loads(json.dumps(settings)):
        return None
    return figures if isinstance(figures, dict) else None


def read_frames(folder: Path, cell: Cell) -> Frames:
    """The frames (n, T, H, W, 3) uint8 of a finished cell's first clips. Raises ModelError if the file is damaged."""
    arrays, _ = load_arrays(cell_path(folder, cell).with_suffix(".safetensors"), FRAMES_KIND, SCHEMA_VERSION)
    return np.asarray(arrays["frames"])


def _encoded(value: Any) -> Any:
    """JSON has no infinity: "inf" and "-inf" stand for it."""
    if isinstance(value, Mapping):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value
