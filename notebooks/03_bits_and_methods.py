# %% [markdown]
# # 3. Bits and methods: what fidelity costs
#
# A quantization method is chosen by tables of fidelity, a machine by tables of cycles. This notebook puts both on one
# plane: each point is one method at one width, with the noise SQNR of the *integer machine* against the float model,
# and what the same program costs in time, DRAM traffic, energy and bytes to keep.
#
# 1. What do the bits of weights and activations buy, each by itself?
# 2. What do methods buy at equal bits?
# 3. Which points does no other point beat?
# 4. Where does the error come from: which class of layers would deserve more bits?
#
# Two clips stand for each point here, with fixed captions and noise, which is little: differences of a few tenths of
# a decibel mean nothing. `models/RESULTS.md` has 32 clips and intervals. It takes about ten minutes on one core.

# %% tags=["parameters"]
import os

# The tests execute this notebook on the workload `tiny`, whose weights are random: its fidelity means nothing.
FAST = bool(os.environ.get("NPUSIM_NOTEBOOKS_FAST"))
WORKLOAD, MACHINE = ("tiny", "tiny_8x8") if FAST else ("emoji", "edge_8k")
CLIPS = 1 if FAST else 2
WIDTHS = ((4, 8), (8, 8)) if FAST else ((4, 4), (4, 8), (6, 8), (8, 4), (8, 6), (8, 8), (8, 16))
METHODS = ("cw_tw", "asq", "tsq") if FAST else ("cw_tw", "tsw", "asq", "tsq", "tsq_pot")

# %%
from dataclasses import dataclass, replace
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import npusim
from models.quantize import Override
from models.workloads import get_workload
from npusim.config import load_machine
from npusim.html.style import BLUE, GREEN, GREY, MARKERS, ORANGE, PURPLE, SETTINGS, SKY, VERMILION
from npusim.hw import find_machine
from npusim.run import run_timing

plt.rcParams.update(SETTINGS)
machine = load_machine(find_machine(MACHINE))
named = get_workload(WORKLOAD)
# A workload of one's own: the named one with fewer captions.
work = replace(
    named, evaluation_captions=named.evaluation_captions[:CLIPS], evaluation_seeds=named.evaluation_seeds[:CLIPS]
)
print(f"{work.name} on {machine.name}; captions: {', '.join(work.evaluation_captions)}")


# %% [markdown]
# A point is two calls: `npusim.evaluate` makes the clips with the float model, its fake-quantized copy and the
# engine; `run_timing` has the cost, which depends on no data.


# %%
@dataclass(frozen=True)
class Point:
    """One method at one width; SQNR in dB, of every step fed the float run's state, mean over steps and clips."""

    method: str
    weight_bits: int
    act_bits: int
    integer_db: float
    fakequant_db: float
    ms: float
    dram_mb: float
    mj: float
    kept_mb: float

    @property
    def name(self):
        return f"{self.method} {self.weight_bits}/{self.act_bits}"


@cache
def point(method, weight_bits, act_bits, overrides=()):
    bits = {"weight_bits": weight_bits, "act_bits": act_bits, "overrides": overrides}
    means = npusim.evaluate(work, machine, method, **bits).means
    timed = run_timing(work, machine, method, **bits)
    traffic, program = timed.timing.traffic, timed.program
    return Point(
        method, weight_bits, act_bits,
        integer_db=means["integer_vs_float_eps_equal_inputs_sqnr_db"],
        fakequant_db=means["fakequant_vs_float_eps_equal_inputs_sqnr_db"],
        ms=timed.timing.seconds * 1e3,
        dram_mb=(traffic.dram_read_bytes + traffic.dram_write_bytes) / 1e6,
        mj=timed.energy.total_pj.nominal / 1e9,
        kept_mb=(program.constants.size + program.sets.size + program.range_sets.size) / 1e6,
    )  # fmt: skip


# %% [markdown]
# ## 1. Bits
#
# `cw_tw`, one width after the other. The horizontal mark beside each bar is the fake-quantized network, where only
# the linears are quantized: what is below it is the price of integer-only arithmetic.

