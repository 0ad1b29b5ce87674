# %% [markdown]
# # 6. Bring your own checkpoint
#
# The float weights are an input like the machine. This notebook makes a checkpoint as a user would have one, takes it
# through calibration, quantization, compiler and simulator, and then asks a question that only one's own weights can
# answer: **how much does quantization suffer from outliers, and which method saves it?**
#
# The checkpoint is the trained `emoji` network with a twist. Some channels of its values are multiplied by a factor,
# and the weights that read them are divided by it: *the same float function*, with activations of very uneven
# channels, as large trained transformers have them. So whatever gets worse is quantization's doing and nothing
# else's.
#
# It takes about fifteen minutes on one core, most of it calibration.

# %% tags=["parameters"]
import os
from pathlib import Path

# The tests execute this notebook on the workload `tiny`, whose weights are random: its fidelity means nothing.
FAST = bool(os.environ.get("NPUSIM_NOTEBOOKS_FAST"))
WORKLOAD, MACHINE = ("tiny", "tiny_8x8") if FAST else ("emoji", "edge_8k")
METHODS = ("cw_tw", "asq") if FAST else ("cw_tw", "asq", "tsq")
FACTOR = 16.0
FOLDER = Path("checkpoint")  # beside where this notebook is executed

# %%
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from safetensors.torch import save_file

import npusim
from models.calibrate import collect
from models.errors import ModelError
from models.workloads import get_workload
from npusim.html.style import BLUE, GREEN, GREY, SETTINGS, VERMILION
from npusim.hw import find_machine
from npusim.run import run_timing

plt.rcParams.update(SETTINGS)
torch.set_num_threads(1)
FOLDER.mkdir(exist_ok=True)
work, machine = get_workload(WORKLOAD), find_machine(MACHINE)

# %% [markdown]
# ## 1. The file
#
# A checkpoint is a safetensors file: the tensors of `models.stdit.STDiT`, and its constructor's arguments as JSON in
# the metadata under `config`. Released `.pth` files of Open-Sora v1.0 are read as they are, for the workloads
# `stdit-xl2-...`.

# %%
model = work.load_model()
tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
width = work.config["hidden_size"]
uneven = np.random.default_rng(0).choice(width, width // 32, replace=False)
for block in range(work.config["depth"]):
    for attention in ("attn", "attn_temp"):
        value_rows = 2 * width + torch.from_numpy(uneven)  # rows of qkv are ordered q, k, v
        tensors[f"blocks.{block}.{attention}.qkv.weight"][value_rows] *= FACTOR
        tensors[f"blocks.{block}.{attention}.qkv.bias"][value_rows] *= FACTOR
        tensors[f"blocks.{block}.{attention}.proj.weight"][:, torch.from_numpy(uneven)] /= FACTOR
path = FOLDER / "uneven.safetensors"
save_file(tensors, path, metadata={"config": json.dumps(work.config)})
print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(tensors)} tensors, {len(uneven)} uneven channels of {width}")

# %% [markdown]
# Every tensor is checked by name and shape before the model takes it, and what is wrong is said in one line.

# %%
broken = FOLDER / "broken.safetensors"
save_file(
    {n: t for n, t in tensors.items() if n != "blocks.0.mlp.fc1.bias"}, broken, {"config": json.dumps(work.config)}
)
try:
    replace(work, checkpoint=broken).load_model()
    raise AssertionError("must be refused")
except ModelError as error:
    print(error)
broken.unlink()

# %% [markdown]
# ## 2. Calibration
#
# Ranges of activations belong to weights. So the named workload's statistics do not fit this checkpoint (they would
# be refused), and `collect` runs the float model over the calibration captions anew. The file that it saves serves
# every method, width and number of ranges.

# %%
mine = replace(work, checkpoint=path, calibration=None, alphas=None)
if FAST:
    mine = mine.with_files(prompts=2)
uneven_model = mine.load_model()
stats = collect(uneven_model, mine)
stats.save(FOLDER / "uneven_stats.safetensors")
mine = replace(mine, calibration=FOLDER / "uneven_stats.safetensors")
reference = work.load_stats()

