"""A small workload with frames, and one of its tables measured, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from models.metrics.features import real_features
from models.workloads import Workload, get_workload
from npusim.tables.make import Measured, evaluate_tables


@pytest.fixture(scope="session")
def work() -> Workload:
    tiny = get_workload("tiny")
    return replace(tiny, config={**tiny.config, "input_size": (8, 8, 8)}, vae=get_workload("emoji").vae)


@pytest.fixture(scope="session")
def few_real_clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npusim.tables.inputs.REAL_CLIPS", 4)
        cache = tmp_path_factory.mktemp("metrics")
        patch.setattr("npusim.tables.inputs.real_features", partial(real_features, cache_dir=cache))
        yield


@pytest.fixture(scope="session")
def measured(work: Workload, few_real_clips: None, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Table IV with 2 clips."""
    return evaluate_tables(tmp_path_factory.mktemp("tables") / "out", "IV", workload=work, clips=2, jobs=1)


@pytest.fixture
def folder(measured: Measured) -> Path:
    return measured.inputs.setup.folder
