"""MATMUL instructions with their memories: random ones, and ones built so that a value meets an edge of the arithmetic.

Every builder takes a machine and a random generator and yields `Case`s. The SRAM around the operands is random, so that
a result at a wrong place shows, and so is the order of strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim import numerics
from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, decode, violations
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, MAX_SHIFT, UNITS, Decoded, encode
from npusim.isa.matmul import RECORD, ROW_RECORD, RQ_MODES
from npusim.memory import MachineState

MODES = (("u8", "i8"), ("i8", "i8"), ("i16", "i8"), ("i16", "i16"))
OUTPUTS = ("u8", "i8", "i16", "i32")

Int64 = NDArray[np.int64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One legal instruction and the memories that it starts from."""

    name: str
    ins: Decoded
    state: MachineState


def drawn(rng: Rng, dtype: str, shape: tuple[int, ...]) -> Int64:
    _, low, high = DTYPES[dtype]
    return rng.integers(low, high + 1, shape)


def extremes(rng: Rng, dtype: str, shape: tuple[int, ...]) -> Int64:
    _, low, high = DTYPES[dtype]
    return rng.choice(np.array([low, low + 1, -1 if low else 1, 0, 1, high - 1, high], np.int64), shape)


def records(
    count: int, multiplier: Any = 1, shift: Any = 1, bias: Any = 0, zero_point: Any = 0, dtype: Any = RECORD
) -> NDArray[Any]:
    """Requantization records; each argument is one value or ``count``. Row records hold multiplier and shift only."""
    out = np.zeros(count, dtype)
    out["multiplier"], out["shift"] = multiplier, shift
    if dtype is RECORD:
        whole = np.broadcast_to(np.asarray(bias, np.int64), count)
        out["bias_low"], out["bias_high"], out["zero_point"] = whole & 0xFFFF_FFFF, whole >> 32, zero_point
    return out


def case(
    machine: Machine, rng: Rng, name: str, a: Int64, b: Int64, types: tuple[str, str, str], table: NDArray[Any],
    out_zp: int = 0,
) -> Case:  # fmt: skip
    """Lay out a (batch0, batch1, m, k) and b (batch0, batch1, k, n) with random strides and gaps.

    ``table`` decides the mode: row records, or records for one or for n channels.
    """
    batch0, batch1, m, k = a.shape
    n = b.shape[-1]
    mode = "row" if table.dtype == ROW_RECORD else "tensor" if len(table) == 1 else "channel"
    size = {key: np.dtype(DTYPES[dtype][0]).itemsize for key, dtype in zip("abo", types, strict=True)}
    gap = iter(rng.integers(0, 4, 20).tolist())
    fields = {"unit": UNITS.index("mac"), "m": m, "k": k, "n": n, "batch0": batch0, "batch1": batch1, "out_zp": out_zp}
    fields |= {f"{key}_dtype": DTYPE_NAMES.index(t) for key, t in zip(("a", "b", "out"), types, strict=True)}
    fields["rq_mode"] = RQ_MODES.index(mode)
    if mode != "row" and not machine.mac_array.row_sum_column:
        table["zero_point"] = 0
    end = 0

    def take(prefix: str, rows: int, row_bytes: int) -> int:
        """Reserve a dense operand with gaps; return the stride of a row."""
        nonlocal end
        row = row_bytes + next(gap)
        plane = rows * row + next(gap)
        fields[f"{prefix}_addr"] = end + next(gap)
        fields[f"{prefix}_b1"], fields[f"{prefix}_b0"] = plane, batch1 * plane + next(gap)
        end = fields[f"{prefix}_addr"] + batch0 * fields[f"{prefix}_b0"]
        return row

    fields["a_row"] = take("a", m, k * size["a"])
    if rng.integers(2):
        fields["b_k"], fields["b_n"] = take("b", k, n * size["b"]), size["b"]
    else:
        fields["b_n"], fields["b_k"] = take("b", n, k * size["b"]), size["b"]
    fields["out_row"] = take("out", m, n * size["o"])
    fields["rq_addr"] = end + next(gap) if mode == "row" else next(gap)

    state = MachineState(machine, 0)
    state.sram[:], state.param[:] = rng.integers(0, 256, state.sram.size), rng.integers(0, 256, state.param.size)
    ins = next(iter(decode(encode(BY_MNEMONIC["matmul"], fields)[None])))
    assert not violations([ins], machine)
    strides = (ins.a_b0, ins.a_b1, ins.a_row, size["a"])
    state.window("sram", ins.a_addr, DTYPES[types[0]][0], a.shape, strides)[...] = a
    strides = (ins.b_b0, ins.b_b1, ins.b_k, ins.b_n)
    state.window("sram", ins.b_addr, DTYPES[types[1]][0], b.shape, strides)[...] = b
    memory = "sram" if mode == "row" else "param"
    state.vector(memory, ins.rq_addr, table.dtype, len(table))[...] = table
    return Case(f"{name}: {types[0]} x {types[1]} -> {types[2]}, {mode}, {batch0}x{batch1}x{m}x{k}x{n}", ins, state)


