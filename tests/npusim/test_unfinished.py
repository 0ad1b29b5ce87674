"""Runs that are interrupted: what is kept, and that what goes on from it ends in the very same files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from npusim.cli import main
from npusim.config import Machine
from npusim.errors import UserError
from npusim.run import RunResult, run_timing
from npusim.run import run as whole_run
from npusim.simulate import Simulation

Run = Callable[..., RunResult]
ALONE: dict[str, Any] = {"integer_only": True, "verify": "none", "verify_sample": 0.05}


@pytest.fixture(scope="module")
def statistics(tiny_result: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "tiny.safetensors"
    tiny_result.calibration.save(path)
    return path


@pytest.fixture
def run(statistics: Path, tiny_machine: Machine) -> Run:
    """`npusim.run.run` of the tiny workload, without calibrating it each time."""

    def call(**options: Any) -> RunResult:
        given = {} if "blocks" in options else {"calibration": statistics}
        return whole_run("tiny", tiny_machine, **given, **options)

    return call


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run folder, without the block of run.json that differs between equal runs."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["run.json"] = {k: v for k, v in json.loads(found["run.json"]).items() if k != "wall_clock"}
    return found


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupts a run at the so-manyth step that a simulation begins; 0 for never."""
    step = Simulation.step

    def stop(at: int) -> None:
        calls: Iterator[int] = iter(range(1, 1000))

        def counted(*args: Any, **options: Any) -> None:
            if next(calls) == at:
                raise KeyboardInterrupt
            step(*args, **options)

        monkeypatch.setattr(Simulation, "step", counted)

    return stop


def interrupted(stopping: Callable[[int], None], at: int, run: Run, out: Path, **options: Any) -> None:
    stopping(at)
    with pytest.raises(KeyboardInterrupt):
        run(out=out, save_seconds=0, **options)
    stopping(0)


@pytest.mark.parametrize(
    ("options", "at"),
    [({}, 6), ({"steps": 2, "blocks": 1, "branch": "unconditional"}, 3)],
    ids=["with float clips", "a part"],
)
def test_a_run_that_goes_on_gives_the_same_files(
    run: Run, tmp_path: Path, stopping: Callable[[int], None], options: dict[str, Any], at: int
) -> None:
    run(out=tmp_path / "whole", **options)
    out = tmp_path / "resumed"
    interrupted(stopping, at, run, out, **options)
    assert [path.name for path in out.iterdir()] == ["unfinished"]
    assert (out / "unfinished" / "integer.safetensors").is_file()
    result = run(out=out, save_seconds=0, **options)
    assert "compile_seconds" not in result.wall_clock  # the program was there
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_processes_go_on_where_they_were(
    repository: Path, tiny_file: Path, tmp_path: Path, statistics: Path
) -> None:
    """kill -9 in the middle of a step of the command itself, then the same command again."""
    kill = (
        "import os, signal, sys\nfrom npusim.simulate import Simulation\nfrom npusim.cli import main\n"
        "step = Simulation.step\n"
        "def counted(simulation, number, *rest):\n"
        "    def tell(done, count):\n"
        "        if number == 2 and done > count // 2:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(simulation, number, tell)\n"
        "Simulation.step = counted\nsys.exit(main(sys.argv[1:]))\n"
    )
    options = f"--hw {tiny_file} --integer-only --verify 1 --verify-sample 0.02 --calibration {statistics} --out"
    command = ["run", "--workload", "tiny", *options.split()]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    killed = subprocess.run(
        [sys.executable, "-c", kill, *command, str(tmp_path / "out"), "--save-seconds", "0"],
        env=environment, cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    for name in ("out", "whole"):
        assert main([*command, str(tmp_path / name)]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_quick_runs_leave_no_trace(run: Run, tmp_path: Path, stopping: Callable[[int], None]) -> None:
    stopping(3)
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path / "run", **ALONE)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def kept(run: Run, tmp_path: Path, stopping: Callable[[int], None]) -> Path:
    interrupted(stopping, 2, run, tmp_path / "run", **ALONE)
    return tmp_path / "run"


def test_what_another_run_has_kept_is_refused(run: Run, kept: Path) -> None:
    before = {path: path.read_bytes() for path in (kept / "unfinished").iterdir()}
    for options, difference in (
        ({"method": "asq"}, r"config\.method = 'cw_tw' there, 'asq' here"),
        ({"seed": 1}, r"config\.seed = 3000 there, 1 here"),
        ({"steps": 2}, r"config\.steps = None there, 2 here"),
    ):
        message = (
            rf"unfinished/run\.json: belongs to another run: {difference}; allowed: the same settings, or to remove"
        )
        with pytest.raises(UserError, match=message):
            run(out=kept, **{**ALONE, **options})
    assert {path: path.read_bytes() for path in (kept / "unfinished").iterdir()} == before


def test_damaged_and_foreign_states_are_refused(run: Run, kept: Path) -> None:
    state = kept / "unfinished" / "integer.safetensors"
    data = state.read_bytes()
    flipped = bytearray(data)
    flipped[-5] ^= 1
    for wrong, message in (
        (data[:-100], "not a readable safetensors file"),
        (bytes(flipped), "contents do not match their SHA-256"),
        (b"", "not a readable safetensors file"),
    ):
        state.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"integer\.safetensors: {message}.*allowed: to remove the file"):
            run(out=kept, **ALONE)
    state.write_bytes(data)
    program = kept / "unfinished" / "program.npu"
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"program\.npu: truncated or damaged"):
        run(out=kept, **ALONE)


