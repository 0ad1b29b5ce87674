"""The files: shapes of Markdown and CSV, averages by hand, what is missing, and equal bytes."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.metrics import mean_interval
from npusim.tables.cells import Cell, make_tables
from npusim.tables.make import Measured
from npusim.tables.paper import TABLE_IV
from npusim.tables.write import (
    integer_markdown,
    integer_rows,
    markdown,
    table_markdown,
    table_rows,
    values,
    write_tables,
)


def _lines(text: str) -> list[list[str]]:
    """Cells of a Markdown table, each row as wide as the first."""
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert set(lines[1]) == {"---"}
    return [lines[0], *lines[2:]]


def test_every_file_is_there(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "tables.json", "cells", "cache", "results.md", "table_IV.csv", "table_IV.md", "table_IV.png", "sizes.csv",
        "sizes.md", "sheet_ranges.png", "activation_ranges.csv", "activation_ranges.png",
    }  # fmt: skip
    for name in ("table_IV.png", "sheet_ranges.png", "activation_ranges.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    results = (folder / "results.md").read_text()
    assert (folder / "table_IV.md").read_text() in results
    assert (folder / "sizes.md").read_text() in results
    assert "npusim evaluate --tables IV --out DIR --clips 2" in results
    assert "not measured yet" not in results


def test_markdown_rows_stand_beside_the_papers(folder: Path) -> None:
    header, *rows = _lines((folder / "table_IV.md").read_text())
    assert header[:4] == ["row", "method", "W/A", "ranges"]
    assert header[-4:] == ["paper: CLIPSIM", "paper: CLIP-temp", "paper: VQA-a", "paper: VQA-t"]
    by_row = {(row[1], row[3]): row for row in rows}
    assert by_row["`asq`", "1"][0] == "+ASQ"
    assert by_row["`tsq`", "2"][0] == "+TSQ+2TR"
    assert by_row["`tsq`", "2"][-4:] == [f"{figure:.4f}" for figure in TABLE_IV["tsq", "8/8", 2]]
    assert by_row["`tsq_pot`", "2"][-4:] == [""] * 4


def test_csv_holds_means_intervals_and_sizes(measured: Measured, folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "table_IV.csv").read_text())))
    row = next(row for row in rows if (row["method"], row["ranges"]) == ("tsq", "4"))
    figures = measured.figures["emoji-tsq-w8a8-r4"]
    for name in ("psnr_db", "ssim", "vmaf_vs_fp", "temp_consistency", "text_sim"):
        found = [float(row[f"{name}_{end}"]) for end in ("mean", "low", "high")]
        assert found == list(mean_interval(figures[name]))
    assert float(row["eps_sqnr_db_mean"]) == pytest.approx(np.mean(figures["eps_sqnr_db"]))
    assert float(row["feature_frechet"]) == figures["feature_frechet"]
    assert int(row["total_bytes"]) == figures["size"]["weight_bytes"] + figures["size"]["parameter_bytes"]
    assert (row["alpha"], row["weight_sets"], row["paper_vqa_t"]) == ("0.5", "4", "46.174")
    assert rows[0]["paper_clipsim"] == "0.1926"


def test_what_is_not_measured_is_said_not_to_be(measured: Measured, tmp_path: Path) -> None:
    fewer = {name: found for name, found in measured.figures.items() if name != "emoji-tsq-w8a8-r2"}
    partial = dataclasses.replace(measured, figures=fewer)
    write_tables(partial, tmp_path)
    assert f"**1 of {len(measured.cells)} cells are not measured yet.**" in (tmp_path / "results.md").read_text()
    _, *rows = _lines((tmp_path / "table_IV.md").read_text())
    row = next(row for row in rows if (row[1], row[3]) == ("`tsq`", "2"))
    assert row[4:11] == ["n/a"] * 7


def test_equal_cells_give_equal_files(measured: Measured, folder: Path, tmp_path: Path) -> None:
    write_tables(measured, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_an_average_is_the_mean_of_its_cells(measured: Measured) -> None:
    table = make_tables(4)["III"]
    row = next(row for row in table.rows if row.average and row.cell.method == "asq")
    template = measured.figures["emoji-asq-w8a8-r1"]
    figures = {
        cell.name: {**template, "psnr_db": [10.0 * index, 2.0 + 10.0 * index]} for index, cell in enumerate(row.cells)
    }
    found = values(dataclasses.replace(measured, figures=figures), row)
    assert found["psnr_db"] is not None
    assert found["psnr_db"].mean == pytest.approx(41.0)  # the mean of 1, 11, ... 81
    text = table_markdown(dataclasses.replace(measured, figures=figures), table)
    line = next(line for line in _lines(text) if line[1:4] == ["`asq`", "all", "1"])
    assert line[5] == "41.00"
    figures.pop(row.cells[3].name)
    assert values(dataclasses.replace(measured, figures=figures), row)["psnr_db"] is None
    header, rows = table_rows(dataclasses.replace(measured, figures=figures), table)
    assert {len(row) for row in rows} == {len(header)}


def test_the_integer_table_shows_differences_and_reasons(measured: Measured) -> None:
    cells = {
        cell.name: cell for cell in (Cell("emoji", method, integer=True) for method in ("cw_tw", "asq", "ssq", "tsw"))
    }
    close = {"refused": None, "integer_eps_sqnr_db": [[30.0, 32.0]], "fakequant_eps_sqnr_db": [[31.0, 31.4]]}
    close |= {"range_set_bytes": 0, "factored_eps_sqnr_db": None, "factored_range_set_bytes": None}
    ranged = {"range_set_bytes": 12345, "factored_eps_sqnr_db": [[30.0, 31.0]], "factored_range_set_bytes": 678}
    far = {**close, "integer_eps_sqnr_db": [[30.0, 31.3]]}
    figures = {
        "emoji-cw_tw-w8a8-r1-integer": {**close, "bit_exact": True},
        "emoji-asq-w8a8-r1-integer": {**far, **ranged, "bit_exact": False},
        "emoji-ssq-w8a8-r1-integer": {"refused": "method 'ssq':\n not yet | so"},
    }
    partial = dataclasses.replace(measured, cells=cells, figures=figures)
    _, *rows = _lines(integer_markdown(partial))
    assert rows == [
        ["`cw_tw`", "8/8", "1", "31.00", "31.20", "-0.20", "yes", "0", "n/a", "n/a", "yes", ""],
        ["`asq`", "8/8", "1", "30.65", "31.20", "-0.55", "no", "12,345", "30.50", "678", "no", ""],
        ["`ssq`", "8/8", "1", *["n/a"] * 8, "method 'ssq': not yet / so"],
        ["`tsw`", "8/8", "1", *["n/a"] * 8, "not measured"],
    ]
    header, plain = integer_rows(partial)
    assert {len(row) for row in plain} == {len(header)}
    assert plain[0][header.index("difference_db")] == pytest.approx(-0.2)


def test_markdown_keeps_its_columns() -> None:
    assert markdown(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x/y |\n"
