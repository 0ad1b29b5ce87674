"""``assert_same_bits``: silent where all agree, and says where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler import Builder, Graph, compile_graph
from compiler.semantics import SEMANTICS
from npusim import engine
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.testing import assert_same_bits


def chain() -> Graph:
    """Double, square, halve; the square is no output."""
    net = Builder()
    x = net.input("x", (3, 4), "i16")
    double = net.rescale("double", x, "i16", multiplier=4, shift=1)
    square = net.product("square", double, double, "i32", shift=1)
    net.output(net.rescale("halve", square, "i32", multiplier=1, shift=1))
    return net.graph()


INPUTS = {"x": np.arange(12).reshape(3, 4)}


def test_agreement_is_silent(tiny_machine: Machine, edge_machine: Machine) -> None:
    for machine in (tiny_machine, edge_machine):
        assert_same_bits(chain(), machine, INPUTS, orders=2)
        assert_same_bits(compile_graph(chain(), machine), seed=3)


def test_a_slip_of_the_engine_names_instruction_layer_element_and_values(
    tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slip(state: Any, ins: Any) -> None:
        BY_MNEMONIC["ewmul"].execute(state, ins)
        state.vector("sram", ins.out_addr + ins.out_row + 8, np.int32, 1)[0] += 3

    monkeypatch.setitem(engine.EXECUTORS, "ewmul", slip)
    # Row 1, column 2 is 6: doubled 12, squared 144, halved 72.
    message = (
        r"^step 0, instruction \d+ \(ewmul, layer square\): sram byte \d+ \(i32\) is 75 in the engine, "
        r"72 in the reference; element \[0, 1, 2\] of out \[1, 3, 4\]$"
    )
    with pytest.raises(AssertionError, match=message):
        assert_same_bits(chain(), tiny_machine, INPUTS)


def test_a_program_that_is_not_its_graph_names_output_operation_and_element(
    tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slip(graph: Any, op: Any, x: Any) -> Any:
        found = product(graph, op, x)
        found[2, 3] += 4
        return found

    product = SEMANTICS["product"]
    monkeypatch.setitem(SEMANTICS, "product", slip)
    # Row 2, column 3 is 11: doubled 22, squared and halved 242, halved again 121.
    message = (
        r"^step 0: output halve\[2, 3\] is 123 in the interpreter, 121 in the program, stored by step instruction \d+ "
        r"\(store, layer halve\). With every tensor kept: product of layer square differs first, %square\[2, 3\] is "
        r"246 in the interpreter, 242 in the program$"
    )
    with pytest.raises(AssertionError, match=message):
        assert_same_bits(chain(), tiny_machine, INPUTS)


def test_bad_requests(tiny_machine: Machine, edge_machine: Machine) -> None:
    program = compile_graph(chain(), tiny_machine)
    for arguments, message in (
        ((chain(),), "a graph needs a machine"),
        ((program, edge_machine), "a program has a machine of its own"),
        ((program, None, {"x": INPUTS["x"] + 40000}), r"input 'x': values 40000\.\.40011 do not fit int16"),
        ((program, None, {}), "input 'x' is missing"),
        ((program, None, {**INPUTS, "z": INPUTS["x"]}), "program has no buffer 'z'"),
        ((chain(), tiny_machine, {"x": INPUTS["x"][:2]}), r"buffer 'x': given int16\[2, 4\], allowed int16\[3, 4\]"),
    ):
        with pytest.raises(UserError, match=message):
            assert_same_bits(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"steps = 2: the program has 1"):
        assert_same_bits(program, steps=2)