# %%
widths = [point("cw_tw", *bits) for bits in WIDTHS]
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
places = np.arange(len(widths))
axes[0].bar(places, [p.integer_db for p in widths], color=BLUE, width=0.6, label="integer machine")
axes[0].plot(places, [p.fakequant_db for p in widths], "_", color="#1a1a1a", markersize=26, label="fake-quant")
axes[0].set(ylabel="noise SQNR, dB", title="fidelity")
axes[0].legend(loc="upper left")
axes[1].bar(places, [p.ms for p in widths], color=ORANGE, hatch="///", edgecolor="white", width=0.6)
axes[1].set(ylabel="ms of one video", title="time")
axes[2].bar(places, [p.dram_mb for p in widths], color=GREEN, hatch="...", edgecolor="white", width=0.6)
axes[2].set(ylabel="MB of one video", title="DRAM traffic")
for axis in axes:
    axis.set(
        xticks=places, xticklabels=[f"{p.weight_bits}/{p.act_bits}" for p in widths], xlabel="weight/activation bits"
    )
    axis.grid(axis="y")
plt.show()

# %% [markdown]
# **Read the time before the fidelity.** Fewer bits save *traffic*; time only where loads are waited for, because on
# this array products of 4 to 8 bits take one pass each. The exceptions are the two ends: at 4/4 a cell does two
# products at once (`mac_array.a4w4_per_cell`), and 16-bit activations take two passes and twice the room, so that
# tensors which fitted the SRAM pass through DRAM.

# %%
table = ["| W/A | integer, dB | fake-quant, dB | ms | DRAM, MB | mJ | to keep, MB |", "| --- " * 7 + "|"]
for p in widths:
    table.append(
        f"| {p.weight_bits}/{p.act_bits} | {p.integer_db:.2f} | {p.fakequant_db:.2f} | {p.ms:.2f} | {p.dram_mb:.1f} "
        f"| {p.mj:.2f} | {p.kept_mb:.2f} |"
    )
by_bits = {(p.weight_bits, p.act_bits): p for p in widths}
assert by_bits[4, 8].kept_mb < by_bits[8, 8].kept_mb, "fewer bits, fewer bytes"
assert by_bits[4, 8].dram_mb < by_bits[8, 8].dram_mb
if not FAST:
    assert all(by_bits[4, a].integer_db < by_bits[8, a].integer_db for a in (4, 8)), "fewer bits, less fidelity"
    assert by_bits[8, 4].integer_db < by_bits[8, 6].integer_db < by_bits[8, 8].integer_db < by_bits[8, 16].integer_db
    assert all(abs(p.integer_db - p.fakequant_db) < 0.5 for p in widths if p.act_bits <= 8)
    assert by_bits[8, 16].ms > by_bits[8, 8].ms, "16-bit activations take more passes"
Markdown("\n".join(table))

# %% [markdown]
# At 16-bit activations the machine falls behind its fake-quantized network: there the integer rest, above all the
# 16-bit residual stream, is what limits.
#
# ## 2. Methods
#
# All at W8A8. `ranges` are each method's own: one for `cw_tw` and `asq`, one for each step for the others.

# %%
LOOK = dict(zip(METHODS, (BLUE, ORANGE, GREEN, VERMILION, PURPLE), strict=False))
methods = [point(method, 8, 8) for method in METHODS]
PRICES = {"ms": "time, ms of one video", "dram_mb": "DRAM traffic, MB of one video", "kept_mb": "bytes to keep, MB"}
figure, axes = plt.subplots(1, len(PRICES), figsize=(13, 3.8), sharey=True, layout="constrained")
for axis, (field, label) in zip(axes, PRICES.items(), strict=True):
    for marker, p in zip(MARKERS, methods, strict=False):
        axis.scatter(
            getattr(p, field), p.integer_db, color=LOOK[p.method], marker=marker, s=60, label=p.method, zorder=3
        )
    axis.set(xlabel=label)
    axis.grid()
axes[2].set_xscale("log")
axes[0].set_ylabel("noise SQNR of the machine, dB")
axes[0].legend()
plt.show()

# %% [markdown]
# Three prices, three pictures. In **time** the methods fall in two groups: those that divide the input of `mlp.fc2`,
# which is a vector operation more and a tensor that does not fit, and those that do not. In **traffic** likewise. In
# **bytes to keep** `tsq` stands alone: a set of weights for each range. That is the price which notebook 2 turns into
# latency.

# %%
if not FAST:
    found = {p.method: p for p in methods}
    assert found["asq"].integer_db > found["cw_tw"].integer_db, "smoothing pays"
    assert found["tsw"].integer_db > found["cw_tw"].integer_db, "so do ranges"
    assert found["tsq"].kept_mb > 10 * found["asq"].kept_mb
    assert found["asq"].ms > 1.2 * found["cw_tw"].ms, "and smoothing costs time on this machine"
    print(", ".join(f"{p.method} {p.integer_db:.2f} dB in {p.ms:.1f} ms" for p in methods))

