"""Compiles kernels, and keeps them on disk in a folder that changes whenever their sources do.

Numba's own disk cache looks at the file of the outermost kernel only: after an edit to a function that the kernel
calls in another file, or to a table that it holds as a constant, it would go on running the old machine code. So the
folder's name is a hash of every source of this package, of Numba's and llvmlite's versions and of the processor.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import llvmlite.binding  # type: ignore[import-untyped]
import numba
from numba.core import config as numba_config

PACKAGE = Path(__file__).resolve().parent.parent


def source_key(package: Path = PACKAGE) -> str:
    """Return 24 hex digits that differ for different sources, compilers or processors."""
    sha = hashlib.sha256()
    features = llvmlite.binding.get_host_cpu_features().flatten()
    for part in (numba.__version__, llvmlite.__version__, llvmlite.binding.get_host_cpu_name(), features):
        sha.update(f"{part}\0".encode())
    for path in sorted(package.rglob("*.py")):
        data = path.read_bytes()
        sha.update(f"{path.relative_to(package).as_posix()}\0{len(data)}\0".encode() + data)
    return sha.hexdigest()[:24]


def cache_folder() -> Path | None:
    """Return the folder of the compiled kernels, or None where no such folder can be written (then nothing is cached).

    It lies in ``$NUMBA_CACHE_DIR`` where that is set, else in ``$XDG_CACHE_HOME/npusim`` or ``~/.cache/npusim``.
    """
    return _folder()[0]


def first_use() -> bool:
    """Whether this process is the first of this version here, so that its kernels are yet to be compiled."""
    return _folder()[1]


@cache
def _folder() -> tuple[Path | None, bool]:
    """The folder, and whether it is new."""
    chosen, xdg = os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME", "")
    if chosen:
        parent = Path(chosen)
    elif os.path.isabs(xdg):
        parent = Path(xdg, "npusim")
    else:
        parent = Path.home().joinpath(".cache", "npusim")
    folder = parent.joinpath(f"kernels-{source_key()}")
    new = not folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None, False
    return folder, new


def _defined(decorator: Callable[..., Any], *signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator of Numba's that keeps what it compiles in the folder."""

    def decorate(function: Callable[..., Any]) -> Any:
        folder = cache_folder()
        if folder is None:
            return decorator(*signature, **options)(function)
        # Numba reads the setting when the kernel is defined. It is put back, so that other packages' kernels,
        # subprocesses and the environment see nothing of it.
        settings: Any = numba_config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
        try:
            return decorator(*signature, cache=True, **options)(function)
        finally:
            settings.CACHE_DIR = before

    return decorate


def kernel(function: Callable[..., Any]) -> Any:
    """Return ``function`` as a Numba kernel: compiled at its first call, kept on disk, run without the global lock."""
    return _defined(numba.njit, nogil=True)(function)


def callback(function: Callable[..., Any], signature: Any) -> Any:
    """Return ``function`` compiled as a C function with ``address``, now; kept on disk likewise."""
    return _defined(numba.cfunc, signature)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Return ``function`` as a Numba function that kernels call; it is compiled into each of them."""
    return numba.njit(function)


def helper(function: Callable[..., Any]) -> Any:
    """As `inlined`, for functions that Python never calls: they compile faster."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)(function)
