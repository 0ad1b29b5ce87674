"""A third implementation of the instructions, for the tests: one element at a time, Python integers, bits by hand.

It shares no code with ``npusim``: it is written from the text at the head of each file in ``npusim/isa``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

from npusim.isa.encoding import NO_ADDRESS, Decoded
from npusim.memory import MachineState

TYPES = [(8, False), (8, True), (16, True), (32, True), (4, False), (4, True), (6, False), (6, True), (16, False)]
"""Bits and sign of u8, i8, i16, i32, u4, i4, u6, i6, u16."""
U8, I8, I16, I32 = range(4)

Write = tuple[str, int, int, int]
"""Memory, address in bits, number of bits, value."""


def bits_at(memory: Any, bit: int, count: int, signed: bool) -> int:
    """The number in ``count`` bits from ``bit``, lowest first."""
    last = (bit + count + 7) // 8
    value = int.from_bytes(memory[bit // 8 : last].tobytes(), "little") >> bit % 8 & (1 << count) - 1
    return value - (1 << count) if signed and value >> count - 1 else value


def number(memory: Any, address: int, dtype: int, index: int = 0) -> int:
    """Element ``index`` of a row of consecutive elements that begins at byte ``address``."""
    bits, signed = TYPES[dtype]
    return bits_at(memory, 8 * address + index * bits, bits, signed)


def element(address: int, dtype: int, index: int, count: int, value: int) -> Iterator[Write]:
    """Writes of element ``index`` of ``count`` in the row at byte ``address``; the last one fills its byte with 0."""
    bits, _ = TYPES[dtype]
    yield "sram", 8 * address + index * bits, bits, value
    if index == count - 1 and count * bits % 8:
        yield "sram", 8 * address + count * bits, 8 - count * bits % 8, 0


def bounds(dtype: int) -> tuple[int, int]:
    bits, signed = TYPES[dtype]
    low = -(1 << bits - 1) if signed else 0
    return low, low + (1 << bits) - 1


def saturated(value: int, dtype: int) -> int:
    low, high = bounds(dtype)
    return min(max(value, low), high)


def half_up(numerator: int, shift: int) -> int:
    return floor(Fraction(numerator, 1 << shift) + Fraction(1, 2))


def requantized(value: int, multiplier: int, shift: int, zero_point: int, dtype: int) -> int:
    return saturated(saturated(half_up(value * multiplier, shift), I32) + zero_point, dtype)


def after(state: MachineState, writes: Iterator[Write]) -> MachineState:
    """The state after ``writes``, all of which are computed first."""
    twin = state.copy()
    for memory, bit, count, value in list(writes):
        contents, first, last = getattr(twin, memory), bit // 8, (bit + count + 7) // 8
        mask = (1 << count) - 1 << bit % 8
        old = int.from_bytes(contents[first:last].tobytes(), "little")
        new = old & ~mask | (value << bit % 8) & mask
        contents[first:last] = list(new.to_bytes(last - first, "little"))
    return twin


def elementwise(state: MachineState, ins: Decoded) -> Iterator[Write]:
    def row_at(name: str, batch: int, row: int) -> int:
        start, rows, batches = (getattr(ins, f"{name}_{part}") for part in ("addr", "row", "batch"))
        return int(start + batch * batches + row * rows)

    def multiplier(name: str, col: int) -> int:
        address = getattr(ins, f"{name}_mul_addr")
        if address == NO_ADDRESS:
            return int(getattr(ins, f"{name}_mul"))
        return number(
            state.param,
            address,
            I32 if ins.wide or getattr(ins, f"{name}_dtype") == I32 else I16,
            0 if ins.shared_mul else col,
        )

    for batch, row, col in product(range(ins.batch), range(ins.rows), range(ins.cols)):
        a, b = number(state.sram, row_at("a", batch, row), ins.a_dtype, col), 0
        if ins.b_addr != NO_ADDRESS:
            b = number(state.sram, row_at("b", batch, row), ins.b_dtype, col)
        if ins.op == "ewmul":
            total = a * b
        else:
            total = a * multiplier("a", col) + b * multiplier("b", col)
            total += (
                0
                if ins.bias_addr == NO_ADDRESS
                else number(state.param, ins.bias_addr, I32, 0 if ins.shared_bias else col)
            )
        value = saturated(half_up(total, ins.shift) + ins.out_zp, ins.out_dtype)
        yield from element(row_at("out", batch, row), ins.out_dtype, col, ins.cols, value)


class Array:
    """The MAC array's accumulators and requantizers for one instruction."""

    def __init__(self, state: MachineState, ins: Decoded) -> None:
        self.state, self.ins, self.array = state, ins, state.machine.mac_array
        self.factored = ins.rq_mode >= 3

    def fitted(self, value: int) -> int:
        low, high = -(1 << self.array.acc_bits - 1), (1 << self.array.acc_bits - 1) - 1
        if low <= value <= high:
            return value
        if self.array.overflow == "trap":
            raise OverflowError
        return (
            min(max(value, low), high)
            if self.array.overflow == "saturate"
            else (value - low) % (1 << high.bit_length() + 1) + low
        )

    def scalars(self, row: int) -> tuple[int, int, int]:
        """Input zero point, second multiplier and shift of a factored mode; ``row`` counts over batches and m."""
        memory, at = self.state.param, self.ins.scalars_addr
        if self.ins.rq_mode == 4:
            memory, at = self.state.sram, at + 8 * row
        return number(memory, at, I32), number(memory, at + 4, I16), number(memory, at + 6, I16)

    def streamed(self, address: int, row: int) -> list[int]:
        """A row of a as it is multiplied."""
        ins, zero = self.ins, self.scalars(row)[0] if self.factored else 0
        values = [number(self.state.sram, address, ins.a_dtype, k) - zero for k in range(ins.k)]
        if ins.shifted:
            values = [
                v << bits_at(self.state.param, 8 * ins.shift_addr + 2 * k, 2, False) for k, v in enumerate(values)
            ]
        return values

    def summed(self, a: list[int], b: list[int], acc: int) -> int:
        height = 1 if self.array.dataflow == "output_stationary" else self.array.rows
        if TYPES[self.ins.a_dtype][0] == TYPES[self.ins.b_dtype][0] == 4:
            height *= self.array.a4w4_per_cell
        for k in range(0, len(a), height):
            acc = self.fitted(acc + sum(x * y for x, y in zip(a[k : k + height], b[k : k + height], strict=True)))
        return acc

    def drained(self, acc: int, row_sum: int, row: int, n: int) -> int:
        ins, param = self.ins, self.state.param
        if self.factored:
            at = ins.rq_addr + 8 * n
            bias, multiplier, shift, zero = (
                number(param, at, I32),
                number(param, at + 4, I16),
                param[at + 6],
                number(param, at + 7, I8),
            )
            _, second, second_shift = self.scalars(row)
            value = saturated(half_up(self.fitted(acc - zero * row_sum) * multiplier, int(shift)), I32)
            value = saturated(half_up(value * second, second_shift), I32)
            return requantized(saturated(value + bias, I32), 1, ins.fraction_bits, ins.out_zp, ins.out_dtype)
        if ins.rq_mode == 2:
            acc, at = self.fitted(acc), ins.rq_addr + 4 * row
            multiplier, shift = number(self.state.sram, at, I16), number(self.state.sram, at + 2, I16)
        else:
            at = ins.rq_addr + 12 * n * ins.rq_mode
            bias, zero = bits_at(param, 8 * at, 48, True), number(param, at + 6, I8)
            shift, multiplier = int(param[at + 7]), number(param, at + 8, I32)
            acc = self.fitted(acc + bias - zero * row_sum)
        if self.array.requant_rounding == "double" and shift > 31:
            first = half_up(acc * multiplier, 31)  # then to nearest, ties away from zero
            away = floor(Fraction(abs(first), 1 << shift - 31) + Fraction(1, 2)) * (1 if first >= 0 else -1)
            return saturated(saturated(away, I32) + ins.out_zp, ins.out_dtype)
        return requantized(acc, multiplier, shift, ins.out_zp, ins.out_dtype)


