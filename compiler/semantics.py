"""What each graph operation computes, on whole NumPy int64 tensors.

The passes are proved against this, and so are the instructions. The arithmetic primitives (rounding, table lookup,
exponential) are the ISA's own, in ``npusim/numerics.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Op
from npusim import numerics
from npusim.isa.encoding import DTYPES
from npusim.isa.layernorm import normalise
from npusim.isa.matmul import bias_of, unpacked_shifts
from npusim.isa.runtime_quantization import quantized_rows

Array = NDArray[Any]
Semantics = Callable[[Graph, Op, dict[str, Array]], Array]


def limits(graph: Graph, op: Op) -> tuple[int, int]:
    _, low, high = DTYPES[graph.values[op.output].dtype]
    return low, high


def rounded(graph: Graph, op: Op, total: Array) -> Array:
    """``clamp((total >> shift) + out_zp)``, rounded to nearest: how the vector unit ends every linear operation."""
    clamped = np.clip(numerics.rescale(total, 1, op.attrs["shift"]) + op.attrs["out_zp"], *limits(graph, op))
    return np.asarray(clamped)


def gains(table: Array | None, channels: int) -> Array:
    """By what a linear's input shifts multiply each of its ``channels``, int64; 1 without a table."""
    return np.int64(1) << (np.zeros(channels, np.int64) if table is None else unpacked_shifts(table, channels))


def shifted(x: dict[str, Array], inputs: Array) -> Array:
    """``inputs`` (rows, k) with each channel shifted left as ``x["shifts"]`` says, where there is one."""
    return np.asarray(inputs * gains(x.get("shifts"), inputs.shape[1]))


