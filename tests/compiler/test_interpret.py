"""The interpreter: constants by step, views that read and write their owner, and the hook."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler.builder import Builder
from compiler.graph import Graph, Op, Value
from compiler.interpret import Interpreter
from tests.compiler.runs import Array


def graph_of_sums() -> Graph:
    """Prologue: y = 2 x. Step: the right half of z = the left column of y times the step's factor; the left half 7."""
    build = Builder(steps=2)
    build.phase = "prologue"
    build.add(Value("x", (2, 2), "i16", "input"))
    inputs = {"a": "x"}
    build.op("elementwise", "twice", inputs, Value("y", (2, 2), "i16"), a_mul=4, shift=1, out_zp=0)
    build.phase = "step"
    build.const("factor", np.array([[2], [6]]), "i16", per="step")
    build.add(Value("z", (2, 2), "i16"))
    left = build.view("y.left", "y", (0, 2), (0, 1))
    sides = [build.view(f"z.{side}", "z", (0, 2), (side, side + 1)) for side in range(2)]
    build.op("elementwise", "right", {"a": left, "a_mul": "factor"}, sides[1], shift=1, out_zp=0)
    build.op("elementwise", "left", {"a": left}, sides[0], a_mul=0, shift=1, out_zp=7)
    return Graph(build.values, tuple(build.ops["prologue"]), tuple(build.ops["step"]), 2, 1, 1, 2, ("z",))


def test_constants_by_step_and_views() -> None:
    machine = Interpreter(graph_of_sums(), {"x": np.array([[1, 2], [3, 4]])})
    machine.run("prologue", 0)
    assert machine.tensors["y"].tolist() == [[2, 4], [6, 8]]
    for step, expected in ((0, [[7, 2], [7, 6]]), (1, [[7, 6], [7, 18]]), (0, [[7, 2], [7, 6]])):
        machine.run("step", step)
        assert machine.read("z", step).tolist() == expected


def test_hook_sees_operands_and_result_of_every_operation() -> None:
    seen: list[tuple[str, list[str], list[list[int]]]] = []

    def hook(op: Op, operands: dict[str, Array], output: Array) -> None:
        seen.append((op.layer, list(operands), output.tolist()))

    machine = Interpreter(graph_of_sums(), {"x": np.array([[1, 2], [3, 4]])})
    machine.on_op = hook
    machine.run("prologue", 0)
    machine.run("step", 1)
    assert seen == [
        ("twice", ["a"], [[2, 4], [6, 8]]),
        ("right", ["a", "a_mul"], [[6], [18]]),
        ("left", ["a"], [[7], [7]]),
    ]


def test_result_of_another_shape_than_declared_is_an_error() -> None:
    graph = graph_of_sums()
    wrong = replace(graph, values={**graph.values, "y": replace(graph.values["y"], shape=(2, 3))})
    with pytest.raises(AssertionError, match=r"twice: elementwise gives \(2, 2\), declared \(2, 3\)"):
        Interpreter(wrong, {"x": np.zeros((2, 2))}).run("prologue", 0)