# %% [markdown]
# What calibration saw at the input of one projection: the largest magnitude of each channel. A grid for the whole
# tensor has to reach the highest of them with 256 steps. What is left for an ordinary channel is the ratio of the
# two.

# %%
layer = "blocks.0.attn.proj:in"
figure, axes = plt.subplots(1, 2, figsize=(12, 3.4), sharey=True, layout="constrained")
peaks = {}
for axis, (name, found) in zip(axes, {"as trained": reference, "uneven": stats}.items(), strict=True):
    peaks[name] = np.sort(found.channel_absmax[layer].max(axis=(0, 1)))[::-1]
    axis.bar(range(width), peaks[name], color=BLUE if name == "as trained" else VERMILION, width=1.0)
    steps_left = 256 * np.median(peaks[name]) / peaks[name].max()
    axis.set(
        title=f"{name}: {steps_left:.0f} of 256 steps for the median channel", xlabel="channel, sorted", yscale="log"
    )
axes[0].set_ylabel("largest magnitude")
plt.show()
assert peaks["uneven"].max() > 2 * peaks["as trained"].max()

# %% [markdown]
# ## 3. Method against method
#
# The same float function twice, each with its own calibration; the same noise. `npusim.run` takes the checkpoint and
# its statistics by path, as `npusim run --checkpoint FILE --calibration FILE` does. `alpha` is the smoothing
# exponent; the named workload has searched ones, so to be fair all take 0.5 here.


# %%
def measure(checkpoint, calibration, method):
    """Noise SQNR in dB on equal inputs: integer machine and fake-quantized network, each against float."""
    alpha = None if method == "cw_tw" else 0.5
    result = npusim.run(mine, machine, method, alpha=alpha, verify="1", checkpoint=checkpoint, calibration=calibration)
    assert result.bit_exact.equal, "engine and reference agree whatever the weights"
    sqnr = result.fidelity.eps_equal_inputs_sqnr_db
    return result, float(np.mean(sqnr["integer_vs_float"])), float(np.mean(sqnr["fakequant_vs_float"]))


plain = FOLDER / "plain.safetensors"
save_file(dict(model.state_dict()), plain, metadata={"config": json.dumps(work.config)})
reference.save(FOLDER / "plain_stats.safetensors")
FILES = {"as trained": (plain, FOLDER / "plain_stats.safetensors"), "uneven": (path, mine.calibration)}
found = {(name, method): measure(*files, method) for name, files in FILES.items() for method in METHODS}

# %%
figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
places = np.arange(len(METHODS))
for offset, (name, colour, hatch) in zip(
    (-0.2, 0.2), (("as trained", BLUE, ""), ("uneven", VERMILION, "xxx")), strict=True
):
    integer = [found[name, method][1] for method in METHODS]
    axis.bar(places + offset, integer, 0.38, color=colour, hatch=hatch, edgecolor="white", label=f"{name}, integer")
    fake = [found[name, method][2] for method in METHODS]
    label = "fake-quant" if offset > 0 else None
    axis.plot(places + offset, fake, "_", color="#1a1a1a", markersize=30, label=label)
axis.set(xticks=places, xticklabels=METHODS, ylabel="noise SQNR, dB", title=f"one float function, factor {FACTOR:g}")
axis.legend()
axis.grid(axis="y")
plt.show()

# %%
table = ["| method | as trained, dB | uneven, dB | lost, dB |", "| --- | --- | --- | --- |"]
lost = {}
for method in METHODS:
    before, after = found["as trained", method][1], found["uneven", method][1]
    lost[method] = before - after
    table.append(f"| `{method}` | {before:.2f} | {after:.2f} | {lost[method]:.2f} |")
float_clips = [found[name, "cw_tw"][0].clips["float"].latent for name in FILES]
error = np.abs(float_clips[0] - float_clips[1]).max() / np.abs(float_clips[0]).max()
print(f"the two float models' clips differ by {error:.1e} of the largest value: they are one function")
assert error < 1e-2
if not FAST:
    assert lost["cw_tw"] > 3 * max(lost["asq"], 0.1), "smoothing takes what outliers do"
