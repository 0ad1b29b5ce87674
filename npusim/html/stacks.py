"""Cycles by cause, stacked: a bar for each class of layers, and one for each step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from npusim.html.figure import Picture
from npusim.html.source import RunData, layer_class
from npusim.html.style import INK, drawing, legend_below, new_figure, of_causes, shorter, thousands, words
from npusim.timing import CAUSES
from npusim.trace.part import Int64, Part
from npusim.units import UNITS

MOST_CLASSES = 28
BARRIER = "(barrier)"

LAYERS_CAPTION = (
    "One denoising step, with parameter swap the first. For each unit that the program uses, the cycles from the end "
    "of its last instruction to the end of this one, by what the unit did. Layers of one name in different blocks are "
    "summed; waiting belongs to the layer that waited. Each panel adds up to the step's cycles. The CSV has every "
    "layer of its own."
)
STEPS_CAPTION = (
    "Prologue and steps in order of execution; every bar of a unit is as high as the part is long. Steps run the same "
    "code and are equal to the cycle unless parameters are swapped."
)


def by_layer(part: Part) -> dict[str, Int64]:
    """Cycles (units, causes) by layer in the order of the code, barriers last; each unit's sum is the ledger's."""
    names, which = part.by_name()
    units = part.program.machine.units
    sums = np.zeros((len(names), len(UNITS), len(CAUSES)), np.int64)
    own = ~part.cost.barrier
    for cause in range(len(CAUSES)):
        np.add.at(sums[:, :, cause], (which[own], part.cost.unit[own]), part.causes[own, cause])
    tables = sums[:, [UNITS.index(unit) for unit in units]]
    ledger = np.array([[part.timing.ledger[unit][cause] for cause in CAUSES] for unit in units])
    found = {name: table for name, table in zip(names, tables, strict=True) if name}
    return found | {BARRIER: ledger - tables.sum(axis=0)}


def layers_picture(run: RunData) -> Picture:
    """A panel for each unit, a bar for each class of layers, those that keep a unit busy longest on top."""
    tables, units = by_layer(run.step), run.program.machine.units
    classes: dict[str, Int64] = {}
    count = Counter(map(layer_class, tables))
    for name, table in tables.items():
        classes[layer_class(name)] = classes.get(layer_class(name), 0) + table
    busy = CAUSES.index("busy")
    names = sorted(classes, key=lambda name: (-int(classes[name][:, busy].max()), name))
    shown = names[:MOST_CLASSES]
    if rest := names[MOST_CLASSES:]:
        classes["(others)"] = np.sum([classes[name] for name in rest], axis=0)
        shown.append("(others)")
    labels = [f"{label}  ×{count[name]}" if count[name] > 1 else label for name, label in
              zip(shown, shorter(shown), strict=True)]  # fmt: skip
    with drawing():
        figure = new_figure(13, 1.6 + 0.26 * len(shown))
        axes = figure.subplots(1, len(run.units), sharey=True, squeeze=False)[0]
        for unit, axis in zip(map(units.index, run.units), axes, strict=True):
            _bars(axis, np.arange(len(shown)), np.array([classes[name][unit] for name in shown]), sideways=True)
            axis.set_title(units[unit])
            axis.set_xlabel("cycles of one step")
            thousands(axis)
            axis.tick_params(axis="x", labelrotation=30)
            axis.grid(axis="x")
        axes[0].set_yticks(np.arange(len(shown)), labels)
        axes[0].set_ylim(len(shown) - 0.4, -0.6)
        legend_below(figure, axes[0], len(CAUSES))
    rows = [
        [part.name, name, part.executions, unit, *table[u].tolist()]
        for part in run.parts.values() for name, table in by_layer(part).items() for u, unit in enumerate(units)
        if unit in run.units
    ]  # fmt: skip
    header = ["part", "layer", "executions", "unit", *(f"{cause}_cycles" for cause in CAUSES)]
    return Picture.of("causes_by_layer", "Cycles by cause and layer", LAYERS_CAPTION, figure, header, rows)


def steps_picture(run: RunData) -> Picture:
    """A panel for each unit, a bar for the prologue and for each step."""
    bars, units = run.ledgers, run.units
    with drawing():
        figure = new_figure(13, 3.4)
        axes = figure.subplots(1, len(units), sharey=True, squeeze=False)[0]
        for axis, unit in zip(axes, units, strict=True):
            heights = np.array([[ledger[unit][cause] for cause in CAUSES] for _, ledger in bars])
            _bars(axis, np.arange(len(bars)), heights, sideways=False)
            axis.set_title(unit)
            every = -(-len(bars) // 12)
            axis.set_xticks(range(0, len(bars), every), [name for name, _ in bars][::every], rotation=90)
            axis.set_xlabel("part: prologue, or step")
            axis.grid(axis="y")
        axes[0].set_ylabel("cycles")
        thousands(axes[0], "y")
        legend_below(figure, axes[0], len(CAUSES))
    rows = [[name, unit, *ledger[unit].values()] for name, ledger in bars for unit in units]
    header = ["part", "unit", *(f"{cause}_cycles" for cause in CAUSES)]
    return Picture.of("causes_by_step", "Cycles by cause and step", STEPS_CAPTION, figure, header, rows)


def _bars(axis: Axes, places: Int64, cycles: Int64, sideways: bool) -> None:
    """Stacked bars; ``cycles`` (bars, causes)."""
    before = np.zeros(len(places), np.int64)
    for cause, (name, colour, hatch) in enumerate(of_causes()):
        values = cycles[:, cause]
        style: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": INK,
            "linewidth": 0.4,
            "label": words(name),
        }
        if sideways:
            axis.barh(places, values, 0.76, left=before, **style)
        else:
            axis.bar(places, values, 0.86, bottom=before, **style)
        before = before + values
