"""Rewrite each linear into what the array computes: signed raw products, and per output channel one requantization record.

``sum (x - zx)(w - zw) + bias = sum x w - zw sum x + (bias - zx sum w + K zx zw)``, with w and zw shifted by 128 to the signed range.
The last bracket is a constant; ``sum x`` comes from the row-sum column.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compiler.graph import Graph, Op, Value, prune
from npusim.errors import UserError
from npusim.isa.matmul import RECORD


def fold_zero_points(graph: Graph) -> Graph:
    values = dict(graph.values)
    prologue, step = (tuple(_fold(values, op) for op in ops) for ops in (graph.prologue, graph.step))
    kept = prune(values, [*prologue, *step], [*graph.outputs, *(n for n, v in values.items() if v.kind == "input")])
    return replace(graph, values=kept, prologue=prologue, step=step)


def _fold(values: dict[str, Value], op: Op) -> Op:
    if op.kind != "linear_centred":
        return op
    source = {role: values[name] for role, name in op.inputs.items()}
    constants = {role: v.data.astype(np.int64) for role, v in source.items() if v.data is not None}
    weight, zero_point = constants["weight"] - 128, constants["weight_zp"] - 128
    in_zp = op.attrs["in_zp"]
    bias = constants["bias"] - in_zp * weight.sum(axis=1) + weight.shape[1] * in_zp * zero_point
    if np.abs(bias).max() >= 1 << 47:
        raise UserError(f"{op.layer}: a folded bias needs more than 48 bits")
    records = np.zeros(len(bias), RECORD)
    records["bias_low"], records["bias_high"] = bias & 0xFFFF_FFFF, bias >> 32
    records["zero_point"], records["shift"], records["multiplier"] = (
        zero_point,
        constants["shift"],
        constants["multiplier"],
    )
    name = source["weight"].name.removesuffix(".weight")
    values[f"{name}.weight_i8"] = Value(f"{name}.weight_i8", weight.shape, "i8", "const", data=weight.astype(np.int8))
    values[f"{name}.records"] = Value(f"{name}.records", records.shape, "record", "const", data=records)
    inputs = {"x": op.inputs["x"], "weight": f"{name}.weight_i8", "records": f"{name}.records"}
    return Op("linear", op.layer, inputs, op.output, op.attrs)
