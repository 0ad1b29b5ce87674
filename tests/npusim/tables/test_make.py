"""Going on after an interruption, measuring again, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import ModelError
from models.workloads import Workload, get_workload
from npusim.errors import UserError
from npusim.tables import make
from npusim.tables.files import cell_path
from npusim.tables.inputs import Setup
from npusim.tables.make import Measured, evaluate_tables


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The measured folder, to be altered."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_measures_nothing_again(
    copy: Path, folder: Path, work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "measure_cell", lambda *_: pytest.fail("measured again"))
    evaluate_tables(copy, "IV", workload=work, clips=2, jobs=1)
    assert _bytes(copy) == _bytes(folder)


def test_a_deleted_cell_alone_is_measured_again_to_the_same_bytes(
    copy: Path, folder: Path, work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, original = [], make.measure_cell

    def counted(inputs: Any, cell: Any) -> Any:
        measured.append(cell.name)
        return original(inputs, cell)

    monkeypatch.setattr(make, "measure_cell", counted)
    (copy / "cells" / "emoji-tsq-w8a8-r2.json").unlink()
    (copy / "cache" / "float-emoji.safetensors").unlink()
    evaluate_tables(copy, "IV", workload=work, clips=2, jobs=1)
    assert measured == ["emoji-tsq-w8a8-r2"]
    assert _bytes(copy) == _bytes(folder)
    evaluate_tables(copy, "IV", workload=work, clips=2, jobs=1, cell="emoji-asq-w8a8-r1", force=True)
    assert measured[1:] == ["emoji-asq-w8a8-r1"]
    assert _bytes(copy) == _bytes(folder)


def test_cells_of_other_weights_are_measured_again(copy: Path, work: Workload, measured: Measured) -> None:
    other = dataclasses.replace(work, weights_seed=1)
    found = evaluate_tables(copy, "IV", workload=other, clips=2, jobs=1, cell="emoji-asq-w8a8-r1")
    assert list(found.figures) == ["emoji-asq-w8a8-r1"]
    name = "emoji-asq-w8a8-r1"
    assert found.figures[name]["psnr_db"] != measured.figures[name]["psnr_db"]


def test_a_refused_method_is_tried_again(
    work: Workload, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        "workload": work, "clips": 2, "jobs": 1, "machine": repository / "hwconfigs" / "tiny_8x8.yaml",
        "cell": "emoji-cw_tw-w8a8-r1-integer",
    }  # fmt: skip

    def refuse(*_: object) -> None:
        raise UserError("method 'cw_tw': not today")

    with monkeypatch.context() as patch:
        patch.setattr("npusim.tables.measure.compile_model", refuse)
        found = evaluate_tables(tmp_path / "out", "integer", **arguments)
        assert found.figures["emoji-cw_tw-w8a8-r1-integer"] == {"refused": "method 'cw_tw': not today"}
        assert "not today" in (tmp_path / "out" / "integer.md").read_text()
    found = evaluate_tables(tmp_path / "out", "integer", **arguments)
    figures = found.figures["emoji-cw_tw-w8a8-r1-integer"]
    assert figures["refused"] is None
    assert np.shape(figures["integer_eps_sqnr_db"]) == np.shape(figures["fakequant_eps_sqnr_db"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 1}, r"clips = 1: allowed 2\.\.32"),
        ({"clips": 33}, r"clips = 33: allowed 2\.\.32"),
        ({"tables": "VI"}, r"tables = 'VI': allowed all, or some of I, II, III, IV, V, integer"),
        ({"cell": "emoji-asq"}, r"cell = 'emoji-asq': not of tables IV; nearest: emoji-asq-w8a8-r1"),
        ({"workload": "nosuch"}, r"workload 'nosuch' is unknown"),
        ({"workload": "tiny"}, r"workload 'tiny' has no autoencoder"),
        ({"tables": "integer", "machine": Path("no.yaml")}, r"no\.yaml"),
    ],
)
def test_mistakes_are_answered_before_anything_is_written(
    arguments: dict[str, Any], message: str, work: Workload, tmp_path: Path
) -> None:
    given = {"tables": "IV", "workload": work, "clips": 2, "jobs": 1} | arguments
    with pytest.raises((UserError, ModelError), match=message):
        evaluate_tables(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_folders_of_another_kind_are_refused(work: Workload, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds files but no tables\.json"):
        evaluate_tables(tmp_path / "run", "IV", workload=work, clips=2, jobs=1)
    with pytest.raises(UserError, match=r'holds .*"clips": 2.*, asked for is .*"clips": 3.*; give another folder'):
        evaluate_tables(copy, "IV", workload=work, clips=3, jobs=1)
    (copy / "tables.json").write_text("not json")
    with pytest.raises(UserError, match=r"tables\.json: not readable"):
        evaluate_tables(copy, "IV", workload=work, clips=2, jobs=1)


def test_a_missing_machine_is_told_before_the_work(work: Workload, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        evaluate_tables(tmp_path / "new", "IV", workload=work, machine=tmp_path / "none.yaml", clips=2, jobs=1)
    assert not (tmp_path / "new").exists()


def test_a_damaged_cell_is_named(work: Workload, copy: Path) -> None:
    path = copy / "cells" / "emoji-asq-w8a8-r1.json"
    for text in ("{", "[]", json.dumps({"schema_version": 1})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"emoji-asq-w8a8-r1\.json: not a cell's file .*delete it"):
            evaluate_tables(copy, "IV", workload=work, clips=2, jobs=1)


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_cell(
    work: Workload, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two worker processes; one dies in the middle of a cell, and the same command goes on to the same bytes."""
    out, original = tmp_path / "out", make._work
    shutil.copytree(folder / "cache", out / "cache")  # the real clips' features are those of four clips only here
    shutil.copy(folder / "tables.json", out)

    def killed(setup: Setup, job: Any) -> None:
        if job.name == "emoji-tsq-w8a8-r2":
            os.kill(os.getpid(), signal.SIGKILL)
        original(setup, job)

    arguments: dict[str, Any] = {"workload": work, "clips": 2}
    with monkeypatch.context() as patch:
        patch.setattr(make, "_work", killed)
        with pytest.raises(UserError, match=r"a worker process was killed .*the same command goes on"):
            evaluate_tables(out, "IV", jobs=2, **arguments)
    assert not (out / "results.md").exists()
    found = evaluate_tables(out, "IV", jobs=2, **arguments)
    assert len(found.figures) == len(found.cells)
    names = [name for name in found.figures if cell_path(out, found.cells[name]).exists()]
    assert len(names) == len(found.cells)


