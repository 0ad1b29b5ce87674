"""Runs whose parameter sets begin in storage: their bits, what fetching costs step by step, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from compiler import compile_model
from compiler.swap import POLICIES, swap_program, without_fetches
from models.quantize import Override
from npusim.cli import main
from npusim.config import Machine
from npusim.errors import UserError
from npusim.html.report import write_report
from npusim.isa import decode
from npusim.run import RunResult, quantize_workload, run, run_timing
from npusim.swap import compare
from npusim.swap_timer import Timer
from npusim.swapped import without_layer
from npusim.trace.part import the_part
from npusim.trace.perfetto import perfetto_trace
from npusim.trace.write import write_trace

PLANNED = ("streamed", "adaptive")
"""Policies that time many plans."""
SETTINGS = {"method": "tsq", "ranges": 2, "prompt": "rainbow", "seed": 5, "integer_only": True}


@pytest.fixture(scope="module")
def resident(tiny_machine: Machine) -> RunResult:
    return run("tiny", tiny_machine, verify="none", **SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swap") / "run"


@pytest.fixture(scope="module")
def shadow(tiny_machine: Machine, folder: Path) -> RunResult:
    return run("tiny", tiny_machine, policy="shadow", out=folder, verify="2", **SETTINGS)


def test_the_bits_are_those_of_sets_in_dram(resident: RunResult, shadow: RunResult) -> None:
    """Of every step's noise prediction; and the reference agrees on all memory, fetched places included."""
    np.testing.assert_array_equal(shadow.clips["integer"].eps, resident.clips["integer"].eps)
    np.testing.assert_array_equal(shadow.clips["integer"].latent, resident.clips["integer"].latent)
    assert shadow.bit_exact.equal
    assert shadow.program.swap is not None
    assert resident.swap == ()
    assert not any(causes["wait_param_swap"] for causes in resident.timing.ledger.values())
    assert shadow.timing.ledger["mac"]["wait_param_swap"] > 0


@pytest.mark.parametrize(
    "policy", [pytest.param(name, marks=pytest.mark.slow) if name in PLANNED else name for name in POLICIES]
)
def test_rows_sum_to_what_the_comparison_of_policies_says(policy: str, tiny_machine: Machine) -> None:
    """Which takes cycles without fetches from the program as compiled, and counts fetches one by one."""
    result = run_timing("tiny", tiny_machine, "tsq", ranges=2, policy=policy)
    plain = compile_model(result.quantized, tiny_machine)
    (cost,) = compare(plain, tiny_machine, [policy], break_even=False)
    rows = result.swap
    assert [row.part for row in rows] == ["prologue", "0", "1", "2", "3"]
    assert sum(row.exposed_cycles for row in rows) == cost.startup_cycles + cost.exposed_cycles
    for name in ("storage_read_bytes", "dram_write_bytes", "storage_cycles"):
        assert sum(getattr(row, name) for row in rows) == getattr(cost, name)
    assert result.timing.cycles == cost.cycles
    assert sum(row.energy.high for row in rows) == pytest.approx(cost.energy.high)
    assert result.energy.by_component["storage"].nominal > 0
    assert all(row.exposed_cycles + row.hidden_cycles >= row.storage_cycles for row in rows)


def test_code_without_fetches_is_the_compilers_own(tiny_machine: Machine) -> None:
    plain = compile_model(quantize_workload("tiny", "tsq", ranges=2), tiny_machine)
    made = swap_program(plain, Timer(tiny_machine, plain.bases(0)), "streamed", "blocking")
    layer = made.layers.index("parameter swap")
    prologue, step = without_fetches(plain, made)
    assert any(ins.op == "fetch" for ins in decode(made.step))
    np.testing.assert_array_equal(without_layer(made.prologue, layer), prologue)
    for code in made.step_codes:
        np.testing.assert_array_equal(without_layer(code, layer), step)


