"""The reference model's environment, made once for all tests and kept where the conformance tests keep theirs."""

from pathlib import Path

import pytest

from compiler.tosa.tosa_graph import model_python
from npusim.errors import UserError
from tests.conformance.side_venv import CACHE_HOME


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Interpreter of the environment of Arm's TOSA reference model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE_HOME))
    try:
        return model_python()
    except UserError as error:
        pytest.fail(str(error), pytrace=False)
