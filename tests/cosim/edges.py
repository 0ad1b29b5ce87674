"""MATMUL instructions in which a value meets an edge of the arithmetic, or a shape an edge of the array.

Every builder takes a machine and a random generator and yields `Case`s; `all_cases` mixes them with random ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from npusim.config import Machine
from npusim.isa.encoding import DTYPES
from npusim.isa.matmul import FACTORED, SCALARS
from tests.cosim.cases import (
    OUTPUTS,
    Case,
    Rng,
    accumulated,
    case,
    chained,
    drawn,
    extremes,
    modes,
    pairs,
    random_case,
    random_cases,
    random_chains,
    records,
    scale,
)

SIGNED = (("i8", "i8"), ("i16", "i8"), ("i16", "i16"))
"""Pairs in which a sum can be chosen freely."""


def edge_shapes(machine: Machine, rng: Rng) -> Iterator[Case]:
    """One below, at and one above array height and width and accumulators, twice each; odd k where k goes in pairs."""
    array, kinds = machine.mac_array, pairs(machine)
    depths = sorted({1, max(1, array.rows - 1), array.rows, array.rows + 1, 2 * array.rows})
    widths = sorted({1, max(1, array.cols - 1), array.cols, array.cols + 1, 2 * array.cols})
    heights = sorted({1, 2, array.rows, array.acc_rows, array.acc_rows + 1, 2 * array.acc_rows + 1})
    for index, (k, n) in enumerate(product(depths, widths)):
        a, b = kinds[index % len(kinds)]
        m = heights[index % len(heights)]
        yield random_case(machine, rng, (a, b, OUTPUTS[index % 3]), "channel", (1, 1, m, k, n))
    for index, m in enumerate(heights):
        a, b = kinds[index % len(kinds)]
        yield random_case(machine, rng, (a, b, "i16"), modes(machine)[-1], (2, 1, m, array.rows + 1, array.cols + 1))
    for k, m in product(
        range(1, min(array.rows, 4) + 2), sorted({1, array.rows - 1, array.rows, array.rows + 1} - {0})
    ):
        a, b = kinds[(k + m) % len(kinds)]  # tiles whose drain takes longer than the next one's stream
        yield random_case(machine, rng, (a, b, "i16"), modes(machine)[-1], (1, 1, m, k, 2 * array.cols + 1))
    if ("u4", "i4") in kinds:
        for k in (2, 3, 2 * array.rows - 1, 2 * array.rows, 2 * array.rows + 1, 4 * array.rows - 1):
            yield random_case(machine, rng, ("u4", "i4", "i16"), modes(machine)[-1], (1, 1, 3, k, array.cols + 1))


def extreme_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Least and greatest operands, multipliers, shifts, biases, zero points: sums far beyond a narrow accumulator."""
    array = machine.mac_array
    wide = (1 << (array.requant_multiplier_bits - 1)) - 1
    for index, (a_type, b_type) in enumerate(pairs(machine) * 2):
        k, n, m, out = 3 * array.rows + 1, array.cols + 1, 9, OUTPUTS[index % len(OUTPUTS)]
        factored = "factored" in modes(machine) and index >= len(pairs(machine))
        top, bias_bits = (32767, 32) if factored else (wide, 48)
        biases = np.array([0, -1, 1, (1 << (bias_bits - 1)) - 1, -(1 << (bias_bits - 1))])
        table = records(
            n,
            rng.choice(np.array([0, 1, top - 1, top]), n),
            rng.choice(np.array([1, 2, 15, 16, 17] if factored else [1, 2, 30, 31, 32, 33, 61, 62]), n),
            rng.choice(biases, n),
            rng.choice(np.array([-128, -127, 0, 126, 127]), n),
            FACTORED if factored else records(1).dtype,
        )
        scalars = None
        if factored:
            scalars = records(
                m, rng.choice(np.array([1, 32766, 32767]), m), rng.choice(np.array([1, 15, 16]), m), dtype=SCALARS
            )
            scalars["zero_point"] = extremes(rng, a_type, (m,))
        shifts = rng.choice(np.array([0, 3, 3]), k) if array.input_shift and DTYPES[a_type][2] < 256 else None
        zero_point = int(rng.choice(np.array([-(1 << 31), -1, 0, 1, (1 << 31) - 1])))
        fraction_bits = int(rng.choice(np.array([1, 15]))) if factored else 0
        a, b = extremes(rng, a_type, (1, 1, m, k)), extremes(rng, b_type, (1, 1, k, n))
        types = (a_type, b_type, out)
        yield case(machine, rng, "extremes", a, b, types, table, zero_point, shifts, scalars, fraction_bits)


