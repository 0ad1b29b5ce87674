"""Rewrite each linear into what the array computes: signed raw products, and a requantization record per channel.

``sum (x - zx)(w - zw) + bias = sum x w - zw sum x + (bias - zx sum w + K zx zw)``, with w and zw shifted by 128 to the
signed range. The last bracket is a constant; ``sum x`` comes from the row-sum column.
"""

from __future__ import annotations

import numpy as np

from compiler.graph import Graph, Op, Value
from npusim.errors import UserError
from npusim.isa.matmul import RECORD

BIAS_BITS = 48


def fold_zero_points(graph: Graph) -> Graph:
    """Replace every ``linear_centred`` by a ``linear``. Raises UserError if a folded bias needs more than 48 bits."""
    values = dict(graph.values)
    prologue, step = ([_fold(values, op) for op in ops] for ops in (graph.prologue, graph.step))
    return graph.rewritten(values, prologue, step)


def _fold(values: dict[str, Value], op: Op) -> Op:
    if op.kind != "linear_centred":
        return op
    constants = {
        role: data.astype(np.int64) for role, name in op.inputs.items() if (data := values[name].data) is not None
    }
    weight, zero_point = constants["weight"] - 128, constants["weight_zp"] - 128
    in_zp = op.attrs["in_zp"]
    bias = constants["bias"] - in_zp * weight.sum(axis=1) + weight.shape[1] * in_zp * zero_point
    if np.abs(bias).max() >= 1 << (BIAS_BITS - 1):
        raise UserError(f"{op.layer}: a folded bias of {np.abs(bias).max()} needs more than {BIAS_BITS} bits")
    records = np.zeros(len(bias), RECORD)
    records["bias_low"], records["bias_high"] = bias & 0xFFFF_FFFF, bias >> 32
    records["zero_point"], records["shift"] = zero_point, constants["shift"]
    records["multiplier"] = constants["multiplier"]
    name = op.inputs["weight"].removesuffix(".weight")
    values[f"{name}.weight_i8"] = Value(f"{name}.weight_i8", weight.shape, "i8", "const", data=weight.astype(np.int8))
    values[f"{name}.records"] = Value(f"{name}.records", records.shape, "record", "const", data=records)
    inputs = {"x": op.inputs["x"], "weight": f"{name}.weight_i8", "records": f"{name}.records"}
    return Op("linear", op.layer, inputs, op.output, op.attrs)
