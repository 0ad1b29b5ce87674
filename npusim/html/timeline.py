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


def pieces(part: Part, gap: int) -> list[Piece]:
    """Instructions joined where they are of one unit and group and at most ``gap`` cycles lie between them."""
    found: list[Piece] = []
    start, end = part.start.tolist(), part.end.tolist()
    for unit in part.program.machine.units:
        open_piece: Piece | None = None
        for index in np.flatnonzero((part.cost.unit == UNITS.index(unit)) & ~part.cost.barrier).tolist():
            group, lasted = layer_group(part.layer(index)), end[index] - start[index]
            if open_piece and open_piece.group == group and start[index] - open_piece.end <= gap:
                open_piece = open_piece._replace(
                    end=end[index],
                    busy_cycles=open_piece.busy_cycles + lasted,
                    instructions=open_piece.instructions + 1,
                )
            else:
                found += [open_piece] if open_piece else []
                open_piece = Piece(unit, group, start[index], end[index], lasted, 1)
        found += [open_piece] if open_piece else []
    return found


def timeline(run: RunData) -> Picture:
    part, groups = run.step, groups_by_time(run.step, GROUPS)
    total = part.timing.total_cycles
    coarse = pieces(part, total // PIECES)
    middle, half = total // 2, max(1, int(total * CLOSE_UP / 2))
    near = middle - half, middle + half
    with drawing():
        figure = new_figure(13, 4.6)
        whole, close = figure.subplots(2, 1)
        units = part.program.machine.units
        _panel(whole, coarse, groups, (0, total), units)
        _panel(close, pieces(part, 2 * half // PIECES), groups, near, units)
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
    for index, name in enumerate([*groups, OTHERS]):
        colour, hatch = of_number(index)
        for place, unit in enumerate(units):
            bars = [
                (max(p.start, span[0]), min(p.end, span[1]) - max(p.start, span[0])) for p in found
                if p.unit == unit and (p.group if p.group in groups else OTHERS) == name
                and p.start < span[1] and p.end > span[0]
            ]  # fmt: skip
            axis.broken_barh(bars, (place - 0.4, 0.8), facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.2)
    axis.set(xlim=span, ylim=(len(units) - 0.45, -0.55))
    axis.set_yticks(range(len(units)), units)
    thousands(axis)
    axis.grid(axis="x")