def accumulated(machine: Machine, a: Int64, b: Int64) -> Int64:
    """Accumulators after the last fold, to aim operands at an edge: exact, or as the machine narrows them."""
    array = machine.mac_array
    acc = np.zeros((*a.shape[:-1], b.shape[-1]), np.int64)
    overflow = "wrap" if array.overflow == "trap" else array.overflow
    for k0 in range(0, a.shape[-1], array.rows):
        acc = acc + a[..., k0 : k0 + array.rows] @ b[..., k0 : k0 + array.rows, :]
        acc = numerics.narrow_accumulator(acc, array.acc_bits, overflow)
    return acc


def scale(machine: Machine, rng: Rng, greatest: int, out: str, count: int, bits: int = 0) -> tuple[Int64, Int64]:
    """Multipliers and shifts that bring sums up to ``greatest`` near the range of ``out``, some outside of it."""
    high = (bits or machine.mac_array.requant_multiplier_bits) - 1
    width = rng.integers(1, high + 1, count)
    multiplier = rng.integers(0, np.int64(1) << width)
    size = max(greatest, 1).bit_length() - DTYPES[out][2].bit_length()
    shift = np.clip(width + size + rng.integers(-2, 4, count), 1, MAX_SHIFT)
    return multiplier, shift


def random_case(machine: Machine, rng: Rng, types: tuple[str, str, str], mode: str, shape: tuple[int, ...]) -> Case:
    """Random operands, records and output zero point; ``shape`` is batch0, batch1, m, k, n."""
    *batch, m, k, n = shape
    a, b = drawn(rng, types[0], (*batch, m, k)), drawn(rng, types[1], (*batch, k, n))
    if mode == "row":
        count = batch[0] * batch[1] * m
        size = int(np.abs(accumulated(machine, a, b)).max())
        multiplier, shift = scale(machine, rng, size, types[2], count, 16)
        table = records(count, multiplier, shift, dtype=ROW_RECORD)
    else:
        count = n if mode == "channel" else 1
        zero_point = rng.integers(-128, 128, count)
        size = int(np.abs(accumulated(machine, a, b)).max()) + 128 * int(np.abs(a.sum(-1)).max())
        multiplier, shift = scale(machine, rng, size, types[2], count)
        table = records(count, multiplier, shift, rng.integers(-size, size + 1, count), zero_point)
    _, low, high = DTYPES[types[2]]
    return case(machine, rng, "random", a, b, types, table, int(rng.integers(low // 2, high // 2 + 1)))


def random_cases(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Every mode, output type and record mode in turn; ragged shapes up to some folds and rounds."""
    array = machine.mac_array
    kinds = list(product(MODES, OUTPUTS, RQ_MODES))
    for index in range(count):
        (a, b), out, mode = kinds[index % len(kinds)]
        m = int(rng.integers(1, 2 * (array.rows if rng.integers(4) else array.acc_rows) + 3))
        k, n = int(rng.integers(1, 3 * array.rows + 2)), int(rng.integers(1, 3 * array.cols + 2))
        batch = rng.integers(1, 3, 2).tolist() if m <= 2 * array.rows else [1, 1]
        yield random_case(machine, rng, (a, b, out), mode, (*batch, m, k, n))


def edge_shapes(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Every combination of one below, at and one above: array height and width, accumulators, twice each."""
    array = machine.mac_array
    depths = sorted({1, max(1, array.rows - 1), array.rows, array.rows + 1, 2 * array.rows})
    widths = sorted({1, max(1, array.cols - 1), array.cols, array.cols + 1, 2 * array.cols})
    heights = sorted({1, 2, array.rows, array.acc_rows, array.acc_rows + 1, 2 * array.acc_rows + 1})
    for index, (k, n) in enumerate(product(depths, widths)):
        a, b = MODES[index % len(MODES)]
        m = heights[index % len(heights)]
        yield random_case(machine, rng, (a, b, OUTPUTS[index % 3]), "channel", (1, 1, m, k, n))
    for index, m in enumerate(heights):
        a, b = MODES[index % len(MODES)]
        yield random_case(machine, rng, (a, b, "i16"), "row", (2, 1, m, array.rows + 1, array.cols + 1))


def extreme_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Least and greatest operands, multipliers, shifts, biases, zero points: sums far beyond a narrow accumulator."""
    array = machine.mac_array
    top = (1 << (array.requant_multiplier_bits - 1)) - 1
    for (a_type, b_type), out in product(MODES, OUTPUTS):
        k, n = 3 * array.rows + 1, array.cols + 1
        table = records(
            n,
            rng.choice(np.array([0, 1, top - 1, top]), n),
            rng.choice(np.array([1, 2, 30, 31, 32, 33, 61, 62]), n),
            rng.choice(np.array([0, -1, 1, (1 << 47) - 1, -(1 << 47)]), n),
            rng.choice(np.array([-128, -127, 0, 126, 127]), n),
        )
        zero_point = int(rng.choice(np.array([-(1 << 31), -1, 0, 1, (1 << 31) - 1])))
        a, b = extremes(rng, a_type, (1, 1, 9, k)), extremes(rng, b_type, (1, 1, k, n))
        yield case(machine, rng, "extremes", a, b, (a_type, b_type, out), table, zero_point)


def overflow_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Folds that are all the greatest, then all the least: what an accumulator cuts off, later folds do not restore."""
    array = machine.mac_array
    for a_type, b_type in MODES:
        _, low, high = DTYPES[a_type]
        greatest = array.rows * max(high, -low) * -DTYPES[b_type][1]
        folds = min(-(-(1 << (array.acc_bits - 1)) // greatest) + 1, 100)
        k = 2 * folds * array.rows
        a, b = np.full((1, 1, 3, k), high, np.int64), np.zeros((1, 1, k, array.cols + 1), np.int64)
        a[0, 0, 1:] = low or 1
        b[:, :, : k // 2], b[:, :, k // 2 :] = DTYPES[b_type][1:]
        b[..., ::2] = b[..., ::-1, ::2]
        n = b.shape[-1]
        table = records(n, *scale(machine, rng, 1 << (array.acc_bits - 1), "i16", n), zero_point=rng.integers(-1, 2, n))
        yield case(machine, rng, "overflow", a, b, (a_type, b_type, "i16"), table)


def tie_cases(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Sums of odd * 2^(s - 1 - t) with multipliers of odd * 2^t, exactly half way between two results; and neighbours.

    k holds two elements, so that a row's sum can be chosen for all columns: 64 * x + y. The bias moves a column by
    whole units of its result.
    """
    array = machine.mac_array
    wide = array.requant_multiplier_bits - 1
    for index in range(count):
        a_type, b_type = MODES[1:][index % 3]
        _, low, high = DTYPES[a_type]
        out = ("i8", "i16", "u8")[index % 3]
        exponent = int(rng.integers(0, 6 if a_type == "i8" else 14))
        t = int(rng.integers(wide - 6 if index % 2 else 0, wide - 3))
        m, n, shift = 16, array.cols, exponent + 1 + t
        odd = 2 * rng.integers(-30, 30, m) + 1
        target = np.clip(odd * (1 << exponent) + rng.choice(np.array([0, 0, 0, -1, 1]), m), 65 * low, 64 * high)
        x = np.clip((target + 32) >> 6, low, high)
        a = np.stack([x, target - 64 * x], axis=-1)[None, None]
        b = np.broadcast_to(np.array([64, 1])[:, None], (1, 1, 2, n)).astype(np.int64)
        table = records(n, rng.choice(np.array([1, 3, 5]), n) << t, shift, rng.integers(-3, 4, n) << (exponent + 1))
        yield case(machine, rng, "ties", a, b, (a_type, b_type, out), table, int(rng.integers(-5, 6)))


def brim_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Products of which the last fold's sum fills an accumulator exactly, or exceeds it by 1, at either end."""
    for low, misses in product((False, True), (0, 1)):
        left = (1 << (machine.mac_array.acc_bits - 1)) - (not low) + misses
        most = 32768 if low else 32767
        pairs = []
        while left:
            x, y = (most, min(left // most, 32767)) if left >= most else (left, 1)
            pairs.append((-x if low else x, y))
            left -= x * y
        if len(pairs) > 1000:
            return
        a, b = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
        table = records(1, 1, machine.mac_array.acc_bits - 15)
        types = ("i16", "i16", "i16")
        yield case(machine, rng, "brim", a.reshape(1, 1, 1, -1), b.reshape(1, 1, -1, 1), types, table)


def aimed_cases(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Biases that bring one row of each column exactly to, or next to, a bound: of the accumulator, of the output."""
    array = machine.mac_array
    for index in range(count):
        a_type, b_type = MODES[index % len(MODES)]
        out = OUTPUTS[index // len(MODES) % len(OUTPUTS)]
        m, k, n = 4, int(rng.integers(1, 2 * array.rows)), array.cols
        a, b = drawn(rng, a_type, (1, 1, m, k)), drawn(rng, b_type, (1, 1, k, n))
        _, low, high = DTYPES[out]
        zero_point, shift = rng.integers(-128, 128, n), rng.integers(1, 8, n)
        edge, bound = 1 << (array.acc_bits - 1), int(rng.choice(np.array([low, high])))
        # An output zero point near the bound, so that small sums reach it.
        out_zp = int(np.clip(bound + rng.integers(-60, 61), -(1 << 31), (1 << 31) - 1))
        half = rng.integers(-1, 2, n) + (np.int64(1) << (shift - 1))
        target = ((bound + rng.integers(-1, 2, n) - out_zp) << shift) - half
        if rng.integers(2):
            target[0] = rng.choice(np.array([edge - 1, edge, -edge, -edge - 1]))
        row = rng.integers(0, m, n)
        now = accumulated(machine, a, b)[0, 0, row, np.arange(n)] - zero_point * a[0, 0, row].sum(-1)
        bias = np.clip(target - now, -(1 << 47), (1 << 47) - 1)
        yield case(machine, rng, "aimed", a, b, (a_type, b_type, out), records(n, 1, shift, bias, zero_point), out_zp)


def all_cases(machine: Machine, seed: int, scale_up: int = 1) -> list[Case]:
    """A mix of everything; ``scale_up`` multiplies what is random."""
    rng = np.random.default_rng(seed)
    return [
        *random_cases(machine, rng, 48 * scale_up),
        *edge_shapes(machine, rng),
        *extreme_cases(machine, rng),
        *overflow_cases(machine, rng),
        *tie_cases(machine, rng, 24 * scale_up),
        *brim_cases(machine, rng),
        *aimed_cases(machine, rng, 48 * scale_up),
    ]
