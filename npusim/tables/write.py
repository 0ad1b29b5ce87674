"""The folder of tables: CSV, Markdown, plots and contact sheets, written from the cells that are measured.

Equal cells give equal files. A figure that was not measured is "n/a", never 0.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics import MeanInterval, mean_interval
from models.metrics.text_sim import TextHeads
from models.quantize.structure import DEFAULT_ALPHA
from models.store import write_atomically
from npusim.report import NOT_MODELLED, csv_bytes, number
from npusim.tables import plots
from npusim.tables.cells import (
    CLIPS,
    DATA_SETS,
    INTEGER_CLIPS,
    INTEGER_TABLE,
    REAL,
    REPLAYED_CLIPS,
    Cell,
    Row,
    Table,
    make_tables,
    paper_columns,
    parse_tables,
)
from npusim.tables.files import read_frames
from npusim.tables.inputs import Inputs
from npusim.tables.make import Measured
from npusim.tables.paper import COLUMNS

METRICS = {
    "eps_sqnr_db": ("noise SQNR, dB", 2),
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "vmaf_vs_fp": ("VMAF", 2),
    "temp_consistency": ("temp", 4),
    "text_sim": ("text", 4),
    "feature_frechet": ("Frechet", 0),
}
"""Names of the figures in a cell's file: (title in a table, digits)."""

TOLERANCE_DB = 0.5
INTEGER_NOTE = f"""SQNR of the guided noise prediction against float, every step fed the float run's state; mean over
{INTEGER_CLIPS} clips of data set 1 and all steps. Methods with GPTQ have 4-bit weights. "set bytes": what a change of
time range loads, from the compiled program. "two factors": the same for the program that requantizes in two factors
(`--factored`). "engine = reference": every byte of memory was equal after the first clip's prologue, first and last
step, in both programs.
"""
SIZE_NOTE = """Of the executed linears.
"""
SIZES = ("weight_sets", "weight_bytes", "parameter_bytes", "total_bytes")
MEGA = 1e6

Value = MeanInterval | None


def write_tables(measured: Measured, folder: Path) -> None:
    """Write every file for the tables that were asked for. Raises ModelError where one cannot be written."""
    tables = make_tables(measured.inputs.work.num_steps)
    parts = []
    for name in measured.tables:
        if name == INTEGER_TABLE:
            header, rows = integer_rows(measured)
            text = f"{INTEGER_NOTE}\n{integer_markdown(measured)}"
            files = {"integer.csv": csv_bytes(header, rows), "integer.md": text.encode()}
            title = f"Integer: noise predictions on {measured.inputs.setup.machine.stem} beside fake quantization"
        else:
            table = tables[name]
            header, rows = table_rows(measured, table)
            text = table_markdown(measured, table)
            files = {f"table_{name}.csv": csv_bytes(header, rows), f"table_{name}.md": text.encode()}
            files[f"table_{name}.png"] = plots.table_plot(table, [values(measured, row) for row in table.rows], METRICS)
            title = f"Table {name}: {table.title}"
        _write(folder, files)
        stem = next(iter(files)).removesuffix(".csv")
        parts.append(f"## {title}\n\n{files[f'{stem}.md'].decode()}")
    header, rows = size_rows(measured)
    sizes = f"{SIZE_NOTE}\n{size_markdown(header, rows)}"
    _write(folder, {"sizes.csv": csv_bytes(header, rows), "sizes.md": sizes.encode()})
    parts.append(f"## Model sizes\n\n{sizes}")
    _write(folder, _sheets(measured, tables) | _ranges(measured.inputs))
    _write(folder, {"results.md": f"{_head(measured)}\n{chr(10).join(parts)}".encode()})


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_atomically(folder / name, data)


def per_clip(figures: Mapping[str, Any], name: str) -> list[float] | None:
    """One number per clip; of noise predictions the mean over the steps, in dB."""
    found: list[Any] | None = figures[name]
    return [float(np.mean(steps)) for steps in found] if found and name == "eps_sqnr_db" else found


