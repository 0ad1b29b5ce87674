"""The `tiny` workload quantized, compiled and run once, for all tests of the simulator's upper parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from compiler import compile_model
from models.iddpm import draw_noise
from models.workloads import Workload, get_workload
from npusim.config import Machine
from npusim.host import Host
from npusim.program import Program
from npusim.report import write_run
from npusim.run import RunResult, quantize_workload, run

CAPTION, SEED = "rainbow", 5


@dataclass(frozen=True)
class Tiny:
    """A compiled `tiny` with the contents of its input buffers and the floats that they were made of."""

    workload: Workload
    program: Program
    host: Host
    floats: Mapping[str, NDArray[Any]]
    inputs: Mapping[str, NDArray[Any]]


@pytest.fixture(scope="session")
def tiny_file(repository: Path) -> Path:
    """The machine file of `tiny_machine`."""
    return repository / "hwconfigs" / "tiny_8x8.yaml"


@pytest.fixture(scope="session")
def tiny(tiny_machine: Machine) -> Tiny:
    workload = get_workload("tiny")
    program = compile_model(quantize_workload(workload), tiny_machine)
    text, mask = workload.text(CAPTION)
    x_T, noise = draw_noise(SEED, workload.latent_shape, workload.num_steps)
    floats = {"text": text.numpy(), "mask": mask.numpy(), "x_T": x_T.numpy(), "noise": noise.numpy()}
    host = Host(program, workload.latent_shape)
    return Tiny(workload, program, host, floats, host.inputs(**floats))


@pytest.fixture(scope="session")
def tiny_result(tiny_machine: Machine) -> RunResult:
    return run("tiny", tiny_machine, prompt=CAPTION, seed=SEED, verify="all", dump_passes=True)


@pytest.fixture(scope="session")
def tiny_folder(tiny_result: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "tiny"
    write_run(tiny_result, folder)
    return folder
