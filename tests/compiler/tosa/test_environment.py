"""What a user sees where an outside program cannot be installed or fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.tosa import environment
from compiler.tosa.environment import cache_folder, call, python_of, work
from npusim.errors import UserError


def test_a_failure_names_the_purpose_the_command_and_its_last_words() -> None:
    program = "import sys; print('REQUIRE() fails'); sys.exit(3)"
    with pytest.raises(UserError, match=r"(?s)^the oracle: .* ended with 3:\nREQUIRE\(\) fails"):
        call([sys.executable, "-c", program], 60, "the oracle")


def test_a_missing_program_and_one_that_hangs_are_failures_too() -> None:
    with pytest.raises(UserError, match=r"^the oracle: .*no-such-program"):
        call(["/no-such-program"], 60, "the oracle")
    with pytest.raises(UserError, match="timed out"):
        call([sys.executable, "-c", "import time; time.sleep(60)"], 1, "the oracle")


def test_pins_of_other_environments_do_not_reach_an_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", ".ci/constraints.txt")
    call([sys.executable, "-c", "import os, sys; sys.exit('PIP_CONSTRAINT' in os.environ)"], 60, "the oracle")


def test_the_cache_folder_follows_the_desktop_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/npusim")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/home/user/.cache/npusim")


def test_an_environment_is_made_once_and_a_half_made_one_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With commands that only leave a folder: making real ones takes seconds."""
    commands: list[list[str]] = []

    def make(command: list[str], timeout_seconds: int, what: str) -> None:
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir()
        elif fail:
            raise UserError(what)

    monkeypatch.setattr(environment, "call", make)
    requirements = tmp_path / "needs.txt"
    requirements.write_text("tosa-tools==2026.8.0\n")
    fail = True
    with pytest.raises(UserError, match="from a package index, once"):
        python_of("model", requirements, tmp_path)
    (folder,) = tmp_path.glob("model-*")
    (folder / "half").touch()
    fail = False
    assert python_of("model", requirements, tmp_path) == folder / "bin" / "python"
    assert not (folder / "half").exists()
    assert commands[-1][-2:] == ["-r", str(requirements)]
    before = len(commands)
    python_of("model", requirements, tmp_path)
    assert len(commands) == before
    requirements.write_text("tosa-tools==2026.9.0\n")
    assert python_of("model", requirements, tmp_path).parents[1] != folder


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "needs.txt").touch()
    with pytest.raises(UserError, match=r"'model' needs the packages of .*File exists"):
        python_of("model", tmp_path / "needs.txt", tmp_path / "file")


def test_arrays_go_in_and_out_of_a_worker(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys, numpy as np\n"
        "with np.load(sys.argv[1]) as file:\n"
        "    (job,) = json.loads(file['jobs'].tobytes())\n"
        "    np.savez(sys.argv[2], sum=file['x'] + job['add'])\n"
    )
    found = work(Path(sys.executable), worker, [{"add": 3}], {"x": np.arange(4)})
    assert found["sum"].tolist() == [3, 4, 5, 6]
