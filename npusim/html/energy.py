"""Energy by component, layer, cause and step, and the machine's area, each with low, nominal and high."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from npusim.cost import Range, area, rates, tops_per_watt
from npusim.cost.energy import COMPONENTS, WORK, Energies, as_pj
from npusim.cost.energy import total as sum_of
from npusim.cost.static import ALWAYS, LEAKAGE, MEMORIES
from npusim.html.figure import Picture
from npusim.html.source import RunData, layer_class
from npusim.html.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    drawing,
    legend_below,
    new_figure,
    of_causes,
    shorter,
)
from npusim.html.style import words as cause_words

MOST_CLASSES = 28
BOUNDS = ("low", "nominal", "high")
LOOKS = dict(
    zip(
        COMPONENTS,
        (
            (BLUE, ""), (SKY, "\\\\\\"), (PURPLE, "xxx"), (GREEN, "..."), (ORANGE, "///"), (YELLOW, "ooo"),
            (VERMILION, ""), ("#8C564B", "***"), (GREEN, "///"), (GREY, ""), ("#FFFFFF", "---"),
        ),
        strict=True,
    )
)  # fmt: skip
"""Colour and hatch of each component."""

RANGES = "Bars: nominal; lines: from low to high, as far as the tables' sources lie apart. "
COMPONENT_CAPTION = (
    "Energy of the denoiser for the whole run, by what causes it. " + RANGES + "Counted actions times the tables of "
    "this version in hwconfigs/energy; npusim/cost/README.md says what each component counts and what is left out."
)
LAYER_CAPTION = (
    "One denoising step, nominal, by layer and component. Layers of one name in different blocks are summed. Idle "
    "cells and leakage come with time, which layers share; they are in no bar, but in the next figure. The CSV has "
    "every layer of its own, of the prologue too, with low and high."
)
CAUSE_CAPTION = (
    "Energy that comes with time, for the whole run, nominal, by what each unit did in that time: leakage of its logic "
    "in every cycle, and idle cells or lanes where it is not busy. The memories on the chip leak all the time and "
    "belong to no unit; DMA units have no static power of their own in this model. The CSV has idle and leakage apart, "
    "with low and high."
)
STEP_CAPTION = (
    "Prologue and steps in order of execution, nominal, by component. The CSV has low and high. Steps that run the "
    "same code take the same energy: what data does to it is not modelled."
)
AREA_CAPTION = (
    "Area by part. " + RANGES + "The total has an assumed overhead for control, DMA and wires, a factor that no "
    "single part has. Below: rates, in which low is at the largest area or energy."
)


def by_component(run: RunData) -> Picture:
    """The whole run, a bar for each component and one for their sum."""
    parts = dict(run.energy.by_component)
    rows = [[name, *whole_pj(value)] for name, value in [*parts.items(), ("total", run.energy.total_pj)]]
    with drawing():
        figure = new_figure(9.5, 3.9)
        axis = figure.subplots()
        _ranges(axis, [*parts, "total"], [*parts.values(), run.energy.total_pj], 1e-9)
        axis.set_xlabel("mJ, logarithmic")
        axis.set_xscale("log")
    header = ["component", *(f"energy_{bound}_pj" for bound in BOUNDS)]
    return Picture.of("energy_by_component", "Energy by component", COMPONENT_CAPTION, figure, header, rows)


def by_layer(run: RunData) -> Picture:
    """A bar for each class of layers, those that take most on top."""
    names, step = run.program.layers, run.energy.step
    sums: dict[str, np.ndarray[Any, Any]] = {}
    count = Counter(layer_class(names[number]) for number in step.layers)
    for number, found in step.layers.items():
        name = layer_class(names[number])
        sums[name] = sums.get(name, 0) + np.array([found[component].nominal for component in WORK])
    order = sorted(sums, key=lambda name: (-float(sums[name].sum()), name))
    shown, rest = order[:MOST_CLASSES], order[MOST_CLASSES:]
    bars = [sums[name] for name in shown] + ([np.sum([sums[name] for name in rest], axis=0)] if rest else [])
    labels = [f"{label}  ×{count[name]}" if count[name] > 1 else label
              for name, label in zip(shown, shorter(shown), strict=True)] + ["(others)"] * bool(rest)  # fmt: skip
    with drawing():
        figure = new_figure(11, 1.6 + 0.26 * len(bars))
        axis = figure.subplots()
        _stacked(axis, np.array(bars) / 1e6, WORK, sideways=True)
        axis.set_yticks(range(len(labels)), labels)
        axis.set(ylim=(len(labels) - 0.4, -0.6), xlabel="µJ in one step, nominal")
        axis.grid(axis="x")
        legend_below(figure, axis, len(WORK))
    parts = [("prologue", run.energy.prologue, 1), ("step", step, run.timing.steps)]
    rows = [
        [part, names[number], executions, component, *whole_pj(found[component])]
        for part, energy, executions in parts for number, found in energy.layers.items() for component in WORK
    ]  # fmt: skip
    header = ["part", "layer", "executions", "component", *(f"energy_{bound}_pj" for bound in BOUNDS)]
    return Picture.of("energy_by_layer", "Energy by layer", LAYER_CAPTION, figure, header, rows)


def by_cause(run: RunData) -> Picture:
    """Idle and leakage: a bar for each unit with static power, stacked by cause, and one for the memories."""
    static, ledger = run.energy.static, run.timing.ledger
    units = [unit for unit in static if unit != MEMORIES]
    memories = static[MEMORIES][ALWAYS][LEAKAGE]
    with drawing():
        figure = new_figure(11, 1.9 + 0.5 * len(static))
        axis = figure.subplots()
        before, places = np.zeros(len(units)), np.arange(len(units))
        for cause, colour, hatch in of_causes():
            values = np.array([sum_of(static[unit][cause].values()).nominal for unit in units]) / 1e9
            axis.barh(places, values, 0.7, left=before, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.4,
                      label=cause_words(cause))  # fmt: skip
            before = before + values
        axis.barh([len(units)], [memories.nominal / 1e9], 0.7, color="#8C564B", edgecolor=INK, linewidth=0.4,
                  label="all the time")  # fmt: skip
        axis.set_yticks(range(len(static)), [*units, MEMORIES])
        axis.set(ylim=(len(static) - 0.4, -0.6), xlabel="mJ, nominal")
        axis.grid(axis="x")
        legend_below(figure, axis, 5)
    rows = [
        [unit, cause, run.timing.cycles if unit == MEMORIES else ledger[unit][cause], component, *whole_pj(value)]
        for unit, causes in static.items() for cause, parts in causes.items() for component, value in parts.items()
    ]  # fmt: skip
    header = ["unit", "cause", "cycles", "component", *(f"energy_{bound}_pj" for bound in BOUNDS)]
    return Picture.of("energy_by_cause", "Idle and leakage by cause", CAUSE_CAPTION, figure, header, rows)


def by_step(run: RunData) -> Picture:
    """A bar for the prologue and for each step."""
    energy = run.energy
    codes = [code.by_component for code in energy.codes]
    bars: list[tuple[str, Energies]] = [("prologue", energy.prologue.by_component)]
    bars += [(str(step), codes[number]) for step, number in enumerate(energy.code_of_step)]
    with drawing():
        figure = new_figure(11, 3.6)
        axis = figure.subplots()
        heights = np.array([[part[component].nominal for component in COMPONENTS] for _, part in bars]) / 1e9
        _stacked(axis, heights, COMPONENTS, sideways=False)
        every = -(-len(bars) // 25)
        axis.set_xticks(range(0, len(bars), every), [name for name, _ in bars][::every], rotation=90)
        axis.set(xlabel="part: prologue, or step", ylabel="mJ, nominal")
        axis.grid(axis="y")
        legend_below(figure, axis, len(COMPONENTS) // 2)
    rows = [[name, component, *whole_pj(part[component])] for name, part in bars for component in COMPONENTS]
    header = ["part", "component", *(f"energy_{bound}_pj" for bound in BOUNDS)]
    return Picture.of("energy_by_step", "Energy by step", STEP_CAPTION, figure, header, rows)


def area_picture(run: RunData) -> Picture:
    """The machine's parts; its data ends in the rates of machine and run."""
    size = area(run.program.machine)
    parts = {name.removesuffix("_mm2"): getattr(size, name) for name in vars(size) if name.endswith("_mm2")}
    with drawing():
        figure = new_figure(9.5, 3.1)
        axis = figure.subplots()
        _ranges(axis, [*parts, "total"], [*parts.values(), size.total_mm2], 1)
        axis.set_xlabel(f"mm2 at {size.node_nm} nm, logarithmic")
        axis.set_xscale("log")
    rows = [[name, "mm2", *astuple(value)] for name, value in parts.items()]
    rows += [["overhead", "factor", *astuple(size.overhead)], *rate_rows(run)]
    return Picture.of("area", "Area and rates", AREA_CAPTION, figure, ["figure", "unit", *BOUNDS], rows)


