"""The timeline of one step: which unit works on what, the whole step and a stretch of it close up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from npusim.html.figure import Picture
from npusim.html.source import RunData, groups_by_time, layer_group
from npusim.html.style import INK, drawing, new_figure, of_number, thousands
from npusim.trace.part import Part
from npusim.units import UNITS

GROUPS, OTHERS = 6, "others"
PIECES = 3000
"""Neighbours of one group closer than this fraction of the step are drawn as one piece."""
CLOSE_UP = 0.06
NARROW = 400
"""Pieces shorter than this fraction of a panel are drawn without edges."""
CAPTION = (
    "What each unit executes, by group of layers; white is waiting. Instructions of one group that follow each other "
    "closely are drawn as one piece, and the CSV has the pieces as drawn. Below, the stretch around the middle of "
    "the step. `npusim trace` writes every instruction."
)


class Piece(NamedTuple):
    """A run of instructions of one unit and one group of layers; ``busy_cycles`` without the gaps between them."""

    unit: str
    group: str
    start: int
    end: int
    busy_cycles: int
    instructions: int


def pieces(part: Part, gap: int, span: tuple[int, int]) -> list[Piece]:
    """Instructions joined where they are of one unit and group and at most ``gap`` cycles lie between them.

    Only those that overlap ``span``, [first cycle, last cycle).
    """
    found: list[Piece] = []
    names, which = part.by_name(layer_group)
    shown = ~part.cost.barrier & (part.start < span[1]) & (part.end > span[0])
    for unit in part.program.machine.units:
        own = np.flatnonzero(shown & (part.cost.unit == UNITS.index(unit)))
        if not len(own):
            continue
        start, end, group = part.start[own], part.end[own], which[own]
        apart = (group[1:] != group[:-1]) | (start[1:] - end[:-1] > gap)
        first = np.concatenate([[0], 1 + np.flatnonzero(apart)])
        last = np.append(first[1:], len(own)) - 1
        columns = group[first], start[first], end[last], np.add.reduceat(end - start, first), last - first + 1
        for number, *rest in zip(*(column.tolist() for column in columns), strict=True):
            found.append(Piece(unit, names[number], *rest))
    return found


def timeline(run: RunData) -> Picture:
    part, groups = run.step, groups_by_time(run.step, GROUPS)
    total = part.timing.total_cycles
    coarse = pieces(part, total // PIECES, (0, total))
    middle, half = total // 2, max(1, int(total * CLOSE_UP / 2))
    near = middle - half, middle + half
    with drawing():
        figure = new_figure(13, 4.6)
        whole, close = figure.subplots(2, 1)
        _panel(whole, coarse, groups, (0, total), run.units)
        _panel(close, pieces(part, 2 * half // PIECES, near), groups, near, run.units)
        whole.axvspan(*near, facecolor="none", edgecolor=INK, linewidth=1.2, zorder=4)
        whole.set_title("one step")
        close.set_title("the framed stretch")
        close.set_xlabel("cycle of the step")
        names = groups + ([OTHERS] if any(piece.group not in groups for piece in coarse) else [])
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.4, label=name)
            for name, (colour, hatch) in zip(names, map(of_number, range(len(names))), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(names), handlelength=2.2, handleheight=1.2)
    header = ["unit", "layers", "start_cycle", "end_cycle", "busy_cycles", "instructions"]
    return Picture.of("timeline", "Units over one step", CAPTION, figure, header, [list(piece) for piece in coarse])


def _panel(axis: Axes, found: list[Piece], groups: list[str], span: tuple[int, int], units: Sequence[str]) -> None:
    """Pieces too narrow for edges and hatches have their colour alone, which edges would cover."""
    narrow = (span[1] - span[0]) // NARROW
    for index, name in enumerate([*groups, OTHERS]):
        colour, hatch = of_number(index)
        for place, unit in enumerate(units):
            bars = [
                (max(p.start, span[0]), min(p.end, span[1]) - max(p.start, span[0])) for p in found
                if p.unit == unit and (p.group if p.group in groups else OTHERS) == name
                and p.start < span[1] and p.end > span[0]
            ]  # fmt: skip
            plain, wide = [b for b in bars if b[1] < narrow], [b for b in bars if b[1] >= narrow]
            axis.broken_barh(plain, (place - 0.4, 0.8), facecolor=colour, linewidth=0)
            axis.broken_barh(wide, (place - 0.4, 0.8), facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.2)
    axis.set(xlim=span, ylim=(len(units) - 0.45, -0.55))
    axis.set_yticks(range(len(units)), units)
    thousands(axis)
    axis.grid(axis="x")
