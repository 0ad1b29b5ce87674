"""The command ``npusim verify --tosa``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.pipeline import compile_model
from models.quantize import quantize
from models.workloads import get_workload
from npusim import engine
from npusim.cli import main
from npusim.config import Machine
from npusim.program_file import save_program
from npusim.report import write_run
from npusim.run import RunResult
from tests.conformance.side_venv import CACHE_HOME

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""


@pytest.fixture
def folder(tiny_result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of `tiny`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE_HOME))
    write_run(tiny_result, tmp_path / "run")
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["verify", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_a_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--tosa", "--block", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "equal         12288  linear              blocks.1.attn.qkv\n" in out
    assert "cut 2                attention           blocks.1.attn.out: row multipliers and shifts\n" in out
    assert out.endswith("22 of 22 operations compared, and 100.0% of their products\n")


def test_a_difference_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose table looks up the next entry; program and instrumented program are equally wrong."""
    exact = engine.EXECUTORS["table"]

    def wrong(state, ins) -> None:  # type: ignore[no-untyped-def]
        ins.out_zp += 1
        exact(state, ins)
        ins.out_zp -= 1

    monkeypatch.setitem(engine.EXECUTORS, "table", wrong)
    assert main(["verify", str(folder), "--tosa", "--block", "0"]) == 1
    out, _ = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if "differs first" in line)
    assert line.startswith("blocks.0.mlp.gelu (layer blocks.0.mlp.gelu) differs first at [0, 0]: simulator ")
    assert "33 tensors compared (145,408 elements), 1 differ\n" in out


def test_a_quantized_model_needs_a_machine(folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "quantized.safetensors"
    assert "allowed: a run folder, or a quantized model and --hw" in refused(capsys, model, "--tosa")
    machine = str(repository / "hwconfigs" / "tiny_8x8.yaml")
    command = ["verify", str(model), "--tosa", "--hw", machine, "--block", "0", "--attention-bits", "8"]
    assert main(command) == 0
    assert "0 differ" in capsys.readouterr().out


def test_a_run_in_two_factors(folder: Path, tiny_machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's own factors are taken; a later step lies in a later time range."""
    work = get_workload("tiny")
    quantized = quantize(work.load_model(), work.load_stats(), "tsq_pot", 4, 6)
    quantized.save(folder / "quantized.safetensors")
    save_program(compile_model(quantized, tiny_machine, factored=True), folder / "program.npu")
    assert "not what" in refused(capsys, folder, "--tosa")
    data = json.loads((folder / "run.json").read_text())
    data["config"]["factored"] = True
    (folder / "run.json").write_text(json.dumps(data))
    assert main(["verify", str(folder), "--tosa", "--block", "0", "--step", "3"]) == 0
    out = capsys.readouterr().out
    assert "linear_factored     blocks.0.attn.qkv\n" in out
    assert "0 differ" in out
    machine = ("--hw", str(folder / "machine.yaml"))
    (folder / "machine.yaml").write_text(json.dumps(tiny_machine.model_dump()))
    command = ["verify", str(folder / "quantized.safetensors"), "--tosa", *machine, "--block", "0", "--factored"]
    assert main(command) == 0
    assert "linear_factored     blocks.0.attn.qkv\n" in capsys.readouterr().out


def test_wrong_inputs_are_refused(
    folder: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine_file = repository / "hwconfigs" / "tiny_8x8.yaml"
    assert "--tosa only" in refused(capsys, folder / "program.npu", "--block", "0")
    assert "a run folder has its own machine" in refused(capsys, folder, "--tosa", "--hw", "machine.yaml")
    assert "attention_bits = 0: allowed 8, 16" in refused(
        capsys, folder / "quantized.safetensors", "--tosa", "--hw", machine_file, "--attention-bits", "0"
    )
    assert "block = 7: allowed 0..1" in refused(capsys, folder, "--tosa", "--block", "7")
    assert "step = 4: allowed 0..3" in refused(capsys, folder, "--tosa", "--step", "4")
    assert "and factors; allowed: no option for them" in refused(capsys, folder, "--tosa", "--factored")
    assert "run.json: cannot be read" in refused(capsys, tmp_path, "--tosa")
    data = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(data | {"seeds": {"noise": "five"}}))
    assert "run.json: seeds.noise has the wrong type" in refused(capsys, folder, "--tosa")
    (folder / "run.json").write_text(json.dumps(data | {"config": data["config"] | {"factored": 1}}))
    assert "run.json: factored has the wrong type" in refused(capsys, folder, "--tosa")
    (folder / "run.json").write_text("{")
    assert "not the run.json of a run folder" in refused(capsys, folder, "--tosa")


def test_a_model_and_a_program_of_different_runs_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "quantized.safetensors"
    assert main(["quantize", "--workload", "tiny", "--act-bits", "16", "--out", str(model)]) == 0
    capsys.readouterr()
    message = refused(capsys, folder, "--tosa")
    assert f"{folder / 'program.npu'}: not what {model} compiles to; they belong to different runs" in message


def test_without_an_index_the_message_says_what_is_wanted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = refused(capsys, folder, "--tosa")
    assert "the outside program 'tosa' needs the packages of " in message
    assert "requirements.txt, from a package index" in message
