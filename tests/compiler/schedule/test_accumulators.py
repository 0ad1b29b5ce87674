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
