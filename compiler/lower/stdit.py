"""STDiT v1.0 as an integer graph, block by block in the order of its forward pass.

Both guidance branches run together, unless one is asked for: activation rows are (branch, frame, position), branch 0
conditional. The caption
projection and the keys and values of cross-attention depend on the prompt only and form the prologue.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Value
from compiler.lower.context import Lowering
from compiler.lower.sampler import STATE_FRACTION_BITS, lower_sampler
from compiler.lower.scales import (
    HEADROOM,
    Activation,
    fitted_step,
    fraction_bits,
    gelu_input,
    multiplier_shift,
    residual,
    symmetric,
)
from models.iddpm import IDDPM, NOISE_FRACTION_BITS
from models.quantize import QuantizedModel
from npusim.errors import UserError

SHIFT_MSA, SCALE_MSA, GATE_MSA, SHIFT_MLP, SCALE_MLP, GATE_MLP = range(6)
V_FRACTION_BITS = 12
LOGIT_HEADROOM = 1.25


def lower(qm: QuantizedModel, attention_bits: int = 16, factored: bool = False, branch: str | None = None) -> Graph:
    """Lower a quantized STDiT; arguments as of `compiler.compile_model`. Raises UserError."""
    if attention_bits not in (8, 16):
        raise UserError(f"attention_bits = {attention_bits}: allowed 8, 16")
    low = Lowering(qm, attention_bits, factored, branch)
    host = _inputs(low)
    low.build.phase = "prologue"
    _prologue(low)
    low.build.phase = "step"
    x = _embed(low)
    for index in range(low.depth):
        x = _block(low, index, x)
    raw, eps_bits = _final(low, x)
    settings = qm.iddpm
    sampler = IDDPM(int(settings["num_sampling_steps"]), float(settings["cfg_scale"]), int(settings["cfg_channels"]))
    host |= lower_sampler(low, sampler, raw, eps_bits, V_FRACTION_BITS)
    for name in ("eps", raw, "state.next"):
        low.build.output(name)
    return low.build.graph(host)


def _inputs(low: Lowering) -> dict[str, int]:
    build, channels = low.build, low.qm.y_embedding.shape[1]
    largest = max(low.absmax("y_embedder.y_proj.fc1:in"), float(np.abs(low.qm.y_embedding).max()))
    text_bits = fraction_bits(largest)
    build.input("text", (low.text_length, channels), "i16", 2.0**-text_bits)
    build.input("text_len", (1, 1), "i32")
    build.input("state", (low.tokens, 16), "i32", 2.0**-STATE_FRACTION_BITS)
    build.input("noise", (low.tokens, 16), "i16", 2.0**-NOISE_FRACTION_BITS)
    if "unconditional" in low.branches:
        null = np.rint(low.qm.y_embedding * 2.0**text_bits).astype(np.int64)
        build.const("text.null", null, "i16", 2.0**-text_bits)
    return {"text_fraction_bits": text_bits}


def _prologue(low: Lowering) -> None:
    """Caption projection of both branches, then keys and values of every block's cross-attention."""
    build, length = low.build, low.text_length
    layer = "y_embedder.y_proj.fc1"
    kind = low.linear_input(layer)
    build.add(low.value("text.all", len(low.branches) * length, low.qm.y_embedding.shape[1], kind))
    texts = {"conditional": "text", "unconditional": "text.null"}
    for index, source in enumerate(texts[branch] for branch in low.branches):
        rows = index * length, (index + 1) * length
        part = build.view(f"text.all.{index}", "text.all", rows, (0, low.qm.y_embedding.shape[1]))
        low.quantized(layer, source, part)
    hidden = low.linear(layer, "text.all", "y.hidden", gelu_input(low.absmax(f"{layer}:out")))
    layer = "y_embedder.y_proj.fc2"
    low.gelu(layer, hidden, "y.gelu", layer)
    low.linear(layer, "y.gelu", "y", symmetric(low.absmax(f"{layer}:out")))
    for i in range(low.depth):
        name = f"blocks.{i}.cross_attn"
        layer = f"{name}.kv_linear"
        out = low.value(f"{name}.y", len(low.branches) * length, low.hidden, low.linear_input(layer))
        _projection(low, name, layer, low.quantized(layer, "y", out), "kv")


@dataclass(frozen=True)
class Values:
    """How an attention's values stand for reals, so that the weighted sum lies on the grid of the projection behind it.

    ``scale``: of each channel, (R, C) or (1, C). ``offset``: a real number added to each, likewise; the weights of a
    row sum to 1, so its result has as much more. ``factor``: from a step of the values to one of the result.
    """

    scale: NDArray[Any]
    offset: NDArray[Any]
    factor: float


