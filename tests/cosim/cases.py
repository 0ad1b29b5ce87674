"""MATMUL instructions with their memories: how one is laid out, and random ones. Those of `edges.py` aim at edges.

The SRAM around the operands is random, so that a result at a wrong place shows, and so is the order of strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim import numerics
from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, decode, violations
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, ELEMENT_BITS, MAX_SHIFT, Decoded, encode, row_bytes
from npusim.isa.matmul import A_TYPES, B_TYPES, FACTORED, RECORD, ROW_RECORD, RQ_MODES, SCALARS
from npusim.memory import MachineState
from npusim.units import UNITS

OUTPUTS = tuple(DTYPES)

Int64 = NDArray[np.int64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """Legal instructions that run one after another, and the memories that they start from."""

    name: str
    instructions: tuple[Decoded, ...]
    state: MachineState


def pairs(machine: Machine) -> list[tuple[str, str]]:
    """Every pair of operand types that the machine's array takes."""
    array = machine.mac_array
    return [
        (a, b)
        for a, wide in A_TYPES.items()
        for b, width in B_TYPES.items()
        if wide >= array.narrowest_activation_bits
        and width >= array.narrowest_weight_bits
        and (width < 16 or wide == 16)
    ]


def modes(machine: Machine) -> list[str]:
    """Every requantization mode that the machine has."""
    return [mode for mode in RQ_MODES if machine.mac_array.factored_requant or not mode.startswith("factored")]


def drawn(rng: Rng, dtype: str, shape: tuple[int, ...]) -> Int64:
    _, low, high = DTYPES[dtype]
    return rng.integers(low, high + 1, shape)


def extremes(rng: Rng, dtype: str, shape: tuple[int, ...]) -> Int64:
    _, low, high = DTYPES[dtype]
    return rng.choice(np.array([low, low + 1, -1 if low else 1, 0, 1, high - 1, high], np.int64), shape)


def records(
    count: int, multiplier: Any = 1, shift: Any = 1, bias: Any = 0, zero_point: Any = 0, dtype: Any = RECORD
) -> NDArray[Any]:
    """Requantization records of any of the four kinds; each argument is one value or ``count``.

    ROW_RECORD holds multiplier and shift only, SCALARS an input zero point besides.
    """
    out = np.zeros(count, dtype)
    out["multiplier"], out["shift"] = multiplier, shift
    if "zero_point" in out.dtype.names:
        out["zero_point"] = zero_point
    if dtype is FACTORED:
        out["bias"] = bias
    if dtype is RECORD:
        whole = np.broadcast_to(np.asarray(bias, np.int64), count)
        out["bias_low"], out["bias_high"] = whole & 0xFFFF_FFFF, whole >> 32
    return out