Markdown("\n".join(table))

# %% [markdown]
# Without smoothing, a handful of channels costs every other channel its resolution. With it the factor moves into the
# weights, where each *output* channel has its own scale and the damage is spread. The paper's case for smoothing is
# invisible on well-behaved weights and plain on these.
#
# Bars and marks coincide in all of it: the simulator's integers follow the fake-quantized network where it is good
# and where it is bad.
#
# ## 4. Where it hurts
#
# Outputs layer by layer, float against fake-quantized, in the same step. A layer's figure holds its own error and
# that of what comes before it in the step.

# %%
from models.fakequant import FakeQuantSTDiT
from models.metrics.layers import layer_sqnr_db
from models.sample import denoise, float_predictor
from npusim.run import ClipInputs

inputs = ClipInputs.of(mine, mine.sheet_captions[0], mine.sheet_seeds[0])
null = uneven_model.y_embedder.y_embedding
text = (inputs.text[inputs.mask], inputs.mask[inputs.mask], null[inputs.mask])  # valid tokens only
predict = float_predictor(uneven_model, inputs.sampler, *text)
trajectory = denoise(predict, inputs.x_T, inputs.noises, inputs.sampler)
figure, axis = plt.subplots(figsize=(12, 4), layout="constrained")
for method, colour, style in zip(METHODS, (VERMILION, BLUE, GREEN), ("x", "o", "^"), strict=False):
    fake = FakeQuantSTDiT(uneven_model, found["uneven", method][0].quantized)
    layers = layer_sqnr_db(uneven_model, fake, inputs.sampler, inputs.text, inputs.mask, null, trajectory)
    names = [name for name in layers if name.startswith("blocks.")]
    axis.plot(
        range(len(names)), [layers[name].mean() for name in names], style, color=colour, label=method, markersize=5
    )
for place, name in enumerate(names):
    if name.endswith((".attn.proj", ".attn_temp.proj")):
        axis.axvline(place, color=GREY, linewidth=0.8, zorder=0)
axis.set(xlabel="linears in order of execution; lines mark the projections behind the uneven values")
axis.set(ylabel="SQNR of the output, dB", title="uneven checkpoint, mean over steps")
axis.legend()
axis.grid(axis="y")
plt.show()

# %% [markdown]
# ## 5. A network of other sizes
#
# A workload is a configuration and a few settings, so a network that nobody has trained yet can be timed today. Twice
# the depth, or twice the width?

# %%
SIZES = {
    "as it is": {},
    "twice the depth": {"depth": 2 * work.config["depth"]},
    "twice the width": {"hidden_size": 2 * width, "num_heads": 2 * work.config["num_heads"]},
}
table = ["| network | million products | ms | MAC utilisation |", "| --- | --- | --- | --- |"]
for name, sizes in SIZES.items():
    other = replace(
        work, name="custom", config={**work.config, **sizes}, checkpoint=None, calibration=None, alphas=None
    )
    timing = run_timing(other, machine).timing
    products = timing.traffic.mac_operations
    table.append(f"| {name} | {products / 1e6:,.0f} | {timing.seconds * 1e3:.2f} | {timing.mac_utilisation:.1%} |")
Markdown("\n".join(table))

# %% [markdown]
# ## From the command line
#
# The same with files only, here for the released STDiT-XL/2 (`models/README.md` says what `t5.safetensors` holds):
#
#     npusim calibrate --workload stdit-xl2-16x256x256 --checkpoint OpenSora-v1-16x256x256.pth \
#         --text t5.safetensors --prompts 10 --steps 20 --out stats.safetensors
#     npusim quantize --workload stdit-xl2-16x256x256 --checkpoint OpenSora-v1-16x256x256.pth \
#         --calibration stats.safetensors --method asq --out asq.safetensors
#     npusim compile asq.safetensors --hw hwconfigs/edge_8k.yaml -o asq.npu
