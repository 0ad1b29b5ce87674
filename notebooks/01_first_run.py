# %% [markdown]
# # 1. A first run: from a caption to a clip, a program and a report
#
# One call takes a caption through the whole chain: the float model is quantized, compiled to integer instructions for
# a described NPU, executed bit by bit, and timed cycle by cycle. This notebook makes one clip and then looks at each
# thing that the call returns. It takes about a minute on one core.
#
# All notebooks follow the same rule: what the text claims, an `assert` checks, so a change of the simulator that
# makes the text wrong makes the notebook fail.

# %% tags=["parameters"]
import os
from pathlib import Path

# The tests execute this notebook on the workload `tiny`, which has random weights: quick, and its clip means nothing.
FAST = bool(os.environ.get("NPUSIM_NOTEBOOKS_FAST"))
WORKLOAD, MACHINE = ("tiny", "tiny_8x8") if FAST else ("emoji", "edge_8k")
OUT = Path("first_run")  # the run folder, beside where this notebook is executed

# %%
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import npusim
from npusim.html.style import BLUE, GREEN, ORANGE, SETTINGS, VERMILION, of_causes, words
from npusim.hw import find_machine

plt.rcParams.update(SETTINGS)  # the colours of Okabe and Ito, which colour-blind readers can tell apart

# %% [markdown]
# ## The call
#
# `npusim.run` is what the command `npusim run` calls, and what it returns is what the run folder is written from.
# `verify` says in how many of the denoising steps a second, independent executor repeats every instruction;
# afterwards every byte of memory has to be equal.

# %%
result = npusim.run(WORKLOAD, find_machine(MACHINE), method="cw_tw", prompt="penguin", seed=3002, verify="2", out=OUT)
config = result.config
print(f"{config.prompt!r} with {config.workload} on {config.machine.name}: {config.num_steps} steps")
print("files:", ", ".join(sorted(path.name for path in OUT.iterdir())))
assert result.bit_exact.equal, "engine and reference must agree in every byte"

# %% [markdown]
# ## The clip
#
# Three runs from the same noise: the float model; its *fake-quantized* copy, in which the linears of the blocks see
# quantized weights and inputs and all else is float, as in the paper; and the integer machine, where nothing is
# float. Only the difference between the last two is the price of integer-only arithmetic.
#
# The last row is the machine's deviation from float, eight times enlarged around grey.

# %%
NAMES = {"float": "float", "fakequant": "fake-quant", "integer": "integer NPU"}


def as_frames(clip):
    """Frames (T, H, W, 3) uint8; of a workload without an autoencoder the first three latent channels."""
    if clip.frames is not None:
        return clip.frames
    latent = np.moveaxis(clip.latent[:3], 0, -1)
    return np.clip(128 + 40 * latent, 0, 255).astype(np.uint8)


rows = {label: as_frames(result.clips[name]) for name, label in NAMES.items()}
deviation = rows["integer NPU"].astype(int) - rows["float"]
rows["deviation x 8"] = np.clip(128 + 8 * deviation, 0, 255).astype(np.uint8)