def sums(state: MachineState, ins: Decoded, row: int, a_at: int, b_at: int, n: int) -> tuple[int, int]:
    """Accumulator and row sum of one output before its correction."""
    array, packed = Array(state, ins), TYPES[ins.b_dtype][0] < 8
    a = array.streamed(a_at, row)
    b_at += n * ins.b_n
    b = [
        number(state.sram, b_at if packed else b_at + k * ins.b_k, ins.b_dtype, k if packed else 0)
        for k in range(ins.k)
    ]
    acc = row_sum = 0
    if ins.acc_continue:
        held = state.held[ins.unit]
        acc, row_sum = int(held.products[row, n]), int(held.rows[row, 0])
    return array.summed(a, b, acc), row_sum + sum(a)


def matmul(state: MachineState, ins: Decoded) -> Iterator[Write]:
    for i0, i1, m, n in product(range(ins.batch0), range(ins.batch1), range(ins.m), range(ins.n)):
        row = (i0 * ins.batch1 + i1) * ins.m + m
        a_at = ins.a_addr + i0 * ins.a_b0 + i1 * ins.a_b1 + m * ins.a_row
        acc, row_sum = sums(state, ins, row, a_at, ins.b_addr + i0 * ins.b_b0 + i1 * ins.b_b1, n)
        if not ins.acc_hold:
            value = Array(state, ins).drained(acc, row_sum, row, n)
            out_at = ins.out_addr + i0 * ins.out_b0 + i1 * ins.out_b1 + m * ins.out_row
            yield from element(out_at, ins.out_dtype, n, ins.n, value)


def table(state: MachineState, ins: Decoded) -> Iterator[Write]:
    for row, col in product(range(ins.rows), range(ins.cols)):
        index, fraction = divmod(number(state.sram, ins.a_addr + row * ins.a_row, I16, col) + 32768, 128)
        left, right = (number(state.param, ins.table_addr, I16, index + i) for i in (0, 1))
        value = requantized(
            left * (128 - fraction) + right * fraction, ins.multiplier, ins.shift, ins.out_zp, ins.out_dtype
        )
        yield from element(ins.out_addr + row * ins.out_row, ins.out_dtype, col, ins.cols, value)


