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
    found = [row for row in rows if all(isinstance(row.get(name), int | float) for name in objectives)]
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
    """All points and the front over the first two objectives, as PNG; None with fewer than two."""
    from npusim.html.style import BLUE, GREY, INK, drawing, png

    names = list(objectives)[:2]
    points = [row for row in rows if all(isinstance(row.get(name), int | float) for name in names)]
    if len(names) < 2 or not points:
        return None
    with drawing():
        figure = Figure(figsize=(8, 5.4), layout="constrained")
        axis = figure.subplots()
        styles: tuple[dict[str, Any], ...] = (
            {"color": GREY, "s": 30, "label": "points"},
            {"color": BLUE, "s": 60, "marker": "D", "label": "no other is better in all"},
        )
        for some, style in zip((points, best), styles, strict=True):
            x, y = ([row[name] for row in some] for name in names)
            axis.scatter(x, y, edgecolors=INK, linewidths=0.5, **style)
        axis.set(xlabel=f"{names[0]} ({objectives[names[0]]})", ylabel=f"{names[1]} ({objectives[names[1]]})")
        axis.grid()
        axis.legend()
        return png(figure)
