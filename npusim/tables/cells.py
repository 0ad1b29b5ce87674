"""What is measured: data sets, cells, and which cells make which of the paper's tables.

A cell is one method at one setting on one data set. Cells that several tables share are measured once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from models.clips import digit_captions
from models.quantize import METHODS, TORCH_ONLY
from models.quantize.methods import DP_RANGES
from models.workloads import (
    CALIBRATION_CAPTIONS,
    EVALUATION_CAPTIONS,
    SEARCH_CAPTIONS,
    SHEET_CAPTIONS,
    Workload,
)
from npusim.errors import UserError
from npusim.tables.paper import COLUMNS, LABELS, TABLE_III_AVERAGES, TABLES, PaperFigures

CLIPS = 32
SHEET_CLIPS = 4
"""The first clips of each data set, whose frames are kept for the contact sheets."""
REPLAYED_CLIPS = 8
"""The first clips of each data set, on which noise predictions are compared on equal inputs."""
INTEGER_CLIPS = 2

REAL = "real"
"""Not a method: the real clips of the same captions, which the network metrics can judge, too."""
FLOAT = ("fp32", REAL)
"""Measured without sampling anything."""

BITS = ((4, 4), (4, 6), (6, 6), (4, 8), (6, 8), (8, 8), (4, 16), (6, 16), (8, 16))
RANGES = (1, 2, 4, 10, 20)
INTEGER_TABLE = "integer"
INTEGER_GPTQ_BITS = (4, 8)

# The emoji behind the first thirteen and six are held out from the training of text_sim's heads, as all of these are.
_MORE_EMOJI = (
    "alien monster", "chequered flag", "cow", "crocodile", "cyclone", "eyes", "love letter", "party popper", "pig",
    "racing motorcycle", "tropical fish", "two hearts", "winking face",
)  # fmt: skip


def _is_digit(caption: str) -> bool:
    return caption.startswith("digit ")


def _captions() -> dict[str, tuple[str, ...]]:
    """32 captions of each data set; none was calibrated or searched on. Those of contact sheets come first."""
    known = [*SHEET_CAPTIONS, *EVALUATION_CAPTIONS]
    emoji = [caption for caption in known if not _is_digit(caption)] + list(_MORE_EMOJI)
    first = [caption for caption in known if _is_digit(caption)]
    used = {*CALIBRATION_CAPTIONS, *SEARCH_CAPTIONS, *first}
    others = [caption for caption in digit_captions() if caption not in used]
    # Every eighth is left out, so that no digit is favoured.
    digits = first + [caption for index, caption in enumerate(others) if index % 8 != 7]
    return {"emoji": tuple(emoji[:CLIPS]), "digits": tuple(digits[:CLIPS])}


CAPTIONS = _captions()
FIRST_SEED = {"emoji": 5000, "digits": 6000}
DATA_SETS = {"emoji": "animated emoji", "digits": "moving digits"}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    data_set: of `DATA_SETS`; method: of `models.quantize`, or "fp32", "fp16", `REAL`.
    weight_bits, act_bits: of the block linears; 0 where they mean nothing.
    ranges: number of time ranges.
    smooth: False keeps `dynamic` from smoothing (the others know themselves whether they smooth).
    integer: measured on the simulator instead of in torch.
    """

    data_set: str
    method: str
    weight_bits: int = 8
    act_bits: int = 8
    ranges: int = 1
    smooth: bool = True
    integer: bool = False

    @property
    def name(self) -> str:
        """Unique, and the stem of the cell's file."""
        parts = [self.data_set, self.method]
        if self.quantized:
            parts += [f"w{self.weight_bits}a{self.act_bits}", f"r{self.ranges}"]
        return "-".join(parts + ["plain"] * (not self.smooth) + ["integer"] * self.integer)

    @property
    def quantized(self) -> bool:
        return self.method not in (*TORCH_ONLY, REAL)

    @property
    def bits(self) -> str:
        """As the paper prints them."""
        return f"{self.weight_bits}/{self.act_bits}" if self.quantized else {"fp16": "16/16"}.get(self.method, "")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    label: the paper's name, or ours; cells: one, or those that the row averages; x, line: where and on which line its
    point stands in the plot; paper: the printed row.
    """

    label: str
    cells: tuple[Cell, ...]
    x: str
    line: str
    paper: PaperFigures | None = None

    @property
    def cell(self) -> Cell:
        """The first cell, whose settings the row shows."""
        return self.cells[0]

    @property
    def average(self) -> bool:
        return len(self.cells) > 1


@dataclass(frozen=True)
class Table:
    """One table of the paper. ``numeral``: roman; ``x_label``: what the plot's positions are."""

    numeral: str
    title: str
    x_label: str
    rows: tuple[Row, ...]


def make_tables(steps: int) -> dict[str, Table]:
    """The five tables by numeral, for a workload of so many sampling steps; ranges must divide it."""
    bits = "bits of weights/activations"
    by_ranges = "time ranges"
    emoji, digits = (f"data set {i}, {name}" for i, name in enumerate(DATA_SETS.values(), 1))
    return {
        table.numeral: table
        for table in (
            Table("I", f"Methods at W8A8, {emoji}", "method", _methods("I", "emoji", steps)),
            Table(
                "II", f"Methods at W8A8, {digits}, calibrated on data set 1", "method", _methods("II", "digits", steps)
            ),
            Table("III", f"Bit widths, {emoji}", bits, _bit_widths(steps)),
            Table("IV", f"Time ranges, {emoji}", by_ranges, _ranges("IV", "emoji", steps)),
            Table("V", f"Time ranges, {digits}, calibrated on data set 1", by_ranges, _ranges("V", "digits", steps)),
        )
    }