def overflow_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Folds that are all the greatest, then all the least: what an accumulator cuts off, later folds do not restore.

    Cut in the middle too: what an accumulator has cut off is missing in the sums that it holds.
    """
    array = machine.mac_array
    for a_type, b_type in (pair for pair in pairs(machine) if pair[0] in ("u4", "u8", "i8", "i16", "u16")):
        _, low, high = DTYPES[a_type]
        greatest = max(high, -low) * -DTYPES[b_type][1]
        half = min(-(-(1 << (array.acc_bits - 1)) // greatest) + array.rows, 100 * array.rows)
        half = -(-half // 4) * 4
        m = min(3, array.acc_rows, array.rows)
        a, b = np.full((1, 1, m, 2 * half), high, np.int64), np.zeros((1, 1, 2 * half, array.cols), np.int64)
        a[0, 0, 1:] = low or 1
        b[:, :, :half], b[:, :, half:] = DTYPES[b_type][1:]
        b[..., ::2] = b[..., ::-1, ::2]
        n = b.shape[-1]
        multipliers = scale(rng, 1 << (array.acc_bits - 1), 15, n, array.requant_multiplier_bits)
        table = records(n, *multipliers, zero_point=rng.integers(-1, 2, n))
        whole = case(machine, rng, "overflow", a, b, (a_type, b_type, "i16"), table)
        yield whole
        yield chained(whole, [half])


def quiet_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Small sums of one row or one column, while rows and columns that are not used would overflow."""
    types = ("i16", "i16", "i16")
    for m, n in ((1, machine.mac_array.cols), (machine.mac_array.rows, 1)):
        small, great = rng.integers(-1, 2, (1, 1, m, 64)), extremes(rng, "i16", (1, 1, 64, n))
        if n == 1:
            small, great = extremes(rng, "i16", (1, 1, m, 64)), rng.integers(-1, 2, (1, 1, 64, n))
        yield case(machine, rng, "quiet", small, great, types, records(1, 1, 8))


