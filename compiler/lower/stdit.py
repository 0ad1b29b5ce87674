"""STDiT v1.0 as an integer graph, block by block in the order of its forward pass.

Both guidance branches run together: activation rows are (branch, frame, position), branch 0 conditional. The caption
projection and the keys and values of cross-attention depend on the prompt only and form the prologue.
"""

from __future__ import annotations

from math import log2

import numpy as np

from compiler.graph import Graph, Value
from compiler.lower.context import BRANCHES, Lowering
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


def lower(qm: QuantizedModel, attention_bits: int = 16) -> Graph:
    """Lower a quantized STDiT. ``attention_bits``: 8 or 16, the width of queries, keys and values. Raises UserError."""
    if attention_bits not in (8, 16):
        raise UserError(f"attention_bits = {attention_bits}: allowed 8, 16")
    low = Lowering(qm, attention_bits)
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
    null = np.rint(low.qm.y_embedding * 2.0**text_bits).astype(np.int64)
    build.const("text.null", null, "i16", 2.0**-text_bits)
    return {"text_fraction_bits": text_bits}


def _prologue(low: Lowering) -> None:
    """Caption projection of both branches, then keys and values of every block's cross-attention."""
    build, length = low.build, low.text_length
    layer = "y_embedder.y_proj.fc1"
    kind = low.linear_input(layer)
    build.add(low.value("text.all", BRANCHES * length, low.qm.y_embedding.shape[1], kind))
    for index, source in enumerate(("text", "text.null")):
        rows = index * length, (index + 1) * length
        part = build.view(f"text.all.{index}", "text.all", rows, (0, low.qm.y_embedding.shape[1]))
        low.convert(layer, source, part)
    hidden = low.linear(layer, "text.all", "y.hidden", gelu_input(low.absmax(f"{layer}:out")))
    layer = "y_embedder.y_proj.fc2"
    low.gelu(layer, hidden, "y.gelu", low.linear_input(layer))
    low.linear(layer, "y.gelu", "y", symmetric(low.absmax(f"{layer}:out")))
    for i in range(low.depth):
        name = f"blocks.{i}.cross_attn"
        kind = low.linear_input(f"{name}.kv_linear")
        low.convert(f"{name}.kv_linear", "y", low.value(f"{name}.y", BRANCHES * length, low.hidden, kind))
        _projection(low, name, f"{name}.kv_linear", f"{name}.y", "kv")


def _projection(low: Lowering, name: str, layer: str, x: str, parts: str) -> None:
    """A fused q/k/v linear: each part has its own symmetric scale, through the per-channel multipliers."""
    dtype = f"i{low.attention_bits}"
    kinds = [symmetric(low.absmax(f"{name}.tap_{part}:out"), dtype) for part in parts]
    scales = np.repeat([kind.scale for kind in kinds], low.hidden)
    out = low.linear(layer, x, f"{name}.{parts}" if len(parts) > 1 else f"{name}.{parts}.all", kinds[0], scales)
    rows = low.build.values[out].shape[0]
    for index, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        columns = index * low.hidden, (index + 1) * low.hidden
        low.build.view(f"{name}.{part}.part", out, (0, rows), columns, kind.scale)


def _embed(low: Lowering) -> str:
    build, layer = low.build, "x_embedder.proj"
    low.convert(layer, "state", low.value("state.in", low.tokens, 16, low.linear_input(layer)))
    kind = residual(low.absmax("tap_embed:out"))
    largest = low.absmax(f"{layer}:out") * HEADROOM
    low.linear(layer, "state.in", "patch", Activation("i16", fitted_step(kind.scale, largest)))
    step = fitted_step(kind.scale, float(np.abs(low.qm.pos_embed).max()))
    build.const("pos_embed", np.rint(low.qm.pos_embed / step).astype(np.int64), "i16", step)
    x = low.value("x", BRANCHES * low.tokens, low.hidden, kind)
    build.add(x)
    for branch in range(BRANCHES):
        part = build.view(f"x.{branch}", "x", (branch * low.tokens, (branch + 1) * low.tokens), (0, low.hidden))
        low.add("pos_embed", "patch", "pos_embed", part, b_rows="position")
    # A power of two times the step of the sum's grid: the addition then has one inexact factor, not two.
    step = fitted_step(low.linear_input("blocks.0.attn_temp.qkv").scale, float(np.abs(low.qm.pos_embed_temporal).max()))
    build.const("pos_embed_temporal", np.rint(low.qm.pos_embed_temporal / step).astype(np.int64), "i16", step)
    return "x"


