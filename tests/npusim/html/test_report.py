import csv
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.fakequant import FakeQuantSTDiT
from models.metrics.layers import layer_sqnr_db
from models.sample import denoise, float_predictor
from models.workloads import get_workload
from npusim.cli import main
from npusim.clips import ClipInputs
from npusim.config import Machine
from npusim.errors import UserError
from npusim.html.report import FIGURES, PAGE, write_report
from npusim.html.source import layer_class, layer_group, load_run
from npusim.run import RunResult, run
from npusim.timing import CAUSES
from npusim.units import KINDS

ENERGY = {"energy_by_component", "energy_by_layer", "energy_by_cause", "energy_by_step"}
ALWAYS = {"roofline", "causes_by_layer", "causes_by_step", "timeline", "memory", "area"} | ENERGY


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / FIGURES / f"{name}.csv").read_text())))


@pytest.fixture(scope="session")
def report(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tiny_folder, tmp_path_factory.mktemp("page") / "out").parent


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.sources, self.text = Counter[str](), list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_the_page_holds_all_it_shows(report):
    page = read(report / PAGE)
    assert page.tags["img"] == len(ALWAYS) + 1  # fidelity; tiny has no clips
    assert page.tags["script"] == 0
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "url(" not in (report / PAGE).read_text()


def test_every_figure_is_also_a_picture_and_a_table(report):
    names = {path.stem for path in (report / FIGURES).iterdir()}
    assert names == ALWAYS | {"fidelity"}
    for name in names:
        with Image.open(report / FIGURES / f"{name}.png") as image:
            image.load()
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
            assert not image.text  # neither dates nor programs
        assert rows(report, name)


def test_causes_by_layer_sum_to_the_ledger(report, tiny_result: RunResult):
    used = [unit for unit in KINDS if tiny_result.timing.ledger[unit]["busy"]]
    assert {row["unit"] for row in rows(report, "causes_by_layer")} == set(used) == {*KINDS} - {"storage"}
    for part in ("prologue", "step"):
        timing = getattr(tiny_result.timing, part)
        for unit in used:
            own = [r for r in rows(report, "causes_by_layer") if (r["part"], r["unit"]) == (part, unit)]
            sums = {cause: sum(int(row[f"{cause}_cycles"]) for row in own) for cause in CAUSES}
            assert sums == timing.ledger[unit]
            # Busy cycles of each layer, as the timing counts them.
            busy = {row["layer"]: int(row["busy_cycles"]) for row in own}
            assert {tiny_result.program.layers[number]: layer.busy_cycles[unit] for number, layer in
                    timing.layers.items()}.items() <= busy.items()  # fmt: skip


def test_causes_by_step_sum_to_the_whole_ledger(report, tiny_result: RunResult):
    assert "storage" not in {row["unit"] for row in rows(report, "causes_by_step")}  # nothing is fetched
    for unit in ("load", "store", "mac", "vector"):
        own = [row for row in rows(report, "causes_by_step") if row["unit"] == unit]
        assert len(own) == 1 + tiny_result.program.steps
        assert {c: sum(int(row[f"{c}_cycles"]) for row in own) for c in CAUSES} == tiny_result.timing.ledger[unit]


def test_roofline_points_lie_below_the_roofs(report, tiny_result: RunResult):
    machine = tiny_result.config.machine
    points = rows(report, "roofline")
    for part in ("prologue", "step"):
        total = 2 * getattr(tiny_result.timing, part).traffic.mac_operations
        assert sum(int(p["operations"]) for p in points if p["part"] == part) == total
    assert all(0 < float(p["tops"]) <= machine.peak_tops for p in points)


def test_timeline_pieces_have_every_busy_cycle(report, tiny_result: RunResult):
    step = tiny_result.timing.step
    for unit in KINDS:
        own = [row for row in rows(report, "timeline") if row["unit"] == unit]
        executing = sum(step.ledger[unit][cause] for cause in ("busy", "wait_dram", "wait_bank"))
        assert sum(int(row["busy_cycles"]) for row in own) == executing
        assert all(int(a["end_cycle"]) <= int(b["start_cycle"]) for a, b in pairwise(own))


def test_memory_curves_add_up_to_the_traffic(report, tiny_result: RunResult):
    step, machine = tiny_result.timing.step, tiny_result.config.machine
    table = rows(report, "memory")
    for way in ("read", "write"):
        moved = sum(
            (int(row["end_cycle"]) - int(row["start_cycle"])) * float(row[f"dram_{way}_bytes_per_cycle"])
            for row in table
        )
        assert moved == pytest.approx(getattr(step.traffic, f"dram_{way}_bytes"))
    assert 0 < max(int(row["sram_held_bytes_most"]) for row in table) <= machine.sram.capacity_bytes
    assert int(table[-1]["end_cycle"]) == step.total_cycles


