"""Simulator of an integer NPU: executes a compiled program bit by bit and counts its cycles.

Every job of the command line is one call, which returns the object that the command's files are written from::

    import npusim

    result = npusim.run("emoji", "hwconfigs/edge_8k.yaml", out="runs/demo")

A job's module bears the job's name and is called like it: ``npusim.run(...)`` is ``npusim.run.run(...)``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

JOBS = ("bench", "compare", "evaluate", "explain", "run", "swap")
"""Modules that are called like the function of their name; imported at the first use, since they bring torch."""


class Job(ModuleType):
    """A module that is called like the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def callable_module(name: str) -> None:
    """Make the module ``name``, which is being imported, a `Job`."""
    sys.modules[name].__class__ = Job


def __getattr__(name: str) -> ModuleType:
    if name not in JOBS:
        raise AttributeError(f"module 'npusim' has no attribute {name!r}")
    return importlib.import_module(f"npusim.{name}")