def folds(low: Lowering, name: str) -> bool:
    """Whether the projection's smoothing and grids can lie in the rows that make the values.

    Values of cross-attention are made once per prompt, so nothing in them can change with the time range. And a linear
    that is requantized in two factors must make every output on one scale.
    """
    fixed = low.factored or name.endswith("cross_attn")
    return not (fixed and low.linear_input(f"{name}.proj").changes)


def _values(low: Lowering, name: str) -> Values:
    dtype = f"i{low.attention_bits}"
    if not folds(low, name):
        scale = symmetric(low.absmax(f"{name}.tap_v:out"), dtype).scale
        return Values(np.full((1, low.hidden), scale), np.zeros((1, low.hidden)), scale / _whole(low, name).scale)
    grid = low.linear_input(f"{name}.proj")
    offset = grid.offset * grid.units
    limit, headroom = (127, 1.0) if dtype == "i8" else (32767, HEADROOM)
    steps = (headroom * np.maximum(low.qm.value_absmax[name], 1e-9) + np.abs(offset)) / grid.units
    factor = float(steps.max()) / limit
    return Values(factor * grid.units, offset, factor)


def _whole(low: Lowering, name: str) -> Activation:
    """The 16-bit tensor that attention leaves where ``folds`` does not hold."""
    return symmetric(low.absmax(f"{name}.proj:in"))


def _projection(low: Lowering, name: str, layer: str, x: str, parts: str) -> None:
    """A fused q/k/v linear: each part has its own symmetric scale, through the per-channel multipliers."""
    dtype = f"i{low.attention_bits}"
    kinds = [symmetric(low.absmax(f"{name}.tap_{part}:out"), dtype) for part in parts]
    scales = [np.full((1, low.hidden), kind.scale) for kind in kinds]
    offsets = [np.zeros((1, low.hidden)) for _ in kinds]
    if parts[-1] == "v":
        values = _values(low, name)
        scales[-1], offsets[-1] = values.scale, values.offset
    # A range or the channels may differ in the values alone.
    rows = max(map(len, scales))
    scale, offset = (np.hstack([np.broadcast_to(a, (rows, low.hidden)) for a in each]) for each in (scales, offsets))
    target = f"{name}.{parts}" if len(parts) > 1 else f"{name}.{parts}.all"
    out = low.linear(layer, x, target, kinds[0], scale, offset)
    count = low.build.values[out].shape[0]
    for index, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        columns = index * low.hidden, (index + 1) * low.hidden
        step = float(scales[index][0, 0]) if part == "v" else kind.scale
        low.build.view(f"{name}.{part}.part", out, (0, count), columns, step)


def _embed(low: Lowering) -> str:
    build, layer = low.build, "x_embedder.proj"
    low.quantized(layer, "state", low.value("state.in", low.tokens, 16, low.linear_input(layer)))
    kind = residual(low.absmax("tap_embed:out"))
    largest = low.absmax(f"{layer}:out") * HEADROOM
    low.linear(layer, "state.in", "patch", Activation("i16", fitted_step(kind.scale, largest)))
    step = fitted_step(kind.scale, float(np.abs(low.qm.pos_embed).max()))
    build.const("pos_embed", np.rint(low.qm.pos_embed / step).astype(np.int64), "i16", step)
    x = low.value("x", len(low.branches) * low.tokens, low.hidden, kind)
    build.add(x)
    for branch in range(len(low.branches)):
        part = build.view(f"x.{branch}", "x", (branch * low.tokens, (branch + 1) * low.tokens), (0, low.hidden))
        low.add("pos_embed", "patch", "pos_embed", part, b_rows="position")
    # A power of two times the step of the sum's grid: the addition then has one inexact factor, not two.
    unit = float(low.linear_input("blocks.0.attn_temp.qkv").scale[0])
    step = fitted_step(unit, float(np.abs(low.qm.pos_embed_temporal).max()))
    build.const("pos_embed_temporal", np.rint(low.qm.pos_embed_temporal / step).astype(np.int64), "i16", step)
    return "x"


def _attention(low: Lowering, name: str, over: str) -> str:
    """softmax(q k^T / sqrt(d)) v with an unnormalised exponential; output on the grid of the following projection."""
    values = low.build.values
    q, k, v = (f"{name}.{part}.part" for part in "qkv")
    bits = max(0, min(16, fraction_bits(low.absmax(f"{name}.tap_logits:out") * log2(e), headroom=LOGIT_HEADROOM)))
    width = low.hidden // low.heads
    logit = values[q].scale * values[k].scale * width**-0.5 * log2(e) * 2.0**bits
    rows, layer = values[q].shape[0], f"{name}.proj"
    keys = {"spatial": low.positions, "temporal": low.frames, "cross": low.text_length}[over]
    grid = low.linear_input(layer)
    kind = grid if folds(low, name) else _whole(low, name)
    out = low.value(f"{name}.out" if folds(low, name) else f"{name}.whole", rows, low.hidden, kind)
    out_name = low.build.attention(
        name, q, k, v, out, heads=low.heads, logit=multiplier_shift(logit, 16, f"{name} logits"),
        output=multiplier_shift(_values(low, name).factor, 32, f"{name} output"),
        fraction_bits=bits, p_bits=probability_bits(low.attention_bits, keys),
        valid="text_len" if over == "cross" else "", over=over,
    )  # fmt: skip
    return (
        out_name if kind is grid else low.quantized(layer, out_name, low.value(f"{name}.out", rows, low.hidden, grid))
    )


