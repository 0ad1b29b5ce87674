"""The points that no other beats in every objective, as CSV, Markdown and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from npusim.report import csv_bytes
from npusim.sweep.space import Direction

Row = Mapping[str, Any]


def front(rows: Sequence[Row], objectives: Mapping[str, Direction]) -> list[Row]:
    """Rows with a number for every objective that no other row beats in one without losing in another."""
    found = _known(rows, list(objectives))
    if not found:
        return []
    signs = np.array([1.0 if way == "min" else -1.0 for way in objectives.values()])
    values = np.array([[float(row[name]) for name in objectives] for row in found]) * signs
    kept = [
        index for index, own in enumerate(values)
        if not ((values <= own).all(axis=1) & (values < own).any(axis=1)).any()
    ]  # fmt: skip

    def order(row: Row) -> list[float]:
        return [sign * float(row[name]) for name, sign in zip(objectives, signs.tolist(), strict=True)]

    return sorted((found[index] for index in kept), key=order)


def table(rows: Sequence[Row], columns: Sequence[str]) -> tuple[bytes, bytes]:
    """CSV and Markdown."""
    cells = [["n/a" if row.get(name) is None else row[name] for name in columns] for row in rows]
    shown = [[f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in line] for line in cells]
    lines = [list(columns), ["---"] * len(columns), *shown]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return csv_bytes(columns, cells), text.encode()


def plot(rows: Sequence[Row], best: Sequence[Row], objectives: Mapping[str, Direction]) -> bytes | None:
    """All points and the front, a panel for the first objective with each other one, as PNG; None without a second."""
    from npusim.html.style import BLUE, GREY, INK, drawing, png

    first, *others = objectives
    panels = [(other, _known(rows, (first, other))) for other in others]
    panels = [(other, points) for other, points in panels if points]
    if not panels:
        return None
    with drawing():
        figure = Figure(figsize=(3 + 5 * len(panels), 5.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        styles: tuple[dict[str, Any], ...] = (
            {"color": GREY, "s": 30, "label": "points"},
            {"color": BLUE, "s": 60, "marker": "D", "label": "no other is better in all"},
        )
        for axis, (other, points) in zip(axes, panels, strict=True):
            for some, style in zip((points, best), styles, strict=True):
                axis.scatter([row[first] for row in some], [row[other] for row in some], edgecolors=INK, linewidths=0.5,
                             **style)  # fmt: skip
            axis.set(xlabel=f"{first} ({objectives[first]})", ylabel=f"{other} ({objectives[other]})")
            axis.grid()
        axes[0].legend()
        return png(figure)


def _known(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Rows with a number for each of ``names``."""
    return [row for row in rows if all(isinstance(row.get(name), int | float) for name in names)]
