"""The compiler as a whole: equal inputs give equal files, files hold no float, stages can be read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from compiler import compile_model
from compiler.passes import PASSES
from compiler.pipeline import integer_graph
from models.quantize import QuantizedModel
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.assembly import assemble, disassemble
from npusim.program import Program
from npusim.program_file import load_program, save_program

COMPILE_ELSEWHERE = """
import sys
from pathlib import Path
from compiler import compile_model
from models.quantize import QuantizedModel
from npusim.config import load_machine
from npusim.program_file import save_program
model, machine, out = map(Path, sys.argv[1:])
save_program(compile_model(QuantizedModel.load(model), load_machine(machine)), out)
"""


@pytest.fixture(scope="module")
def program(qm: QuantizedModel, tiny_machine: Machine) -> Program:
    return compile_model(qm, tiny_machine)


@pytest.fixture(scope="module")
def program_file(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.npu"
    save_program(program, path)
    return path


def test_another_process_compiles_the_saved_model_to_the_same_file(
    qm: QuantizedModel, program_file: Path, repository: Path, tmp_path: Path
) -> None:
    # Another hash seed gives sets another order; the saved model stands for the stage before.
    qm.save(tmp_path / "model.safetensors")
    arguments = [tmp_path / "model.safetensors", repository / "hwconfigs" / "tiny_8x8.yaml", tmp_path / "again.npu"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", COMPILE_ELSEWHERE, *map(str, arguments)], check=True, env=environment)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (program_file, tmp_path / "again.npu")}
    assert len(digests) == 1


def test_program_file_gives_the_program_back(program: Program, program_file: Path) -> None:
    read = load_program(program_file)
    for part, code in read.code():
        np.testing.assert_array_equal(code, getattr(program, part))
    assert (read.buffers, read.layers, read.host) == (program.buffers, program.layers, program.host)


def test_no_float_in_a_program_file(program_file: Path) -> None:
    def refuse(text: str) -> float:
        raise AssertionError(f"the header holds the float {text}")

    with safe_open(str(program_file), "numpy") as file:
        kinds = {name: file.get_tensor(name).dtype.kind for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["header"], parse_float=refuse, parse_constant=refuse)
    assert kinds == {"prologue": "u", "step": "u", "constants": "u", "sets": "u", "range_sets": "u", "coded": "u"}
    assert header["host"]


def test_disassembly_assembles_to_the_same_words(program: Program) -> None:
    for _, code in program.code():
        np.testing.assert_array_equal(assemble(disassemble(code)), code)


def test_every_stage_can_be_dumped(qm: QuantizedModel, tiny_machine: Machine) -> None:
    stages: dict[str, str] = {}
    program = compile_model(qm, tiny_machine, dump=stages.__setitem__)
    names = ["00_lower", *(f"{number:02d}_{p.__name__}" for number, p in enumerate(PASSES, 1))]
    assert list(stages) == [*names, f"{len(PASSES) + 1:02d}_prologue", f"{len(PASSES) + 1:02d}_step"]
    graph = integer_graph(qm)
    assert stages[names[-1]] == graph.text()
    for text in (f"%{op.output} = {op.kind}(" for op in graph.step):
        assert text in stages[names[-1]]
    np.testing.assert_array_equal(assemble(stages[f"{len(PASSES) + 1:02d}_step"]), program.step)


def test_model_without_its_calibrated_points_is_refused(qm: QuantizedModel, edge_machine: Machine) -> None:
    with pytest.raises(UserError, match=r"no calibrated point 'y_embedder\.y_proj\.fc1:in'"):
        compile_model(replace(qm, point_absmax={}), edge_machine)


def test_unsupported_patch_size_is_refused(qm: QuantizedModel, edge_machine: Machine) -> None:
    model = replace(qm, config={**qm.config, "patch_size": (1, 4, 4)})
    with pytest.raises(UserError, match=r"patch_size \[1, 4, 4\]: the compiler takes \[1, 2, 2\]"):
        compile_model(model, edge_machine)


def test_unsupported_attention_bits_are_refused(qm: QuantizedModel, edge_machine: Machine) -> None:
    with pytest.raises(UserError, match="attention_bits = 12: allowed 8, 16"):
        compile_model(qm, edge_machine, attention_bits=12)


def test_gate_out_of_range_is_refused(qm: QuantizedModel, edge_machine: Machine) -> None:
    # The residual's exact ratio leaves the gate four fractional bits at least.
    with pytest.raises(UserError, match=r"constant blocks\.0\.tap_\w+\.gate: values .* do not fit i16"):
        compile_model(replace(qm, t0=qm.t0 * 1e4), edge_machine)


def test_machine_without_row_sums_is_refused(qm: QuantizedModel, edge_machine: Machine) -> None:
    array = edge_machine.mac_array.model_copy(update={"row_sum_column": False})
    with pytest.raises(UserError, match="row_sum_column = false"):
        compile_model(qm, edge_machine.model_copy(update={"mac_array": array}))
