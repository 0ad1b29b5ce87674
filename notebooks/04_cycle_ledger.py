# %% [markdown]
# # 4. Why is this layer slow?
#
# A utilisation of 43 % says that something is wrong and not what. This notebook goes from the number to the
# instruction, in the order in which it is worth asking:
#
# 1. Which unit is the bottleneck?
# 2. To which layers do its cycles belong, and are they useful, padding, fill, or waiting?
# 3. For the waiting: who is waited for?
# 4. What would help? A hypothesis is an experiment: change the machine, time it again, and see whether the cycles go
#    where the explanation says they go.
#
# Time never depends on data here, so there are no weights in this notebook: `run_timing` compiles the shapes alone.
# Half a minute on one core.

# %% tags=["parameters"]
import os
from pathlib import Path

# The tests execute this notebook on the workload `tiny`.
FAST = bool(os.environ.get("NPUSIM_NOTEBOOKS_FAST"))
WORKLOAD = "tiny" if FAST else "emoji"
MACHINE = "edge_8k"

# %%
import re
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.patches import Patch

import npusim
from compiler.schedule.bounds import layer_bounds
from npusim.config import load_machine
from npusim.html.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SETTINGS, SKY, VERMILION, YELLOW, of_causes, words
from npusim.hw import changed, find_machine
from npusim.run import run_timing
from npusim.timing import CAUSES
from npusim.trace.part import parts_of
from npusim.units import UNITS

plt.rcParams.update(SETTINGS)
machine = load_machine(find_machine(MACHINE))
result = run_timing(WORKLOAD, machine, out=Path("ledger_base"))
program, timing = result.program, result.timing
step = parts_of(program, timing)["step"]  # the code of one denoising step: instructions with their times and causes
total = timing.step.total_cycles
print(f"{total:,} cycles a step; MAC utilisation of the video {timing.mac_utilisation:.1%}")

# %% [markdown]
# ## 1. Which unit
#
# The ledger of one step. For each unit every cycle has one name. The bottleneck is the unit with the most `busy`: all
# others have time to spare, which shows as waiting. That a unit waits is no fault; that the *bottleneck* waits is.

# %%
ledger = timing.step.ledger
units = [unit for unit in ledger if ledger[unit]["busy"]]
figure, axis = plt.subplots(figsize=(11, 2.8), layout="constrained")
left = np.zeros(len(units))
for cause, colour, hatch in of_causes():
    share = np.array([ledger[unit][cause] for unit in units])
    if share.any():
        axis.barh(units, share, left=left, color=colour, hatch=hatch, edgecolor="white", label=words(cause))
    left += share
axis.set(xlabel="cycles of one step", xlim=(0, total))
axis.invert_yaxis()
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()
bottleneck = max(units, key=lambda unit: ledger[unit]["busy"])
print(f"bottleneck: {bottleneck}, busy in {ledger[bottleneck]['busy'] / total:.0%} of the cycles")
assert (left == total).all()

# %% [markdown]
# ## 2. Whose cycles
#
# The obvious table, layers by the time between their first and last instruction, misleads: layers overlap. A layer
# whose weights are loaded early "lasts" since then.

# %%
layers = program.layers
spans = sorted(((part.span_cycles, layers[number]) for number, part in timing.step.layers.items()), reverse=True)
table = ["| layer | first to last instruction | busy in the array |", "| --- | --- | --- |"]
for span, name in spans[:5]:
    table.append(f"| `{name}` | {span:,} | {timing.step.layers[layers.index(name)].busy_cycles['mac']:,} |")
print(f"all spans together: {sum(span for span, _ in spans) / total:.1f} times the step")
assert sum(span for span, _ in spans) > total
Markdown("\n".join(table))

