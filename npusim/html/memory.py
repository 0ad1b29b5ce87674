"""Memories over one step: what SRAM holds, and how busy the DRAM's bus is."""

from __future__ import annotations

import numpy as np

from npusim.html.figure import Picture
from npusim.html.source import RunData
from npusim.html.style import BLUE, INK, ORANGE, SKY, drawing, new_figure, thousands
from npusim.trace.counters import RATES, mean_by_bin, most_by_bin, rate
from npusim.trace.occupancy import occupancy

BINS = 800
CAPTION = (
    "Above: bytes of SRAM that hold something still needed, from the start of the instruction that writes them to the "
    "end of the last one that reads them; the most within each bin. Gaps between an operand's rows count as its bytes. "
    "Below: bytes per cycle on the DRAM bus, each transfer spread evenly over its time; the mean within each bin."
)


def memory(run: RunData) -> Picture:
    part, machine = run.step, run.program.machine
    total = part.timing.total_cycles
    edges = np.linspace(0, total, min(BINS, total) + 1).astype(np.int64)
    held = most_by_bin(occupancy(part), edges)
    moved = {name: mean_by_bin(rate(part, column), edges) for name, column in RATES.items() if name.startswith("DRAM")}
    read, written = moved.values()
    capacity = machine.sram.capacity_bytes
    with drawing():
        figure = new_figure(13, 4.8)
        above, below = figure.subplots(2, 1, sharex=True)
        above.stairs(held / 1024, edges, fill=True, color=SKY)
        above.stairs(held / 1024, edges, color=BLUE, linewidth=1)
        above.axhline(capacity / 1024, color=INK, linestyle="--", linewidth=1.2)
        above.annotate(
            f"capacity {capacity / 1024:,.0f} KiB", (0.995, capacity / 1024), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=9,
        )  # fmt: skip
        above.set(ylim=(0, capacity / 1024 * 1.12), ylabel="SRAM held, KiB")
        below.stairs(read, edges, fill=True, color=BLUE, label="read")
        below.stairs(read + written, edges, baseline=read, fill=True, color=ORANGE, hatch="///", label="written")
        peak = machine.dram_bytes_per_cycle
        below.axhline(peak, color=INK, linestyle="--", linewidth=1.2)
        below.annotate(
            f"peak {peak:.4g} bytes per cycle", (0.995, peak), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", fontsize=9,
        )  # fmt: skip
        below.set(xlim=(0, total), ylim=(0, peak * 1.15), xlabel="cycle of the step", ylabel="DRAM, bytes per cycle")
        below.legend(loc="upper left", ncols=2)
        for axis in (above, below):
            axis.grid(axis="y")
            thousands(axis)
    header = ["start_cycle", "end_cycle", "sram_held_bytes_most", "dram_read_bytes_per_cycle",
              "dram_write_bytes_per_cycle"]  # fmt: skip
    table = zip(edges[:-1].tolist(), edges[1:].tolist(), held.astype(int).tolist(), read.tolist(), written.tolist(),
                strict=True)  # fmt: skip
    return Picture.of("memory", "Memories over one step", CAPTION, figure, header, table)
