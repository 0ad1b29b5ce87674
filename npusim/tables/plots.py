"""Pictures of the tables: points with intervals, activation ranges over the steps, contact sheets of clips."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from models.metrics import MeanInterval
from models.sample import Frames
from models.stats import CalibrationStats
from npusim import pictures
from npusim.tables.cells import BITS, SHEET_CLIPS, Table, clips_of
from npusim.tables.inputs import Inputs

COLUMNS = 4
DPI = 100
SHEET_BITS_CLIPS = 2
"""Captions of the sheet by bit width, which has a column for each method."""
SHEET_LABEL_WIDTH = 150
SHOWN_LAYERS = ("attn.qkv", "attn_temp.qkv", "cross_attn.q_linear", "mlp.fc1", "mlp.fc2")


def table_plot(
    table: Table, rows: Sequence[Mapping[str, MeanInterval | None]], metrics: Mapping[str, tuple[str, int]]
) -> bytes:
    """A panel for each metric: a table's rows from left to right, means with their intervals, as PNG.

    Rows of one line are joined. What is infinite or not measured has no point.
    """
    positions = list(dict.fromkeys(row.x for row in table.rows if not row.average))
    lines = list(dict.fromkeys(row.line for row in table.rows))
    height = -(-len(metrics) // COLUMNS)
    figure = Figure(figsize=(4.5 * COLUMNS, 4 * height), layout="constrained")
    figure.suptitle(f"Table {table.numeral}: {table.title}")
    axes = figure.subplots(height, COLUMNS, squeeze=False).reshape(-1)
    for axis, (name, (title, _)) in zip(axes, metrics.items(), strict=False):
        axis.set_title(title)
        axis.set_xticks(range(len(positions)), positions, rotation=0 if len(lines) > 1 else 90)
        axis.set_xlabel(table.x_label)
        axis.grid(alpha=0.3)
        for number, line in enumerate(lines):
            points = [
                (positions.index(row.x), value)
                for row, found in zip(table.rows, rows, strict=True)
                if row.line == line
                and not row.average
                and (value := found[name]) is not None
                and np.isfinite(value).all()
            ]
            x = [position + 0.06 * (number - (len(lines) - 1) / 2) for position, _ in points]
            y = np.array([value for _, value in points]).reshape(-1, 3).T
            errors = np.abs(y[1:] - y[0])
            style = "o-" if len(lines) > 1 and len(points) > 1 else "o"
            axis.errorbar(x, y[0], errors, fmt=style, markersize=4, linewidth=1, capsize=2, label=line)
    for axis in axes[len(metrics) :]:
        axis.set_axis_off()
    if len(lines) > 1:
        axes[len(metrics)].legend(*axes[0].get_legend_handles_labels(), loc="center")
    return _png(figure)


def ranges_plot(stats: CalibrationStats) -> bytes:
    """Least and greatest input by step, over both branches, of some linears in the first, middle and last block."""
    depth = 1 + max(int(point.split(".")[1]) for point in stats.minimum if point.startswith("blocks."))
    blocks = sorted({0, depth // 2, depth - 1})
    figure = Figure(figsize=(3.6 * len(SHOWN_LAYERS), 2.6 * len(blocks)), layout="constrained")
    figure.suptitle("Inputs of linears over the denoising steps: least and greatest, both branches")
    axes = figure.subplots(len(blocks), len(SHOWN_LAYERS), squeeze=False, sharex=True)
    for row, block in enumerate(blocks):
        for axis, layer in zip(axes[row], SHOWN_LAYERS, strict=True):
            point = f"blocks.{block}.{layer}:in"
            steps = np.arange(stats.steps)
            low, high = stats.minimum[point].min(axis=1), stats.maximum[point].max(axis=1)
            axis.fill_between(steps, low, high, step="mid", alpha=0.4)
            axis.axhline(low.min(), linestyle=":", linewidth=1)
            axis.axhline(high.max(), linestyle=":", linewidth=1)
            axis.set_title(f"blocks.{block}.{layer}", fontsize=9)
            if row == len(blocks) - 1:
                axis.set_xlabel("step (0 is the noisiest)")
    return _png(figure)


def sheet_by_row(inputs: Inputs, data_set: str, rows: Mapping[str, Frames | None]) -> bytes | None:
    """The first captions side by side, one row of clips for each of ``rows`` that is measured; None if none is."""
    known = {name: frames for name, frames in rows.items() if frames is not None}
    captions, _ = clips_of(data_set, min(SHEET_CLIPS, inputs.setup.clips))
    columns = {caption: {name: frames[i] for name, frames in known.items()} for i, caption in enumerate(captions)}
    return pictures.contact_sheet(columns, label_width=SHEET_LABEL_WIDTH) if known else None


def sheet_by_bits(inputs: Inputs, clips: Mapping[tuple[str, str], Frames | None]) -> bytes | None:
    """A column for each method and caption, a row for each bit width; None unless all cells are measured.

    clips: by (method, bits), frames (n, T, H, W, 3) uint8. A method that has no cell at some bits shows a white clip.
    """
    if any(frames is None for frames in clips.values()):
        return None
    blank = np.full_like(next(frames for frames in clips.values() if frames is not None)[0], 255)
    captions, _ = clips_of("emoji", min(SHEET_BITS_CLIPS, inputs.setup.clips))
    bits = [f"{weights}/{activations}" for weights, activations in BITS]
    columns: dict[str, dict[str, Frames]] = {}
    for index, caption in enumerate(captions):
        for method in dict.fromkeys(method for method, _ in clips):
            found = {each: clips.get((method, each)) for each in bits}
            columns[f"{method}: {caption}"] = {b: blank if f is None else f[index] for b, f in found.items()}
    return pictures.contact_sheet(columns, across=len(columns) // len(captions))


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()