@pytest.mark.parametrize("bound", ["low", "nominal", "high"])
def test_energy_adds_up_to_that_of_run_json(report, tiny_folder: Path, bound):
    """By component, by step, and by layer with what belongs to none; whole pJ, so sums differ by rounding."""
    record = json.loads((tiny_folder / "run.json").read_text())["cost"]["energy_pj"]
    column = f"energy_{bound}_pj"
    components = {row["component"]: int(row[column]) for row in rows(report, "energy_by_component")}
    assert components.pop("total") == record["total"][bound]
    assert components == {name: value[bound] for name, value in record["by_component"].items()}
    steps = rows(report, "energy_by_step")
    assert sum(int(row[column]) for row in steps) == pytest.approx(record["total"][bound], abs=len(steps))
    layers = rows(report, "energy_by_layer")
    for part, execution in (("prologue", "prologue"), ("step", "0")):
        own = sum(int(row[column]) for row in layers if row["part"] == part)
        time = [row for row in steps if row["part"] == execution and row["component"] in ("idle", "leakage")]
        own += sum(int(row[column]) for row in time)
        assert own == pytest.approx(record[part][bound], abs=len(layers))


def test_static_energy_by_cause_is_that_of_run_json(report, tiny_folder: Path, tiny_result: RunResult):
    record = json.loads((tiny_folder / "run.json").read_text())["cost"]["energy_pj"]
    table = rows(report, "energy_by_cause")
    for component in ("idle", "leakage"):
        own = [int(row["energy_high_pj"]) for row in table if row["component"] == component]
        assert sum(own) == pytest.approx(record["by_component"][component]["high"], abs=len(own))
    for unit, causes in record["static_by_cause"].items():
        for cause, value in causes.items():
            own = [row for row in table if (row["unit"], row["cause"]) == (unit, cause)]
            assert sum(int(row["energy_nominal_pj"]) for row in own) == pytest.approx(value["nominal"], abs=len(own))
            if unit != "memories":
                assert {int(row["cycles"]) for row in own} == {tiny_result.timing.ledger[unit][cause]}


def test_the_energy_of_run_json_stands_on_the_card(report, tiny_folder: Path):
    joules = json.loads((tiny_folder / "run.json").read_text())["cost"]["energy_joules"]
    low, nominal, high = (f"{joules[bound] * 1e3:.3g}" for bound in ("low", "nominal", "high"))
    text = (report / PAGE).read_text()
    assert f"<b>{nominal} mJ</b><span>energy of the denoiser, {low} to {high} mJ</span>" in text


