# %% [markdown]
# # 5. Bring your own machine
#
# A machine is one YAML file, and nothing about a machine is set anywhere else: the compiler plans with it, the
# simulator computes the bits with it and counts the cycles. This notebook begins a machine from a known one, makes a
# mistake on purpose, puts the machine beside its neighbours, and then asks what a designer asks: *which resource is
# worth its area?*
#
# Only timing, so no weights are needed. Two minutes on one core.

# %% tags=["parameters"]
import os
from pathlib import Path

# The tests execute this notebook on the workload `tiny`.
FAST = bool(os.environ.get("NPUSIM_NOTEBOOKS_FAST"))
WORKLOAD = "tiny" if FAST else "emoji"
FOLDER = Path("machines")  # beside where this notebook is executed

# %%
import shutil
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from npusim.config import load_machine
from npusim.cost import area
from npusim.errors import UserError
from npusim.html.style import BLUE, GREEN, MARKERS, ORANGE, SETTINGS, VERMILION
from npusim.hw import changed, derive, list_machines, new_machine
from npusim.run import run_timing

plt.rcParams.update(SETTINGS)
NODE_NM = 16  # areas of all machines are compared at one node

# %% [markdown]
# ## 1. Begin from the nearest machine
#
# `new_machine` copies a file with its comments under a new name. Here: something between a microcontroller's NPU and
# a phone's, with half the MACs of the template and more SRAM.

# %%
shutil.rmtree(FOLDER, ignore_errors=True)
path = new_machine("my_npu", "ethos_u85_like", FOLDER)
text = path.read_text()
for old, new in (
    ("  rows: 32 ", "  rows: 16 "),
    ("capacity_bytes: 524288 ", "capacity_bytes: 1048576 "),
):
    assert text.count(old) == 1
    text = text.replace(old, new)
path.write_text(text)
mine = load_machine(path)
print(
    f"{mine.name}: {mine.mac_array.rows * mine.mac_array.cols} MACs, {mine.sram.capacity_bytes / 1024:.0f} KiB of SRAM"
)

# %% [markdown]
# A mistake is answered with file, line, field and what is allowed. Values that are fine by themselves and do not fit
# together are refused, too.

# %%
wrong = path.with_name("wrong.yaml")
for old, new in (
    ("  lanes: 64 ", "  lane: 64 "),
    ("  banks: 4 ", "  banks: 3 "),
    ("  acc_bits: 32 ", "  acc_bits: 40 "),
):
    wrong.write_text(text.replace(old, new))
    try:
        load_machine(wrong)
        raise AssertionError(f"{new} must be refused")
    except UserError as error:
        print(error, end="\n\n")
wrong.unlink()

# %% [markdown]
# ## 2. Beside its neighbours
#
# What follows from the fields alone. The ridge point says from how many products per byte of DRAM on the array is the
# limit: below it a layer waits for memory however large the array is.

# %%
machines = {machine.name: machine for machine in [mine, *list_machines().values()]}
table = [
    "| machine | TOPS | GB/s | SRAM, KiB | ridge, MACs/byte | mm2 at 16 nm |",
    "| --- | --- | --- | --- | --- | --- |",
]
for name, machine in machines.items():
    figures, mm2 = derive(machine), area(machine, NODE_NM).total_mm2
    table.append(
        f"| `{name}` | {figures.peak_tops:.3g} | {figures.dram_gb_per_second:.3g} "
        f"| {machine.sram.capacity_bytes // 1024} "
        f"| {figures.ridge_macs_per_dram_byte:.1f} | {mm2.nominal:.2f} ({mm2.low:.2f} to {mm2.high:.2f}) |"
    )
Markdown("\n".join(table))

# %% [markdown]
# And what the workload makes of it. The first answer is a refusal, and a useful one: with queries and keys of 16 bits
# the sums of attention do not fit accumulators of 32 bits. The compiler proves that from the widths, before anything
# runs.

# %%
try:
    run_timing(WORKLOAD, mine)
    raise AssertionError("must be refused")
except UserError as error:
    print(error)

# %% [markdown]
# So either the accumulators grow, and the requantizer's multipliers shrink to 16 bits, or queries, keys and values
# get 8 bits. What that costs in fidelity is a question for notebook 3; here all machines run 8-bit attention, which
# all of them can.

# %%
ATTENTION_BITS = 8
results = {name: run_timing(WORKLOAD, machine, attention_bits=ATTENTION_BITS) for name, machine in machines.items()}
table = ["| machine | ms | MAC utilisation | DRAM, MB | energy, mJ |", "| --- | --- | --- | --- | --- |"]
for name, result in results.items():
    timing, energy = result.timing, result.energy.total_pj
    moved = (timing.traffic.dram_read_bytes + timing.traffic.dram_write_bytes) / 1e6
    table.append(
        f"| `{name}` | {timing.seconds * 1e3:,.2f} | {timing.mac_utilisation:.1%} | {moved:,.1f} "
        f"| {energy.nominal / 1e9:,.2f} ({energy.low / 1e9:.3g} to {energy.high / 1e9:.3g}) |"
    )
Markdown("\n".join(table))

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
milliseconds = {name: result.timing.seconds * 1e3 for name, result in results.items()}
for marker, name in zip(MARKERS, results, strict=False):
    machine = machines[name]
    colour = VERMILION if name == mine.name else BLUE
    axis.scatter(machine.peak_tops, milliseconds[name], marker=marker, color=colour, s=60, zorder=3)
    axis.annotate(
        name, (machine.peak_tops, result.timing.seconds * 1e3), (7, -3), textcoords="offset points", fontsize=8
    )