def case(
    machine: Machine, rng: Rng, name: str, a: Int64, b: Int64, types: tuple[str, str, str], table: NDArray[Any],
    out_zp: int = 0, shifts: Int64 | None = None, scalars: NDArray[Any] | None = None, fraction_bits: int = 0,
) -> Case:  # fmt: skip
    """Lay out a (batch0, batch1, m, k) and b (batch0, batch1, k, n) with random strides and gaps.

    ``table`` decides the mode: row records, records for one or for n channels, or factored ones; with those go
    ``scalars``, one or one for each row, and ``fraction_bits``. ``shifts`` (k,) sets the flag ``shifted``.
    """
    batch0, batch1, m, k = a.shape
    n = b.shape[-1]
    mode = "row" if table.dtype == ROW_RECORD else "tensor" if len(table) == 1 else "channel"
    if scalars is not None:
        mode = "factored" if len(scalars) == 1 else "factored_row"
    numbers = [DTYPE_NAMES.index(dtype) for dtype in types]
    gap = iter(rng.integers(0, 4, 20).tolist())
    fields = {"unit": UNITS.index("mac"), "m": m, "k": k, "n": n, "batch0": batch0, "batch1": batch1, "out_zp": out_zp}
    fields |= dict(zip(("a_dtype", "b_dtype", "out_dtype"), numbers, strict=True))
    fields |= {"rq_mode": RQ_MODES.index(mode), "fraction_bits": fraction_bits, "shifted": int(shifts is not None)}
    if mode != "row" and not machine.mac_array.row_sum_column:
        table["zero_point"] = 0
    end = 0

    def take(prefix: str, rows: int, width: int) -> int:
        """Reserve a dense operand with gaps; return the stride of a row."""
        nonlocal end
        row = width + next(gap)
        plane = rows * row + next(gap)
        fields[f"{prefix}_addr"] = end + next(gap)
        fields[f"{prefix}_b1"], fields[f"{prefix}_b0"] = plane, batch1 * plane + next(gap)
        end = fields[f"{prefix}_addr"] + batch0 * fields[f"{prefix}_b0"]
        return row

    fields["a_row"] = take("a", m, row_bytes(numbers[0], k))
    packed, size = ELEMENT_BITS[types[1]] < 8, row_bytes(numbers[1], 1)
    if packed or rng.integers(2):
        fields["b_n"], fields["b_k"] = take("b", n, row_bytes(numbers[1], k)), 0 if packed else size
    else:
        fields["b_k"], fields["b_n"] = take("b", k, n * size), size
    fields["out_row"] = take("out", m, row_bytes(numbers[2], n))
    fields["rq_addr"] = end + next(gap) if mode == "row" else next(gap)
    fields["shift_addr"] = 2048 + next(gap)
    fields["scalars_addr"] = end + next(gap) if mode == "factored_row" else 4096 + next(gap)

    state = MachineState(machine, 0)
    state.sram[:], state.param[:] = rng.integers(0, 256, state.sram.size), rng.integers(0, 256, state.param.size)
    ins = next(iter(decode(encode(BY_MNEMONIC["matmul"], fields)[None])))
    assert violations([ins], machine) == []
    state.operand("sram", ins.a_addr, numbers[0], a.shape, (ins.a_b0, ins.a_b1, ins.a_row)).assign(a)
    transposed = np.swapaxes(b, -1, -2)
    if packed:
        state.operand("sram", ins.b_addr, numbers[1], transposed.shape, (ins.b_b0, ins.b_b1, ins.b_n)).assign(
            transposed
        )
    else:
        strides = (ins.b_b0, ins.b_b1, ins.b_k, ins.b_n)
        state.window("sram", ins.b_addr, DTYPES[types[1]][0], b.shape, strides)[...] = b
    state.vector("sram" if mode == "row" else "param", ins.rq_addr, table.dtype, len(table))[...] = table
    if shifts is not None:
        padded = np.pad(shifts, (0, -k % 4)).reshape(-1, 4)
        state.vector("param", ins.shift_addr, np.uint8, len(padded))[...] = padded @ np.array([1, 4, 16, 64])
    if scalars is not None:
        memory = "sram" if mode == "factored_row" else "param"
        state.vector(memory, ins.scalars_addr, SCALARS, len(scalars))[...] = scalars
    what = f"{types[0]} x {types[1]} -> {types[2]}, {mode}{', shifted' if ins.shifted else ''}"
    return Case(f"{name}: {what}, {batch0}x{batch1}x{m}x{k}x{n}", (ins,), state)


