"""The roofline: what each layer reaches, and what the array and the DRAM would let it reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from npusim.config import Machine
from npusim.html.figure import Picture
from npusim.html.source import RunData, groups_by_time, layer_group
from npusim.html.style import BLUE, INK, MARKERS, VERMILION, drawing, new_figure, of_number
from npusim.timing.cost import TRAFFIC
from npusim.trace.part import Part
from npusim.units import of_kind

GROUPS = 6
CAPTION = (
    "Each mark is a layer of one denoising step. Across: operations (two for each multiply-accumulate) per byte that "
    "the layer's own loads and stores move on the DRAM bus; layers that move none stand at the right edge. Up: "
    "operations over the time that the MAC array's queue spends on the layer, working and waiting. The lines are what "
    "the DRAM's peak rate and the array's peak allow, by the operands' bits; attention multiplies 16 by 16 bits unless "
    "asked for 8. A mark may lie a little above the line of the DRAM: its bytes also move while the queue works for "
    "other layers."
)


@dataclass(frozen=True)
class Point:
    """One layer: operations, bytes on the DRAM bus, and cycles of the MAC array's queue, in one execution."""

    part: str
    layer: str
    operations: int
    dram_bytes: int
    mac_queue_cycles: int

    def intensity(self) -> float:
        """Operations per byte; infinite without bytes."""
        return self.operations / self.dram_bytes if self.dram_bytes else np.inf

    def tops(self, clock_hz: int) -> float:
        """Operations per second in units of 1e12."""
        return self.operations * clock_hz / self.mac_queue_cycles / 1e12


def points(part: Part) -> list[Point]:
    """Layers with products, in the order of the code."""
    numbers, first, which = np.unique(part.layer_numbers, return_index=True, return_inverse=True)
    traffic, mac = part.cost.traffic, np.isin(part.cost.unit, of_kind("mac"))
    sums = np.zeros((len(numbers), 3), np.int64)
    queued = np.where(mac, part.causes.sum(axis=1), 0)
    moved = traffic[:, TRAFFIC.index("dram_read_bytes")] + traffic[:, TRAFFIC.index("dram_write_bytes")]
    for column, each in enumerate((2 * traffic[:, TRAFFIC.index("mac_operations")], moved, queued)):
        np.add.at(sums[:, column], which, each)
    places = (place for place in np.argsort(first).tolist() if numbers[place] >= 0 and sums[place, 0])
    return [Point(part.name, part.layer_name(int(numbers[place])), *sums[place].tolist()) for place in places]


def roofline(run: RunData) -> Picture | None:
    """None for a program without products."""
    machine, groups = run.program.machine, groups_by_time(run.step, GROUPS)
    found = points(run.step)
    if not found:
        return None
    finite = [p.intensity() for p in found if p.dram_bytes]
    low, high = min([*finite, 1.0]) / 2, 4 * max([*finite, 2 * machine.peak_tops * 1e12 / _bandwidth(machine)])
    with drawing():
        figure = new_figure(9.5, 5.6)
        axis = figure.subplots()
        _roofs(axis, machine, low, high)
        for index, group in enumerate([*groups, "others"]):
            own = [p for p in found if (layer_group(p.layer) if layer_group(p.layer) in groups else "others") == group]
            if own:
                x = [min(p.intensity(), high) for p in own]
                axis.scatter(
                    x, [p.tops(machine.clock_hz) for p in own], s=48, marker=MARKERS[index], color=of_number(index)[0],
                    edgecolors=INK, linewidths=0.6, label=group, zorder=3,
                )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=(low, high * 1.15))
        axis.set(xlabel="operations per DRAM byte", ylabel="TOPS (1e12 operations per second)")
        axis.grid(which="major")
        axis.legend(loc="lower right", title="layers", alignment="left")
    header = ["part", "layer", "operations", "dram_bytes", "operations_per_dram_byte", "mac_queue_cycles", "tops"]
    rows = [
        [
            p.part, p.layer, p.operations, p.dram_bytes, p.intensity() if p.dram_bytes else "inf", p.mac_queue_cycles,
            p.tops(machine.clock_hz),
        ]
        for part in run.parts.values() for p in points(part)
    ]  # fmt: skip
    return Picture.of("roofline", "Roofline", CAPTION, figure, header, rows)


def _bandwidth(machine: Machine) -> float:
    return machine.dram_bytes_per_cycle * machine.clock_hz


def _roofs(axis: Axes, machine: Machine, low: float, high: float) -> None:
    x = np.geomspace(low, high * 1.15, 400)
    slope = _bandwidth(machine) * x / 1e12
    array = machine.mac_array
    wide, widest = (
        machine.peak_tops * array.pass_cycles_a8w8 / passes
        for passes in (array.pass_cycles_a16w8, array.pass_cycles_a16w16)
    )
    axis.plot(x, np.minimum(slope, machine.peak_tops), color=INK, linewidth=1.8)
    axis.axhline(wide, color=INK, linewidth=1.2, linestyle="--")
    axis.axhline(widest, color=INK, linewidth=1.2, linestyle=":")
    for value, text in ((machine.peak_tops, "8 x 8 bits"), (wide, "16 x 8 bits"), (widest, "16 x 16 bits")):
        axis.annotate(f"{text}: {value:.4g} TOPS", (low * 1.1, value * 1.04), va="bottom", fontsize=9)
    ridge = machine.peak_tops * 1e12 / _bandwidth(machine)
    axis.axvline(ridge, color=VERMILION, linewidth=1, linestyle=":")
    axis.annotate(
        f"ridge: {ridge:.3g} operations per byte", (ridge, 0.02), xycoords=("data", "axes fraction"), rotation=90,
        ha="right", va="bottom", fontsize=9, color=VERMILION,
    )  # fmt: skip
    text = f"DRAM {_bandwidth(machine) / 1e9:.4g} GB/s"
    at = low ** (2 / 3) * ridge ** (1 / 3)
    axis.annotate(
        text, (at, _bandwidth(machine) * at / 1e12), xytext=(8, -8), textcoords="offset points", ha="left", va="top",
        fontsize=9, color=BLUE,
    )  # fmt: skip
