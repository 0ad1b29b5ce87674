"""The cases meet what they are built for; random operands alone would miss most of it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from npusim import numerics
from npusim.config import Machine
from npusim.isa.encoding import DTYPE_NAMES, DTYPES
from npusim.isa.matmul import operands, requantization
from tests.cosim.cases import Case, all_cases
from tests.cosim.machines import NO_SHADOW_TRAP, variant


def met(machine: Machine, case: Case) -> Counter[str]:
    """How often values of one case meet each edge, by the definition in Python integers and int64."""
    array, ins = machine.mac_array, case.ins
    found: Counter[str] = Counter()
    a, b, _ = operands(case.state, ins)
    bias, zero_point, multiplier, shift = requantization(case.state, ins)
    edge = 1 << (array.acc_bits - 1)
    overflow = "wrap" if array.overflow == "trap" else array.overflow

    def narrowed(name: str, value: np.ndarray) -> np.ndarray:
        found[f"{name} too great"] += int((value >= edge).sum())
        found[f"{name} too small"] += int((value < -edge).sum())
        found[f"{name} just fits"] += int(((value == edge - 1) | (value == -edge)).sum())
        found[f"{name} misses by 1"] += int(((value == edge) | (value == -edge - 1)).sum())
        return numerics.narrow_accumulator(value, array.acc_bits, overflow)

    acc = np.zeros((*a.shape[:-1], b.shape[-1]), np.int64)
    for k0 in range(0, ins.k, array.rows):
        fold = slice(k0, k0 + array.rows)
        acc = narrowed("fold", acc + a[..., fold].astype(np.int64) @ b[..., fold, :].astype(np.int64))
    acc = narrowed("sum", acc + bias - zero_point * a.astype(np.int64).sum(-1, keepdims=True))
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    single = numerics.rescale(acc, multiplier, shift)
    scaled = numerics.rescale_double(acc, multiplier, shift) if array.requant_rounding == "double" else single
    product, half = acc * multiplier, np.int64(1) << (shift - 1)
    visible = (np.clip(scaled, -(2**31), 2**31 - 1) + ins.out_zp > low) & (scaled + ins.out_zp < high)
    tie = ((product & (2 * half - 1)) == half) & visible
    found["tie above 0"] += int((tie & (acc > 0)).sum())
    found["tie below 0"] += int((tie & (acc < 0)).sum())
    found["tie with a shift above 31"] += int((tie & (shift > 31)).sum())
    found["beyond int32"] += int(((scaled >= 2**31) | (scaled < -(2**31))).sum())
    found["double rounding differs"] += int((single != scaled).sum())
    for name, bound in (("low", low), ("high", high)):
        for distance in (-1, 0, 1):
            near = scaled + ins.out_zp == bound + distance
            found[f"{DTYPE_NAMES[ins.out_dtype]} {name} {distance:+}"] += int(near.sum())
    overflows = sum(found[f"{name} too {side}"] for name in ("fold", "sum") for side in ("great", "small"))
    found["case with overflow" if overflows else "case without overflow"] += 1
    return found


def unmet(machine: Machine, besides: set[str]) -> set[str]:
    total: Counter[str] = Counter()
    for case in all_cases(machine, seed=0):
        total += met(machine, case)
        for name in met(machine, case):
            total[name] += 0
    return {name for name, count in total.items() if count == 0} - besides


def test_cases_meet_every_edge(tiny_machine: Machine) -> None:
    # without double rounding nothing can differ from single rounding; 16-bit multipliers
    assert unmet(tiny_machine, {"double rounding differs", "tie with a shift above 31"}) == set()


def test_cases_meet_every_edge_of_32_bit_multipliers(tiny_machine: Machine) -> None:
    assert unmet(variant(tiny_machine, NO_SHADOW_TRAP), set()) == set()
