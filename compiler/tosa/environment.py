"""Virtual environments for outside programs, whose packages pin other versions of NumPy than npusim's.

Nothing of them is imported here: a worker script runs inside, arrays and JSON go in and out through npz files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError

Arrays = dict[str, NDArray[Any]]
FOREIGN = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH")
"""Variables that hold for npusim's own environment (a Makefile exports them) and must not reach another one."""


def cache_folder() -> Path:
    """Where environments are kept: ``npusim`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "npusim")


def call(command: list[str], timeout_seconds: int, what: str) -> None:
    """Run ``command`` with its output kept off the terminal. Raises UserError with the end of that output."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, env=environment, timeout=timeout_seconds, check=False, **pipe)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{what}: {error}") from None
    if done.returncode:
        tail = done.stdout.decode(errors="replace")[-2000:]
        raise UserError(f"{what}: {' '.join(command)} ended with {done.returncode}:\n{tail}")


def python_of(name: str, requirements: Path, cache: Path) -> Path:
    """The interpreter of the environment ``name`` with ``requirements`` under ``cache``, made if it is not there.

    The folder's name holds a digest of the requirements and of the Python version: a changed pin makes a new one. A
    half-made one is thrown away. Raises UserError if it cannot be made, e.g. without a package index.
    """
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    done = folder / ".installed"
    what = f"the outside program {name!r} needs the packages of {requirements}, from a package index, once, in {folder}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                call([sys.executable, "-m", "venv", str(folder)], 300, what)
                pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                call([*pip, "--no-input", "--only-binary", ":all:", "-r", str(requirements)], 900, what)
                done.touch()
    except OSError as error:
        raise UserError(f"{what}: {error}") from None
    return folder / "bin" / "python"


def work(python: Path, worker: Path, jobs: list[dict[str, Any]], arrays: Arrays, timeout_seconds: int = 3600) -> Arrays:
    """Run the script ``worker`` with ``python``: ``worker IN.npz OUT.npz``, jobs as JSON in the array ``jobs``.

    Raises UserError with the end of its output if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
        contents: dict[str, Any] = {"jobs": np.frombuffer(json.dumps(jobs).encode(), np.uint8), **arrays}
        np.savez(given, **contents)
        call([str(python), str(worker), str(given), str(found)], timeout_seconds, f"the outside program {worker.stem}")
        with np.load(found) as file:
            return dict(file)
