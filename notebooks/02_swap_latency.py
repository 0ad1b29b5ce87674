# %% [markdown]
# # 2. Swapping parameter sets: what hides, what does not, and how many time ranges to have
#
# Static quantization per *time range* keeps one set of scales (and, with smoothing, one set of weights) for each
# group of denoising steps. The paper ends on what that costs in hardware: models must be swapped between steps, the
# time of loading has to be hidden somehow, and the number of ranges must be weighed against it. This notebook answers
# for a described machine:
#
# 1. What is swapped, and how large is it?
# 2. Which policy hides how much, at which number of ranges?
# 3. What must the storage deliver?
# 4. What happens on a larger or a smaller machine?
#
# Nothing here needs weights: a program's structure and its time follow from shapes, method and machine. So each
# program is compiled from an *outline*. Every time is of a program that really fetches, with FETCH instructions on a
# unit of their own, timed with the rest; the rate that hides everything is found by bisection. It takes about five
# minutes on one core.

# %% tags=["parameters"]
import os

# The tests execute this notebook on the workload `tiny`: 4 steps of a very small network.
FAST = bool(os.environ.get("NPUSIM_NOTEBOOKS_FAST"))
WORKLOAD = "tiny" if FAST else "emoji"
MACHINE = "tiny_8x8" if FAST else "edge_8k"
RANGES = (1, 2, 4) if FAST else (1, 2, 4, 10, 20)

# %%
from functools import cache
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from compiler import compile_model
from models.quantize.outline import outline
from models.workloads import get_workload
from npusim.config import load_machine
from npusim.html.style import BLUE, GREEN, GREY, MARKERS, ORANGE, PURPLE, SETTINGS, SKY, VERMILION
from npusim.hw import changed, find_machine
from npusim.swap import compare
from npusim.swap_timer import roomy, with_rate

plt.rcParams.update(SETTINGS)
work, machine = get_workload(WORKLOAD), load_machine(find_machine(MACHINE))
LOOK = {"tsw": (BLUE, "o"), "tsq_pot": (GREEN, "s"), "tsq": (VERMILION, "D")}
METHODS = tuple(LOOK)


@cache
def program(method, ranges, on=machine):
    """The program with all sets in DRAM; it may need more DRAM than the machine has, for the policies do not."""
    return compile_model(outline(work, method, ranges=ranges), roomy(on))


def milliseconds(cycles, on=machine):
    return cycles / on.clock_hz * 1e3


# %% [markdown]
# ## 1. What is swapped
#
# Three methods with parameters that follow the time range:
#
# * `tsw`: scales of activations only. A set is requantization records.
# * `tsq`: smoothing per range, multiplied into the weights. A set holds all smoothed **weights**.
# * `tsq_pot`: the same idea with smoothing restricted to shifts, so that the weights stay. A set is records and
#   shifts.

# %%
most = RANGES[-1]
table = ["| method | one set, bytes | all sets, MB | one step, ms |", "| --- | --- | --- | --- |"]
one_set = {}  # cycles of the video with a single set that is in DRAM from the start
for method in METHODS:
    made = program(method, most)
    cost = compare(program(method, 1), machine, ("resident",), method)[0]
    one_set[method] = cost.plain_cycles
    size = made.range_sets.shape[1]
    step = milliseconds(cost.plain_cycles) / work.num_steps
    table.append(f"| `{method}` | {size:,} | {size * most / 1e6:.1f} | {step:.3f} |")
Markdown("\n".join(table))

# %% [markdown]
# The set of `tsq` is larger by more than an order of magnitude, and that decides everything below. A first estimate
# needs no simulator: with `N` ranges in `S` steps of time `t`, one set of `B` bytes must arrive while a range
# computes, so the storage must deliver `B N / (S t)` bytes per second. Section 3 holds that against the simulation
# and finds what it leaves out.

# %%
step_seconds = {method: one_set[method] / work.num_steps / machine.clock_hz for method in METHODS}
set_bytes = {method: program(method, most).range_sets.shape[1] for method in METHODS}
bytes_only = {(m, n): set_bytes[m] * n / work.num_steps / step_seconds[m] for m in METHODS for n in RANGES[1:]}
if not FAST:
    assert set_bytes["tsq"] > 20 * max(set_bytes["tsw"], set_bytes["tsq_pot"])

