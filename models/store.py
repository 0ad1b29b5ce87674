"""Files that hold named arrays plus JSON metadata: one safetensors container, written atomically, read strictly.

Calibration statistics and quantized models are kept this way. The metadata stands under a single header key, so
that equal contents give byte-identical files. Nothing here unpickles.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.errors import ModelError

Array = NDArray[Any]
_HEADER_KEY = "npusim"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path` and rename it there, so that no half-written file is ever seen.

    Raises:
        ModelError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            # mkstemp makes private files; a result is as readable as any other file the user makes.
            os.fchmod(handle, 0o644)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror})") from error


def save_arrays(path: Path, kind: str, version: int, arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Save arrays and JSON-able metadata as a safetensors file of this kind and version.

    Raises:
        ModelError: the file cannot be written.
    """
    header = json.dumps({"kind": kind, "version": version, **metadata})
    contiguous = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    write_atomically(path, save(contiguous, metadata={_HEADER_KEY: header}))


def load_arrays(path: Path, kind: str, version: int) -> tuple[dict[str, Array], dict[str, Any]]:
    """Load what `save_arrays` wrote: (arrays by name, metadata without kind and version).

    Raises:
        ModelError: the file is missing, truncated or no safetensors file, or is of another kind or version.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such {kind} file")
    try:
        with safe_open(path, framework="np") as file:
            raw = (file.metadata() or {}).get(_HEADER_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        header = json.loads(raw) if raw is not None else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.pop("kind", None) != kind:
        raise ModelError(f"{path}: this is no {kind} file")
    found = header.pop("version", None)
    if found != version:
        raise ModelError(f"{path}: {kind} file version {found}, this program reads version {version}")
    return arrays, header


def check_array(
    path: Path, arrays: Mapping[str, Array], name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> Array:
    """The array of that name, having exactly this shape and dtype and only finite values.

    Raises:
        ModelError: it is missing, misshapen, of another dtype, or holds NaN or infinity.
    """
    array = arrays.get(name)
    if array is None:
        raise ModelError(f"{path}: tensor '{name}' is missing")
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise ModelError(
            f"{path}: tensor '{name}' is {array.dtype}{list(array.shape)}, allowed is {np.dtype(dtype)}{list(shape)}"
        )
    if not np.isfinite(array).all():
        raise ModelError(f"{path}: tensor '{name}' holds NaN or infinity")
    return array