def whole_pj(value: Range) -> list[int]:
    """Low, nominal and high as run.json has them."""
    return list(as_pj(value).values())


def words(name: str) -> str:
    """A component or part in words."""
    return name.replace("_", " ").replace("dram", "DRAM").replace("sram", "SRAM")


def rate_rows(run: RunData) -> list[list[Any]]:
    """(figure, unit, low, nominal, high): the machine's area and rates, and what this run reaches of them."""
    machine, timing, macs = run.program.machine, run.timing, run.timing.traffic.mac_operations
    found = rates(machine)
    reached = 2 * macs / timing.seconds / 1e12
    return [
        ["area", f"mm2 at {found.node_nm} nm", *astuple(found.area_mm2)],
        ["peak, 8-bit", "TOPS", *[machine.peak_tops] * 3],
        ["peak over area", "TOPS/mm2", *astuple(found.tops_per_mm2)],
        ["full array, cells alone", "TOPS/W", *astuple(found.cells_tops_per_watt)],
        ["this run", "TOPS", *[reached] * 3],
        ["this run over area", "TOPS/mm2", *(reached / size for size in astuple(found.area_mm2)[::-1])],
        ["this run, DRAM included", "TOPS/W", *astuple(tops_per_watt(macs, run.energy.total_pj))],
    ]


