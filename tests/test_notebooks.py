"""Notebooks: both forms of each are one notebook, and each runs from top to bottom."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


@pytest.fixture(scope="module")
def pair() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pair", FOLDER / "pair.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_forms_of_each_notebook_agree(pair: ModuleType) -> None:
    """A committed notebook is its script's, without outputs: `python notebooks/pair.py` after a change."""
    assert pair.scripts() == SCRIPTS
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in SCRIPTS}
    for script in SCRIPTS:
        committed = script.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert committed == pair.text(pair.notebook(script)), script.name


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_runs_from_top_to_bottom(pair: ModuleType, script: Path, tmp_path: Path, repository: Path) -> None:
    executed = pair.execute(script, tmp_path, NPUSIM_NOTEBOOKS_FAST="1", PYTHONPATH=str(repository))
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