def probability_bits(attention_bits: int, keys: int) -> int:
    """Bits of an attention's probabilities: 8, or up to 15 as long as the sum over ``keys`` 16-bit values fits.

    The sum is at most keys (2^bits - 1) 2^15, for which machines have 40 bits of accumulator: at 1024 keys (16x512x512)
    14 bits are left. The probability of the largest key is all ones in any case.
    """
    if attention_bits == 8:
        return 8
    return max(bits for bits in range(9, 16) if bits == 9 or (keys * ((1 << bits) - 1)) << 15 < 1 << 39)


def _block(low: Lowering, i: int, x: str) -> str:
    qm, name, rows = low.qm, f"blocks.{i}", len(low.branches) * low.tokens
    time = qm.scale_shift_table[i][None] + qm.t0  # (steps, 6, C)

    def carried(tap: str) -> Value:
        before = low.build.values[x]
        kind = residual(low.absmax(f"{name}.{tap}:out"), Activation("i16", before.scale))
        return low.value(f"{name}.{tap}", rows, low.hidden, kind)

    def project(layer: str, source: str) -> str:
        return low.linear(layer, source, f"{layer}.out", symmetric(low.absmax(f"{layer}:out")))

    def before(layer: str, out: str) -> Value:
        return low.value(out, rows, low.hidden, low.linear_input(layer))

    layer = f"{name}.attn"
    low.norm_modulate(f"{name}.norm1", x, f"{layer}.in", f"{layer}.qkv", time[:, SHIFT_MSA], time[:, SCALE_MSA])
    _projection(low, layer, f"{layer}.qkv", f"{layer}.in", "qkv")
    branch = project(f"{layer}.proj", _attention(low, layer, "spatial"))
    x = low.gated_add(layer, x, branch, time[:, GATE_MSA], carried("tap_spatial"))

    layer = f"{name}.attn_temp"
    source = before(f"{layer}.qkv", f"{layer}.in")
    if i == 0:
        taken = low.quantized_sum(f"{layer}.qkv", x, "pos_embed_temporal", source, b_rows="frame")
    else:
        taken = low.quantized(f"{layer}.qkv", x, source)
    _projection(low, layer, f"{layer}.qkv", taken, "qkv")
    branch = project(f"{layer}.proj", _attention(low, layer, "temporal"))
    x = low.gated_add(layer, x, branch, time[:, GATE_MSA], carried("tap_temporal"))

    layer = f"{name}.cross_attn"
    taken = low.quantized(f"{layer}.q_linear", x, before(f"{layer}.q_linear", f"{layer}.in"))
    _projection(low, layer, f"{layer}.q_linear", taken, "q")
    branch = project(f"{layer}.proj", _attention(low, layer, "cross"))
    x = low.add(layer, x, branch, carried("tap_cross"))

    layer = f"{name}.mlp"
    low.norm_modulate(f"{name}.norm2", x, f"{layer}.in", f"{layer}.fc1", time[:, SHIFT_MLP], time[:, SCALE_MLP])
    hidden = low.linear(f"{layer}.fc1", f"{layer}.in", f"{layer}.fc1.out", gelu_input(low.absmax(f"{layer}.fc1:out")))
    branch = project(f"{layer}.fc2", low.gelu(f"{layer}.gelu", hidden, f"{layer}.gelu", f"{layer}.fc2"))
    return low.gated_add(layer, x, branch, time[:, GATE_MLP], carried("tap_mlp"))


def _final(low: Lowering, x: str) -> tuple[str, int]:
    """Final modulated LayerNorm and linear; returns the output's name and eps's fractional bits.

    Output columns are reordered to eps then v, each (channel, patch row, patch column).
    """
    layer = "final_layer.linear"
    add, scale = (row + low.qm.te for row in low.qm.final_table)
    low.norm_modulate("final_layer.norm_final", x, "final.in", layer, add, scale)
    column = np.arange(32).reshape(4, 8)  # (patch position, channel): channel fastest, as the model emits them
    order = np.concatenate([column[:, :4].T.ravel(), column[:, 4:].T.ravel()])
    eps_bits = min(14, fraction_bits(low.absmax(f"{layer}:out"), headroom=HEADROOM))
    scales = np.repeat([2.0**-eps_bits, 2.0**-V_FRACTION_BITS], 16)
    return low.linear(layer, "final.in", "raw", Activation("i16", 2.0**-eps_bits), scales, order=order), eps_bits
