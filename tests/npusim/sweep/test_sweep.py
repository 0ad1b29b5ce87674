"""Files, order, folder and tables; the points themselves are made up here, `test_runs.py` has real ones."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest

from compiler import compile_model
from models.workloads import Workload
from npusim.cli import main
from npusim.cost import area, energy
from npusim.errors import UserError
from npusim.run import quantize_workload
from npusim.swap import compare
from npusim.sweep import runners
from npusim.sweep.pareto import front
from npusim.sweep.point import Record, evaluate, machine_of
from npusim.sweep.run import sweep
from npusim.sweep.space import FIGURES, Point, load_space
from npusim.sweep.store import read_fidelity, row_of
from npusim.timing import time_program

BASE = "schema_version: 1\nworkload: tiny\nhw: HW\n"
AXES = "axes:\n  machine.clock_mhz: [100, 200, 400]\n  method: [cw_tw, tsq]\n"


def names(out: Path) -> set[str]:
    return {path.name for path in (out / "points").iterdir()}


@pytest.fixture
def write(repository: Path, tmp_path: Path):
    def make(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(BASE.replace("HW", str(repository / "hwconfigs" / "tiny_8x8.yaml")) + text)
        return path

    return make


def test_a_scheduler_that_does_not_answer_leaves_no_folder(write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scheduler answers there"):
        sweep(write("axes: {method: [cw_tw]}\n"), tmp_path / "out", dask="nonsense")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def evaluated(monkeypatch) -> list[Point]:
    """Points that were evaluated; a faster clock takes less time, and tsq at 400 MHz does not exist."""
    found: list[Point] = []

    def made_up(point: Point) -> Record:
        found.append(point)
        clock, method = point.values["machine.clock_mhz"], point.settings()["method"]
        record = {"key": point.key, "workload": point.workload, "settings": point.settings()}
        if (clock, method) == (400, "tsq"):
            return record | {"status": "refused", "message": "does not fit", "figures": {}}
        seconds = 1 / clock + (method == "tsq") / 1000
        figures = {"seconds": seconds, "energy_joules": clock / 10, "area_mm2": 1.0, "dram_capacity_bytes": 1,
                   "peak_tops": None}  # fmt: skip
        return record | {"status": "ok", "message": "", "figures": figures}

    monkeypatch.setattr(runners, "evaluate", made_up)
    return found


def test_grid_is_every_combination_once_and_goes_on(write, evaluated, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(write(AXES)), "--out", str(out)]) == 0
    assert "6 points, 1 of them refused" in capsys.readouterr().out
    assert len(evaluated) == len({point.key for point in evaluated}) == 6
    methods = [point.values["method"] for point in evaluated]
    assert methods == sorted(methods)  # neighbours share a quantized model
    table = (out / "results.parquet").read_bytes()
    removed = sorted((out / "points").iterdir())[:2]
    for path in removed:
        path.unlink()
    rows = sweep(write(AXES), out)
    assert len(evaluated) == 8
    assert {point.key for point in evaluated[6:]} == {path.stem for path in removed}
    assert len(rows) == 6
    assert (out / "results.parquet").read_bytes() == table
    sweep(write(AXES.replace("400", "400, 500")), out)
    assert len(evaluated) == 10


def test_interrupted_keeps_what_was_finished(write, evaluated, tmp_path, monkeypatch):
    inner, out = runners.evaluate, tmp_path / "out"

    def interrupt(point: Point) -> Record:
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return inner(point)

    monkeypatch.setattr(runners, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(write(AXES), out)
    assert len(list((out / "points").iterdir())) == 3
    monkeypatch.setattr(runners, "evaluate", inner)
    sweep(write(AXES), out)
    assert len(evaluated) == len({point.key for point in evaluated}) == 6


@pytest.mark.parametrize("search", ["random", "nsga2"])
def test_searches_repeat_themselves_and_go_on(write, evaluated, tmp_path, search):
    text = AXES + f"search: {search}\npoints: 5\npopulation: 2\nseed: 3\n"
    sweep(write(text), tmp_path / "a")
    first = [point.key for point in evaluated]
    assert len(set(first)) == len(first)
    assert search == "nsga2" or len(first) == 5
    sweep(write(text), tmp_path / "b")
    assert [point.key for point in evaluated] == 2 * first
    for path in sorted((tmp_path / "b" / "points").iterdir())[:2]:
        path.unlink()
    sweep(write(text), tmp_path / "b")
    assert len(evaluated) == 2 * len(first) + 2
    assert {p.name for p in (tmp_path / "a" / "points").iterdir()} == {
        p.name for p in (tmp_path / "b" / "points").iterdir()
    }


def test_nsga2_finds_the_best_of_more_points_than_it_tries(write, evaluated, tmp_path):
    clocks = list(range(100, 400, 3))
    search = "search: nsga2\npoints: 60\npopulation: 6\nobjectives: {seconds: min}\n"
    text = f"axes:\n  machine.clock_mhz: {clocks}\n{search}"
    rows = sweep(write(text), tmp_path / "out")
    assert len(evaluated) < len(clocks) * 0.61
    assert max(row["machine.clock_mhz"] for row in rows) >= clocks[-8]


def test_tables(write, evaluated, tmp_path):
    (tmp_path / "measured.csv").write_text("method,psnr_db\ncw_tw,30.5\ntsq,33\n")
    out = tmp_path / "out"
    text = AXES + "fidelity: measured.csv\nobjectives: {seconds: min, fidelity_psnr_db: max}\n"
    sweep(write(text), out)
    query = f"select method, min(seconds), any_value(fidelity_psnr_db) from '{out / 'results.parquet'}'"
    found = duckdb.sql(f"{query} where status = 'ok' group by method order by method").fetchall()
    assert found == [("cw_tw", 1 / 400, 30.5), ("tsq", pytest.approx(1 / 200 + 1 / 1000), 33.0)]
    assert duckdb.sql(f"select message from '{out / 'results.parquet'}' where status = 'refused'").fetchall() == [
        ("does not fit",)
    ]
    lines = (out / "pareto.csv").read_text().splitlines()
    assert lines[0] == "seconds,fidelity_psnr_db,machine.clock_mhz,method,key"
    assert [line.split(",")[2:4] for line in lines[1:]] == [["400", "cw_tw"], ["200", "tsq"]]
    assert (out / "pareto.md").read_text().count("|\n") == 4
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_fidelity_is_of_the_data_set_that_is_named(write, tmp_path):
    """Whichever comes first in a table of both; where none is named, nothing is taken."""
    (tmp_path / "measured.csv").write_text(
        "data_set,method,psnr_db\nemoji,cw_tw,30.5\ndigits,cw_tw,20.25\nemoji,tsq,33\ndigits,tsq,21\n"
    )
    text = AXES + "fidelity: measured.csv\n"
    record = {"key": "", "workload": "tiny", "status": "ok", "message": "", "figures": {}}
    record["settings"] = load_space(write(text)).point({"method": "cw_tw"}).settings()
    for name, psnr_db in (("emoji", 30.5), ("digits", 20.25)):
        space = load_space(write(text + f"fidelity_data_set: {name}\n"))
        row = row_of(record, read_fidelity(space.fidelity, space.data_set))
        assert row["fidelity_psnr_db"] == psnr_db
        assert "fidelity_data_set" not in row
    for extra, message in (
        ("", "fidelity: of data sets emoji, digits; allowed: one of them, fidelity_data_set"),
        ("fidelity_data_set: faces\n", "fidelity_data_set = 'faces': allowed emoji, digits"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(write(text + extra), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="allowed together with fidelity only"):
        load_space(write(AXES + "fidelity_data_set: emoji\n"))
    (tmp_path / "measured.csv").write_text("method,psnr_db\ncw_tw,30.5\n")
    with pytest.raises(UserError, match="the file has no column data_set"):
        read_fidelity(tmp_path / "measured.csv", "emoji")


def test_front_is_what_pairwise_comparison_says():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = [dict(zip("abc", values, strict=True)) for values in rng.integers(0, 6, (30, 3)).tolist()]
        rows.append({"a": 0, "b": None, "c": 9})

        def beats(x, y):
            as_good = x["a"] <= y["a"] and x["b"] <= y["b"] and x["c"] >= y["c"]
            return as_good and (x["a"], x["b"], x["c"]) != (y["a"], y["b"], y["c"])

        known = [row for row in rows if row["b"] is not None]
        expected = [row for row in known if not any(beats(other, row) for other in known)]
        found = front(rows, {"a": "min", "b": "min", "c": "max"})
        assert sorted(map(str, found)) == sorted(map(str, expected))


def test_keys_tell_everything_apart(write):
    space = load_space(write(AXES))
    point = space.point({"method": "tsq"})
    assert point.key == space.point({"method": "tsq", "weight_bits": 8}).key  # a default written out
    assert len({point.key, space.point({"method": "cw_tw"}).key, space.point({"ranges": 2}).key,
                Point("emoji", point.machine, point.values).key,
                Point("tiny", {**point.machine, "clock_mhz": 7}, point.values).key}) == 5  # fmt: skip


def test_fields_of_the_machine(write):
    text = "axes:\n  machine.sram.capacity_bytes: [131072]\n  machine.dram.device.row_bytes: [2048]\n"
    space = load_space(write(text))
    machine = machine_of(space.point({name: values[0] for name, values in space.axes.items()}))
    assert (machine.sram.capacity_bytes, machine.dram.device.row_bytes) == (131072, 2048)
    assert space.machine.sram.capacity_bytes == 65536


def test_what_cannot_be_is_a_result(write):
    space = load_space(write(AXES))
    record = evaluate(space.point({"machine.clock_mhz": 0}))
    assert record["status"] == "refused"
    assert "clock_mhz" in record["message"]
    assert evaluate(space.point({"method": "nonsense"}))["status"] == "refused"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AXES + "serch: grid\n", "unknown field 'serch'"),
        (AXES + "search: best\n", "allowed grid, random, nsga2"),
        (AXES + "search: random\npoints: 0\n", "points = 0"),
        ("axes: {}\n", "axes"),
        ("axes: {colour: [1]}\n", "axes.colour"),
        ("axes: {machine.sram.size: [1]}\n", "no such field; allowed there: capacity_bytes"),
        ("axes: {machine.sram: [1]}\n", "no such field"),
        ("axes: {method: cw_tw}\n", "allowed a list"),
        ("axes: {method: [cw_tw, cw_tw]}\n", "stands twice"),
        (AXES + "objectives: {seconds: least}\n", "min or max"),
        (AXES + "objectives: {secnds: min}\n", "objectives.secnds: no such figure; allowed: cycles, "),
        (AXES + "fidelity: nowhere.csv\n", "nowhere.csv"),
    ],
)
def test_refused_files_get_nothing(write, tmp_path, text, message, capsys):
    assert main(["sweep", str(write(text)), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_point_is_what_the_library_says_of_it(write, tiny_machine):
    """Energy, area and a swap policy beside the same figures from their own modules."""
    space = load_space(write(AXES))
    plain = evaluate(space.point({"method": "tsq", "ranges": 2}))
    swapped = evaluate(space.point({"method": "tsq", "ranges": 2, "policy": "blocking"}))
    assert set(plain["figures"]) == set(swapped["figures"]) == set(FIGURES)
    program = compile_model(quantize_workload("tiny", "tsq", ranges=2), tiny_machine)
    found = energy(program, time_program(program)).total_pj
    for suffix in ("low", "high"):
        assert plain["figures"][f"energy_joules_{suffix}"] == pytest.approx(getattr(found, suffix) / 1e12)
        assert plain["figures"][f"area_mm2_{suffix}"] == getattr(area(tiny_machine).total_mm2, suffix)
    (cost,) = compare(program, tiny_machine, ["blocking"], break_even=False)
    figures = swapped["figures"]
    assert (figures["cycles"], figures["dram_capacity_bytes"]) == (cost.cycles, cost.dram_bytes)
    assert figures["storage_read_bytes"] == cost.storage_read_bytes > 0
    assert figures["energy_joules"] > plain["figures"]["energy_joules"]
    assert evaluate(space.point({"policy": "never"}))["message"].startswith("policy = 'never': allowed in_dram, ")


def test_points_are_timed_without_weights(write, monkeypatch):
    """But for a method that chooses its ranges by calibration statistics."""
    space = load_space(write(AXES))

    def read(work: Workload) -> None:
        raise UserError("weights are read")

    monkeypatch.setattr(Workload, "load_model", read)
    record = evaluate(space.point({"method": "asq"}))
    assert (record["status"], record["message"]) == ("ok", "")
    assert evaluate(space.point({"method": "tsq_dp"}))["message"] == "weights are read"


@pytest.mark.parametrize("given", ["", "n/a", "null", "4"])
def test_ranges_left_open_are_the_methods(write, tmp_path, given):
    """4 for tsq, one for each of tiny's steps, 1 for cw_tw; left open on either side."""
    (tmp_path / "measured.csv").write_text(f"method,ranges,psnr_db\ntsq,2,20\ntsq,{given},33\ncw_tw,1,30\n")
    space = load_space(write(AXES + "fidelity: measured.csv\n"))
    measured, record = read_fidelity(space.fidelity), {"key": "", "workload": "tiny", "status": "ok", "message": ""}

    def psnr_db(**settings: object) -> float | None:
        values = space.point(settings).settings()
        return row_of(record | {"settings": values, "figures": {}}, measured).get("fidelity_psnr_db")

    assert psnr_db(method="tsq") == psnr_db(method="tsq", ranges=4) == 33
    assert psnr_db(method="tsq", ranges=2) == 20
    assert psnr_db(method="cw_tw") == psnr_db(method="cw_tw", ranges=1) == 30
    assert psnr_db(method="tsq", ranges=1) is None


def test_a_damaged_point_is_named(write, evaluated, tmp_path):
    sweep(write(AXES), tmp_path / "out")
    path = next((tmp_path / "out" / "points").iterdir())
    for damage in ("{", "[]", json.dumps({"key": "other"})):
        path.write_text(damage)
        with pytest.raises(UserError, match=path.name):
            sweep(write(AXES), tmp_path / "out")


def test_cores_are_shared():
    assert runners.threads(10**6) == 1
    assert runners.threads(1) >= 1