def integer_cells(steps: int) -> tuple[Cell, ...]:
    """Every method on the simulator: at W8A8, those with GPTQ's rounding at W4A8."""
    cells = []
    for name, method in METHODS.items():
        ranges = min(DP_RANGES, steps) if method.chosen_ranges else steps if method.stepwise else 1
        bits = INTEGER_GPTQ_BITS if method.gptq else (8, 8)
        cells.append(Cell("emoji", name, *bits, ranges, integer=True))
    return tuple(cells)


def _row(numeral: str, cell: Cell, label: str | None = None, x: str | None = None, line: str = "") -> Row:
    known = TABLES[numeral].get((cell.method, cell.bits, cell.ranges)) if cell.smooth else None
    label = label or LABELS.get(cell.method, cell.method)
    return Row(label, (cell,), x or label, line, known)


def _methods(numeral: str, data_set: str, steps: int) -> tuple[Row, ...]:
    few = min(DP_RANGES, steps)
    plain = Cell(data_set, "dynamic", smooth=False)
    cells = [Cell(data_set, method) for method in (REAL, "fp32", "fp16", "dynamic")] + [plain]
    cells += [Cell(data_set, "cw_tw"), Cell(data_set, "tsw", ranges=steps), Cell(data_set, "asq")]
    cells += [Cell(data_set, "tsq", ranges=steps), Cell(data_set, "ssq"), Cell(data_set, "tsq_pot", ranges=steps)]
    cells += [Cell(data_set, method, ranges=few) for method in ("tsq_dp", "tsq_pot_dp")]
    names = {REAL: "real clips", "fp32": "FP32"}
    return tuple(
        _row(numeral, cell, "Dynamic, not smoothed" if cell == plain else names.get(cell.method)) for cell in cells
    )


def _bit_widths(steps: int) -> tuple[Row, ...]:
    methods = {"tsq": steps, "asq": 1, "dynamic": 1}
    rows = [_row("III", Cell("emoji", "fp16"), line="fp16")]
    for weight_bits, act_bits in BITS:
        for method, ranges in methods.items():
            for suffix in ("", "_gptq") if weight_bits == 4 else ("",):
                cell = Cell("emoji", method + suffix, weight_bits, act_bits, ranges)
                label = LABELS[method] + (" with GPTQ" if suffix else "")
                rows.append(_row("III", cell, label, cell.bits, cell.method))
    for method, average in TABLE_III_AVERAGES.items():
        cells = tuple(row.cell for row in rows if row.cell.method == method)
        rows.append(Row(LABELS[method], cells, "average", method, average))
    return tuple(rows)


def _ranges(numeral: str, data_set: str, steps: int) -> tuple[Row, ...]:
    counts = [count for count in RANGES if steps % count == 0]
    rows = []
    for count in counts:
        # With one range, tsq is asq.
        cell = Cell(data_set, "asq" if count == 1 else "tsq", ranges=count)
        rows.append(_row(numeral, cell, "+ASQ" if count == 1 else f"+TSQ+{count}TR", str(count), "tsq"))
    for count in counts:
        rows.append(_row(numeral, Cell(data_set, "tsq_pot", ranges=count), "tsq_pot", str(count), "tsq_pot"))
    few = min(DP_RANGES, steps)
    for method in ("tsq_dp", "tsq_pot_dp"):
        rows.append(_row(numeral, Cell(data_set, method, ranges=few), f"{method}, chosen ranges", str(few), method))
    return tuple(rows)


def parse_tables(text: str) -> tuple[str, ...]:
    """Numerals meant by "all", or a list as "I,III"; `INTEGER_TABLE` is allowed among them and part of "all".

    Raises:
        UserError: names the unknown table and what is allowed.
    """
    allowed = (*TABLES, INTEGER_TABLE)
    if text == "all":
        return allowed
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in allowed:
            near = difflib.get_close_matches(name.upper(), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"tables = {name[:40]!r}: allowed all, or some of {', '.join(allowed)}{hint}")
    return tuple(name for name in allowed if name in chosen)


def cells_of(tables: Sequence[str], steps: int) -> dict[str, Cell]:
    """The cells that these tables need, each once, by name."""
    made = make_tables(steps)
    cells = [cell for name in tables if name in made for row in made[name].rows for cell in row.cells]
    if INTEGER_TABLE in tables:
        cells += integer_cells(steps)
    return {cell.name: cell for cell in cells}


def calibrated_on_first(work: Workload) -> Workload:
    """The workload with the calibration captions of data set 1 only, so that the second is new to the statistics."""
    pairs = zip(work.calibration_captions, work.calibration_seeds, strict=True)
    kept = [(caption, seed) for caption, seed in pairs if not _is_digit(caption)]
    captions, seeds = zip(*kept, strict=True)
    return replace(work, calibration_captions=captions, calibration_seeds=seeds, calibration=None)


def clips_of(data_set: str, count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Captions and noise seeds of the first ``count`` clips of a data set."""
    first = FIRST_SEED[data_set]
    return CAPTIONS[data_set][:count], tuple(range(first, first + count))


def paper_columns(row: Row) -> Mapping[str, float | None]:
    """The paper's figures of a row by the names that it prints; None where it has no such row."""
    return {title: None if row.paper is None else getattr(row.paper, name) for name, title in COLUMNS.items()}
