"""A third implementation of the instructions, for the tests: one element at a time, Python integers, bytes by hand.

It shares no code with ``npusim``: it is written from the text at the head of each file in ``npusim/isa``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

from npusim.isa.encoding import NO_ADDRESS, Decoded
from npusim.memory import MachineState

TYPES = [(1, False), (1, True), (2, True), (4, True)]
"""Bytes and sign of u8, i8, i16, i32."""

Write = tuple[str, int, int, int]
"""Memory, address, number of bytes, value."""


def number(memory: Any, address: int, dtype: int) -> int:
    size, signed = TYPES[dtype]
    return int.from_bytes(memory[address : address + size].tobytes(), "little", signed=signed)


def saturated(value: int, dtype: int) -> int:
    size, signed = TYPES[dtype]
    low = -(1 << 8 * size - 1) if signed else 0
    return min(max(value, low), low + (1 << 8 * size) - 1)


def half_up(numerator: int, shift: int) -> int:
    return floor(Fraction(numerator, 1 << shift) + Fraction(1, 2))


def requantized(value: int, multiplier: int, shift: int, zero_point: int, dtype: int) -> int:
    return saturated(saturated(half_up(value * multiplier, shift), 3) + zero_point, dtype)


def after(state: MachineState, writes: Iterator[Write]) -> MachineState:
    """The state after ``writes``, all of which are computed first."""
    twin = state.copy()
    for memory, address, size, value in list(writes):
        getattr(twin, memory)[address : address + size] = list((value % (1 << 8 * size)).to_bytes(size, "little"))
    return twin


def elementwise(state: MachineState, ins: Decoded) -> Iterator[Write]:
    def at(name: str, batch: int, row: int, col: int) -> int:
        size = TYPES[getattr(ins, f"{name}_dtype")][0]
        start, rows, batches = (getattr(ins, f"{name}_{part}") for part in ("addr", "row", "batch"))
        return int(start + batch * batches + row * rows + col * size)

    def multiplier(name: str, col: int) -> int:
        address = getattr(ins, f"{name}_mul_addr")
        dtype = 3 if getattr(ins, f"{name}_dtype") == 3 else 2
        return (
            getattr(ins, f"{name}_mul")
            if address == NO_ADDRESS
            else number(state.param, address + col * TYPES[dtype][0], dtype)
        )

    for index in product(range(ins.batch), range(ins.rows), range(ins.cols)):
        a, b = number(state.sram, at("a", *index), ins.a_dtype), 0
        if ins.b_addr != NO_ADDRESS:
            b = number(state.sram, at("b", *index), ins.b_dtype)
        if ins.op == "ewmul":
            total = a * b
        else:
            total = a * multiplier("a", index[2]) + b * multiplier("b", index[2])
            total += 0 if ins.bias_addr == NO_ADDRESS else number(state.param, ins.bias_addr + 4 * index[2], 3)
        value = saturated(half_up(total, ins.shift) + ins.out_zp, ins.out_dtype)
        yield "sram", at("out", *index), TYPES[ins.out_dtype][0], value


def matmul(state: MachineState, ins: Decoded) -> Iterator[Write]:
    array = state.machine.mac_array
    low, high = -(1 << array.acc_bits - 1), (1 << array.acc_bits - 1) - 1

    def fitted(value: int) -> int:
        if low <= value <= high:
            return value
        if array.overflow == "trap":
            raise OverflowError
        return min(max(value, low), high) if array.overflow == "saturate" else (value - low) % (high - low + 1) + low

    a_size, out_size = TYPES[ins.a_dtype][0], TYPES[ins.out_dtype][0]
    for i0, i1, m, n in product(range(ins.batch0), range(ins.batch1), range(ins.m), range(ins.n)):
        a_at = ins.a_addr + i0 * ins.a_b0 + i1 * ins.a_b1 + m * ins.a_row
        b_at = ins.b_addr + i0 * ins.b_b0 + i1 * ins.b_b1 + n * ins.b_n
        a = [number(state.sram, a_at + k * a_size, ins.a_dtype) for k in range(ins.k)]
        b = [number(state.sram, b_at + k * ins.b_k, ins.b_dtype) for k in range(ins.k)]
        acc = 0
        for k in range(0, ins.k, array.rows):
            acc = fitted(acc + sum(x * y for x, y in zip(a[k : k + array.rows], b[k : k + array.rows], strict=True)))
        if ins.rq_mode == 2:
            record = ins.rq_addr + 4 * ((i0 * ins.batch1 + i1) * ins.m + m)
            multiplier, shift = number(state.sram, record, 2), number(state.sram, record + 2, 2)
        else:
            raw = state.param[ins.rq_addr + 12 * n * ins.rq_mode :][:12].tobytes()
            bias, zero = int.from_bytes(raw[:6], "little", signed=True), int.from_bytes(raw[6:7], "little", signed=True)
            shift, multiplier = raw[7], int.from_bytes(raw[8:], "little")
            acc = fitted(acc + bias - zero * sum(a))
        value = requantized(acc, multiplier, shift, ins.out_zp, ins.out_dtype)
        if array.requant_rounding == "double" and shift > 31:
            first = half_up(acc * multiplier, 31)  # then to nearest, ties away from zero
            away = floor(Fraction(abs(first), 1 << shift - 31) + Fraction(1, 2)) * (1 if first >= 0 else -1)
            value = saturated(saturated(away, 3) + ins.out_zp, ins.out_dtype)
        yield "sram", ins.out_addr + i0 * ins.out_b0 + i1 * ins.out_b1 + m * ins.out_row + n * out_size, out_size, value


def table(state: MachineState, ins: Decoded) -> Iterator[Write]:
    size = TYPES[ins.out_dtype][0]
    for row, col in product(range(ins.rows), range(ins.cols)):
        index, fraction = divmod(number(state.sram, ins.a_addr + row * ins.a_row + 2 * col, 2) + 32768, 128)
        left, right = (number(state.param, ins.table_addr + 2 * (index + i), 2) for i in (0, 1))
        value = requantized(
            left * (128 - fraction) + right * fraction, ins.multiplier, ins.shift, ins.out_zp, ins.out_dtype
        )
        yield "sram", ins.out_addr + row * ins.out_row + size * col, size, value


def layernorm_apply(state: MachineState, ins: Decoded) -> Iterator[Write]:
    size = TYPES[ins.out_dtype][0]
    for row, col in product(range(ins.rows), range(ins.cols)):
        total, mantissa, shift = (number(state.sram, ins.stat_addr + 12 * row + 4 * i, 3) for i in range(3))
        centred = ins.cols * number(state.sram, ins.a_addr + row * ins.a_row + 2 * col, 2) - total
        n = saturated(half_up(centred * mantissa, max(shift - ins.fraction_bits, 1)), 2)
        g, b = number(state.param, ins.g_addr + 2 * col, 2), number(state.param, ins.b_addr + 4 * col, 3)
        value = saturated(half_up(n * g + b, ins.shift) + ins.out_zp, ins.out_dtype)
        yield "sram", ins.out_addr + row * ins.out_row + size * col, size, value


def dma(state: MachineState, ins: Decoded) -> Iterator[Write]:
    local_name = ("sram", "param")[ins.memory]
    for plane, row, byte in product(range(ins.planes), range(ins.rows), range(ins.row_bytes)):
        dram = state.bases[ins.base] + ins.dram_addr + plane * ins.dram_plane + row * ins.dram_row + byte
        local = ins.local_addr + plane * ins.local_plane + row * ins.local_row + byte
        if ins.op == "load":
            yield local_name, local, 1, int(state.dram[dram])
        else:
            yield "dram", dram, 1, int(getattr(state, local_name)[local])


MODELS = {
    "dma": dma,
    "matmul": matmul,
    "ewlin": elementwise,
    "ewmul": elementwise,
    "table": table,
    "lnapply": layernorm_apply,
}
"""By name of the strategy in ``strategies.FAMILIES``. The rest is approximate by nature and is held against float64."""