def test_a_state_of_another_program_is_refused(
    run: Run, tmp_path: Path, kept: Path, stopping: Callable[[int], None]
) -> None:
    """The same settings, but another program: as after a change of the compiler."""
    from npusim.program_file import load_program, save_program

    path = kept / "unfinished" / "program.npu"
    program = load_program(path)
    save_program(dataclasses.replace(program, layers=(*program.layers, "one more")), path)
    with pytest.raises(UserError, match=r"integer\.safetensors: belongs to another run or program; allowed: to remove"):
        run(out=kept, **ALONE)


def test_a_part_says_that_it_is_one(run: Run, tiny_result: RunResult, tmp_path: Path) -> None:
    """The first steps of a part are those of the whole video; its cost is that of what it ran."""
    from rich.console import Console

    from npusim.summary import summary, written_line

    result = run(out=tmp_path / "run", steps=2, prompt="rainbow", seed=5, verify="none")
    assert (result.clips["integer"].eps == tiny_result.clips["integer"].eps[:2]).all()
    assert result.clips["float"].eps.shape[0] == 2
    assert result.timesteps == tiny_result.timesteps[:2]
    timing = result.timing
    assert timing.cycles == timing.prologue.total_cycles + 2 * timing.step.total_cycles
    assert run_timing("tiny", result.config.machine, steps=2).timing.cycles == timing.cycles
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["part"] == "the first 2 of 4 steps"
    assert record["cost"]["cycles"] == timing.cycles
    assert record["wall_clock"]["peak_resident_bytes"] > 1e8
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary(result))
    assert "only a part of the video: the first 2 of 4 steps" in capture.get()
    assert re.fullmatch(r"written to a; peak resident memory \d+\.\d\d GB", written_line(result, Path("a")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, r"steps = 5: allowed 1\.\.4"),
        ({"steps": 0}, r"steps = 0: allowed 1\.\.4"),
        ({"blocks": 3}, r"blocks = 3: workload 'tiny' has 1\.\.2"),
        ({"branch": "cond"}, r"branch = 'cond': allowed conditional or unconditional; did you mean 'conditional'\?"),
        ({"verify_sample": 1.5}, r"verify_sample = 1\.5: allowed a share 0\.\.1"),
        ({"steps": 2, "verify": "3"}, r"verify = '3': allowed all, none, or a number of steps 1\.\.2"),
    ],
)
def test_parts_that_are_not_there_are_refused(run: Run, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    from models.errors import ModelError

    with pytest.raises((UserError, ModelError), match=message):
        run(out=tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())