# %% [markdown]
# ## 2. Which policy hides how much
#
# | policy | places in DRAM | when a set is fetched |
# | --- | --- | --- |
# | `blocking` | one | at the boundary; everything waits |
# | `resident` | all | all sets beside the prologue of the first video |
# | `streamed` | one | each part is overwritten as soon as its last use in the old range is over |
# | `shadow` | two | the next set, in pieces, beside the steps of the present range |
#
# *Exposed* is what the boundaries add to the video; *startup* is what the first set adds at the beginning (for
# `resident`: all sets). Policies are only comparable by the sum of both.

# %%
POLICIES = {"blocking": (GREY, "X"), "resident": (PURPLE, "P"), "streamed": (ORANGE, "^"), "shadow": (BLUE, "o")}


@cache
def costs(method, ranges, on=machine):
    """Cost by policy."""
    made = program(method, ranges, on)
    return {cost.policy: cost for cost in compare(made, on, tuple(POLICIES), method, break_even=False)}


figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), sharex=True, layout="constrained")
for axis, method in zip(axes, METHODS, strict=True):
    for policy, (colour, marker) in POLICIES.items():
        found = [costs(method, ranges)[policy] for ranges in RANGES[1:]]
        assert not any(cost.refused for cost in found)
        extra = [milliseconds(cost.startup_cycles + cost.exposed_cycles) for cost in found]
        axis.plot(RANGES[1:], extra, marker=marker, color=colour, label=policy)
    axis.axhline(milliseconds(one_set[method]), color="#1a1a1a", linestyle=":", linewidth=1)
    axis.annotate("the video itself", (RANGES[1], milliseconds(one_set[method])), (2, 3), textcoords="offset points")
    axis.set(
        title=method, xlabel="time ranges", xscale="log", xticks=RANGES[1:], xticklabels=RANGES[1:], ylim=(0, None)
    )
    axis.minorticks_off()
    axis.grid(axis="y")
axes[0].set_ylabel("startup + exposed, ms of one video")
axes[0].legend()
plt.show()

# %% [markdown]
# **How to read it.** The dotted line is the whole video with one set. Where a curve crosses it, swapping doubles the
# video.
#
# * For `tsw` and `tsq_pot` `shadow` is flat: any number of ranges costs the same, almost all of it the first set.
# * For `tsq` there is a knee. Left of it the next set arrives while the present range computes; right of it the
#   storage is the bottleneck, and each further range adds the full time of one set, as `blocking` does from the
#   beginning.
# * `streamed` saves the second place in DRAM and pays for it: only the two steps beside a boundary can hide its
#   fetches.
# * `resident` moves the same bytes before the first video begins. It pays from the second video on, if the sets may
#   stay.

# %%
for method in METHODS:
    for ranges in RANGES[1:]:
        found = costs(method, ranges)
        total = {policy: cost.startup_cycles + cost.exposed_cycles for policy, cost in found.items()}
        assert total["shadow"] <= total["blocking"], "fetching beside computation never loses to waiting"
        assert found["shadow"].dram_bytes >= found["blocking"].dram_bytes, "and takes a second place for it"
        assert found["resident"].exposed_cycles == 0
if not FAST:
    slow_down = {m: costs(m, most)["shadow"].cycles / one_set[m] for m in METHODS}
    print(", ".join(f"{m}: {x:.2f} times the video" for m, x in slow_down.items()), f"with {most} ranges and shadow")
    assert slow_down["tsw"] < 1.05
    assert slow_down["tsq_pot"] < 1.05
    assert slow_down["tsq"] > 2

# %% [markdown]
# ### The price in DRAM
#
# Latency against capacity, all ranges and policies of `tsq`. What lies to the lower left is better; a point that
# another one beats in both is no choice at all.

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for policy, (colour, marker) in POLICIES.items():
    found = [costs("tsq", ranges)[policy] for ranges in RANGES[1:]]
    x = [cost.dram_bytes / 1e6 for cost in found]
    y = [milliseconds(cost.startup_cycles + cost.exposed_cycles) for cost in found]
    axis.scatter(x, y, color=colour, marker=marker, label=policy, zorder=3)
    for ranges, *place in zip(RANGES[1:], x, y, strict=True):
        axis.annotate(str(ranges), place, (5, -3), textcoords="offset points", fontsize=8)
axis.set(xlabel="DRAM that the program occupies, MB", ylabel="startup + exposed, ms", title="tsq; numbers are ranges")
axis.grid()
axis.legend()
plt.show()

