"""Every kind of illegal graph is refused, with the operation and the rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compiler.builder import Builder
from compiler.graph import Graph, Op, Value
from compiler.interpret import Interpreter
from compiler.verify_graph import verify_graph
from npusim.errors import UserError


def small_graph() -> Graph:
    """Two halves of x make y, y times a vector makes z."""
    build = Builder()
    build.phase = "step"
    build.add(Value("a", (2, 3), "i16", "input"))
    build.add(Value("y", (4, 3), "i16"))
    for half, factor in enumerate((1, 2)):
        part = build.view(f"y.{half}", "y", (2 * half, 2 * half + 2), (0, 3))
        build.op("elementwise", "halves", {"a": "a"}, part, a_mul=factor, shift=1, out_zp=0)
    build.const("g", np.array([1, 2, 3]), "i16")
    inputs = {"a": "y", "a_mul": "g"}
    build.op("elementwise", "scale", inputs, Value("z", (4, 3), "i32"), shift=1, out_zp=0)
    return Graph(build.values, (), tuple(build.ops["step"]), 2, 1, 1, 4, ("z",))


def changed_value(name: str, **changes: Any) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, values={**graph.values, name: replace(graph.values[name], **changes)})


def changed_op(index: int, **changes: Any) -> Callable[[Graph], Graph]:
    def change(graph: Graph) -> Graph:
        ops = list(graph.step)
        ops[index] = replace(ops[index], **changes)
        return replace(graph, step=tuple(ops))

    return change


def ordered(*indices: int) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, step=tuple(graph.step[i] for i in indices))


def test_legal_graph_is_accepted_and_computes() -> None:
    graph = small_graph()
    verify_graph(graph)
    machine = Interpreter(graph, {"a": np.array([[2, 4, 6], [8, 10, 12]])})
    machine.run("step", 0)
    assert machine.tensors["z"].tolist() == [[1, 2, 5], [2, 5, 9], [1, 4, 9], [4, 10, 18]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ordered(0, 2), r"step operation 1 \(elementwise of layer scale\): a %y is read before it is computed"),
        (ordered(2, 0, 1), r"operation 0 .*: a %y is read before"),
        (ordered(0, 0, 1, 2), r"operation 1 .*: writes %y.0 a second time"),
        (ordered(0, 1), r"output %z is not computed"),
        (changed_op(0, kind="no_such"), r"unknown kind; allowed: linear_centred, "),
        (changed_op(0, inputs={"a": "nobody"}), r"operation 0 .*: a %nobody does not exist"),
        (changed_op(0, output="g"), r"writes %g, which is of kind const"),
        (changed_value("z", shape=(4, 2)), r"output has shape \(4, 2\); allowed: \(4, 3\)"),
        (changed_value("g", shape=(2,), data=np.array([1, 2])), r"a_mul has shape \(2,\); allowed: \(3,\)"),
        (changed_value("g", data=None), r"value %g: constant data None; allowed: \(3,\)"),
        (changed_value("g", kind="step_const"), r"value %g: constant data \(3,\); allowed: \(2, 3\)"),
        (changed_value("z", dtype="f32"), r"value %z: type f32; allowed: u8, i8"),
        (changed_value("z", shape=(4, 0)), r"value %z: shape \(4, 0\)"),
        (changed_value("y.1", row=3), r"value %y.1: rows 3.. and columns 0.. reach outside %y \(4, 3\)"),
        (changed_value("y.1", base="y.0"), r"value %y.1: views %y.0, which is no tensor of its own"),
    ],
)
def test_illegal_graph_is_refused(change: Callable[[Graph], Graph], message: str) -> None:
    with pytest.raises(UserError, match=f"^stage: .*{message}"):
        verify_graph(change(small_graph()), "stage")


@pytest.mark.parametrize(
    ("kind", "roles", "output", "message"),
    [
        (
            "linear",
            {"x": (4, 3), "weight": (5, 2), "records": (5,)},
            (4, 5),
            r"x has shape \(4, 3\); allowed: \(4, 2\)",
        ),
        ("linear", {"x": (4, 3), "weight": (5, 3), "records": (4,)}, (4, 5), r"records has shape \(4,\)"),
        ("linear", {"x": (4, 3), "weight": (5, 3), "records": (5,)}, (4, 4), r"output has shape \(4, 4\)"),
        ("attention", {"q": (4, 6), "k": (4, 6), "v": (2, 6)}, (4, 6), r"v has shape \(2, 6\); allowed: \(4, 6\)"),
        ("attention", {"q": (4, 6), "k": (4, 6), "v": (4, 6), "valid": (1, 2)}, (4, 6), r"valid has shape"),
        ("table", {"x": (4, 3), "table": (512,)}, (4, 3), r"table has shape \(512,\); allowed: \(513,\)"),
        ("product", {"a": (4, 3), "b": (4, 4)}, (4, 3), r"b has shape \(4, 4\); allowed: \(4, 3\)"),
        ("modulate", {"x": (4, 3), "g": (3,), "b": (4, 3)}, (4, 3), r"b has shape \(4, 3\); allowed: \(3,\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    kind: str, roles: dict[str, tuple[int, ...]], output: tuple[int, ...], message: str
) -> None:
    values = {role: Value(role, shape, "i16", "input") for role, shape in roles.items()}
    op = Op(kind, "layer", {role: role for role in roles}, "out", {})
    graph = Graph({**values, "out": Value("out", output, "i16")}, (), (op,), 1, 1, 1, 4)
    with pytest.raises(UserError, match=message):
        verify_graph(graph)


def test_builder_refuses_a_second_definition_and_a_number_out_of_range() -> None:
    build = Builder()
    build.const("c", np.array([1]), "i16")
    with pytest.raises(UserError, match="value 'c' is defined twice"):
        build.const("c", np.array([1]), "i16")
    for dtype, number in (("u8", -1), ("u8", 256), ("i16", 32768), ("i16", -32769), ("i32", 2**31)):
        with pytest.raises(UserError, match=f"constant bad: values {number}..{number} do not fit {dtype}"):
            build.const("bad", np.array([number]), dtype)
    for dtype, number in (("u8", 255), ("i16", -32768), ("i32", 2**31 - 1), ("i64", -(2**62))):
        name = build.const(f"c.{dtype}", np.array([number]), dtype)
        assert build.values[name].data == [number]


def test_graph_as_text_names_every_value_and_operation() -> None:
    graph = small_graph()
    lines = graph.text().splitlines()
    assert "  value %y.1: i16[2, 3] zp=0 view of y[2:, 0:]" in lines
    assert "  %z = elementwise(a=%y, a_mul=%g) shift=1 out_zp=0  # scale" in lines
    assert len(lines) == 3 + len(graph.values) + len(graph.step)


@pytest.mark.parametrize("per", ["step", "range"])
def test_the_prologue_reads_nothing_that_changes(per: str) -> None:
    build = Builder(steps=2, range_of_step=(0, 1))
    build.phase = "prologue"
    build.input("x", (4, 2), "i16")
    factor = build.const("factor", [[1, 2], [3, 4]], "i16", per=per)
    build.output(build.rescale("layer", "x", "i16", multiplier=factor, shift=1))
    with pytest.raises(UserError, match=r"prologue operation 0 .* of layer layer\): a_mul %factor changes with the st"):
        verify_graph(build.graph())
