"""Parameter swap by step: every column of ``swap.csv`` that counts cycles, stacked."""

from __future__ import annotations

from npusim.html.fidelity import value
from npusim.html.figure import Picture
from npusim.html.source import RunData
from npusim.html.style import INK, drawing, new_figure, of_number, thousands

SUFFIX = "_cycles"
PREFERRED = ("hidden_cycles", "exposed_cycles")
CAPTION = "Cycles of parameter swap as swap.csv has them, by step: hidden behind computation, or exposed."


def swap(run: RunData) -> Picture | None:
    """None where the run folder has no swap.csv, or one without columns of cycles."""
    if not run.swap:
        return None
    columns = [name for name in run.swap[0] if name.endswith(SUFFIX)]
    shown = [name for name in columns if name.endswith(PREFERRED)] or columns
    if not shown:
        return None
    places = range(len(run.swap))
    with drawing():
        figure = new_figure(13, 3.4)
        axis = figure.subplots()
        before = [0.0] * len(run.swap)
        for index, name in enumerate(shown):
            heights = [value(row[name]) or 0.0 for row in run.swap]
            colour, hatch = of_number(index)
            axis.bar(places, heights, 0.8, bottom=before, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.4,
                     label=name.removesuffix(SUFFIX).replace("_", " "))  # fmt: skip
            before = [a + b for a, b in zip(before, heights, strict=True)]
        first = next(iter(run.swap[0]))
        every = -(-len(run.swap) // 40)
        axis.set_xticks(list(places)[::every], [row[first] for row in run.swap][::every])
        axis.set(xlabel=first.replace("_", " "), ylabel="cycles")
        thousands(axis, "y")
        axis.grid(axis="y")
        axis.legend()
    header = list(run.swap[0])
    return Picture.of("swap", "Parameter swap", CAPTION, figure, header, [list(row.values()) for row in run.swap])