def test_area_and_rates_are_those_of_hw_show(report, tiny_result: RunResult, capsys):
    assert main(["hw", "show", "tiny_8x8", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    table = {(row["figure"], row["unit"].split()[0]): row for row in rows(report, "area")}
    known = {("area", "mm2"): "area_mm2", ("peak over area", "TOPS/mm2"): "tops_per_mm2",
             ("full array, cells alone", "TOPS/W"): "cells_tops_per_watt"}  # fmt: skip
    for key, name in known.items():
        assert {bound: float(table[key][bound]) for bound in cost[name]} == pytest.approx(cost[name])
    operations, joules = 2 * tiny_result.timing.traffic.mac_operations, tiny_result.energy.total_pj.high * 1e-12
    per_watt = table["this run, DRAM included", "TOPS/W"]
    assert float(per_watt["low"]) == pytest.approx(operations / joules / 1e12)
    assert float(per_watt["high"]) < cost["cells_tops_per_watt"]["high"]
    parts = sum(float(row["low"]) for row in table.values() if row["unit"] == "mm2")
    overhead = float(table["overhead", "factor"]["low"])
    assert parts * overhead == pytest.approx(cost["area_mm2"]["low"])


def test_equal_runs_give_equal_files_whatever_the_clock_says(report, run_folder, tmp_path):
    path = run_folder / "run.json"
    record = json.loads(path.read_text())
    record["wall_clock"]["started_utc"] = "1999-01-01T00:00:00+00:00"
    path.write_text(json.dumps(record))
    assert files(write_report(run_folder, tmp_path / "again").parent) == files(report)


def test_a_run_without_fidelity(report, run_folder, capsys):
    path = run_folder / "run.json"
    record = json.loads(path.read_text())
    record["fidelity"] = "n/a"
    record["bit_exact"] = "n/a"
    path.write_text(json.dumps(record))
    (run_folder / "steps.csv").write_text("step,cycles\n0,1\n1,1\n")
    (run_folder / FIGURES).mkdir()
    (run_folder / FIGURES / "old.png").write_bytes(b"old")
    assert main(["report", str(run_folder)]) == 0
    assert str(run_folder / PAGE) in capsys.readouterr().out
    assert {path.stem for path in (run_folder / FIGURES).iterdir()} == ALWAYS
    text = " ".join(read(run_folder / PAGE).text)
    assert "n/a: this run measured no fidelity." in text
    assert "n/a: all parameter sets lie in DRAM from the start" in text
    assert re.search(r"latent SQNR, dB n/a n/a n/a", text)


def test_clips_and_text_in_the_page(run_folder, monkeypatch):
    """Text from the run is no markup."""
    monkeypatch.setattr("npusim.html.report.PICTURES", ())
    path = run_folder / "run.json"
    record = json.loads(path.read_text())
    record["config"]["prompt"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(record))
    (run_folder / "clips.gif").write_bytes(b"GIF89a")
    page = read(write_report(run_folder))
    assert page.tags["script"] == 0
    assert page.sources.count("data:image/gif;base64,R0lGODlh") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "run folder"),
        ("run.json", b"{", "JSON"),
        ("run.json", b"[" * 100_000, "JSON"),
        ("run.json", b'{"schema_version": 9}', "schema_version = 9: allowed 1"),
        ("run.json", b'{"schema_version": 1, "config": 3}', "config"),
        ("run.json", b'{"schema_version": 1, "config": {}, "cost": {"cycles": 1}}', "run.json says 1 cycles"),
        ("program.npu", None, "no such program file"),
        ("steps.csv", b"\xff\xfe", "CSV"),
    ],
)
def test_refused_folders_get_nothing(run_folder, tmp_path, name, content, message, capsys):
    if content is None:
        (run_folder / name).unlink()
    else:
        (run_folder / name).write_bytes(content)
    assert main(["report", str(run_folder), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_not_written_to(tiny_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no report\.html"):
        write_report(tiny_folder, tmp_path)


def test_fidelity_by_layer_is_the_librarys(run_folder, tiny_result: RunResult):
    """The page has it when asked for; the figures are those of the run's own float states."""
    write_report(run_folder, by_layer=True)
    assert "runs float" not in (run_folder / "report.html").read_text()
    assert (run_folder / "figures" / "fidelity_by_layer.png").read_bytes().startswith(b"\x89PNG")
    with (run_folder / "figures" / "fidelity_by_layer.csv").open() as file:
        header, *rows = csv.reader(file)
    assert len(rows) == len(tiny_result.quantized.linears)
    assert header[0] == "layer"
    work = get_workload("tiny")
    model, inputs = work.load_model(), ClipInputs.of(work, tiny_result.config.prompt, tiny_result.config.seed)
    conditions = inputs.text, inputs.mask, model.y_embedder.y_embedding.detach()
    exact = denoise(float_predictor(model, inputs.sampler, *conditions), inputs.x_T, inputs.noises, inputs.sampler)
    fakequant = FakeQuantSTDiT(model, tiny_result.quantized)
    expected = layer_sqnr_db(model, fakequant, inputs.sampler, *conditions, exact)
    for name, *values in rows:
        np.testing.assert_allclose([float(value) for value in values], expected[name])
    last = expected["final_layer.linear"]  # the network's output, before guidance
    assert np.isfinite(last).all()


def test_fidelity_by_layer_is_refused_without_data(run_folder):
    record = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps(record | {"seeds": {"noise": "n/a"}}))
    with pytest.raises(UserError, match="no fidelity by layer"):
        write_report(run_folder, by_layer=True)
    assert not (run_folder / "report.html").exists()


def test_names_of_layers(tiny_folder):
    assert layer_class("blocks.12.mlp.fc1") == "blocks.*.mlp.fc1"
    assert [layer_group(name) for name in ("blocks.3.attn_temp.qkv", "final_layer.linear", "noise", "")] == [
        "attn_temp", "final_layer", "noise", "",
    ]  # fmt: skip
    assert load_run(tiny_folder).step.name == "step"


def test_a_part_is_reported_as_one(tiny_machine: Machine, tmp_path: Path) -> None:
    """Without float clips and of two steps: the page says so, and its figures are of those steps."""
    result = run("tiny", tiny_machine, out=tmp_path / "run", steps=2, integer_only=True, verify="none")
    write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "ONLY A PART of the video was run, and all figures are of that: the first 2 of 4 steps" in page
    assert f"{result.timing.cycles:,}" in page
    assert "n/a: this run measured no fidelity." in page
