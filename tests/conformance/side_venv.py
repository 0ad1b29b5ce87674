"""The outside programs' environments, kept under ``build/oracles``; made and used as the product does with its own.

`compiler.tosa.environment` does the work; what is known here is where the requirements and the worker scripts lie.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from compiler.tosa import environment
from compiler.tosa.environment import Arrays, call
from compiler.tosa.tosa_graph import REQUIREMENTS

HERE = Path(__file__).resolve().parent
CACHE_HOME = HERE.parents[1] / "build" / "oracles"
"""What stands for the user's cache folder in tests."""


def python_of(name: str) -> Path:
    """The interpreter of an environment; that of TOSA is the product's. Raises UserError if it cannot be made."""
    requirements = REQUIREMENTS if name == "tosa" else HERE / "requirements" / f"{name}.txt"
    return environment.python_of(name, requirements, CACHE_HOME / "npusim")


def work(name: str, worker: str, jobs: list[dict[str, Any]], arrays: Arrays) -> Arrays:
    """Run ``workers/<worker>`` inside environment ``name``: jobs as JSON and arrays in, arrays out."""
    return environment.work(python_of(name), HERE / "workers" / worker, jobs, arrays)


def made_once(name: str, worker: str) -> Arrays:
    """What ``workers/<worker> OUT`` writes, kept in the environment until that or the worker changes."""
    python, script = python_of(name), HERE / "workers" / worker
    kept = python.parents[1] / f"{script.stem}-{hashlib.sha256(script.read_bytes()).hexdigest()[:12]}.npz"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            unfinished = kept.with_suffix(f".{os.getpid()}.npz")
            call([str(python), str(script), str(unfinished)], 900, f"the outside program {name!r}")
            unfinished.replace(kept)
    with np.load(kept) as file:
        return dict(file)