def linear_centred(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """The definition of a quantized linear: zero points subtracted first.

    x (rows, k), weight (n, k) unsigned, bias (n,) in accumulator units.
    """
    acc = shifted(x, x["x"] - x["in_zp"]) @ (x["weight"] - x["weight_zp"][:, None]).T + x["bias"]
    return numerics.requantize(acc, x["multiplier"], x["shift"], op.attrs["out_zp"], *limits(graph, op))


def linear(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """As the array does it: raw products, then the record's bias and the row-sum correction. weight (n, k) signed."""
    records, inputs = x["records"], shifted(x, x["x"])
    row_sum = inputs.sum(axis=1, keepdims=True)
    acc = inputs @ x["weight"].T + bias_of(records) - records["zero_point"].astype(np.int64) * row_sum
    multiplier, shift = records["multiplier"].astype(np.int64), records["shift"].astype(np.int64)
    return numerics.requantize(acc, multiplier, shift, op.attrs["out_zp"], *limits(graph, op))


def linear_factored(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """As ``linear``, with zero point and second scale of the layer in ``scalars``; weight (n, k) signed."""
    scalars = x["scalars"][0]
    inputs = shifted(x, x["x"] - int(scalars["zero_point"]))
    return two_factors(graph, op, x, inputs, int(scalars["multiplier"]), int(scalars["shift"]))


def two_factors(graph: Graph, op: Op, x: dict[str, Array], inputs: Array, multiplier: Any, shift: Any) -> Array:
    """The sum, by the channel's factor, by a second one, then the bias: MATMUL's factored modes."""
    records = x["records"]
    acc = inputs @ x["weight"].T - records["zero_point"].astype(np.int64) * inputs.sum(axis=1, keepdims=True)
    first = records["multiplier"].astype(np.int64), records["shift"].astype(np.int64)
    bias, attrs = records["bias"].astype(np.int64), op.attrs
    exact = numerics.rescale_twice(acc, first, (multiplier, shift), bias, attrs["fraction_bits"]) + attrs["out_zp"]
    return np.asarray(np.clip(exact, *limits(graph, op)))


def linear_dynamic(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """Each row is quantized by its own range, then multiplied: RTQUANT and MATMUL with ``factored_row``.

    x (rows, k) int16, weight (n, k) signed.
    """
    attrs, top = op.attrs, (1 << op.attrs["bits"]) - 1
    exact, zero_point, multiplier, shift = quantized_rows(x["x"], top, attrs["row_multiplier"], attrs["row_shift"])
    return two_factors(graph, op, x, np.clip(exact, 0, top) - zero_point, multiplier, shift)


def layernorm(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """LayerNorm of each row without affine parameters, with ``fraction_bits`` fractional bits, clamped to 16 bits."""
    rows = x["x"]
    total = rows.sum(axis=1, keepdims=True)
    variance = rows.shape[1] * (rows * rows).sum(axis=1, keepdims=True) - total * total + op.attrs["epsilon"]
    return np.asarray(normalise(rows, total, *numerics.rsqrt(variance), op.attrs["fraction_bits"]))


def modulate(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """``x * g + b`` per channel, one rounding."""
    return rounded(graph, op, x["x"] * x["g"] + x["b"])


def layernorm_modulate(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """``modulate`` of ``layernorm``, as LNSTAT and LNAPPLY do it."""
    return modulate(graph, op, {**x, "x": layernorm(graph, op, x)})


def spread(graph: Graph, rows: Array, pattern: str, count: int) -> Array:
    """Repeat the rows of a table over ``count`` activation rows: by position in the frame, or by frame."""
    index = np.arange(count)
    if pattern == "position":
        return rows[index % graph.positions]
    if pattern == "frame":
        return rows[index // graph.positions % graph.frames]
    return rows


def elementwise(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """``clamp(((a ma + b mb + bias) >> shift) + out_zp)`` with one rounding.

    Multipliers are attributes or per-channel inputs; ``b`` may be a table of rows (see ``spread``).
    """
    total = x["a"] * x.get("a_mul", op.attrs.get("a_mul", 0)) + x.get("bias", 0)
    if "b" in x:
        b = spread(graph, x["b"], op.attrs.get("b_rows", ""), len(x["a"]))
        total = total + b * x.get("b_mul", op.attrs.get("b_mul", 0))
    return rounded(graph, op, total)


def product(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """Element-wise ``a * b``, one rounding."""
    return rounded(graph, op, x["a"] * x["b"])


def table(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """The 513-entry interpolating lookup of 16-bit values, then a requantization."""
    value = numerics.table_lookup_16(x["x"], x["table"])
    return numerics.requantize(value, op.attrs["multiplier"], op.attrs["shift"], op.attrs["out_zp"], *limits(graph, op))


def heads_first(graph: Graph, op: Op, rows: Array, over: str) -> Array:
    """(rows, heads * width) -> (groups, heads, tokens, width): groups are frames, positions or branches."""
    heads, width = op.attrs["heads"], rows.shape[1] // op.attrs["heads"]
    if over == "spatial":
        cut = rows.reshape(-1, graph.positions, heads, width)
    elif over == "temporal":
        by_frame = rows.reshape(graph.branches, graph.frames, graph.positions, heads, width)
        cut = by_frame.transpose(0, 2, 1, 3, 4).reshape(-1, graph.frames, heads, width)
    else:
        cut = rows.reshape(graph.branches, -1, heads, width)
    return cut.transpose(0, 2, 1, 3)


def rows_first(graph: Graph, op: Op, cut: Array) -> Array:
    """The inverse of ``heads_first`` for the query side."""
    _, heads, _, width = cut.shape
    rows = cut.transpose(0, 2, 1, 3)
    if op.attrs["over"] == "temporal":
        by_position = rows.reshape(graph.branches, graph.positions, graph.frames, heads, width)
        rows = by_position.transpose(0, 2, 1, 3, 4)
    return rows.reshape(-1, heads * width)


def attention_parts(graph: Graph, op: Op, x: dict[str, Array]) -> dict[str, Array]:
    """Every intermediate of an attention, grouped and heads first: logits, p, sums, multiplier, shift and out."""
    over, attrs = op.attrs["over"], op.attrs
    q, k, v = (heads_first(graph, op, x[name], over) for name in "qkv")
    valid = max(1, min(int(x["valid"].ravel()[0]), k.shape[2])) if "valid" in x else k.shape[2]
    logits = numerics.requantize(
        q @ k.swapaxes(-1, -2), attrs["logit_multiplier"], attrs["logit_shift"], 0, -32768, 32767
    )
    kept = logits[..., :valid]
    p = np.zeros_like(logits)
    p[..., :valid] = numerics.exp2_negative(
        kept.max(axis=-1, keepdims=True) - kept, attrs["fraction_bits"], attrs["p_bits"]
    )
    sums = p.sum(axis=-1, keepdims=True)
    mantissa, shift = numerics.reciprocal(sums)
    scaled = (mantissa * attrs["out_multiplier"] + (1 << 29)) >> 30
    multiplier, shift = numerics.normalised_multiplier(scaled, shift + attrs["out_shift"] - 30, 16)
    out = numerics.requantize(p @ v, multiplier, shift, attrs["out_zp"], *limits(graph, op))
    return {"logits": logits, "p": p, "sums": sums, "multiplier": multiplier, "shift": shift, "out": out}


def attention(graph: Graph, op: Op, x: dict[str, Array]) -> Array:
    """softmax(q k^T) v within a frame, over the frames of a position, or over the text ("cross")."""
    return rows_first(graph, op, attention_parts(graph, op, x)["out"])


SEMANTICS: dict[str, Semantics] = {
    f.__name__: f
    for f in (
        linear_centred, linear, linear_factored, linear_dynamic, layernorm, modulate, layernorm_modulate, elementwise,
        product, table, attention,
    )
}  # fmt: skip
