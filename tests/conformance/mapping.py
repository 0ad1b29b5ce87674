"""TOSA operators as programs of instructions: each function takes TOSA's operands and returns what both
executors computed.

An identity rescale is multiplier 2 with shift 1: every requantizer has at least one bit to round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.isa.matmul import ROW_RECORD
from tests.conformance.bench import Bench, dtype_of

Array = NDArray[Any]
MAX_WIDE_MULTIPLIER = 1 << 30
"""EWLIN's bound on the multiplier of a 32-bit operand."""


class OutsideDomainError(Exception):
    """The ISA has no instructions for this operator on these types; the message is the reason."""


def column(values: Array) -> Array:
    """Operands that add up to each int32 of (rows, channels) in an accumulator: int16 (rows, 6 * channels).

    Times ``column_weights`` they are ``4 * 16384 * high + 2 * (low >> 1) + (low & 1)``: no partial sum of it leaves
    32 bits, wherever a fold cuts it.
    """
    wide = values.astype(np.int64)
    high, low = wide >> 16, wide & 0xFFFF
    return np.stack([high, high, high, high, low >> 1, low & 1], -1).reshape(len(wide), -1).astype(np.int16)


def column_weights(channels: int) -> Array:
    """The weights that go with ``column``: int16 (6 * channels, channels)."""
    return np.kron(np.eye(channels, dtype=np.int64), np.array([[16384]] * 4 + [[2], [1]])).astype(np.int16)


def array_of(scale32: bool, double: bool, acc_bits: int) -> dict[str, Any]:
    """MAC array fields for one kind of RESCALE: 32-bit multipliers need 32-bit accumulators."""
    rounding = "double" if double else "single"
    return {
        "acc_bits": 32 if scale32 else acc_bits,
        "requant_multiplier_bits": 32 if scale32 else 16,
        "requant_rounding": rounding,
        "factored_requant": not double,
    }


def rescale_matmul(
    machine: Machine, x: Array, multiplier: Array, shift: Array, in_zp: int, out_zp: int, out_dtype: str,
    scale32: bool, double: bool,
) -> Array:  # fmt: skip
    """RESCALE as the requantizer of a MATMUL.

    8- and 16-bit inputs stream through identity weights; the record's bias subtracts the input zero point. 32-bit
    inputs are summed up in the accumulators from six products, 48-bit ones come as biases.
    """
    channels = x.shape[-1]
    rows, mode = x.reshape(-1, channels), "channel" if multiplier.size > 1 else "tensor"
    if x.dtype == np.int64:
        assert in_zp == 0
        assert not scale32
        return rescale_bias(machine, x, multiplier, shift, out_zp, out_dtype, 48)
    bench = Bench(machine, **array_of(scale32, double, 40))
    records = bench.records(-in_zp, multiplier, shift)
    if x.dtype == np.int32:
        bench.matmul(column(rows), column_weights(channels), records, out_dtype, out_zp, mode)
    else:
        bench.matmul(rows, np.eye(channels, dtype=np.int8), records, out_dtype, out_zp, mode)
    return bench.run()[0].reshape(x.shape)


def rescale_bias(
    machine: Machine, x: Array, multiplier: Array, shift: Array, out_zp: int, out_dtype: str, acc_bits: int
) -> Array:
    """RESCALE by 16-bit multipliers of accumulators that a product of zeros and one bias per element fill."""
    bench = Bench(machine, **array_of(False, False, acc_bits))
    scale, down = (np.broadcast_to(v, x.shape).ravel() for v in (multiplier, shift))
    records = bench.records(x.ravel(), scale, down)
    bench.matmul(np.zeros((1, 1), np.int8), np.zeros((1, x.size), np.int8), records, out_dtype, out_zp, "channel")
    return bench.run()[0].reshape(x.shape)


def combine(machine: Machine, operands: list[Array], multipliers: list[Array], bias: Array, shift: int) -> Array:
    """``a * ma + b * mb + bias`` per channel of int16 (rows, channels), rounded once to int16: one EWLIN."""
    bench = Bench(machine)
    fields = {f"{name}_mul_addr": bench.put(m, "param") for name, m in zip("ab", multipliers, strict=True)}
    fields["bias_addr"] = bench.put(bias, "param")
    a, b = (bench.place(v) for v in operands)
    bench.elementwise("ewlin", a, b, bench.target("i16", a.shape), shift, **fields)
    return bench.run()[0]


