"""Two runs beside each other: what differs is named with both figures, and nothing else is."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from npusim.cli import main
from npusim.compare import compare
from npusim.errors import UserError


@pytest.fixture
def other(tiny_folder: Path, tmp_path: Path) -> Path:
    """The same run, but for one setting, one cause and one layer."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_folder, folder)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["machine"]["vector_unit"]["lanes"] *= 2
    record["ledger_cycles"]["mac"]["wait_token_raw"] -= 300
    record["ledger_cycles"]["mac"]["wait_dram"] += 7
    record["cost"]["cycles"] -= 293
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["part"] == "step" and row["layer"] == "blocks.1.mlp.fc2")
    row["span_cycles"] = str(int(row["span_cycles"]) - 11)
    with (folder / "layers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_a_run_does_not_differ_from_itself(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tiny_folder), str(tiny_folder)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    found = compare(tiny_folder, tiny_folder)
    assert (found.settings, found.causes, found.layers) == ((), (), ())
    cycles = json.loads((tiny_folder / "run.json").read_text())["cost"]["cycles"]
    assert (found.totals[0].name, found.totals[0].before, found.totals[0].difference) == ("cycles", cycles, 0)


def test_every_change_is_named_and_weighed(tiny_folder: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(tiny_folder, other)
    (setting,) = found.settings
    assert (setting.name, setting.after) == ("config.machine.vector_unit.lanes", 2 * setting.before)
    assert [(c.name, c.difference) for c in found.causes] == [("mac.wait_token_raw", -300), ("mac.wait_dram", 7)]
    assert found.totals[0].difference == -293
    (layer,) = found.layers
    executions = json.loads((tiny_folder / "run.json").read_text())["program"]["step_sets"]
    assert (layer.part, layer.layer) == ("step", "blocks.1.mlp.fc2")
    assert layer.difference("span_cycles") == -11 * executions
    assert layer.difference("dram_read_bytes") == 0

    assert main(["compare", str(tiny_folder), str(other)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("vector_unit.lanes", "wait_token_raw", "blocks.1.mlp.fc2"))
    assert main(["compare", str(other), str(tiny_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["causes"][0]["name"] == "mac.wait_token_raw"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"schema_version": 2, "cost": {}}'),
        ("layers.csv", "part,layer\nstep,x\n"),
        ("layers.csv", None),
        ("run.json", None),
    ],
)
def test_damaged_folders_are_refused_by_file(other: Path, tiny_folder: Path, name: str, content: str | None) -> None:
    (other / name).unlink() if content is None else (other / name).write_text(content)
    with pytest.raises(UserError, match=name):
        compare(tiny_folder, other)
