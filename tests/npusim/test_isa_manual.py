"""The manual is what the table says today, complete, and its figures are those that are measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from npusim import accuracy
from npusim.cli import main
from npusim.isa import ALL, manual
from npusim.isa.encoding import HEADER
from npusim.program_file import load_program
from npusim.simulate import Simulation


def test_the_manual_is_not_stale() -> None:
    """On failure run `python -m npusim.isa.manual`."""
    assert manual.FILE.read_text(encoding="utf-8") == manual.manual()


def test_every_field_rule_and_cycle_count_is_explained() -> None:
    text = manual.manual()
    for spec in ALL:
        assert spec.summary
        assert spec.cycles.__doc__, f"{spec.mnemonic}: cycles without a docstring"
        assert f"#### {spec.mnemonic}\n" in text
        for f in (*HEADER, *spec.fields):
            assert f.doc, f"{spec.mnemonic}.{f.name} without a meaning"
        for rule in spec.rules:
            assert rule.allowed in text
            assert set(rule.fields) <= set(spec.by_name)


def test_every_approximating_instruction_has_a_measured_error() -> None:
    figures = json.loads(manual.ACCURACY.read_text(encoding="utf-8"))
    assert set(figures) == {"table", "table8", "lnstat", "lnapply", "smexp", "recip", "rtquant"}
    assert all(figures[name] for name in figures)


def test_the_example_runs_as_it_is_printed(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = manual.FILE.read_text(encoding="utf-8")
    example, commands = re.findall(r"```(?:text|sh)\n(.*?)```", text, re.S)
    (tmp_path / "example.s").write_text(example)
    (tmp_path / "hwconfigs").symlink_to(repository / "hwconfigs")
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        name, *arguments = command.split()
        assert name == "npusim"
        assert main(arguments) == 0, command
    out = capsys.readouterr().out
    assert "example.npu: legal, 0 + 4 instructions\nengine = reference in every byte, prologue and 1 step\n" in out
    assert "step instruction 1 of 4: ewlin on unit vector" in out
    program = load_program(Path("example.npu"))
    x = np.array([-32768, -3, -2, -1, 0, 1, 2, 3, 32767, *range(7)], np.int16)
    simulation = Simulation(program, {"dram": np.concatenate([x, 0 * x]).view(np.uint8)})
    simulation.step(0)
    expected = [min(max((3 * v + 1) // 2, -32768), 32767) for v in x.tolist()]
    assert simulation.read("dram").view(np.int16).tolist() == [*x.tolist(), *expected]


@pytest.mark.slow
def test_the_figures_are_those_measured() -> None:
    """On failure run `python -m npusim.accuracy`, then `python -m npusim.isa.manual`."""
    assert json.loads(manual.ACCURACY.read_text(encoding="utf-8")) == accuracy.measure()