count = len(rows["float"])
figure, axes = plt.subplots(len(rows), count, figsize=(1.25 * count, 1.35 * len(rows)), layout="constrained")
for (label, frames), line in zip(rows.items(), axes, strict=True):
    for frame, axis in zip(frames, line, strict=True):
        axis.imshow(frame, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(label)
figure.suptitle(f"{config.prompt}: frames from left to right")
plt.show()

# %% [markdown]
# ## How far it is from float
#
# SQNR is the energy of the float model's noise prediction over the energy of the difference, in dB: 30 dB is a
# thousandth. Two ways to ask, and they answer different questions:
#
# * **equal inputs**: at each step every model is fed the *float* run's state. This is the error of that one step.
# * **free running**: each model goes on from its own state, so errors of earlier steps come along, and the network
#   reacts to them. This is what the clip is made of.

# %%
fidelity = result.fidelity
steps = np.arange(config.num_steps)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
styles = {
    "integer_vs_float": (BLUE, "o-", "integer : float"),
    "fakequant_vs_float": (ORANGE, "s--", "fake-quant : float"),
    "integer_vs_fakequant": (GREEN, "^:", "integer : fake-quant"),
}
for axis, values, title in (
    (axes[0], fidelity.eps_equal_inputs_sqnr_db, "equal inputs"),
    (axes[1], fidelity.eps_sqnr_db, "free running"),
):
    for pair, (colour, style, label) in styles.items():
        axis.plot(steps, values[pair], style, color=colour, label=label, markersize=4)
    axis.set(title=title, xlabel="denoising step", xticks=steps[:: 1 if FAST else 5])
    axis.grid(axis="y")
axes[0].set_ylabel("SQNR of the noise prediction, dB")
axes[0].legend()
plt.show()

# %% [markdown]
# Where the blue and the orange curve coincide, going from fake quantization to integers cost nothing that the
# quantization of the linears had not cost already. The green curve compares the two directly. In a free run it is
# *not* the small difference of the other two: two runs that deviate equally far from float may deviate in different
# directions.

# %%
means = {pair: float(np.mean(fidelity.eps_equal_inputs_sqnr_db[pair])) for pair in styles}
gap = means["fakequant_vs_float"] - means["integer_vs_float"]
print(f"on equal inputs: fake-quant {means['fakequant_vs_float']:.2f} dB, integer {means['integer_vs_float']:.2f} dB")
if not FAST:
    assert abs(gap) < 0.5, "integer-only arithmetic stays within half a decibel of fake quantization"

# %% [markdown]
# ## The program
#
# The compiler wrote two pieces of code: the *prologue*, once per video (what depends on the caption only), and the
# *step*, which runs once per denoising step with other base addresses for the constants of that step. Each
# instruction is 128 bytes.

# %%
program = result.program
for part, instructions in program.decoded().items():
    kinds = Counter(ins.op for ins in instructions)
    print(f"{part:8} {len(instructions):6,} instructions: " + ", ".join(f"{n:,} {op}" for op, n in kinds.most_common()))
print(
    f"constants {program.constants.size:,} bytes, and {program.sets.shape[1]:,} bytes for each of {program.steps} steps"
)

# %% [markdown]
# Any instruction can be asked what it does. Here is the largest matrix product of a step, by products.

# %%
step = program.decoded()["step"]
products = [ins.m * ins.n * ins.k * ins.batch0 * ins.batch1 if ins.op == "matmul" else 0 for ins in step]
print(npusim.explain(program, int(np.argmax(products))))

# %% [markdown]
# ## The cost
#
# The same instructions, timed. In each cycle each unit is busy or has exactly one named cause for not being busy, so
# the bars of all units have the same length.

# %%
timing = result.timing
units = [unit for unit, causes in timing.ledger.items() if causes["busy"]]
figure, axis = plt.subplots(figsize=(11, 2.8), layout="constrained")
left = np.zeros(len(units))
for cause, colour, hatch in of_causes():
    share = np.array([100 * timing.ledger[unit][cause] / timing.cycles for unit in units])
    if share.any():
        axis.barh(units, share, left=left, color=colour, hatch=hatch, edgecolor="white", label=words(cause))
    left += share
axis.set(xlabel="% of the cycles of one video", xlim=(0, 100))
axis.invert_yaxis()
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()
assert np.allclose(left, 100)

# %%
energy, traffic = result.energy.total_pj, timing.traffic
Markdown(f"""
| figure | value |
| --- | --- |
| cycles | {timing.cycles:,} |
| time of the denoiser | {timing.seconds * 1e3:.2f} ms at {config.machine.clock_mhz} MHz |
| MAC utilisation | {timing.mac_utilisation:.1%} of {config.machine.peak_tops:.3g} TOPS |
| DRAM traffic | {traffic.dram_read_bytes / 1e6:.1f} MB read, {traffic.dram_write_bytes / 1e6:.2f} MB written |
| energy | {energy.nominal / 1e9:.3g} mJ; sources leave it between {energy.low / 1e9:.3g} and {energy.high / 1e9:.3g} |
""")

# %% [markdown]
# Two numbers bound the time from below whatever the schedule: the products over what the array could do, and the
# bytes over what the DRAM could move. The larger of the two is the least time of a perfect overlap.
#
# Compare the second bar with the blue part of `mac` above: the array is *busy* far longer than its products need.
# Busy is not useful. 16-bit operands take several cycles each, edges of tiles leave cells without work, and every
# product has to fill and drain the array. Notebook 4 takes that apart layer by layer.

# %%
array_bound = timing.mac_utilisation
dram_bound = timing.dram_bandwidth_share
figure, axis = plt.subplots(figsize=(11, 1.9), layout="constrained")
axis.barh(["DRAM bytes at peak", "products at peak", "simulated"], [100 * dram_bound, 100 * array_bound, 100],
          color=[VERMILION, BLUE, "#BBBBBB"])  # fmt: skip
axis.set(xlabel="% of the simulated time")
plt.show()
busy = timing.ledger["mac"]["busy"] / timing.cycles
print(f"the array is busy in {busy:.0%} of the cycles and does {array_bound:.0%} of what it could do in all of them")
assert max(array_bound, dram_bound) < 1
assert busy > array_bound

# %% [markdown]
# ## The report
#
# `write_report` makes one self-contained HTML file of the run folder: roofline, causes by layer and step, a timeline,
# memory over time. `npusim report` does the same from the command line.

# %%
from npusim.html.report import write_report

print(write_report(OUT), f"{(OUT / 'report.html').stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# **Where to go from here.** Notebook 2 asks what it costs to swap parameter sets between steps, 3 what bits and
# methods buy, 4 why a layer is slow, 5 puts your machine in the place of this one, 6 your checkpoint.