def small_table(state: MachineState, ins: Decoded) -> Iterator[Write]:
    bits, signed = TYPES[ins.out_dtype]
    entry = {4: U8, 6: U8, 8: U8, 16: 8}[bits] if not signed else {4: I8, 6: I8, 8: I8, 16: I16}[bits]
    for row, col in product(range(ins.rows), range(ins.cols)):
        index = number(state.sram, ins.a_addr + row * ins.a_row, ins.a_dtype, col) - bounds(ins.a_dtype)[0]
        value = number(state.param, ins.table_addr, entry, index)
        yield from element(ins.out_addr + row * ins.out_row, ins.out_dtype, col, ins.cols, value)


def transpose(state: MachineState, ins: Decoded) -> Iterator[Write]:
    for batch, row, col in product(range(ins.batch), range(ins.rows), range(ins.cols)):
        value = number(state.sram, ins.a_addr + batch * ins.a_batch + row * ins.a_row, ins.out_dtype, col)
        out_at = ins.out_addr + batch * ins.out_batch + col * ins.out_row
        yield from element(out_at, ins.out_dtype, row, ins.rows, value)


def layernorm_apply(state: MachineState, ins: Decoded) -> Iterator[Write]:
    for row, col in product(range(ins.rows), range(ins.cols)):
        total, mantissa, shift = (number(state.sram, ins.stat_addr + 12 * row, I32, i) for i in range(3))
        centred = ins.cols * number(state.sram, ins.a_addr + row * ins.a_row, I16, col) - total
        n = saturated(half_up(centred * mantissa, max(shift - ins.fraction_bits, 1)), I16)
        g, b = number(state.param, ins.g_addr, I16, col), number(state.param, ins.b_addr, I32, col)
        value = saturated(half_up(n * g + b, ins.shift) + ins.out_zp, ins.out_dtype)
        yield from element(ins.out_addr + row * ins.out_row, ins.out_dtype, col, ins.cols, value)


def dma(state: MachineState, ins: Decoded) -> Iterator[Write]:
    local_name = ("sram", "param", "param_next")[ins.memory]
    for plane, row, byte in product(range(ins.planes), range(ins.rows), range(ins.row_bytes)):
        dram = state.bases[ins.base] + ins.dram_addr + plane * ins.dram_plane + row * ins.dram_row + byte
        local = ins.local_addr + plane * ins.local_plane + row * ins.local_row + byte
        if ins.op == "load":
            yield local_name, 8 * local, 8, int(state.dram[dram])
        else:
            yield "dram", 8 * dram, 8, int(getattr(state, local_name)[local])


def fetch(state: MachineState, ins: Decoded) -> Iterator[Write]:
    start = state.bases[ins.storage_base] + ins.storage_addr
    if ins.coded_bytes:
        old = state.bases[ins.old_base] + ins.old_addr
        differences = decoded_numbers(state.storage[start : start + ins.coded_bytes].tobytes(), ins.bytes)
        for byte, number in enumerate(differences):
            value = (int(state.dram[old + byte]) + (-(number + 1) // 2 if number % 2 else number // 2)) % 256
            yield "dram", 8 * (state.bases[ins.base] + ins.dram_addr + byte), 8, value
        return
    for byte in range(ins.bytes):
        value = int(state.storage[start + byte])
        yield "dram", 8 * (state.bases[ins.base] + ins.dram_addr + byte), 8, value


def decoded_numbers(code: bytes, count: int) -> list[int]:
    """The numbers of a coded run; each block as one large number whose lowest bits come first."""
    found: list[int] = []
    while len(found) < count:
        header, code = code[0], code[1:]
        if header > 7:
            found += [0] * (64 * (header - 7))
            continue
        bits, used = int.from_bytes(code, "little"), 0
        for _ in range(min(64, count - len(found))):
            value, low = 0, 8 if header == 7 else header
            while header != 7 and bits >> used & 1:
                value, used = value + 1, used + 1
            used += header != 7
            found.append(value << low | bits >> used & ((1 << low) - 1))
            used += low
        code = code[-(-used // 8) :]
    return found[:count]


def bank_switch(state: MachineState, ins: Decoded) -> Iterator[Write]:
    for byte in range(ins.bank_bytes):
        yield "param", 8 * (ins.bank_start + byte), 8, int(state.param_next[byte])
        yield "param_next", 8 * byte, 8, int(state.param[ins.bank_start + byte])


MODELS: dict[str, Callable[[MachineState, Decoded], Iterator[Write]]] = {
    "dma": dma,
    "fetch": fetch,
    "matmul": matmul,
    "ewlin": elementwise,
    "ewmul": elementwise,
    "table": table,
    "table8": small_table,
    "transpose": transpose,
    "lnapply": layernorm_apply,
    "pswitch": bank_switch,
}
"""By name of the strategy in ``strategies.FAMILIES``. The rest is approximate by nature and is held against float64."""