def values(measured: Measured, row: Row) -> dict[str, Value]:
    """A row's figures by the names in `METRICS`; None where a cell is not measured or has no such figure.

    An average has no interval, and neither has the Frechet distance, which all clips share: its ends are the mean.
    """
    return {name: _value(measured, row, name) for name in METRICS}


def _value(measured: Measured, row: Row, name: str) -> Value:
    found = []
    for cell in row.cells:
        figures = measured.figures.get(cell.name)
        numbers = None if figures is None else _numbers(figures, name)
        if numbers is None:
            return None
        found.append(mean_interval(numbers))
    if not row.average:
        return found[0]
    mean = float(np.mean([value.mean for value in found]))
    return MeanInterval(mean, mean, mean)


def _numbers(figures: Mapping[str, Any], name: str) -> list[float] | None:
    return [figures[name]] if name == "feature_frechet" else per_clip(figures, name)


def table_rows(measured: Measured, table: Table) -> tuple[list[str], list[list[Any]]]:
    """A table's CSV: settings, every figure with its interval, sizes, the paper's figures."""
    header = ["row", "data_set", "method", "weight_bits", "act_bits", "ranges", "alpha"]
    header += [f"{name}{end}" for name in METRICS for end in _ends(name)] + list(SIZES)
    header += [f"paper_{name}" for name in COLUMNS]
    rows = []
    for row in table.rows:
        line: list[Any] = [row.label, row.cell.data_set, *_settings(measured, row)]
        for name, value in values(measured, row).items():
            line += [number(None if value is None else end) for end in _shown(name, row, value)]
        size = _size(measured, row.cell)
        line += [NOT_MODELLED if size is None or row.average else size[name] for name in SIZES]
        line += [number(figure) for figure in paper_columns(row).values()]
        rows.append(line)
    return header, rows


def _ends(name: str) -> tuple[str, ...]:
    return ("",) if name == "feature_frechet" else ("_mean", "_low", "_high")


def _shown(name: str, row: Row, value: Value) -> Sequence[float | None]:
    ends = (None,) * 3 if value is None else (value.mean, None, None) if row.average else value
    return ends[: len(_ends(name))]


def _settings(measured: Measured, row: Row) -> list[Any]:
    """Method, bits, ranges and smoothing exponent; "n/a" where they mean nothing."""
    cell = row.cell
    if not cell.quantized:
        return [cell.method, *[NOT_MODELLED] * 4]
    bits = ["all", "all"] if row.average else [cell.weight_bits, cell.act_bits]
    alpha = NOT_MODELLED if row.average else number(measured.inputs.alpha(cell))
    return [cell.method, *bits, cell.ranges, alpha]


def _size(measured: Measured, cell: Cell) -> Mapping[str, int] | None:
    figures = measured.figures.get(cell.name)
    size: Mapping[str, int] | None = None if figures is None else figures["size"]
    return size


def table_markdown(measured: Measured, table: Table) -> str:
    """A table as Markdown: means with their 95 % intervals, size in MB, the paper's figures in the last columns."""
    header = ["row", "method", "W/A", "ranges", *(title for title, _ in METRICS.values()), "MB"]
    header += [f"paper: {title}" for title in COLUMNS.values()]
    rows = []
    for row in table.rows:
        cell, size = row.cell, _size(measured, row.cell)
        method = "" if cell.method == REAL else f"`{cell.method}`"
        line = [row.label, method, "all" if row.average else cell.bits, str(cell.ranges) if cell.quantized else ""]
        for (name, value), (_, digits) in zip(values(measured, row).items(), METRICS.values(), strict=True):
            line.append(_text(value, digits, interval=not row.average and name != "feature_frechet"))
        line.append("" if size is None or row.average else f"{size['total_bytes'] / MEGA:.2f}")
        line += ["" if figure is None else f"{figure:.4f}" for figure in paper_columns(row).values()]
        rows.append(line)
    return markdown(header, rows)


