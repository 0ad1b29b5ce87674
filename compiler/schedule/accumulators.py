"""Proof that no accumulator of the array overflows, whatever the inputs.

The array adds fold by fold, then bias and zero-point correction. Every partial sum is at most the sum of the magnitudes
of all its terms; where that fits, the machine computes what the graph says, for every overflow rule and order of folds.
"""

from __future__ import annotations

import numpy as np

from compiler.graph import Graph, Op
from compiler.semantics import gains
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES
from npusim.isa.matmul import bias_of


def prove_accumulators(graph: Graph, machine: Machine) -> None:
    """Raise UserError naming layer, channel or product, and the numbers, where a sum could exceed ``acc_bits``.

    Without contents, nothing is known of the weights, so only attention is proved.
    """
    acc_bits = machine.mac_array.acc_bits
    for op in (*graph.prologue, *graph.step):
        if op.kind.startswith("linear") and graph.contents:
            changes = any(graph.values[name].kind == "range_const" for name in op.inputs.values())
            for time_range in range(graph.ranges if changes else 1):
                _prove_linear(graph, op, time_range, acc_bits)
        if op.kind == "attention":
            _prove_attention(graph, op, acc_bits)


def largest(graph: Graph, name: str, zero_point: int = 0) -> int:
    """Largest distance from ``zero_point`` that the type of a value holds."""
    _, low, high = DTYPES[graph.values[name].dtype]
    return max(zero_point - low, high - zero_point)


def _prove_linear(graph: Graph, op: Op, time_range: int, acc_bits: int) -> None:
    step = graph.range_of_step.index(time_range) if graph.range_of_step else 0
    weight, records = (graph.constant(op.inputs[role], step) for role in ("weight", "records"))
    k = weight.shape[1]
    late_bias = op.kind != "linear"
    zero_point = int(graph.constant(op.inputs["scalars"], step)["zero_point"][0]) if "scalars" in op.inputs else 0
    # Rows quantized at run time lie within the steps of their grid on either side of their zero point.
    dynamic = op.kind == "linear_dynamic"
    x = (1 << op.attrs["bits"]) - 1 if dynamic else largest(graph, op.inputs["x"], zero_point)
    gain = gains(graph.constant(op.inputs["shifts"], step) if "shifts" in op.inputs else None, k)
    products = x * (np.abs(weight.astype(np.int64)) @ gain)
    correction = x * gain.sum() * np.abs(records["zero_point"].astype(np.int64))
    bias = np.zeros_like(products) if late_bias else np.abs(bias_of(records))
    bound = products + correction + bias
    channel = int(bound.argmax())
    parts = f"products {products[channel]} + zero point {correction[channel]} + bias {bias[channel]}"
    _demand(f"{op.layer}: output channel {channel}: {k} {parts}", int(bound[channel]), acc_bits)


def _prove_attention(graph: Graph, op: Op, acc_bits: int) -> None:
    q, k, v = (graph.values[op.inputs[role]] for role in "qkv")
    width = q.shape[1] // op.attrs["heads"]
    keys = {"spatial": graph.positions, "temporal": graph.frames}.get(op.attrs["over"], k.shape[0] // graph.branches)
    most = (1 << op.attrs["p_bits"]) - 1
    for what, count, left, right in (
        ("scores", width, largest(graph, q.name), largest(graph, k.name)),
        ("weighted sum", keys, most, largest(graph, v.name)),
    ):
        _demand(f"{op.layer}: {what}: {count} products of up to {left} x {right}", count * left * right, acc_bits)


def _demand(what: str, bound: int, acc_bits: int) -> None:
    if bound >= 1 << (acc_bits - 1):
        raise UserError(
            f"{what}: may reach {bound}; mac_array.acc_bits = {acc_bits} holds less than {1 << (acc_bits - 1)}; "
            f"allowed: at least {bound.bit_length() + 1} bits"
        )