# %% [markdown]
# What adds up is the bottleneck's own time: each of its cycles belongs to one instruction, as execution or as the
# wait before it. So we divide *the array's* time among layers, and its busy part further, by closed forms:
#
# * **useful**: the products at 8 bits, over all cells of the array.
# * **16 bits**: what operands of 16 bits cost beyond that.
# * **padding**: cells without work at ragged edges, such as 8 keys on an array of 128 columns.
# * **fill**: loading the first weights, skew and drain of each product.
#
# The same layer of all blocks is one row.

# %%
PARTS = {
    "useful": (BLUE, ""), "16 bits": (SKY, "\\\\\\"), "padding": (VERMILION, "xxx"), "fill": (PURPLE, "..."),
    "wait for data": (ORANGE, "///"), "other waits": (GREY, ""),
}  # fmt: skip


def kind(layer):
    """A layer's name without its block."""
    return re.sub(r"^blocks\.\d+\.", "", layer)


def array_time(step):
    """Cycles of the array in one step by kind of layer and part; they sum to the step but for its barrier."""
    found = defaultdict(lambda: dict.fromkeys(PARTS, 0.0))
    names = step.program.layers
    products = {names[number]: part.traffic.mac_operations for number, part in step.timing.layers.items()}
    for number, bound in layer_bounds(step.program.step, step.program.machine).items():
        row = found[kind(names[number])]
        useful = products.get(names[number], 0) / step.program.machine.peak_macs_per_cycle
        row["useful"] += useful
        row["16 bits"] += bound.array_bound_cycles - useful
        row["padding"] += bound.padding_cycles
        row["fill"] += bound.fill_cycles
    for index in np.flatnonzero(step.cost.unit == UNITS.index("mac")):
        if not step.cost.barrier[index]:
            causes = dict(zip(CAUSES, step.causes[index], strict=True))
            row = found[kind(step.layer(index))]
            row["wait for data"] += causes["wait_token_raw"]
            row["other waits"] += sum(causes.values()) - causes["busy"] - causes["wait_token_raw"]
    return {name: row for name, row in found.items() if sum(row.values()) > 0}