def _ranges(axis: Axes, names: Sequence[str], values: Sequence[Range], scale: float) -> None:
    """Bars sideways at the nominal values with lines from low to high; what is 0 has none."""
    places = [place for place, value in enumerate(values) if value.nominal]
    nominal, low, high = (
        np.array([getattr(values[place], bound) * scale for place in places]) for bound in ("nominal", "low", "high")
    )
    colours = [ORANGE if names[place] == "total" else BLUE for place in places]
    axis.barh(places, nominal, 0.7, color=colours, edgecolor=INK, linewidth=0.4)
    axis.errorbar(nominal, places, xerr=[nominal - low, high - nominal], fmt="none", ecolor=INK, capsize=4)
    axis.set_yticks(range(len(names)), [words(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="x")


def _stacked(axis: Axes, values: np.ndarray[Any, Any], components: Sequence[str], sideways: bool) -> None:
    """Stacked bars; ``values`` (bars, components)."""
    before, places = np.zeros(len(values)), np.arange(len(values))
    for index, name in enumerate(components):
        colour, hatch = LOOKS[name]
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.4}
        style["label"] = words(name)
        if sideways:
            axis.barh(places, values[:, index], 0.76, left=before, **style)
        else:
            axis.bar(places, values[:, index], 0.86, bottom=before, **style)
        before = before + values[:, index]
