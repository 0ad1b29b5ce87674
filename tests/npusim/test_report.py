import csv
import dataclasses
import io
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from models.quantize import QuantizedModel
from models.stats import CalibrationStats
from models.workloads import get_workload
from npusim import report
from npusim.errors import UserError
from npusim.isa import decode
from npusim.memory import Tally
from npusim.program_file import load_program
from npusim.run import RunResult, run
from npusim.simulate import BitExact, Difference
from npusim.summary import bits_line, saturation_line, summary
from npusim.timing import CAUSES

FILES = {"run.json", "layers.csv", "steps.csv", "saturation.csv", "quantized.safetensors", "program.npu", "passes"}
PICTURES = {"clips.gif", "clips.png"}


@pytest.fixture(scope="module")
def with_frames(tiny_machine) -> RunResult:
    """`tiny` makes latents of the shape that the emoji autoencoder decodes, so it can be shown, if not admired."""
    workload = dataclasses.replace(get_workload("tiny"), vae=get_workload("emoji").vae)
    return run(workload, tiny_machine, verify="none")


def contents(folder: Path) -> dict[str, bytes]:
    """Files by name, without what may differ between equal runs."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    data = json.loads(files["run.json"])
    del data["wall_clock"]
    return {**files, "run.json": json.dumps(data).encode()}


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_run_folder(tiny_result, tmp_path):
    report.write_run(tiny_result, tmp_path / "a" / "run")
    assert {p.name for p in (tmp_path / "a" / "run").iterdir()} == FILES
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]
    data = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert data["schema_version"] == 1
    assert data["config"]["machine"] == tiny_result.config.machine.model_dump(mode="json")
    assert data["fidelity"]["frames_psnr_db"] == data["fidelity"]["frames_ssim"] == "n/a"
    assert data["cost"]["bytes"]["storage_read_bytes"] == "n/a"
    in_all, parts = data["cost"]["energy_joules"], data["cost"]["energy_pj"]
    assert 0 < in_all["low"] < in_all["nominal"] < in_all["high"]
    assert in_all["nominal"] * 1e12 == pytest.approx(parts["prologue"]["nominal"] + 4 * parts["step"]["nominal"])
    assert in_all["high"] * 1e12 == pytest.approx(sum(value["high"] for value in parts["by_component"].values()))
    assert data["cost"]["cycles"] == data["cost"]["prologue_cycles"] + 4 * data["cost"]["step_cycles"]
    assert data["cost"]["seconds"] == data["cost"]["cycles"] / 200e6
    for causes in data["ledger_cycles"].values():
        assert tuple(causes) == CAUSES
        assert sum(causes.values()) == data["cost"]["cycles"]
    assert data["bit_exact"]["equal"] is True
    assert data["bit_exact"]["steps_compared"] == [0, 1, 2, 3]


def test_run_json_identifies_the_statistics(tiny_result):
    stats = tiny_result.calibration
    block = report.as_dict(tiny_result)["calibration"]
    assert block["workload"] == "tiny"
    assert (tuple(block["captions"]), tuple(block["seeds"])) == (stats.captions, stats.seeds)
    assert re.fullmatch("[0-9a-f]{64}", block["values_sha256"])
    point = next(iter(stats.maximum))
    other = dataclasses.replace(stats, maximum={**stats.maximum, point: stats.maximum[point] * 2})
    changed = report.as_dict(dataclasses.replace(tiny_result, calibration=other))["calibration"]
    assert changed["values_sha256"] != block["values_sha256"]


def test_statistics_from_a_file_have_the_same_digest(tiny_result, tmp_path):
    tiny_result.calibration.save(tmp_path / "stats.safetensors")
    again = CalibrationStats.load(tmp_path / "stats.safetensors")
    assert again.values_sha256() == tiny_result.calibration.values_sha256()


def test_stages_can_be_loaded_on_their_own(tiny_result, tmp_path):
    report.write_run(tiny_result, tmp_path / "run")
    program = load_program(tmp_path / "run" / "program.npu")
    np.testing.assert_array_equal(program.step, tiny_result.program.step)
    assert QuantizedModel.load(tmp_path / "run" / "quantized.safetensors").method == "cw_tw"


def test_equal_runs_write_equal_files(tiny_result, tiny_machine, tmp_path):
    c = tiny_result.config
    report.write_run(tiny_result, tmp_path / "a")
    run("tiny", tiny_machine, out=tmp_path / "b", prompt=c.prompt, seed=c.seed, verify="all", dump_passes=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_steps_csv(tiny_result):
    steps = rows(report.steps_csv(tiny_result))
    assert [row["timestep"] for row in steps] == ["999", "666", "333", "0"]
    f = tiny_result.fidelity
    for index, row in enumerate(steps):
        assert float(row["eps_integer_vs_float_sqnr_db"]) == f.eps_sqnr_db["integer_vs_float"][index]
        assert int(row["cycles"]) == tiny_result.timing.step.total_cycles
        assert row["compared_bit_for_bit"] == "yes"


def test_layers_csv_adds_up(tiny_result):
    layers = rows(report.layers_csv(tiny_result))
    timing = tiny_result.timing
    total = sum(int(row["executions"]) * int(row["mac_operations"]) for row in layers)
    assert total == timing.traffic.mac_operations
    for unit, causes in timing.ledger.items():
        assert sum(int(row["executions"]) * int(row[f"{unit}_busy_cycles"]) for row in layers) == causes["busy"]
    for row in layers:
        busy = int(row["mac_busy_cycles"])
        assert (row["mac_busy_utilisation"] == "n/a") == (busy == 0)
        assert busy == 0 or 0 < float(row["mac_busy_utilisation"]) <= 1


def test_bounds_of_layers_csv_are_reached_and_add_up(tiny_result):
    for row in rows(report.layers_csv(tiny_result)):
        number = {name: int(value) for name, value in row.items() if value.isdigit()}
        assert number["bound_cycles"] <= number["span_cycles"] + 1  # rounded
        array = sum(number[name] for name in ("array_bound_cycles", "padding_cycles", "fill_cycles"))
        assert abs(array - number["mac_busy_cycles"]) <= 2
        assert number["vector_bound_cycles"] == number["vector_busy_cycles"]
        assert number["moved_dram_bytes"] == number["load_bytes"] + number["store_bytes"]
        assert 0 < number["compulsory_dram_bytes"] <= number["moved_dram_bytes"] or number["moved_dram_bytes"] == 0


def test_saturation_csv_counts_every_result_of_the_run(tiny_result):
    """Results of all executed instructions that requantize or round, from their own fields; no overflow was proved."""
    table = rows(report.saturation_csv(tiny_result))
    program = tiny_result.program
    counted = Counter()
    for _, code in [("prologue", program.prologue), *[("step", program.step)] * program.steps]:
        for ins in decode(code):
            if ins.op == "matmul":
                counted[ins.op] += 0 if ins.acc_hold else ins.batch0 * ins.batch1 * ins.m * ins.n
            elif ins.op in ("ewlin", "ewmul", "table", "lnapply"):
                counted[ins.op] += getattr(ins, "batch", 1) * ins.rows * ins.cols
    found = Counter()
    for row in table:
        found[row["mnemonic"]] += int(row["results"])
        assert 0 <= int(row["clamped_results"]) <= int(row["results"])
    assert found == counted
    assert {row["time_range"] for row in table} == {"prologue", "0"}
    assert sum(int(row["accumulator_overflows"]) for row in table) == 0
    assert sum(int(row["clamped_results"]) for row in table) > 0


def test_saturation_in_one_line():
    tallies = {
        ("0", "a", "table"): Tally(0, 3, 9),
        ("1", "a", "table"): Tally(0, 4, 9),
        ("1", "b", "matmul"): Tally(2, 5, 9),
    }
    assert saturation_line(tallies) == ("2 accumulator overflows; 12 of 27 results clamped, 7 of them in a (table)")
    assert saturation_line({("0", "a", "table"): Tally(0, 0, 9)}) == ""
    assert saturation_line({("0", "a", "matmul"): Tally(1, 0, 9)}) == "1 accumulator overflows"


def test_units_stand_in_column_names(tiny_result):
    plain = {"part", "layer", "executions", "step", "timestep", "time_range", "compared_bit_for_bit", "mac_operations"}
    for data in (report.steps_csv(tiny_result), report.layers_csv(tiny_result)):
        for name in set(rows(data)[0]) - plain:
            assert name.endswith(("cycles", "cycle", "bytes", "_db", "seconds", "utilisation", "_pj")), name


def test_figures_as_files_hold_them():
    assert report.number(None) == "n/a"
    assert (report.number(math.inf), report.number(-math.inf)) == ("inf", "-inf")
    assert (report.number(1.5), report.number(0)) == (1.5, 0)


def test_infinite_and_different_results_are_valid_json(tiny_result, tmp_path):
    fidelity = dataclasses.replace(tiny_result.fidelity, latent_sqnr_db={"integer_vs_float": math.inf})
    bits = BitExact((0,), True, False, Difference("step 0", 3, "matmul", "blocks.0", "sram", 64, "i16", -1, 0))
    result = dataclasses.replace(tiny_result, fidelity=fidelity, bit_exact=bits)
    report.write_run(result, tmp_path / "run")
    data = json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
    assert data["fidelity"]["latent_sqnr_db"] == {"integer_vs_float": "inf"}
    assert data["bit_exact"]["first_difference"]["instruction"] == 3
    assert "step 0, instruction 3 (matmul, layer blocks.0)" in bits_line(bits)


def test_a_later_run_replaces_an_earlier_one_and_spares_other_files(tiny_result, with_frames, tmp_path):
    out = tmp_path / "run"
    report.write_run(tiny_result, out)
    (out / "notes.txt").write_text("mine")
    report.write_run(with_frames, out)
    assert {p.name for p in out.iterdir()} == (FILES - {"passes"}) | PICTURES | {"notes.txt"}
    assert json.loads((out / "run.json").read_text())["config"]["prompt"] == with_frames.config.prompt
    report.write_run(tiny_result, out)
    assert {p.name for p in out.iterdir()} == FILES | {"notes.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_folders_that_are_no_run_folders_are_refused(tiny_result, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("file", "full", "file/run"):
        with pytest.raises(UserError, match=name):
            report.write_run(tiny_result, tmp_path / name)
    report.write_run(tiny_result, tmp_path / "empty")
    assert {p.name for p in (tmp_path / "empty").iterdir()} == FILES
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_failure_while_writing_leaves_nothing(tiny_result, monkeypatch, tmp_path):
    def fail(program, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "save_program", fail)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        report.write_run(tiny_result, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_pictures(with_frames, tmp_path):
    report.write_run(with_frames, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == (FILES - {"passes"}) | PICTURES
    assert isinstance(with_frames.fidelity.psnr_db["integer_vs_float"], float)
    with Image.open(tmp_path / "run" / "clips.gif") as animation:
        assert animation.n_frames == 4
        assert animation.size[0] > 3 * 256
        assert animation.info["duration"] == 120  # GIF counts in hundredths of a second
    with Image.open(tmp_path / "run" / "clips.png") as sheet:
        assert sheet.size[0] > 4 * 256
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    frame = with_frames.clips["integer"].frames[0].repeat(4, 0).repeat(4, 1)
    top, left = report.pictures.LABEL_HEIGHT + report.pictures.MARGIN, report.pictures.LABEL_WIDTH
    top += 2 * (256 + report.pictures.MARGIN)
    np.testing.assert_array_equal(pixels[top : top + 256, left : left + 256], frame)


def test_summary_fits_one_screen(with_frames, tiny_result):
    for result in (with_frames, tiny_result):
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(summary(result))
        text = console.export_text()
        assert len(text.splitlines()) <= 25
        assert "…" not in text
    assert "prologue and 4 whole steps compared" in text
    counts = [int(row["clamped_results"]) for row in rows(report.saturation_csv(tiny_result))]
    assert f"{sum(counts):,} of " in text
    assert bits_line(BitExact((), False, None, None)) == "engine and reference: not compared"
