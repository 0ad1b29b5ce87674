"""No program may overflow an accumulator: machines are refused exactly where the largest sum would not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.builder import Builder
from compiler.graph import Graph, Value
from compiler.passes.fold_zero_points import fold_zero_points
from compiler.schedule.accumulators import prove_accumulators
from compiler.schedule.build import build_program
from npusim.config import Machine
from npusim.errors import UserError
from tests.compiler.runs import machine_like
from tests.compiler.schedule.test_tiles import assert_program_equals_graph, one_step


def bits(machine: Machine, acc_bits: int) -> Machine:
    fields = machine.model_dump()
    fields["mac_array"] |= {"acc_bits": acc_bits, "overflow": "trap"}
    return Machine.model_validate(fields)


def linear(k: int, bias: int, zero_point: int = 128, dtype: str = "i16") -> Graph:
    """Two channels of ``k`` weights: zero ones, and all -128 (as signed numbers)."""
    build = Builder()
    build.phase = "step"
    build.add(Value("x", (3, k), dtype, "input"))
    roles = {
        "x": "x",
        "weight": build.const("l.weight", np.repeat([[128], [0]], k, axis=1), "u8"),
        "weight_zp": build.const("l.weight_zp", np.array([128, zero_point]), "i16"),
        "in_zp": build.const("l.in_zp", np.zeros(1, np.int64), "i32"),
        "bias": build.const("l.bias", np.array([0, bias]), "i64"),
        "multiplier": build.const("l.multiplier", np.array([1 << 14, 1 << 14]), "i32"),
        "shift": build.const("l.shift", np.array([20, 31]), "u8"),
    }
    build.op("linear_centred", "layer", roles, Value("out", (3, 2), "i16"), out_zp=0)
    return fold_zero_points(one_step(build, ("out",), 1, 1, 3))


def test_linear_at_its_largest_sum(tiny_machine: Machine) -> None:
    # 20 * 32768 * 128 = 83886080; with the bias 2^27 - 1: 27 magnitude bits and one for the sign.
    graph = linear(20, (1 << 27) - 1 - 20 * 32768 * 128)
    program = build_program(graph, bits(tiny_machine, 28))
    assert_program_equals_graph(program, graph, {"x": np.full((3, 20), -32768)})  # a machine that traps on overflow
    message = (
        r"^layer: output channel 1: 20 products 83886080 \+ zero point 0 \+ bias 50331648: may reach 134217728; "
        r"mac_array\.acc_bits = 28 holds less than 134217728; allowed: at least 29 bits$"
    )
    graph = linear(20, (1 << 27) - 20 * 32768 * 128)
    with pytest.raises(UserError, match=message):
        build_program(graph, bits(tiny_machine, 28))
    assert_program_equals_graph(build_program(graph, bits(tiny_machine, 29)), graph, {"x": np.full((3, 20), -32768)})


def test_linear_counts_the_zero_point_and_the_bias_of_either_sign(tiny_machine: Machine) -> None:
    for graph in (linear(20, 0, zero_point=0), linear(20, -83886080)):
        prove_accumulators(graph, bits(tiny_machine, 29))
        with pytest.raises(UserError, match="may reach 167772160;"):
            prove_accumulators(graph, bits(tiny_machine, 28))


def test_linear_of_unsigned_inputs_needs_fewer_bits(tiny_machine: Machine) -> None:
    prove_accumulators(linear(20, 0, dtype="u8"), bits(tiny_machine, 24))  # 20 * 255 * 128 < 2^23


MANY = 20_000
"""Products enough for an accumulator that a machine may have."""


def assert_reach(graph: Graph, machine: Machine, reach: int) -> None:
    """The largest sum of any range and channel is ``reach``."""
    need = reach.bit_length() + 1
    prove_accumulators(graph, bits(machine, need))
    with pytest.raises(UserError, match=rf"may reach {reach};"):
        prove_accumulators(graph, bits(machine, need - 1))


def test_linear_counts_the_shifts_of_its_inputs(tiny_machine: Machine) -> None:
    """Weights of -128 and a weight zero point of as much; one channel is not shifted, the others by 1, then by 3."""
    build = Builder(steps=2, range_of_step=(0, 1))
    build.input("x", (3, MANY), "u8")
    shifts = np.repeat([[1], [3]], MANY, axis=1)
    shifts[:, 0] = 0
    weight, record = np.zeros((1, MANY), np.uint8), {"multiplier": 1 << 14, "shift": 20}
    build.output(build.linear("l", "x", weight, "i16", weight_zp=0, x_shift=shifts, **record))
    assert_reach(fold_zero_points(build.graph()), tiny_machine, 2 * 255 * 128 * (8 * MANY - 7))


@pytest.mark.parametrize("zero_points", [[255, 9], [100, 0], [0, 128]])
def test_linear_in_two_factors_counts_its_input_zero_point(tiny_machine: Machine, zero_points: list[int]) -> None:
    """Biases are added behind the first factor, beyond the accumulator."""
    build = Builder(steps=2, range_of_step=(0, 1))
    build.input("x", (3, MANY), "u8")
    build.linear_factored(
        "l", "x", np.zeros((1, MANY), np.uint8), "i16", multiplier=1, shift=9, bias=1 << 30, weight_zp=128,
        weight_bits=8, x_zp=np.array(zero_points)[:, None], scale=(1, 1), fraction_bits=1,
    )  # fmt: skip
    build.output("l")
    largest = max(abs(x - z) for x in (0, 255) for z in zero_points)
    assert_reach(build.graph(), tiny_machine, largest * 128 * MANY)


@pytest.mark.parametrize("act_bits", [4, 6, 8])
def test_linear_quantized_at_run_time_has_the_steps_of_its_grid(tiny_machine: Machine, act_bits: int) -> None:
    build = Builder()
    build.input("x", (3, MANY), "i16")
    build.linear_dynamic(
        "l", "x", np.zeros((1, MANY), np.uint8), "i16", bits=act_bits, row=(1 << 30, 40), multiplier=1, shift=9,
        bias=1 << 30, weight_zp=128, weight_bits=8, fraction_bits=1,
    )  # fmt: skip
    build.output("l")
    assert_reach(build.graph(), tiny_machine, (2**act_bits - 1) * 128 * MANY)


def attention(over: str, tokens: int, width: int, dtype: str) -> Graph:
    build = Builder()
    build.phase = "step"
    frames, positions = (tokens, 1) if over == "temporal" else (1, tokens)
    roles = {role: build.add(Value(role, (tokens, width), dtype, "input")) for role in "qkv"}
    attrs: dict[str, Any] = {"over": over, "heads": 1, "p_bits": 8 if dtype == "i8" else 15}
    build.op("attention", "layer", roles, Value("out", (tokens, width), "i16"), **attrs)
    return one_step(build, ("out",), 1, frames, positions)


@pytest.mark.parametrize("over", ["spatial", "temporal", "cross"])
def test_attention_over_many_keys(edge_machine: Machine, over: str) -> None:
    # 512 (2^15 - 1) 2^15 is just below 2^39; STDiT-XL/2 at 512 x 512 has 1024 positions.
    prove_accumulators(attention(over, 512, 72, "i16"), edge_machine)
    message = (
        r"^layer: weighted sum: 1024 products of up to 32767 x 32768: may reach 1099478073344; .* at least 41 bits$"
    )
    with pytest.raises(UserError, match=message):
        prove_accumulators(attention(over, 1024, 72, "i16"), edge_machine)
    prove_accumulators(attention(over, 1024, 72, "i16"), machine_like(edge_machine, mac_array={"acc_bits": 41}))
    prove_accumulators(attention(over, 1024, 72, "i8"), edge_machine)


def test_attention_of_wide_heads(edge_machine: Machine) -> None:
    prove_accumulators(attention("spatial", 4, 511, "i16"), edge_machine)
    with pytest.raises(
        UserError, match=r"^layer: scores: 512 products of up to 32768 x 32768: may reach 549755813888;"
    ):
        prove_accumulators(attention("spatial", 4, 512, "i16"), edge_machine)