@pytest.mark.slow
def test_the_tables_of_the_trained_model_at_few_steps(tmp_path: Path) -> None:
    """End to end with the committed weights, 2 clips and 4 of 20 steps: what better grids must do is seen already."""
    work = dataclasses.replace(get_workload("emoji"), num_steps=4)
    found = evaluate_tables(tmp_path / "out", "I,integer", workload=work, clips=2)
    assert set(found.figures) == set(found.cells)
    noise = {
        cell.method: np.mean(found.figures[name]["eps_sqnr_db"])
        for name, cell in found.cells.items()
        if not cell.integer and cell.smooth and found.figures[name]["eps_sqnr_db"]
    }
    assert noise["cw_tw"] < noise["tsw"] < noise["tsq"]
    assert noise["cw_tw"] < noise["asq"] < noise["dynamic"] < noise["fp16"]
    for name, figures in found.figures.items():
        cell = found.cells[name]
        if not cell.integer:
            continue
        assert figures["refused"] is None
        difference = np.mean(figures["integer_eps_sqnr_db"]) - np.mean(figures["fakequant_eps_sqnr_db"])
        # Activations that are quantized at run time are fine enough for the 16-bit residual stream to show.
        assert abs(difference) <= (1.0 if cell.method == "dynamic" else 0.5), name
        assert figures["bit_exact"] is True
    results = (tmp_path / "out" / "results.md").read_text()
    for title in ("Table I:", "Integer:", "Model sizes"):
        assert f"## {title}" in results
