import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "run"))