def _text(value: Value, digits: int, interval: bool) -> str:
    if value is None:
        return NOT_MODELLED
    mean = f"{value.mean:.{digits}f}"
    if not interval or not math.isfinite(value.mean):
        return mean
    return f"{mean} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; ends with a line break."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def integer_rows(measured: Measured) -> tuple[list[str], list[list[Any]]]:
    """The integer table's CSV: mean SQNR over clips and steps on the simulator and in torch, and their difference."""
    header = ["method", "weight_bits", "act_bits", "ranges", "alpha", "integer_eps_sqnr_db", "fakequant_eps_sqnr_db"]
    header += ["difference_db", "within_tolerance", "range_set_bytes", "factored_eps_sqnr_db"]
    header += ["factored_range_set_bytes", "engine_equals_reference", "refused"]
    rows = []
    for cell in measured.cells.values():
        if not cell.integer:
            continue
        line = [cell.method, cell.weight_bits, cell.act_bits, cell.ranges, number(measured.inputs.alpha(cell))]
        figures = measured.figures.get(cell.name)
        if figures is None or figures["refused"]:
            rows.append([*line, *[NOT_MODELLED] * 8, "not measured" if figures is None else figures["refused"]])
            continue
        integer, rounded = (float(np.mean(figures[f"{name}_eps_sqnr_db"])) for name in ("integer", "fakequant"))
        within = "yes" if abs(integer - rounded) <= TOLERANCE_DB else "no"
        factored = figures["factored_eps_sqnr_db"]
        line += [integer, rounded, integer - rounded, within, figures["range_set_bytes"]]
        line += [NOT_MODELLED, NOT_MODELLED] if factored is None else [
            float(np.mean(factored)), figures["factored_range_set_bytes"]
        ]  # fmt: skip
        rows.append([*line, "yes" if figures["bit_exact"] else "no", ""])
    return header, rows


def integer_markdown(measured: Measured) -> str:
    """The integer table as Markdown."""
    header = [
        "method",
        "W/A",
        "ranges",
        "integer, dB",
        "fake-quant, dB",
        "difference, dB",
        "within 0.5 dB",
        "set bytes",
    ]
    header += ["two factors, dB", "two factors, set bytes", "engine = reference", "refused"]
    rows = []
    for method, weight_bits, act_bits, ranges, _, *figures, refused in integer_rows(measured)[1]:
        shown = [
            figure if isinstance(figure, str) else f"{figure:,}" if isinstance(figure, int) else f"{figure:.2f}"
            for figure in figures
        ]
        rows.append([f"`{method}`", f"{weight_bits}/{act_bits}", str(ranges), *shown, " ".join(refused.split())])
    return markdown(header, rows)


def size_rows(measured: Measured) -> tuple[list[str], list[list[Any]]]:
    """Sizes of every measured method at every setting, once."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for name, cell in measured.cells.items():
        figures = measured.figures.get(name)
        if cell.integer or figures is None or figures["size"] is None:
            continue
        settings = [cell.method, cell.bits, cell.ranges]
        found.setdefault(tuple(settings), [*settings, *(figures["size"][size] for size in SIZES)])
    return ["method", "bits", "ranges", *SIZES], list(found.values())


def size_markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The sizes as Markdown, in bytes."""
    titles = [name.replace("_", " ") for name in header]
    lines = [
        [f"`{method}`", bits, str(ranges), *(f"{size:,}" for size in sizes)] for method, bits, ranges, *sizes in rows
    ]
    return markdown(titles, lines)


def _sheets(measured: Measured, tables: Mapping[str, Table]) -> dict[str, bytes]:
    """Contact sheets by method for each data set, and by bit width: the paper's Figures 1, 2 and 4."""
    found = {}

    def frames(cell: Cell) -> Any:
        return read_frames(measured.inputs.setup.folder, cell) if cell.name in measured.figures else None

    for name, data_set in (("I", "emoji"), ("II", "digits")):
        if name in measured.tables:
            rows = {
                row.label if row.cell.method == REAL else _short(row.cell): frames(row.cell)
                for row in tables[name].rows
            }
            found[f"sheet_methods_{data_set}.png"] = plots.sheet_by_row(measured.inputs, data_set, rows)
    if "III" in measured.tables:
        cells = [row.cell for row in tables["III"].rows if row.cell.quantized and not row.average]
        by_bits = {(cell.method, cell.bits): frames(cell) for cell in cells}
        found["sheet_bits.png"] = plots.sheet_by_bits(measured.inputs, by_bits)
    if "IV" in measured.tables:
        rows = {f"{_short(row.cell)} {row.cell.ranges}": frames(row.cell) for row in tables["IV"].rows}
        found["sheet_ranges.png"] = plots.sheet_by_row(measured.inputs, "emoji", rows)
    return {name: sheet for name, sheet in found.items() if sheet is not None}


