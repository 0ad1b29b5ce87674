"""The cases meet what they are built for; random operands alone would miss most of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from npusim import numerics
from npusim.config import Machine
from npusim.isa.encoding import DTYPE_NAMES, DTYPES
from npusim.isa.matmul import (
    RQ_MODES,
    Requantization,
    input_shifts,
    input_zero_point,
    operands,
    requantization,
    stationary,
)
from tests.cosim.cases import OUTPUTS, Case, Int64, modes, pairs
from tests.cosim.edges import all_cases
from tests.cosim.machines import NO_SHADOW_TRAP, OUTPUT_STATIONARY, Fields, variant


class Edges(Counter[str]):
    """How often values of one case meet each edge, by the definition in int64."""

    def __init__(self, machine: Machine, case: Case) -> None:
        super().__init__()
        self.machine, self.case = machine, case
        held: tuple[Int64, Int64] | None = None
        for ins in case.instructions:
            names = [DTYPE_NAMES[number] for number in (ins.a_dtype, ins.b_dtype, ins.out_dtype)]
            self[f"{names[0]} x {names[1]}"] += 1
            a, b, _ = operands(case.state, ins)
            zero, shifts = input_zero_point(case.state, ins), input_shifts(case.state, ins)
            x = (a.values() - zero) << shifts
            weights = np.swapaxes(stationary(b), -1, -2).astype(np.int64)
            self["input zero point"] += int((zero != 0).any())
            if machine.mac_array.input_shift:
                for amount in range(1, 4):
                    self[f"shift by {amount}"] += int((x[..., shifts == amount] != 0).any())
            height = machine.mac_array.rows if machine.mac_array.dataflow == "weight_stationary" else 1
            if names[:2] == ["u4", "i4"] and machine.mac_array.a4w4_per_cell == 2:
                height *= 2
                self["pairs of odd number"] += ins.k % 2
            acc, row_sum = (0, 0) if held is None else held
            before = self["fold too great"] + self["fold too small"]
            for k0 in range(0, ins.k, height):
                fold = slice(k0, k0 + height)
                acc = self.narrowed("fold", acc + x[..., fold] @ weights[..., fold, :])
            row_sum = row_sum + x.sum(-1, keepdims=True)
            held = acc, row_sum
            self["held"] += ins.acc_hold
            self["held and continued"] += ins.acc_hold & ins.acc_continue
            self["held after an overflow"] += ins.acc_hold & (self["fold too great"] + self["fold too small"] > before)
        rq = requantization(case.state, ins)
        self[RQ_MODES[ins.rq_mode]] += 1
        self["row sum held, weight zero point"] += int(
            len(case.instructions) > 1 and (rq.weight_zero * row_sum != 0).any()
        )
        acc = self.narrowed("sum", acc + (0 if rq.second else rq.bias) - rq.weight_zero * row_sum)
        scaled = self.plain(acc, rq) if rq.second is None else self.factored(acc, rq, ins.fraction_bits)
        self.bounds(scaled + ins.out_zp, names[2])
        overflows = sum(self[f"{name} too {side}"] for name in ("fold", "sum") for side in ("great", "small"))
        self["case with overflow" if overflows else "case without overflow"] += 1

    def narrowed(self, name: str, value: Int64) -> Int64:
        array = self.machine.mac_array
        edge = 1 << (array.acc_bits - 1)
        self[f"{name} too great"] += int((value >= edge).sum())
        self[f"{name} too small"] += int((value < -edge).sum())
        self[f"{name} just fits"] += int(((value == edge - 1) | (value == -edge)).sum())
        self[f"{name} misses by 1"] += int(((value == edge) | (value == -edge - 1)).sum())
        return numerics.narrow_accumulator(
            value, array.acc_bits, "wrap" if array.overflow == "trap" else array.overflow
        )

    def rounded(self, name: str, value: Int64, multiplier: Int64, shift: Int64) -> Int64:
        """Round once and saturate, as every stage does; ties count where they are not cut off."""
        product, half = value * multiplier, np.int64(1) << (np.asarray(shift, np.int64) - 1)
        out = numerics.rescale(value, multiplier, shift)
        tie = ((product & (2 * half - 1)) == half) & (np.abs(out) < 2**31)
        self[f"{name} tie above 0"] += int((tie & (value > 0)).sum())
        self[f"{name} tie below 0"] += int((tie & (value < 0)).sum())
        self[f"{name} beyond int32"] += int(((out >= 2**31) | (out < -(2**31))).sum())
        return numerics.saturate_32(out)

    def plain(self, acc: Int64, rq: Requantization) -> Int64:
        ins = self.case.instructions[-1]
        single = numerics.saturate_32(numerics.rescale(acc, rq.multiplier, rq.shift))
        double = numerics.saturate_32(numerics.rescale_double(acc, rq.multiplier, rq.shift))
        scaled = double if self.machine.mac_array.requant_rounding == "double" else single
        _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
        visible = (scaled + ins.out_zp > low) & (scaled + ins.out_zp < high)
        half = np.int64(1) << (rq.shift - 1)
        tie = ((acc * rq.multiplier & (2 * half - 1)) == half) & visible
        self["visible tie above 0"] += int((tie & (acc > 0)).sum())
        self["visible tie below 0"] += int((tie & (acc < 0)).sum())
        self["tie with a shift above 31"] += int((tie & (rq.shift > 31)).sum())
        self["double rounding differs"] += int((single != scaled).sum())
        self.rounded("plain", acc, rq.multiplier, rq.shift)
        return scaled

    def factored(self, acc: Int64, rq: Requantization, fraction_bits: int) -> Int64:
        first = self.rounded("first", acc, rq.multiplier, rq.shift)
        assert rq.second is not None
        biased = self.rounded("second", first, *rq.second) + rq.bias
        self["late bias beyond int32"] += int((numerics.saturate_32(biased) != biased).sum())
        one, fraction = np.int64(1), np.int64(fraction_bits)
        self["last beyond int32"] += 1  # cannot be: it shifts 32 bits
        return self.rounded("last", numerics.saturate_32(biased), one, fraction)

    def bounds(self, value: Int64, dtype: str) -> None:
        _, low, high = DTYPES[dtype]
        for name, bound in (("low", low), ("high", high)):
            for distance in (-1, 0, 1):
                self[f"{dtype} {name} {distance:+}"] += int((value == bound + distance).sum())


def unmet(machine: Machine, besides: set[str]) -> set[str]:
    """Edges that no case meets, of those that any case looks for, and pairs, outputs and modes of the machine."""
    total: Counter[str] = Counter([f"{a} x {b}" for a, b in pairs(machine)] + modes(machine))
    total.subtract(list(total))
    for case in all_cases(machine, seed=0):
        for name, count in Edges(machine, case).items():
            total[name] += count
    assert {name.split()[0] for name in total if name.endswith("low +0")} == set(OUTPUTS)
    return {name for name, count in total.items() if count == 0} - besides


SINGLE_ROUNDING = {"double rounding differs", "tie with a shift above 31"}
"""What only double rounding and 32-bit multipliers can meet."""


@pytest.mark.parametrize("fields", [{}, OUTPUT_STATIONARY], ids=["weight_stationary", "output_stationary"])
def test_cases_meet_every_edge(tiny_machine: Machine, fields: Fields) -> None:
    assert unmet(variant(tiny_machine, fields), SINGLE_ROUNDING) == set()


def test_cases_meet_every_edge_of_32_bit_multipliers(tiny_machine: Machine) -> None:
    assert unmet(variant(tiny_machine, NO_SHADOW_TRAP), {"input zero point"}) == set()
