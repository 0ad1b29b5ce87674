"""Virtual environments of their own for the outside programs, made once under ``build/oracles`` and kept.

Their packages pin other versions of NumPy than npusim's, so nothing of them is imported here: a worker script runs
inside, and arrays go in and out through npz files.
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

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "oracles"
Arrays = dict[str, NDArray[Any]]


class OracleError(Exception):
    """An outside program could not be installed or failed; the message says which command and its last output."""


def call(command: list[str], timeout_seconds: int, what: str) -> None:
    """Run ``command`` with its output kept off the terminal. Raises OracleError with the end of that output."""
    # The constraints that a Makefile exports hold for npusim's own environment, not for these.
    foreign = {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    try:
        pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, env=environment, timeout=timeout_seconds, check=False, **pipe)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OracleError(f"{what}: {error}") from None
    if done.returncode:
        tail = done.stdout.decode(errors="replace")[-2000:]
        raise OracleError(f"{what}: {' '.join(command)} ended with {done.returncode}:\n{tail}")


def python_of(name: str) -> Path:
    """The interpreter of the environment with ``requirements/<name>.txt``, which is created if it is not there.

    The folder's name holds a digest of the requirements and of the Python version: a changed pin makes a new one.
    Raises OracleError if it cannot be created, e.g. without a package index.
    """
    requirements = HERE / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = BUILD / f"{name}-{digest}"
    done = folder / ".installed"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            what = f"the outside oracle {name!r} needs the packages of {requirements}, from a package index, once"
            call([sys.executable, "-m", "venv", str(folder)], 300, what)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            call([*pip, "--no-input", "--only-binary", ":all:", "-r", str(requirements)], 900, what)
            done.touch()
    return folder / "bin" / "python"


def work(name: str, worker: str, jobs: list[dict[str, Any]], arrays: Arrays, timeout_seconds: int = 600) -> Arrays:
    """Run ``workers/<worker>`` inside environment ``name``: jobs as JSON and arrays in, arrays out."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
        text = np.frombuffer(json.dumps(jobs).encode(), np.uint8)
        np.savez(given, jobs=text, **arrays)
        command = [str(python_of(name)), str(HERE / "workers" / worker), str(given), str(found)]
        call(command, timeout_seconds, f"the outside oracle {name!r}")
        with np.load(found) as file:
            return dict(file)


def made_once(name: str, worker: str) -> Arrays:
    """What ``workers/<worker> OUT`` writes, kept in ``build/oracles`` until the worker or the environment changes."""
    python, script = python_of(name), HERE / "workers" / worker
    kept = python.parents[1] / f"{script.stem}-{hashlib.sha256(script.read_bytes()).hexdigest()[:12]}.npz"
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            unfinished = kept.with_suffix(f".{os.getpid()}.npz")
            call([str(python), str(script), str(unfinished)], 900, f"the outside oracle {name!r}")
            unfinished.replace(kept)
    with np.load(kept) as file:
        return dict(file)
