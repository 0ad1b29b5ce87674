"""Rewrite each linear into what the array computes: signed raw products, and a requantization record per channel.

With ``x' = (x - zx) 2^e``, e the input channel's shift: ``sum x' (w - zw) + bias = sum x 2^e w - zw sum x 2^e +
(bias - zx sum 2^e w + zx zw sum 2^e)``, with w and zw moved down to the signed range. The last bracket is a constant;
``sum x 2^e`` comes from the row-sum column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, Graph, Op, Value
from compiler.semantics import gains
from npusim.errors import UserError
from npusim.isa.matmul import RECORD

BIAS_BITS = 48


def fold_zero_points(graph: Graph) -> Graph:
    """Replace every ``linear_centred`` by a ``linear``. Raises UserError if a folded bias needs more than 48 bits."""
    values = dict(graph.values)
    prologue, step = ([_fold(graph, values, op) for op in ops] for ops in (graph.prologue, graph.step))
    return graph.rewritten(values, prologue, step)


def _fold(graph: Graph, values: dict[str, Value], op: Op) -> Op:
    if op.kind != "linear_centred":
        return op
    constants = {role: values[name] for role, name in op.inputs.items() if role != "x"}
    weight = constants["weight"]
    half = 1 << (BITS[weight.dtype] - 1)
    name = op.inputs["weight"].removesuffix(".weight")
    # Of unsigned numbers, a subtraction that wraps leaves the signed number's bits.
    signed = None if weight.data is None else (weight.data - np.uint8(half)).view(np.int8)
    dtype = f"i{BITS[weight.dtype]}"
    values[f"{name}.signed"] = Value(f"{name}.signed", weight.shape, dtype, weight.kind, data=signed)
    kind = "range_const" if any(value.kind == "range_const" for value in constants.values()) else "const"
    data = _records_of(graph, op.layer, constants, half, kind) if graph.contents else None
    values[f"{name}.records"] = Value(f"{name}.records", weight.shape[:1], "record", kind, data=data)
    inputs = {"x": op.inputs["x"], "weight": f"{name}.signed", "records": f"{name}.records"}
    if "shifts" in op.inputs:
        inputs["shifts"] = op.inputs["shifts"]
    return Op("linear", op.layer, inputs, op.output, op.attrs)


def _records_of(graph: Graph, layer: str, constants: dict[str, Value], half: int, kind: str) -> NDArray[Any]:
    """Records (n,), or (ranges, n) for a ``kind`` "range_const"."""
    ranges = graph.ranges if kind == "range_const" else 1
    records = [
        _records(layer, {role: _at(value, index) for role, value in constants.items()}, half) for index in range(ranges)
    ]
    return np.stack(records) if kind == "range_const" else records[0]


def _at(value: Value, time_range: int) -> NDArray[Any]:
    """What a constant of a linear holds in a time range."""
    assert value.data is not None
    return np.asarray(value.data[time_range] if value.kind == "range_const" else value.data)


def _records(layer: str, constants: dict[str, NDArray[Any]], half: int) -> NDArray[Any]:
    weight = constants["weight"].astype(np.int64) - half
    zero_point = constants["weight_zp"].astype(np.int64) - half
    in_zp = int(constants["in_zp"][0])
    gain = gains(constants.get("shifts"), weight.shape[1])
    bias = constants["bias"] - in_zp * (weight @ gain) + in_zp * zero_point * gain.sum()
    if np.abs(bias).max() >= 1 << (BIAS_BITS - 1):
        raise UserError(f"{layer}: a folded bias of {np.abs(bias).max()} needs more than {BIAS_BITS} bits")
    records = np.zeros(len(bias), RECORD)
    records["bias_low"], records["bias_high"] = bias & 0xFFFF_FFFF, bias >> 32
    records["zero_point"], records["shift"] = zero_point, constants["shift"]
    records["multiplier"] = constants["multiplier"]
    return records
