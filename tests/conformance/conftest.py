"""The outside oracles, installed once into virtual environments of their own."""

import pytest

from npusim.errors import UserError
from tests.conformance import side_venv


@pytest.fixture(scope="session")
def tosa() -> str:
    """Arm's TOSA reference model and test generator; the name of its environment."""
    return _installed("tosa")


@pytest.fixture(scope="session")
def onnx() -> str:
    """ONNX Runtime."""
    return _installed("onnx")


@pytest.fixture(scope="session")
def tflm() -> str:
    """TensorFlow Lite Micro."""
    return _installed("tflm")


@pytest.fixture(scope="session")
def scalesim() -> str:
    """SCALE-Sim, for cycles."""
    return _installed("scalesim")


@pytest.fixture(scope="session")
def vela() -> str:
    """Vela, for estimates of cycles."""
    return _installed("vela")


def _installed(name: str) -> str:
    try:
        side_venv.python_of(name)
    except UserError as error:
        pytest.fail(str(error), pytrace=False)
    return name