def _attention(low: Lowering, name: str, over: str, q: str, k: str, v: str) -> str:
    """softmax(q k^T / sqrt(d)) v with an unnormalised exponential; output on the grid of the following projection."""
    values = low.build.values
    bits = max(0, min(16, fraction_bits(low.absmax(f"{name}.tap_logits:out") * log2(np.e), headroom=LOGIT_HEADROOM)))
    width = low.hidden // low.heads
    logit = values[q].scale * values[k].scale * width**-0.5 * log2(np.e) * 2.0**bits
    kind = low.linear_input(f"{name}.proj")
    return low.build.attention(
        name, q, k, v, low.value(f"{name}.out", values[q].shape[0], low.hidden, kind), heads=low.heads,
        logit=multiplier_shift(logit, 16, f"{name} logits"),
        output=multiplier_shift(values[v].scale / kind.scale, 32, f"{name} output"),
        fraction_bits=bits, p_bits=8 if low.attention_bits == 8 else 15,
        valid="text_len" if over == "cross" else "", over=over,
    )  # fmt: skip


def _block(low: Lowering, i: int, x: str) -> str:
    qm, name, rows = low.qm, f"blocks.{i}", BRANCHES * low.tokens
    table, real = low.time_table(f"{name}.mod", qm.scale_shift_table[i], qm.t0)
    gates = [float(np.abs(real[:, row]).max()) for row in (GATE_MSA, GATE_MLP)]

    def carried(tap: str) -> Value:
        before = low.build.values[x]
        kind = residual(low.absmax(f"{name}.{tap}:out"), Activation("i16", before.scale))
        return low.value(f"{name}.{tap}", rows, low.hidden, kind)

    def project(layer: str, source: str) -> str:
        return low.linear(layer, source, f"{layer}.out", symmetric(low.absmax(f"{layer}:out")))

    kind = low.linear_input(f"{name}.attn.qkv")
    low.norm_modulate(f"{name}.norm1", x, f"{name}.attn.in", kind, table, (SHIFT_MSA, SCALE_MSA), real)
    _projection(low, f"{name}.attn", f"{name}.attn.qkv", f"{name}.attn.in", "qkv")
    out = _attention(low, f"{name}.attn", "spatial", *(f"{name}.attn.{p}.part" for p in "qkv"))
    branch = project(f"{name}.attn.proj", out)
    x = low.gated_add(f"{name}.attn", x, branch, (table, GATE_MSA), gates[0], carried("tap_spatial"))

    layer = f"{name}.attn_temp"
    source = low.value(f"{layer}.in", rows, low.hidden, low.linear_input(f"{layer}.qkv"))
    if i == 0:
        low.add(f"{layer}.qkv", x, "pos_embed_temporal", source, b_rows="frame")
    else:
        low.convert(f"{layer}.qkv", x, source)
    _projection(low, layer, f"{layer}.qkv", source.name, "qkv")
    branch = project(f"{layer}.proj", _attention(low, layer, "temporal", *(f"{layer}.{p}.part" for p in "qkv")))
    x = low.gated_add(layer, x, branch, (table, GATE_MSA), gates[0], carried("tap_temporal"))

    layer = f"{name}.cross_attn"
    source = low.value(f"{layer}.in", rows, low.hidden, low.linear_input(f"{layer}.q_linear"))
    low.convert(f"{layer}.q_linear", x, source)
    _projection(low, layer, f"{layer}.q_linear", source.name, "q")
    branch = project(f"{layer}.proj", _attention(low, layer, "cross", *(f"{layer}.{p}.part" for p in "qkv")))
    x = low.add(layer, x, branch, carried("tap_cross"))

    kind = low.linear_input(f"{name}.mlp.fc1")
    low.norm_modulate(f"{name}.norm2", x, f"{name}.mlp.in", kind, table, (SHIFT_MLP, SCALE_MLP), real)
    layer = f"{name}.mlp.fc1"
    hidden = low.linear(layer, f"{name}.mlp.in", f"{layer}.out", gelu_input(low.absmax(f"{layer}:out")))
    low.gelu(f"{name}.mlp.gelu", hidden, f"{name}.mlp.gelu", low.linear_input(f"{name}.mlp.fc2"))
    branch = project(f"{name}.mlp.fc2", f"{name}.mlp.gelu")
    return low.gated_add(f"{name}.mlp", x, branch, (table, GATE_MLP), gates[1], carried("tap_mlp"))


def _final(low: Lowering, x: str) -> tuple[str, int]:
    """Final modulated LayerNorm and linear; returns the output's name and eps's fractional bits.

    Output columns are reordered to eps then v, each (channel, patch row, patch column).
    """
    layer = "final_layer.linear"
    table, real = low.time_table("final.table", low.qm.final_table, np.repeat(low.qm.te[:, None], 2, axis=1))
    low.norm_modulate("final_layer.norm_final", x, "final.in", low.linear_input(layer), table, (0, 1), real)
    column = np.arange(32).reshape(4, 8)  # (patch position, channel): channel fastest, as the model emits them
    order = np.concatenate([column[:, :4].T.ravel(), column[:, 4:].T.ravel()])
    eps_bits = min(14, fraction_bits(low.absmax(f"{layer}:out"), headroom=HEADROOM))
    scales = np.repeat([2.0**-eps_bits, 2.0**-V_FRACTION_BITS], 16)
    return low.linear(layer, "final.in", "raw", Activation("i16", 2.0**-eps_bits), scales, order), eps_bits