# %% [markdown]
# ## 3. What the storage must deliver
#
# For each method and number of ranges: the rate from which on no unit waits for storage with `shadow`, found by
# bisection with the timing model, in which fetches share the DRAM with loads and stores. Beside it two estimates:
#
# * **bytes only**: `B N / (S t)`, as above.
# * **with requests**: `(B N / S + C) / (t - 2 L)`. Every step makes two requests: for the constants of the next step
#   (`C` bytes, whatever the method) and for a piece of the next set. Each waits for the latency `L` of flash, in
#   which nothing arrives.
#
# The horizontal lines are storages of today, sequential reads.

# %%


@cache
def rate_that_hides(method, ranges, on=machine):
    """GB/s of storage from which on no unit waits for it with `shadow`; nan where there is no such rate."""
    rate = compare(program(method, ranges, on), on, ("shadow",), method)[0].break_even
    return np.nan if rate is None else rate / 1e9


STORAGES = {"eMMC 5.1": 0.25e9, "UFS 3.1": 2.1e9, "UFS 4.0": 4.2e9, "PCIe 4.0 x4": 7.0e9}

latency_seconds = machine.storage.device.latency_us * 1e-6
constants_bytes = program("tsw", most).sets.shape[1]
with_requests = {
    (m, n): (set_bytes[m] * n / work.num_steps + constants_bytes) / (step_seconds[m] - 2 * latency_seconds)
    for m, n in bytes_only
}
figure, axis = plt.subplots(figsize=(9, 4.4), layout="constrained")
for name, rate in STORAGES.items():
    axis.axhline(rate / 1e9, color=GREY, linewidth=1)
    axis.annotate(name, (RANGES[-1], rate / 1e9), (4, 2), textcoords="offset points", fontsize=8)
for method, (colour, marker) in LOOK.items():
    rates = [rate_that_hides(method, ranges) for ranges in RANGES[1:]]
    axis.plot(RANGES[1:], rates, marker=marker, color=colour, label=f"{method}, simulated")
    for guesses, line, label in ((with_requests, ":", "with requests"), (bytes_only, "-.", "bytes only")):
        guess = [guesses[method, ranges] / 1e9 for ranges in RANGES[1:]]
        axis.plot(RANGES[1:], guess, color=colour, linestyle=line, linewidth=1, label=label)
axis.set(xscale="log", yscale="log", xticks=RANGES[1:], xticklabels=RANGES[1:], xlabel="time ranges")
axis.set(ylabel="storage rate that hides all, GB/s", title=f"{WORKLOAD} on {machine.name}, shadow")
axis.minorticks_off()
axis.grid(axis="y")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# The second estimate is within a tenth of the simulation, so it may stand for it on paper. What it adds to the first is
# not small: on a fast machine with short steps two latencies of 80 us are a quarter of a step, and where small sets
# change once, the constants of the steps are half of all bytes. **A storage is bought by its latency as much as by
# its rate.**

# %%
for (method, ranges), guess in with_requests.items():
    rate = rate_that_hides(method, ranges) * 1e9
    print(f"{method:8} {ranges:3} ranges: simulated {rate / 1e9:6.3f} GB/s, estimate {guess / 1e9:6.3f}")
    assert not rate < 0.9 * bytes_only[method, ranges]
    if not FAST:
        assert abs(rate / guess - 1) < 0.1, "the closed form with requests"
if not FAST:
    need = {ranges: rate_that_hides("tsq", ranges) for ranges in RANGES[1:]}
    assert need[4] < STORAGES["UFS 4.0"] / 1e9 < need[10], "UFS 4.0 hides 4 ranges of tsq, not 10"

# %% [markdown]
# Below the rate that hides all, how fast does it get worse? The exposed time over the rate, `tsq` with `shadow`. All
# curves fall like one over the rate until they reach the floor, so halving the rate of a storage that is just fast
# enough costs as much as `B N / rate` says. There is no cliff, but no grace either.

# %%
rates = np.geomspace(2.5e8, 16e9, 5 if FAST else 9)
shades = (SKY, BLUE, GREEN, ORANGE, VERMILION)
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
for index, ranges in enumerate(RANGES[1:]):
    exposed = [
        compare(program("tsq", ranges), with_rate(machine, int(rate)), ("shadow",), "tsq", break_even=False)[0]
        for rate in rates
    ]
    y = [milliseconds(cost.exposed_cycles) for cost in exposed]
    axis.plot(rates / 1e9, y, marker=MARKERS[index], color=shades[index], label=f"{ranges} ranges", markersize=4)
    # Another order of service at the DRAM may cost a little.
    slack = 0.01 * milliseconds(one_set["tsq"])
    assert all(a + slack >= b for a, b in pairwise(y)), "a faster storage does not expose more"