base = array_time(step)
order = sorted(base, key=lambda name: -sum(base[name].values()))
figure, axis = plt.subplots(figsize=(11, 0.36 * len(order) + 1.4), layout="constrained")
left = np.zeros(len(order))
for part, (colour, hatch) in PARTS.items():
    values = np.array([base[name][part] for name in order])
    axis.barh(order, values, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
    left += values
axis.invert_yaxis()
axis.set(xlabel="cycles of the array in one step, all blocks", title="the array's time, divided among layers")
axis.xaxis.set_major_formatter("{x:,.0f}")
axis.legend(loc="lower right")
plt.show()

busy = sum(sum(row[part] for part in ("useful", "16 bits", "padding", "fill")) for row in base.values())
assert abs(busy - ledger["mac"]["busy"]) < 1, "the closed forms sum to the simulated busy cycles"
rest = sum(ledger["mac"][cause] for cause in ("drain", "wait_barrier", "idle_done"))
assert abs(sum(sum(row.values()) for row in base.values()) + rest - total) < 1, "no cycle is lost or counted twice"

# %%
totals = {part: sum(row[part] for row in base.values()) for part in PARTS}
table = ["| part | cycles | of the step |", "| --- | --- | --- |"]
table += [f"| {part} | {cycles:,.0f} | {cycles / total:.1%} |" for part, cycles in totals.items()]
Markdown("\n".join(table))

# %% [markdown]
# **The answer is not where one would look.** The linears of the MLP do most of the products and are nearly all useful
# when they run. The largest single row is temporal attention, with almost no products: each of its matrix products is
# as small as the number of frames, and each has to fill and drain an array that is made for hundreds of rows.
#
# The instruction itself says it: many batches of tiny products.

# %%
worst = max(base, key=lambda name: base[name]["padding"] + base[name]["fill"])
index = next(i for i, ins in enumerate(step.instructions) if ins.op == "matmul" and kind(step.layer(i)) == worst)
ins = step.instructions[index]
print(
    f"{worst}: instruction {index} multiplies {ins.m} x {ins.k} by {ins.k} x {ins.n}, {ins.batch0 * ins.batch1} times,"
)
print(f"on an array of {machine.mac_array.rows} x {machine.mac_array.cols} cells\n")
print(npusim.explain(program, index).split("operands")[0])
row = base[worst]
print(f"useful {row['useful'] / sum(row.values()):.1%} of its time")
assert row["useful"] < 0.1 * sum(row.values())
assert FAST or order[0] == worst == "attn_temp", "the largest row"

# %% [markdown]
# ## 3. Who is waited for
#
# The orange parts: the array stands still until another unit has made or brought its data. Tokens say which unit: for
# each wait, the last token that arrived.

# %%
sent_by = np.full(len(step.instructions), -1)
for pairs in step.tokens:
    if pairs.kind == "raw":
        for sender, taker in zip(pairs.sender, pairs.taker, strict=True):
            if sent_by[taker] < 0 or step.end[sender] > step.end[sent_by[taker]]:
                sent_by[taker] = sender

raw = CAUSES.index("wait_token_raw")
blame = Counter()
for index in np.flatnonzero(step.cost.unit == UNITS.index("mac")):
    if step.causes[index, raw] and sent_by[index] >= 0:
        sender = int(sent_by[index])
        unit = UNITS[step.cost.unit[sender]]
        blame[kind(step.layer(index)), unit, kind(step.layer(sender))] += int(step.causes[index, raw])
table = ["| the array's layer | waits for | of layer | cycles |", "| --- | --- | --- | --- |"]
for (layer, unit, origin), cycles in blame.most_common(8):
    table.append(f"| `{layer}` | {unit} | `{origin}` | {cycles:,} |")
by_unit = Counter()
for (_, unit, _), cycles in blame.items():
    by_unit[unit] += cycles
print({unit: f"{cycles:,} cycles" for unit, cycles in by_unit.most_common()})
Markdown("\n".join(table))

# %% [markdown]
# A picture of it: one block's instructions by unit. Colours are kinds of work, white is waiting.

# %%
COLOURS = {
    "attn_temp": (VERMILION, "temporal attention"),
    "cross_attn": (PURPLE, "cross-attention"),
    "attn": (BLUE, "attention"),
    "mlp": (GREEN, "MLP"), "norm": (YELLOW, "normalisation"), "": (GREY, "other"),
}  # fmt: skip
block = "blocks.1."
inside = [
    i for i in range(len(step.instructions)) if step.layer(i).startswith(block) and UNITS[step.cost.unit[i]] == "mac"
]
begin, end = step.start[inside[0]], step.end[inside[-1]]
figure, axis = plt.subplots(figsize=(13, 2.8), layout="constrained")
for i in range(len(step.instructions)):
    if not step.cost.barrier[i] and step.end[i] > begin and step.start[i] < end:
        prefix = next(prefix for prefix in COLOURS if kind(step.layer(i)).startswith(prefix))
        axis.broken_barh(
            [(step.start[i], step.end[i] - step.start[i])], (int(step.cost.unit[i]) - 0.4, 0.8),
            facecolor=COLOURS[prefix][0], edgecolor="#1a1a1a", linewidth=0.2,
        )  # fmt: skip
axis.set(yticks=range(len(units)), yticklabels=UNITS[: len(units)], xlim=(begin, end), xlabel="cycle of the step")
axis.set_title(f"{block[:-1]} of one step")
axis.xaxis.set_major_formatter("{x:,.0f}")
axis.invert_yaxis()
handles = [Patch(facecolor=colour, label=label) for colour, label in COLOURS.values()]
figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
plt.show()

# %% [markdown]
# ## 4. What would help
#
# Each explanation predicts what an experiment does:
#
# | if the cycles are | then they shrink with | and not with |
# | --- | --- | --- |
# | wait for the vector unit | more lanes | a faster DRAM |
# | wait for loads | a faster DRAM, or more SRAM to load ahead | more lanes |
# | padding and fill | a smaller or divided array | more lanes, a faster DRAM |
# | useful | a larger array | anything else |
#
# So we change one thing at a time and time the step again. The compiler plans anew for each machine, as it would in
# reality.


# %%
EXPERIMENTS = {
    "twice the lanes": {"vector_unit.lanes": 2 * machine.vector_unit.lanes},
    "twice the DRAM channels": {"dram.channels": 2 * machine.dram.channels},
    "twice the SRAM": {"sram.capacity_bytes": 2 * machine.sram.capacity_bytes},
    "half the columns": {"mac_array.cols": machine.mac_array.cols // 2},
    "twice the columns": {"mac_array.cols": 2 * machine.mac_array.cols},
}
runs = {name: run_timing(WORKLOAD, changed(machine, fields)) for name, fields in EXPERIMENTS.items()}
effects = {name: array_time(parts_of(run.program, run.timing)["step"]) for name, run in runs.items()}

figure, axis = plt.subplots(figsize=(11, 3.4), layout="constrained")
names = ["as it is", *EXPERIMENTS]
left = np.zeros(len(names))
for part, (colour, hatch) in PARTS.items():
    values = np.array([sum(row[part] for row in rows.values()) for rows in (base, *effects.values())])
    axis.barh(names, values, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
    left += values
axis.axvline(left[0], color="#1a1a1a", linestyle=":", linewidth=1)
axis.invert_yaxis()
axis.set(xlabel="cycles of the array in one step")
axis.xaxis.set_major_formatter("{x:,.0f}")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %%
table = ["| experiment | cycles of a step | change |", "| --- | --- | --- |"]
for name, run in runs.items():
    cycles = run.timing.step.total_cycles
    table.append(f"| {name} | {cycles:,} | {cycles / total - 1:+.1%} |")
Markdown("\n".join(table))

# %%
waits = {name: sum(row["wait for data"] for row in rows.values()) for name, rows in effects.items()}
fill = {name: sum(row["fill"] + row["padding"] for row in rows.values()) for name, rows in effects.items()}
if not FAST:
    assert waits["twice the lanes"] < totals["wait for data"], "lanes shorten what waits for the vector unit"
    assert fill["half the columns"] < totals["fill"] + totals["padding"], "a smaller array pads less"
    assert fill["twice the columns"] > totals["fill"] + totals["padding"], "a larger one pads more"
    twice = runs["twice the columns"].timing.step.total_cycles
    print(f"twice the array makes the step {total / twice:.2f} times as fast")
    assert total / twice < 1.5

# %% [markdown]
# **Twice the array does not halve the step.** The useful part halves, the padding grows, and the waits stay. Whether
# the array or something else should grow is what the coloured bar says, before any synthesis run.
#
# ## 5. The same question for two runs
#
# `npusim.compare` reads two run folders and says which settings, causes and layers differ, largest change first. It
# is what to run when a number changed and nobody knows why.

# %%
best = min(runs, key=lambda name: runs[name].timing.step.total_cycles)
run_timing(WORKLOAD, changed(machine, EXPERIMENTS[best]), out=Path("ledger_best"))
found = npusim.compare(Path("ledger_base"), Path("ledger_best"))
print("settings:", "; ".join(f"{change.name}: {change.before} -> {change.after}" for change in found.settings))
table = ["| ledger | before | after | change |", "| --- | --- | --- | --- |"]
table += [f"| {c.name} | {c.before:,} | {c.after:,} | {c.difference:+,} |" for c in found.causes[:8]]
assert found.settings
Markdown("\n".join(table))

# %% [markdown]
# ## What to take away
#
# * Look for the unit with the most `busy` first, then only at *its* waits.
# * Spans of layers do not add up; the bottleneck's time does.
# * `busy` is not useful. Small products on a large array are the classic case, and temporal attention over a few
#   frames is as small as products get.
# * An explanation of cycles is worth what its prediction is worth. Change the machine and look.
#
# In a browser: `npusim trace runs/demo --window 0:20000 --open` shows a window of a step, with the tokens as lines.