def chained(whole: Case, cuts: list[int]) -> Case:
    """The same product as a chain of MATMULs that hold and continue; ``cuts`` are multiples of 4 inside of k."""
    (ins,) = whole.instructions
    out = []
    for start, end in pairwise([0, *cuts, ins.k]):
        step = row_bytes(ins.b_dtype, start) if ELEMENT_BITS[DTYPE_NAMES[ins.b_dtype]] < 8 else start * ins.b_k
        at = {"a_addr": ins.a_addr + row_bytes(ins.a_dtype, start), "b_addr": ins.b_addr + step}
        flags = {"acc_continue": int(start > 0), "acc_hold": int(end < ins.k)}
        piece = vars(ins) | at | flags | {"k": end - start, "shift_addr": ins.shift_addr + start // 4}
        out.append(SimpleNamespace(**piece))
    assert violations(out, whole.state.machine) == []
    return Case(f"{whole.name}, cut at {cuts}", tuple(out), whole.state)


def fold_height(machine: Machine, types: tuple[str, ...]) -> int:
    """Values of k that reach an accumulator together."""
    array = machine.mac_array
    height = array.rows if array.dataflow == "weight_stationary" else 1
    return height * array.a4w4_per_cell if types[:2] == ("u4", "i4") else height


def accumulated(machine: Machine, x: Int64, b: Int64, types: tuple[str, ...]) -> Int64:
    """Accumulators after the last fold, to aim operands at an edge: exact, or as the machine narrows them."""
    array = machine.mac_array
    acc = np.zeros((*x.shape[:-1], b.shape[-1]), np.int64)
    overflow = "wrap" if array.overflow == "trap" else array.overflow
    height = fold_height(machine, types)
    for k0 in range(0, x.shape[-1], height):
        acc = acc + x[..., k0 : k0 + height] @ b[..., k0 : k0 + height, :]
        acc = numerics.narrow_accumulator(acc, array.acc_bits, overflow)
    return acc


def scale(rng: Rng, greatest: int, target_bits: int, count: int, bits: int) -> tuple[Int64, Int64]:
    """Multipliers and shifts that bring values up to ``greatest`` near ``target_bits`` bits, some beyond."""
    width = rng.integers(1, bits, count)
    multiplier = rng.integers(0, np.int64(1) << width)
    size = max(greatest, 1).bit_length() - target_bits
    return multiplier, np.clip(width + size + rng.integers(-2, 4, count), 1, MAX_SHIFT)


def random_case(machine: Machine, rng: Rng, types: tuple[str, str, str], mode: str, shape: tuple[int, ...]) -> Case:
    """Random operands, shifts, records and output zero point; ``shape`` is batch0, batch1, m, k, n."""
    *batch, m, k, n = shape
    a, b = drawn(rng, types[0], (*batch, m, k)), drawn(rng, types[1], (*batch, k, n))
    rows = batch[0] * batch[1] * m
    scalars, fraction_bits, x, shifts = None, 0, a, None
    if mode.startswith("factored"):
        scalars = records(rows if mode == "factored_row" else 1, dtype=SCALARS)
        scalars["zero_point"] = drawn(rng, types[0], scalars.shape)
        x = a - (scalars["zero_point"].reshape(*batch, m, 1) if mode == "factored_row" else scalars["zero_point"])
    if machine.mac_array.input_shift and ELEMENT_BITS[types[0]] <= 8 and rng.integers(2):
        shifts = rng.integers(0, 4, k)
        x = x << shifts
    size = int(np.abs(accumulated(machine, x, b, types)).max())
    _, low, high = DTYPES[types[2]]
    out_bits = high.bit_length()
    if mode == "row":
        table = records(rows, *scale(rng, size, out_bits, rows, 16), dtype=ROW_RECORD)
    elif scalars is not None:
        size += 128 * int(np.abs(x.sum(-1)).max())
        fraction_bits = int(rng.integers(1, 16))
        middle = int(rng.integers(8, 31))
        target = min(out_bits + fraction_bits, 31)
        zero_point, bias = rng.integers(-128, 128, n), rng.integers(-(1 << target), 1 << target, n) // 2
        table = records(n, *scale(rng, size, middle, n, 16), bias, zero_point, FACTORED)
        scalars["multiplier"], scalars["shift"] = scale(rng, 1 << middle, target, len(scalars), 16)
    else:
        count = n if mode == "channel" else 1
        zero_point = rng.integers(-128, 128, count)
        size += 128 * int(np.abs(x.sum(-1)).max())
        bits = machine.mac_array.requant_multiplier_bits
        bias = rng.integers(-size, size + 1, count)
        table = records(count, *scale(rng, size, out_bits, count, bits), bias, zero_point)
    out_zp = int(rng.integers(low // 2, high // 2 + 1))
    return case(machine, rng, "random", a, b, types, table, out_zp, shifts, scalars, fraction_bits)


def random_cases(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Every pair of operand types, output type and mode in turn; ragged shapes up to some folds and rounds."""
    array, kinds, requantizations = machine.mac_array, pairs(machine), modes(machine)
    for index in range(count):
        a, b = kinds[index % len(kinds)]
        mode = requantizations[(index + index // len(kinds)) % len(requantizations)]
        m = int(rng.integers(1, 2 * (array.rows if rng.integers(4) else array.acc_rows) + 3))
        k, n = int(rng.integers(1, 3 * array.rows + 2)), int(rng.integers(1, 3 * array.cols + 2))
        batch = rng.integers(1, 3, 2).tolist() if m <= 2 * array.rows else [1, 1]
        yield random_case(machine, rng, (a, b, OUTPUTS[index % len(OUTPUTS)]), mode, (*batch, m, k, n))


def random_chains(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Products in two to four pieces."""
    array, kinds, requantizations = machine.mac_array, pairs(machine), modes(machine)
    most = array.acc_rows if array.dataflow == "weight_stationary" else array.rows
    for index in range(count):
        a, b = kinds[index % len(kinds)]
        mode = requantizations[(index + index // len(kinds)) % len(requantizations)]
        m, n = int(rng.integers(1, most + 1)), int(rng.integers(1, array.cols + 1))
        k = int(rng.integers(5, 4 * array.rows + 6))
        possible = np.arange(4, k, 4)
        cuts = np.sort(rng.choice(possible, min(int(rng.integers(1, 4)), len(possible)), replace=False)).tolist()
        yield chained(random_case(machine, rng, (a, b, OUTPUTS[index % len(OUTPUTS)]), mode, (1, 1, m, k, n)), cuts)
