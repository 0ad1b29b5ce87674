import shutil
from pathlib import Path

import pytest

from npusim.report import write_run
from npusim.run import RunResult


@pytest.fixture(scope="session")
def tiny_folder(tiny_result: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "tiny"
    write_run(tiny_result, folder)
    return folder


@pytest.fixture
def run_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "run"))