axis.axhline(milliseconds(one_set["tsq"]), color="#1a1a1a", linestyle=":", linewidth=1)
axis.annotate("the video itself", (rates[0] / 1e9, milliseconds(one_set["tsq"])), (0, 3), textcoords="offset points")
for name, rate in STORAGES.items():
    axis.axvline(rate / 1e9, color=GREY, linewidth=1)
    axis.annotate(
        name, (rate / 1e9, 1), (2, -10), textcoords="offset points", xycoords=("data", "axes fraction"), fontsize=8
    )
axis.set(xscale="log", yscale="symlog", xlabel="storage rate, GB/s", ylabel="exposed, ms of one video", ylim=(0, None))
axis.legend()
plt.show()

# %% [markdown]
# ## 4. Larger and smaller machines
#
# What hides a fetch is the time that a step computes. A faster machine has less of it, while the set is as large as
# before: the faster the NPU, the more storage it needs for the same number of ranges. The machine's array, vector
# unit and SRAM port grow here together; the DRAM stays, so steps do not become faster without end.

# %%


def scaled(factor):
    """The machine with an array, a vector unit and an SRAM port ``factor`` times as wide."""
    fields = ("mac_array.cols", "vector_unit.lanes", "sram.bytes_per_cycle")
    now = (machine.mac_array.cols, machine.vector_unit.lanes, machine.sram.bytes_per_cycle)
    return changed(machine, {field: int(value * factor) for field, value in zip(fields, now, strict=True)})


FACTORS = (1, 2) if FAST else (0.25, 0.5, 1, 2)
sizes = {factor: scaled(factor) for factor in FACTORS}
counts = RANGES[-2:] if FAST else RANGES[-3:]
step_ms, rate_needed = {}, {}
for factor, sized in sizes.items():
    plain = compare(program("tsq", 1, sized), sized, ("resident",), "tsq")[0].plain_cycles
    step_ms[factor] = milliseconds(plain, sized) / work.num_steps
    for ranges in counts:
        rate_needed[factor, ranges] = rate_that_hides("tsq", ranges, sized)

figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained", width_ratios=(1, 1.6))
macs = [sizes[factor].mac_array.rows * sizes[factor].mac_array.cols for factor in FACTORS]
axes[0].plot(macs, [step_ms[factor] for factor in FACTORS], "o-", color=BLUE)
axes[0].set(xscale="log", xticks=macs, xticklabels=[f"{m:,}" for m in macs], xlabel="MACs", ylabel="one step, ms")
axes[0].set(title="time to hide in", ylim=(0, None))
axes[0].minorticks_off()
axes[0].grid(axis="y")
grid = np.array([[rate_needed[factor, ranges] for ranges in counts] for factor in FACTORS])
picture = axes[1].imshow(np.log10(grid), cmap="cividis", aspect="auto", origin="lower")
for (row, column), rate in np.ndenumerate(grid):
    light = np.log10(rate) > np.nanmean(np.log10(grid))
    axes[1].text(column, row, f"{rate:.2f}", ha="center", va="center", color="black" if light else "white")
axes[1].set(xticks=range(len(counts)), xticklabels=counts, yticks=range(len(FACTORS)))
axes[1].set(yticklabels=[f"{m:,}" for m in macs], xlabel="time ranges of tsq", ylabel="MACs")
axes[1].set_title("storage rate that hides all with shadow, GB/s")
axes[1].spines[:].set_visible(False)
plt.show()

# %%
assert all(step_ms[a] >= step_ms[b] for a, b in pairwise(FACTORS)), "wider machines, faster steps"
assert all(rate_needed[FACTORS[0], r] <= 1.02 * rate_needed[FACTORS[-1], r] for r in counts), "faster steps need more"

# %% [markdown]
# ## What to take away
#
# * **Ask first what a set contains.** Sets of scales hide at any number of ranges; sets of weights do not. This is a
#   question to the quantization method, and the largest lever by far.
# * **A second place in DRAM is worth more than a cleverer schedule**, as long as the next set fits it and a range
#   lasts long enough.
# * **The rate to buy is `(B N / S + C) / (t - 2 L)`**: bytes per step over the part of a step that is no latency.
# * **The balance moves with the machine**: twice the array needs 1.3 to 1.6 times the storage rate, less than twice
#   only because steps do not get twice as fast.
#
# What more ranges *buy* is fidelity, and on this model less than the paper's tables suggest: `models/RESULTS.md`. The
# same study as files, with all policies, sets as differences, and on any workload: `npusim swap`.
