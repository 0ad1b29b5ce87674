"""What all tests share: the repository's machines, the small network, and reproducible, single-threaded settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: on few, shared cores more threads are slower, and results must not depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import Phase, settings

from npusim.config import Machine, load_machine

if TYPE_CHECKING:
    from models.stats import CalibrationStats
    from models.stdit import STDiT

REPOSITORY = Path(__file__).resolve().parent.parent

# The default repeats the same examples on every run; `pytest --hypothesis-profile=explore` looks for new ones.
# No deadline: the first call of a compiled kernel takes seconds.
settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
# A mutant that is found need not be found again in a smaller example.
settings.register_profile("mutant", settings.get_profile("repeat"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("repeat")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def edge_machine() -> Machine:
    """hwconfigs/edge_8k.yaml."""
    return load_machine(REPOSITORY / "hwconfigs" / "edge_8k.yaml")


@pytest.fixture(scope="session")
def edge_text() -> str:
    """The text of hwconfigs/edge_8k.yaml."""
    return (REPOSITORY / "hwconfigs" / "edge_8k.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_machine() -> Machine:
    """hwconfigs/tiny_8x8.yaml."""
    return load_machine(REPOSITORY / "hwconfigs" / "tiny_8x8.yaml")


@pytest.fixture(scope="module")
def model() -> STDiT:
    """The float network of the workload `tiny`: random weights."""
    from models.workloads import get_workload  # imports torch, which many tests do without

    return get_workload("tiny").load_model()


@pytest.fixture(scope="module")
def stats() -> CalibrationStats:
    """Its calibration statistics."""
    from models.workloads import get_workload

    return get_workload("tiny").load_stats()
