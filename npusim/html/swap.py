"""Parameter swap by step: cycles of the storage unit, hidden behind computation or exposed."""

from __future__ import annotations

from npusim.html.fidelity import value
from npusim.html.figure import Picture
from npusim.html.source import RunData
from npusim.html.style import INK, drawing, new_figure, of_number, thousands

COLUMNS = ("hidden_cycles", "exposed_cycles")
CAPTION = (
    "Cycles of parameter swap in the prologue and in each step. Exposed: how much longer the part takes than the same "
    "code without fetches. Hidden: other busy cycles of the storage unit, beside which something else was done. The "
    "CSV has the bytes and the energy of the fetches, too."
)


def swap(run: RunData) -> Picture | None:
    """None where the run folder has no swap.csv, as of a run whose sets all lie in DRAM."""
    if not run.swap:
        return None
    places = range(len(run.swap))
    with drawing():
        figure = new_figure(13, 3.4)
        axis = figure.subplots()
        before = [0.0] * len(run.swap)
        for index, name in enumerate(COLUMNS):
            heights = [value(row.get(name)) or 0.0 for row in run.swap]
            colour, hatch = of_number(index)
            axis.bar(places, heights, 0.8, bottom=before, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.4,
                     label=name.removesuffix("_cycles"))  # fmt: skip
            before = [a + b for a, b in zip(before, heights, strict=True)]
        first = next(iter(run.swap[0]))
        every = -(-len(run.swap) // 40)
        axis.set_xticks(list(places)[::every], [row[first] for row in run.swap][::every], rotation=90)
        axis.set(xlabel="part: prologue, or step", ylabel="cycles")
        thousands(axis, "y")
        axis.grid(axis="y")
        axis.legend()
    header = list(run.swap[0])
    return Picture.of("swap", "Parameter swap", CAPTION, figure, header, [list(row.values()) for row in run.swap])
