"""One compiled matrix unit per machine and session."""

from collections.abc import Callable

import pytest

from npusim.config import Machine
from tests.cosim.rtl import MatrixUnit, matrix_unit


@pytest.fixture(scope="session")
def unit_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Machine], MatrixUnit]:
    """Give the matrix unit of a machine, built at the first request."""
    units: dict[Machine, MatrixUnit] = {}

    def build(machine: Machine) -> MatrixUnit:
        if machine not in units:
            units[machine] = matrix_unit(machine, tmp_path_factory.mktemp("rtl"))
        return units[machine]

    return build