def test_the_folder_says_what_each_step_fetches(shadow: RunResult, folder: Path) -> None:
    rows = list(csv.DictReader((folder / "swap.csv").read_text().splitlines()))
    assert [row["part"] for row in rows] == ["prologue", "0", "1", "2", "3"]
    record = json.loads((folder / "run.json").read_text())
    swapped, traffic = record["cost"]["swap"], shadow.timing.traffic
    assert record["config"]["policy"] == "shadow"
    assert traffic.storage_read_bytes == shadow.program.sets.size + shadow.program.range_sets.size
    for name in ("storage_read_bytes", "exposed_cycles", "hidden_cycles"):
        assert sum(int(row[name]) for row in rows) == swapped[name] > 0
    assert record["cost"]["bytes"]["storage_read_bytes"] == swapped["storage_read_bytes"] == traffic.storage_read_bytes
    energy = sum(int(row["energy_high_pj"]) for row in rows)
    assert energy == pytest.approx(swapped["energy_pj"]["high"], abs=len(rows))
    # Steps differ, and each file has every step's own figures.
    steps = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    cycles = [int(row["cycles"]) for row in steps]
    assert cycles == [shadow.timing.step_cycles(step) for step in range(4)]
    assert len(set(cycles)) > 1
    assert sum(cycles) + shadow.timing.prologue.total_cycles == record["cost"]["cycles"]
    layers = list(csv.DictReader((folder / "layers.csv").read_text().splitlines()))
    products = sum(int(row["executions"]) * int(row["mac_operations"]) for row in layers)
    fetched = sum(int(row["executions"]) * int(row["fetch_bytes"]) for row in layers)
    assert (products, fetched) == (traffic.mac_operations, traffic.fetch_bytes)


def test_timing_only_folders_have_a_report_and_a_trace(tmp_path: Path, tiny_machine: Machine) -> None:
    """Their program is compiled again from run.json, here with several step codes; the page says what is missing."""
    folder = tmp_path / "run"
    overrides = (Override(("mlp.fc1",), weight_bits=4),)
    result = run_timing(
        "tiny", tiny_machine, "tsq", folder, ranges=(0, 1), overrides=overrides, policy="shadow", steps=3
    )
    page = write_report(folder).read_text()
    assert "parameter sets fetched from storage, policy shadow" in page
    assert page.count("n/a: a timing-only run") == 3  # clips, fidelity by step and by layer
    assert f"{result.timing.cycles:,}" in page
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {"roofline", "timeline", "memory", "causes_by_layer", "energy_by_layer", "swap"} <= names
    assert "fidelity" not in names
    table = list(csv.DictReader((folder / "figures" / "swap.csv").read_text().splitlines()))
    assert [int(row["exposed_cycles"]) for row in table] == [row.exposed_cycles for row in result.swap]
    assert len(table) == 1 + 3
    causes = list(csv.DictReader((folder / "figures" / "causes_by_step.csv").read_text().splitlines()))
    waiting = sum(int(row["wait_param_swap_cycles"]) for row in causes if row["unit"] == "mac")
    assert waiting == result.timing.ledger["mac"]["wait_param_swap"] > 0
    assert {row["unit"] for row in causes} == {"load", "store", "mac", "vector", "storage"}
    last = "step_1"
    (path,) = write_trace(folder, tmp_path / "t.pftrace", part=last)
    again = the_part(result.program, result.timing, last)
    assert path.read_bytes() == perfetto_trace(again)
    # What no run has written is refused with the file's name.
    record = json.loads((folder / "run.json").read_text())
    for change, message in (
        ({"method": 5}, "config: "), ({"workload": "tinny"}, "workload 'tinny'"), ({"steps": 9}, "steps = 9"),
        ({"ranges": None}, "its program takes"),
    ):  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record | {"config": record["config"] | change}))
        with pytest.raises(UserError, match=message):
            write_report(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_policy_that_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_file: Path) -> None:
    arguments = ["run", "--workload", "tiny", "--hw", str(tiny_file), "--out", str(tmp_path / "run"), "--policy"]
    for extra in ([], ["--timing-only"]):
        assert main([*arguments, "shadows", *extra]) == 2
        assert "policy = 'shadows': allowed in_dram, blocking, resident, shadow" in (text := capsys.readouterr().err)
        assert "did you mean 'shadow'?" in text
    assert not (tmp_path / "run").exists()


def test_a_folder_of_npusim_swap_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("swap.csv", "boundaries.csv", "swap.md"):
        (tmp_path / name).write_text("")
    for command in ("report", "trace"):
        assert main([command, str(tmp_path)]) == 2
        assert "holds a comparison of swap policies, which `npusim swap` wrote" in capsys.readouterr().err
