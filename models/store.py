"""Files that hold named arrays plus JSON metadata: one safetensors container, written atomically, read strictly.

Calibration statistics and quantized models are kept this way. The metadata stands under a single header key, so
that equal contents give byte-identical files. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.errors import ModelError

Array = NDArray[Any]
Layout = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
_HEADER_KEY = "npusim"
_HEADER_KEY_ALL = "__metadata__"
_DTYPE_NAMES = {"uint8": "U8", "int64": "I64", "float32": "F32", "float64": "F64"}


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


class ArrayWriter:
    """A file as `save_arrays` writes it, array by array, so that its content need never be in memory at once.

    Used as a context manager: the file appears under its name when the block ends, and not at all if it fails.

    Args:
        path, kind, version, metadata: as `save_arrays` takes them.
        layout: shape and dtype of every array that will be put, each exactly once.

    Attributes:
        digests: `array_sha256` of every array put so far, by name.

    Raises:
        ModelError: the folder cannot be made or written, also from `put` and at the end of the block.
    """

    def __init__(self, path: Path, kind: str, version: int, layout: Layout, metadata: Mapping[str, Any]) -> None:
        self._path, self._layout = path, layout
        header: dict[str, Any] = {
            _HEADER_KEY_ALL: {_HEADER_KEY: json.dumps({"kind": kind, "version": version, **metadata})}
        }
        end = 0
        self._starts = {}
        # Wide types first keeps every array aligned, as the safetensors library does.
        for name in sorted(layout, key=lambda name: (-np.dtype(layout[name][1]).itemsize, name)):
            shape, dtype = layout[name]
            start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
            header[name] = {
                "dtype": _DTYPE_NAMES[np.dtype(dtype).name],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            self._starts[name] = start
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self._missing = set(layout)
        self.digests: dict[str, str] = {}

    def __enter__(self) -> Self:
        with _os_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, self._temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            os.fchmod(handle, 0o644)
            self._file = os.fdopen(handle, "wb")
            self._file.write(self._head)
        return self

    def put(self, name: str, array: Array) -> None:
        """Write one array of the layout."""
        shape, dtype = self._layout[name]
        assert array.shape == shape, name
        assert array.dtype == np.dtype(dtype), name
        self._missing.remove(name)
        self.digests[name] = array_sha256(array)
        with _os_errors(self._path):
            self._file.seek(len(self._head) + self._starts[name])
            self._file.write(np.ascontiguousarray(array).data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with _os_errors(self._path):
            try:
                self._file.close()
                if kind is None:
                    assert not self._missing, self._missing
                    os.replace(self._temporary, self._path)
            finally:
                if os.path.exists(self._temporary):
                    os.unlink(self._temporary)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror})") from error


def load_arrays(path: Path, kind: str, version: int, mapped: bool = False) -> tuple[dict[str, Array], dict[str, Any]]:
    """Load what `save_arrays` or `ArrayWriter` wrote: (arrays by name, metadata without kind and version).

    With `mapped`, the arrays are read-only views of the file, whose content enters memory as it is used.

    Raises:
        ModelError: the file is missing, truncated or no safetensors file, or is of another kind or version.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such {kind} file")
    try:
        with safe_open(path, framework="np") as file:
            raw = (file.metadata() or {}).get(_HEADER_KEY)
            names = file.keys()
            arrays = {} if mapped else {name: file.get_tensor(name) for name in names}
        if mapped:
            arrays = _mapped(path)
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
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


def array_sha256(array: Array) -> str:
    """SHA-256 of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _mapped(path: Path) -> dict[str, Array]:
    """Views of the tensors of a file that the safetensors library has found sound."""
    content = np.memmap(path, np.uint8, mode="r")
    data = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:data].tobytes())
    types = {name: np.dtype(dtype) for dtype, name in _DTYPE_NAMES.items()}
    return {
        name: np.frombuffer(
            content, types[entry["dtype"]], math.prod(entry["shape"]), data + entry["data_offsets"][0]
        ).reshape(entry["shape"])
        for name, entry in header.items()
        if name != _HEADER_KEY_ALL
    }


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
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError(f"{path}: tensor '{name}' holds NaN or infinity")
    return array