def tie_cases(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Sums of odd * 2^(s - 1 - t) with multipliers of odd * 2^t, exactly half way between two results; and neighbours.

    k holds two elements, so that a row's sum can be chosen for all columns: 64 * x + y. The bias moves a column by
    whole units of its result. With factored requantization the tie is in its first, second or last rounding in turn,
    and the others are exact.
    """
    array = machine.mac_array
    for index in range(count):
        a_type, b_type = SIGNED[index % 3]
        _, low, high = DTYPES[a_type]
        out = ("i8", "i16", "u8")[index % 3]
        stage = (index // 3 - 1) % 4 if "factored" in modes(machine) else 3
        wide = (array.requant_multiplier_bits if stage == 3 else 16) - 1
        exponent = int(rng.integers(0, 6 if a_type == "i8" else 14))
        t = int(rng.integers(wide - 6 if index % 2 else 1, wide - 3))
        m, n, shift = 16, array.cols, exponent + 1 + t
        odd = 2 * rng.integers(-30, 30, m) + 1
        target = np.clip(odd * (1 << exponent) + rng.choice(np.array([0, 0, 0, -1, 1]), m), 65 * low, 64 * high)
        x = np.clip((target + 32) >> 6, low, high)
        a = np.stack([x, target - 64 * x], axis=-1)[None, None]
        b = np.broadcast_to(np.array([64, 1])[:, None], (1, 1, 2, n)).astype(np.int64)
        multiplier, units = rng.choice(np.array([1, 3, 5]), n) << t, rng.integers(-3, 4, n)
        zero_point = int(rng.integers(-5, 6))
        if stage == 3:
            table = records(n, multiplier, shift, units << (exponent + 1))
            yield case(machine, rng, "ties", a, b, (a_type, b_type, out), table, zero_point)
            continue
        fraction_bits = min(exponent + 1, 15) if stage == 2 else 1
        first = (multiplier, shift) if stage == 0 else (1 << t, t)
        second = (int(multiplier[0]), shift) if stage == 1 else (1 << t, t)
        table = records(n, *first, units << fraction_bits, dtype=FACTORED)
        types = (a_type, b_type, out)
        scalars = records(1, *second, dtype=SCALARS)
        yield case(machine, rng, "ties", a, b, types, table, zero_point, None, scalars, fraction_bits)


def brim_cases(machine: Machine, rng: Rng) -> Iterator[Case]:
    """Products of which the last fold's sum fills an accumulator exactly, or exceeds it by 1, at either end."""
    for low, misses in product((False, True), (0, 1)):
        left = (1 << (machine.mac_array.acc_bits - 1)) - (not low) + misses
        most = 32768 if low else 32767
        factors = []
        while left:
            x, y = (most, min(left // most, 32767)) if left >= most else (left, 1)
            factors.append((-x if low else x, y))
            left -= x * y
        if len(factors) > 1000:
            return
        a, b = (np.array(side, np.int64) for side in zip(*factors, strict=True))
        table = records(1, 1, machine.mac_array.acc_bits - 15)
        types = ("i16", "i16", "i16")
        yield case(machine, rng, "brim", a.reshape(1, 1, 1, -1), b.reshape(1, 1, -1, 1), types, table)


def aimed_cases(machine: Machine, rng: Rng, count: int) -> Iterator[Case]:
    """Biases that bring one row of each column exactly to, or next to, a bound: of the accumulator, of the output."""
    array, kinds = machine.mac_array, pairs(machine)
    for index in range(count):
        a_type, b_type = kinds[index % len(kinds)]
        types = (a_type, b_type, OUTPUTS[index % len(OUTPUTS)])
        m, k, n = 4, int(rng.integers(1, 2 * array.rows)), array.cols
        a, b = drawn(rng, a_type, (1, 1, m, k)), drawn(rng, b_type, (1, 1, k, n))
        _, low, high = DTYPES[types[2]]
        zero_point, shift = rng.integers(-128, 128, n), rng.integers(1, 8, n)
        edge, bound = 1 << (array.acc_bits - 1), (low, high)[index // len(OUTPUTS) % 2]
        # An output zero point near the bound, so that small sums reach it.
        out_zp = int(np.clip(bound + rng.integers(-60, 61), -(1 << 31), (1 << 31) - 1))
        half = rng.integers(-1, 2, n) + (np.int64(1) << (shift - 1))
        target = ((bound + rng.permutation(np.arange(n) % 3 - 1) - out_zp) << shift) - half
        if rng.integers(2):
            target[0] = rng.choice(np.array([edge - 1, edge, -edge, -edge - 1]))
        row = rng.integers(0, m, n)
        now = accumulated(machine, a, b, types)[0, 0, row, np.arange(n)] - zero_point * a[0, 0, row].sum(-1)
        bias = np.clip(target - now, -(1 << 47), (1 << 47) - 1)
        yield case(machine, rng, "aimed", a, b, types, records(n, 1, shift, bias, zero_point), out_zp)


def all_cases(machine: Machine, seed: int, scale_up: int = 1) -> list[Case]:
    """A mix of everything; ``scale_up`` multiplies what is random."""
    rng = np.random.default_rng(seed)
    return [
        *random_cases(machine, rng, 60 * scale_up),
        *random_chains(machine, rng, 40 * scale_up),
        *edge_shapes(machine, rng),
        *extreme_cases(machine, rng),
        *overflow_cases(machine, rng),
        *quiet_cases(machine, rng),
        *tie_cases(machine, rng, 36 * scale_up),
        *brim_cases(machine, rng),
        *aimed_cases(machine, rng, 72 * scale_up),
    ]