def rescale_elementwise(
    machine: Machine, x: Array, multiplier: Array, shift: Array, in_zp: int, out_zp: int, out_dtype: str, double: bool
) -> Array | None:
    """RESCALE as EWLIN, or None outside its domain: one shift for all channels, single rounding, a bias of 32 bits."""
    scale, bias = int(multiplier[0]), -in_zp * int(multiplier[0])
    limit = MAX_WIDE_MULTIPLIER if x.dtype == np.int32 else (1 << 31) - 1
    if double or multiplier.size > 1 or x.dtype == np.int64 or scale > limit or not -(1 << 31) <= bias < 1 << 31:
        return None
    bench = Bench(machine)
    fields = {"a_mul": scale, "out_zp": out_zp}
    if bias:
        fields["bias_addr"] = bench.put(np.full(x.shape[-1], bias, np.int32), "param")
    bench.elementwise("ewlin", bench.place(x), None, bench.target(out_dtype, x.shape), int(shift[0]), **fields)
    return bench.run()[0]


def matmul_i32(machine: Machine, a: Array, b: Array, a_zp: int, b_zp: int) -> Array:
    """MATMUL of int8 batches to int32: the record carries the weight zero point, the bias the rest of the expansion."""
    bench = Bench(machine, **array_of(False, False, 40))
    for left, right in zip(a, b, strict=True):
        bias = -a_zp * right.astype(np.int64).sum(axis=0) + right.shape[0] * a_zp * b_zp
        bench.matmul(left, right, bench.records(bias, 2, 1, b_zp), "i32", mode="channel")
    return np.stack(bench.run())


def matmul_i48(machine: Machine, a: Array, b: Array) -> Array:
    """MATMUL of int16 batches to int48, read out as 32 bits twice: rounded high bits, low bits of a wrapping array."""
    readouts = []
    for fields, scale, shift in (
        (array_of(False, False, 48), 1, 16),
        ({**array_of(False, False, 32), "overflow": "wrap"}, 2, 1),
    ):
        bench = Bench(machine, **fields)
        for left, right in zip(a, b, strict=True):
            bench.matmul(left, right, bench.records(0, scale, shift), "i32")
        readouts.append(np.stack(bench.run()).astype(np.int64))
    high, low = readouts
    base = (high << 16) - (1 << 15)
    above = (low - base) & 0xFFFF_FFFF
    assert (above < 1 << 16).all(), "high and low bits of the accumulators contradict each other"
    return np.asarray(base + above)


def matmul_rescale(
    machine: Machine, a: Array, b: Array, multiplier: Array, shift: Array, out_zp: int, out_dtype: str
) -> Array:
    """MATMUL of int16 (m, k) by (k, n), 48-bit accumulators rescaled by 16-bit multipliers per tensor or channel."""
    bench = Bench(machine, **array_of(False, False, 48))
    records = bench.records(0, multiplier, shift)
    bench.matmul(a, b, records, out_dtype, out_zp, "channel" if multiplier.size > 1 else "tensor")
    return bench.run()[0]


def matmul_by_row(machine: Machine, a: Array, b: Array, multiplier: Array, shift: Array, out_dtype: str) -> Array:
    """MATMUL requantized with one record per row of the result, as after a softmax."""
    bench = Bench(machine)
    records = np.zeros(len(a), ROW_RECORD)
    records["multiplier"], records["shift"] = multiplier, shift
    bench.matmul(a, b, bench.put(records), out_dtype, 0, "row")
    return bench.run()[0]


def table(
    machine: Machine,
    x: Array,
    entries: Array,
    multiplier: int = 2,
    shift: int = 1,
    out_dtype: str = "i32",
    out_zp: int = 0,
) -> Array:
    """TABLE of int16 to int32, or rescaled to a narrower type."""
    bench = Bench(machine)
    cols, size = x.shape[-1], int(out_dtype[1:]) // 8
    bench.emit(
        "table", a_addr=bench.put(x), a_row=2 * cols, out_addr=bench.result(out_dtype, x.shape), out_row=size * cols,
        rows=x.size // cols, cols=cols, table_addr=bench.put(entries, "param"), multiplier=multiplier, shift=shift,
        out_dtype=out_dtype, out_zp=out_zp,
    )  # fmt: skip
    return bench.run()[0]