def _short(cell: Cell) -> str:
    return cell.method + ("" if cell.smooth else " plain")


def _ranges(inputs: Inputs) -> dict[str, bytes]:
    """Least and greatest input of every linear by step, and a plot of some: the paper's Figure 3."""
    stats = inputs.stats
    header = ["point", "step", "branch", "minimum", "maximum"]
    rows = [
        [point, step, branch, float(stats.minimum[point][step, index]), float(stats.maximum[point][step, index])]
        for point in stats.minimum
        if point.endswith(":in")
        for step in range(stats.steps)
        for index, branch in enumerate(("conditional", "unconditional"))
    ]
    return {"activation_ranges.csv": csv_bytes(header, rows), "activation_ranges.png": plots.ranges_plot(stats)}


def _head(measured: Measured) -> str:
    """What was measured, how, and what the columns mean."""
    inputs = measured.inputs
    work, clips = inputs.work, inputs.setup.clips
    missing = [name for name in measured.cells if name not in measured.figures]
    state = f"**{len(missing)} of {len(measured.cells)} cells are not measured yet.**\n\n" if missing else ""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "numba"))
    tables = "all" if measured.tables == parse_tables("all") else ",".join(measured.tables)
    command = f"npusim evaluate --tables {tables} --out DIR{'' if clips == CLIPS else f' --clips {clips}'}"
    return f"""# The paper's tables on the workload `{work.name}`

{state}    {command}

Weights sha256 `{inputs.weights_sha256[:12]}`, {work.num_steps} steps, guidance scale {work.cfg_scale:g}, npusim
{metadata.version("npusim")}, {packages}, {_processor()}.

* {clips} clips per cell, with fixed captions and noise; none of these captions was calibrated or searched on.
* Data set 1 is {DATA_SETS["emoji"]}, data set 2 {DATA_SETS["digits"]}. Both are measured with the same quantized
  models, calibrated on {len(work.calibration_captions)} captions of data set 1.
* Smoothing exponents: {_searched(inputs)}.
* The methods quantize the linears of the transformer blocks; the patch embedding, caption projection and final layer
  are W8A16 in every method; all else is float, as in the paper. In the integer table all is integer, on the simulated
  machine.
* `dynamic` smooths with an exponent of its own, as ViDiT-Q does, where it is not called "not smoothed".
* In parentheses: 95 % interval of the mean, by resampling the clips 2,000 times.
* noise SQNR: of the guided noise prediction, every step fed the float run's state, mean over the steps and the first
  {min(REPLAYED_CLIPS, clips)} clips.
* PSNR, SSIM, VMAF: of the frames, against the float model's clip of the same noise.
* temp: cosine of the features of consecutive frames, in place of CLIP-temp. text: cosine of clip and caption in the
  space of two trained heads, in place of CLIPSIM. Frechet: distance to the real clips' features; less is better, and
  it is comparable between equal numbers of clips only. `models/metrics/README.md` defines them all.
* MB: weights packed to their bits, with scales, zero points, smoothing, shifts and biases, all weight sets together.
* The paper's figures are of another model on other clips under other metrics: compare them down a column only.
* {TextHeads.load().describe()}.
"""


def _searched(inputs: Inputs) -> str:
    """Where the smoothing exponents come from."""
    if inputs.alphas is None:
        return f"{DEFAULT_ALPHA}, as none were searched for these weights; `dynamic` then does not smooth"
    return f"searched on clips of both sets, none of them shown here, by `{inputs.alphas.metric}`"


def _processor() -> str:
    """The processor's name and number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