peak = np.array(sorted(machines[name].peak_tops for name in results))
products = results[mine.name].timing.traffic.mac_operations
axis.plot(
    peak, 2 * products / (peak * 1e12) * 1e3, color="#1a1a1a", linestyle=":", label="all cells busy with products"
)
axis.set(xscale="log", yscale="log", xlabel="peak, TOPS", ylabel="ms of one video")
axis.margins(x=0.15)
axis.legend()
axis.grid()
plt.show()

# %% [markdown]
# The distance to the dotted line is utilisation. It grows to the right: a larger array is harder to fill.

# %%
assert all(
    result.timing.seconds * machines[name].peak_tops * 1e12 >= 2 * result.timing.traffic.mac_operations
    for name, result in results.items()
), "no machine is faster than its cells"

# %% [markdown]
# ## 3. Which resource is worth its area
#
# Double one resource at a time. What is gained is time; what it costs is area, or, for the DRAM, pins and power that
# no square millimetre shows. A wider SRAM port takes wider or more macros, so it has an area, too. `hw.changed`
# checks each variant as a file would be checked.

# %%
DOUBLED = {
    "columns of the array": {"mac_array.cols": 2 * mine.mac_array.cols},
    "rows of the array": {"mac_array.rows": 2 * mine.mac_array.rows},
    "lanes": {"vector_unit.lanes": 2 * mine.vector_unit.lanes},
    "SRAM capacity": {"sram.capacity_bytes": 2 * mine.sram.capacity_bytes},
    "SRAM port width": {"sram.bytes_per_cycle": 2 * mine.sram.bytes_per_cycle},
    "DRAM channels": {"dram.channels": 2 * mine.dram.channels},
    "parameter memory": {"param_memory.capacity_bytes": 2 * mine.param_memory.capacity_bytes},
}
WITHOUT_AREA = ("DRAM channels",)  # pins are in no area of this model
before, before_mm2 = results[mine.name].timing.cycles, area(mine, NODE_NM).total_mm2.nominal
faster, larger = {}, {}
for name, fields in DOUBLED.items():
    variant = changed(mine, fields)
    faster[name] = before / run_timing(WORKLOAD, variant, attention_bits=ATTENTION_BITS).timing.cycles - 1
    larger[name] = area(variant, NODE_NM).total_mm2.nominal / before_mm2 - 1

order = sorted(DOUBLED, key=lambda name: -faster[name])
figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
y = np.arange(len(order))
axis.barh(y - 0.2, [100 * faster[name] for name in order], 0.38, color=BLUE, label="speed")
axis.barh(
    y + 0.2, [100 * larger[name] for name in order], 0.38, color=ORANGE, hatch="///", edgecolor="white", label="area"
)
axis.set(yticks=y, yticklabels=order, xlabel="% more, for twice the resource")
for row, name in enumerate(order):
    if name in WITHOUT_AREA:
        axis.text(0.5, row + 0.2, "area n/a", va="center", fontsize=8)
axis.axvline(0, color="#1a1a1a", linewidth=0.8)
axis.invert_yaxis()
axis.legend()
axis.grid(axis="x")
plt.show()

# %% [markdown]
# A resource is worth its area where blue is longer than orange. What gains nothing is not useless: it is not the
# bottleneck *now*. A little below zero is no error either: with other channels, other requests meet in a bank. After
# doubling the first in the list, the order is another one, so a search goes one step at a time:

# %%
steps = [("as it is", mine, before, before_mm2)]
for _ in range(2 if FAST else 4):
    _, machine, cycles, mm2 = steps[-1]
    tried = []
    for name, fields in DOUBLED.items():
        if name in (*WITHOUT_AREA, "SRAM port width"):  # the table of macros has too few widths to search by
            continue
        (field,) = fields
        section, last = field.split(".")
        variant = changed(machine, {field: 2 * getattr(getattr(machine, section), last)})
        now, size = (
            run_timing(WORKLOAD, variant, attention_bits=ATTENTION_BITS).timing.cycles,
            area(variant, NODE_NM).total_mm2.nominal,
        )
        tried.append((np.log(cycles / now) / np.log(size / mm2), f"2 x {name}", variant, now, size))
    gain, *best = max(tried, key=lambda one: one[0])
    if gain <= 0:
        break
    steps.append(tuple(best))

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
x, y = [size for *_, size in steps], [cycles / machine.clock_hz * 1e3 for _, machine, cycles, _ in steps]
axis.plot(x, y, "o-", color=BLUE)
for (name, *_), *place in zip(steps, x, y, strict=True):
    axis.annotate(name, place, (6, 5), textcoords="offset points", fontsize=9)
curve = np.linspace(x[0], x[-1], 50)
axis.plot(curve, y[0] * x[0] / curve, color=GREEN, linestyle=":", label="time times area constant")
axis.set(xlabel="area at 16 nm, mm2 (nominal)", ylabel="ms of one video", title="the best doubling, again and again")
axis.margins(x=0.2, y=0.15)
axis.legend()
axis.grid()
plt.show()
assert all(later[2] < earlier[2] for earlier, later in pairwise(steps)), "each step is faster"

# %% [markdown]
# Where the blue line is steeper than the dotted curve, area buys more than its share of time; where it runs flatter,
# two small NPUs would do better than one large. Areas are ranges of a factor of several (`npusim/cost`), but mostly
# of *all* parts at once, so ratios are safer than millimetres.
#
# ## 4. Larger searches
#
# `npusim sweep` does this for grids, random points and NSGA-II, resumably and in many processes;
# `hwconfigs/sweeps/tiny.yaml` is a file to begin from. A point that compiles says nothing about bits: run it once
# with `npusim.run(..., verify="2")`, and write what you decide into the machine's file, with its source or the word
# "assumption" behind each value.