def table_of_bytes(machine: Machine, x: Array, entries: Array) -> Array:
    """TABLE of int8 to int8."""
    bench, cols = Bench(machine), x.shape[-1]
    bench.emit(
        "table8", a_addr=bench.put(x), a_row=cols, out_addr=bench.result("i8", x.shape), out_row=cols,
        rows=x.size // cols, cols=cols, table_addr=bench.put(entries, "param"), a_dtype="i8", out_dtype="i8",
    )  # fmt: skip
    return bench.run()[0]


def add(machine: Machine, a: Array, b: Array) -> Array:
    """ADD of int32 as EWLIN with multipliers 2 and shift 1; broadcast operands have strides of 0."""
    bench, shape = Bench(machine), np.broadcast_shapes(a.shape, b.shape)
    out = bench.target("i32", shape)
    bench.elementwise("ewlin", bench.place(a, shape), bench.place(b, shape), out, 1, a_mul=2, b_mul=2)
    return bench.run()[0]


def mul(machine: Machine, a: Array, b: Array, shift: int) -> Array:
    """MUL to int32 as EWMUL; without a shift, an EWLIN doubles ``a`` before, because EWMUL shifts by at least 1."""
    bench, shape = Bench(machine), np.broadcast_shapes(a.shape, b.shape)
    left, right = bench.place(a, shape), bench.place(b, shape)
    if shift == 0:
        if np.abs(a.astype(np.int64)).max() >= 1 << 30:
            raise OutsideDomainError("an unshifted product whose doubled operand does not fit 32 bits")
        doubled = bench.target("i32", shape, keep=False)
        bench.elementwise("ewlin", left, None, doubled, 1, a_mul=4)
        left, shift = doubled, 1
    bench.elementwise("ewmul", left, right, bench.target("i32", shape), shift)
    return bench.run()[0]


def clamp(machine: Machine, x: Array, low: int, high: int) -> Array:
    """CLAMP as three EWLIN: each end of the range is moved to the end of the type, where the output saturates."""
    bench, limits = Bench(machine), np.iinfo(x.dtype)
    at, kind = bench.place(x), dtype_of(x)
    up, down = int(limits.max) - high, int(limits.min) - low
    for zero_point, keep in ((up, False), (down - up, False), (-down, True)):
        out = bench.target(kind, x.shape, keep)
        bench.elementwise("ewlin", at, None, out, 1, a_mul=2, out_zp=zero_point)
        at = out
    return bench.run()[0]


def reduce_sum(machine: Machine, x: Array, axis: int) -> Array:
    """REDUCE_SUM of int32: EWLIN adds one slice after the other to the running sum, in place."""
    bench = Bench(machine)
    at, out = bench.place(x), bench.target("i32", (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    bench.elementwise("ewlin", at.at(axis, 0), None, out, 1, a_mul=2)
    for index in range(1, x.shape[axis]):
        bench.elementwise("ewlin", at.at(axis, index), out, out, 1, a_mul=2, b_mul=2)
    return bench.run()[0]


def cast(machine: Machine, x: Array, out_dtype: str) -> Array:
    """CAST between integers: EWLIN to a wider type; to a narrower one a STORE of the low bytes, as TOSA truncates."""
    bench, size = Bench(machine), int(out_dtype[1:]) // 8
    if size > x.itemsize:
        bench.elementwise("ewlin", bench.place(x), None, bench.target(out_dtype, x.shape), 1, a_mul=2)
    else:
        bench.emit(
            "store", memory="sram", local_addr=bench.put(x), local_row=x.itemsize, local_plane=0, row_bytes=size,
            rows=x.size, planes=1, dram_addr=bench.result(out_dtype, x.shape, "dram"), dram_row=size, dram_plane=0,
        )  # fmt: skip
    return bench.run()[0]