# %% [markdown]
# ### A surprise, and what it teaches
#
# Smaller weights need not be faster. The compiler searches for the plan that its cost model finds best, under limits
# of SRAM; other sizes lead to other plans, and nothing makes the times of plans monotone. Here are `cw_tw` and `asq`
# at three widths of the weights. **Time the width that you want; do not infer it from its neighbours.**

# %%
table = ["| method | weights | ms | DRAM, MB |", "| --- | --- | --- | --- |"]
for method in ("cw_tw", "asq"):
    for bits in (4, 6, 8):
        timing = run_timing(work, machine, method, weight_bits=bits).timing
        moved = (timing.traffic.dram_read_bytes + timing.traffic.dram_write_bytes) / 1e6
        table.append(f"| `{method}` | {bits} | {timing.seconds * 1e3:.2f} | {moved:.1f} |")
Markdown("\n".join(table))

# %% [markdown]
# ## 3. The front
#
# All points of both sections, fidelity over energy. A point is on the front if no other has at least its fidelity for
# at most its energy. The bars of energy are wide (`npusim/cost` says why), but they move all points together: the
# order along the axis is safer than the numbers on it.

# %%
points = sorted({*widths, *methods}, key=lambda p: p.mj)
front = [p for p in points if not any(q.mj <= p.mj and q.integer_db > p.integer_db for q in points)]
figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
axis.step([p.mj for p in front], [p.integer_db for p in front], where="post", color=GREY, zorder=1)
for p in points:
    on_front = p in front
    axis.scatter(p.mj, p.integer_db, s=60, marker="o" if on_front else "X", color=BLUE if on_front else SKY, zorder=3)
    axis.annotate(p.name, (p.mj, p.integer_db), (6, -3), textcoords="offset points", fontsize=8)
axis.set(xlabel="energy of the denoiser, mJ of one video (nominal)", ylabel="noise SQNR of the machine, dB")
axis.set_title("circles: on the front; crosses: beaten")
axis.margins(x=0.12)
axis.grid()
plt.show()
print("on the front:", ", ".join(p.name for p in front))
assert front

# %% [markdown]
# ## 4. Which layers deserve more bits
#
# An `Override` gives one class of layers other bits. From W4A8 as the base, each class in turn gets 8-bit weights
# back: what it gains in fidelity for the bytes that it costs. Gains do not add up, but their order says where to
# begin.

# %%
CLASSES = ("attn.qkv", "attn.proj", "attn_temp.qkv", "cross_attn.q_linear", "mlp.fc1", "mlp.fc2")[-2 if FAST else 0 :]
low = point("cw_tw", 4, 8)
gains = {name: point("cw_tw", 4, 8, (Override(layers=(name,), weight_bits=8),)) for name in CLASSES}
order = sorted(gains, key=lambda name: low.integer_db - gains[name].integer_db)
figure, axes = plt.subplots(1, 2, figsize=(12, 0.4 * len(order) + 1.6), sharey=True, layout="constrained")
axes[0].barh(order, [gains[name].integer_db - low.integer_db for name in order], color=BLUE)
axes[0].set(xlabel="gain in noise SQNR, dB")
axes[1].barh(order, [gains[name].kept_mb - low.kept_mb for name in order], color=ORANGE, hatch="///", edgecolor="white")
axes[1].set(xlabel="more bytes to keep, MB")
axes[0].invert_yaxis()
for axis in axes:
    axis.grid(axis="x")
figure.suptitle("8-bit weights for one class of layers, all others 4")
plt.show()
assert all(p.kept_mb > low.kept_mb for p in gains.values())
for p in (low, by_bits[8, 8]):
    print(f"all classes at {p.weight_bits} bits: {p.integer_db:.2f} dB, {p.kept_mb:.2f} MB")

# %% [markdown]
# ## What to take away
#
# * Time, traffic and bytes to keep are three different prices. A method that is free in one may be the dearest in
#   another.
# * At 8 bits and below the machine's fidelity is its method's: integer-only arithmetic costs tenths of a decibel.
# * SQNR on equal inputs ranks methods step by step. Frames of a free run do not always follow it: `models/RESULTS.md`
#   has both, on two data sets.
# * Mixed widths are cheap to try: an override is one line, and both its effects are measured.
