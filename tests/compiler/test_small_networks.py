"""Networks made with the public builder: equal bits in interpreter, reference and engine, and messages for mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import Builder, Graph, compile_graph, run_graph
from compiler.graph import Value
from compiler.lower.scales import multiplier_shift
from compiler.schedule.build import build_program
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.matmul import RECORD
from npusim.program_file import load_program, save_program
from npusim.simulate import Simulation
from npusim.testing import assert_same_bits

TOKENS, WIDTH, HEADS = 12, 16, 2


def ramp() -> Any:
    """A table with a bend, like GELU's."""
    return np.maximum(np.arange(513) * 128 - 32768, -1000).clip(max=32767)


def mlp(hidden: int = 40) -> Graph:
    """u8 in, unsigned and signed weights, GELU-like table, product, sum."""
    rng = np.random.default_rng(1)
    net = Builder()
    x = net.input("x", (TOKENS, WIDTH), "u8", zero_point=120)
    weight = rng.integers(0, 256, (hidden, WIDTH), np.uint8)
    zero_points = rng.integers(100, 150, hidden)
    shifts = rng.integers(18, 22, hidden)
    h = net.linear("fc1", x, weight, "i16", weight_zp=zero_points, multiplier=30000, shift=shifts, bias=-700)
    act = Value("act", (TOKENS, hidden), "u8", zero_point=10)
    h = net.table("gelu", h, ramp(), act, multiplier=1 << 14, shift=28)
    signed = rng.integers(-128, 128, (WIDTH, hidden), np.int8)
    y = net.linear("fc2", h, signed, "i16", multiplier=rng.integers(2**14, 2**15, WIDTH), shift=20)
    gate = net.input("gate", (TOKENS, WIDTH), "i8")
    gated = net.product("gated", y, gate, "i16", shift=7)
    net.output(net.sum("residual", y, gated, "i32", a_mul=rng.integers(-99, 99, WIDTH), b_mul=77, shift=3, bias=5))
    net.output(gated)
    return net.graph()


def wide() -> Graph:
    """Weights of 16 bits, which `Builder.op` takes."""
    rng = np.random.default_rng(5)
    net = Builder()
    x = net.input("x", (TOKENS, WIDTH), "i16")
    records = np.zeros(20, RECORD)
    records["multiplier"], records["shift"], records["bias_low"] = 20000, 30, rng.integers(0, 1 << 30, 20)
    roles = {
        "x": x,
        "weight": net.const("weight", rng.integers(-(1 << 15), 1 << 15, (20, WIDTH), np.int16), "i16"),
        "records": net.const("records", records, "record"),
    }
    net.output(net.op("linear", "wide", roles, Value("y", (TOKENS, 20), "i16"), out_zp=3))
    return net.graph()


def attention_block() -> Graph:
    """LayerNorm, one fused projection, attention over more keys than queries, projection, residual."""
    rng = np.random.default_rng(2)
    net = Builder()
    x, text = net.input("x", (TOKENS, WIDTH), "i16"), net.input("text", (20, WIDTH), "i16")
    count = net.input("count", (1, 1), "i32")
    g, b = rng.integers(-(2**14), 2**14, WIDTH), rng.integers(-(2**20), 2**20, WIDTH)
    n = net.layernorm("norm", x, g, b, "i16", epsilon=3, fraction_bits=12, shift=13)

    def weights(n: int) -> Any:
        return rng.integers(-127, 128, (n, WIDTH), np.int8)

    q = net.linear("q", n, weights(WIDTH), "i16", multiplier=20000, shift=22)
    kv = net.linear("kv", text, weights(2 * WIDTH), "i16", multiplier=20000, shift=24)
    k, v = (net.view(f"kv.{part}", kv, (0, 20), (i * WIDTH, (i + 1) * WIDTH)) for i, part in enumerate("kv"))
    logit, output = multiplier_shift(2.0**-14, 16), multiplier_shift(0.7, 32)
    a = net.attention("attn", q, k, v, "i16", heads=HEADS, logit=logit, output=output, fraction_bits=9, valid=count)
    out = net.linear("proj", a, weights(WIDTH), "i16", multiplier=20000, shift=23)
    net.output(net.sum("residual", x, out, "i16", a_mul=1, b_mul=1, shift=1))
    return net.graph()


@pytest.mark.parametrize("machine", ["tiny_machine", "edge_machine"])
@pytest.mark.parametrize("network", [mlp, wide, attention_block])
def test_same_bits_everywhere(request: pytest.FixtureRequest, network: Callable[[], Graph], machine: str) -> None:
    assert_same_bits(network(), request.getfixturevalue(machine), orders=3)


def test_example_of_the_readme(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "compiler" / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## A small network.*?```python\n(.*?)```", text, re.S)
    assert code is not None
    monkeypatch.chdir(repository)
    names: dict[str, Any] = {}
    exec(compile(code[1], "README.md", "exec"), names)
    assert len(np.unique(names["expected"])) > 100  # it computes something


def mlp_by_hand(x: list[list[int]], weight: list[list[int]], bias: int) -> list[list[int]]:
    """(x - 3) (w - 5)^T + bias, halved, then max(0, .) / 2, halves rounded up, in Python integers."""
    rows = [[sum((a - 3) * (w - 5) for a, w in zip(row, line, strict=True)) + bias for line in weight] for row in x]
    halved = [[(value + 1) >> 1 for value in row] for row in rows]
    return [[(max(0, value) + 1) >> 1 for value in row] for row in halved]


def test_against_python_integers(tiny_machine: Machine) -> None:
    rng = np.random.default_rng(3)
    weight, values = rng.integers(0, 20, (5, 7), np.uint8), rng.integers(0, 20, (4, 7), np.uint8)
    net = Builder()
    x = net.input("x", (4, 7), "u8", zero_point=3)
    h = net.linear("fc", x, weight, "i16", multiplier=1, shift=1, bias=9, weight_zp=5)
    relu = np.maximum(np.arange(513) * 128 - 32768, 0).clip(max=32767)
    y = net.output(net.table("relu", h, relu, "i16", multiplier=1, shift=8))
    expected = mlp_by_hand(values.tolist(), weight.tolist(), 9)
    assert run_graph(net.graph(), {"x": values})[0][y].tolist() == expected
    simulation = Simulation(compile_graph(net.graph(), tiny_machine), {"x": values})
    simulation.prologue()
    simulation.step(0)
    assert simulation.read(y).tolist() == expected


@pytest.mark.parametrize("factors", [(7, 15), (70_000, 15), (7, 70_000)])
def test_factors_by_column_of_operands_of_32_and_16_bits(tiny_machine: Machine, factors: tuple[int, int]) -> None:
    """A 32-bit operand's factors have 32 bits; that says nothing of those of the 16-bit operand beside it."""
    net = Builder()
    net.input("wide", (4, 6), "i32")
    net.input("x", (4, 6), "i16")
    a_mul, b_mul = (factor - np.arange(6) for factor in factors)
    net.output(net.sum("add", "wide", "x", "i32", a_mul=a_mul, b_mul=b_mul, shift=9))
    net.output(net.sum("turned", "x", "wide", "i32", a_mul=b_mul, b_mul=a_mul, shift=9))
    assert_same_bits(net.graph(), tiny_machine)


def test_several_steps_with_constants_by_step_and_a_prologue(tiny_machine: Machine) -> None:
    """state.next = state * factor[step] + noise[step]: with what the prologue makes of the text in between."""
    net = Builder(steps=3)
    state, noise = net.input("state", (2, 4), "i32"), net.input("noise", (2, 4), "i16")
    text = net.input("text", (2, 4), "i16")
    net.phase = "prologue"
    shown = net.rescale("text", text, Value("shown", (2, 4), "i16"), multiplier=4, shift=1)
    net.phase = "step"
    factor = net.const("factor", np.array([[2] * 4, [4] * 4, [-2] * 4]), "i32", per="step")
    scaled = net.sum("scale", state, shown, "i32", a_mul=factor, b_mul=2, shift=1)
    net.output(net.sum("add", scaled, noise, Value("state.next", (2, 4), "i32"), a_mul=2, b_mul=2, shift=1))
    graph, program = net.graph(), compile_graph(net.graph(), tiny_machine)
    inputs = {
        "state": np.full((2, 4), 10, np.int32),
        "noise": np.array([1, 2, 3], np.int16)[:, None, None] * np.ones((1, 2, 4), np.int16),
        "text": np.full((2, 4), 50, np.int16),
    }
    assert_same_bits(graph, tiny_machine, inputs, steps=3)
    # 10 * 1 + 100 + 1 = 111; 111 * 2 + 100 + 2 = 324; 324 * -1 + 100 + 3 = -221
    assert [run["state.next"][0, 0] for run in run_graph(graph, inputs, range(3))] == [111, 324, -221]
    simulation = Simulation(program, inputs)
    simulation.prologue()
    for step in range(3):
        simulation.step(step)
    assert simulation.read("state").tolist() == [[-221] * 4] * 2


def test_program_without_noise_can_be_stored(tiny_machine: Machine, tmp_path: Path) -> None:
    program = compile_graph(mlp(), tiny_machine)
    assert set(program.buffers) == {"x", "gate", "residual", "gated"}
    save_program(program, tmp_path / "p.npu")
    read = load_program(tmp_path / "p.npu")
    assert (read.buffers, read.layers, read.steps) == (program.buffers, program.layers, 1)
    with pytest.raises(UserError, match="input 'gate' is missing"):
        Simulation(read, {"x": np.zeros((TOKENS, WIDTH), np.uint8)})


def net_with_inputs() -> Builder:
    net = Builder()
    net.input("x", (4, 6), "i16")
    net.input("u", (4, 6), "u8", zero_point=7)
    net.input("wide", (4, 6), "i32")
    net.input("small", (4, 5), "i16")
    return net


W = np.zeros((3, 6), np.int8)
LINEAR: dict[str, Any] = {"multiplier": 1, "shift": 1}
NORM: dict[str, Any] = {"epsilon": 1, "fraction_bits": 3, "shift": 1}
ATTENTION: dict[str, Any] = {"heads": 2, "logit": (1, 1), "output": (1 << 30, 31), "fraction_bits": 4}
FACTORED: dict[str, Any] = {
    "multiplier": 1, "shift": 1, "bias": 0, "weight_zp": 0, "weight_bits": 8, "x_zp": 0, "scale": (1, 1),
    "fraction_bits": 1,
}  # fmt: skip
SUM: dict[str, Any] = {"a_mul": 1, "b_mul": 1, "shift": 1}
MISTAKES: list[tuple[Callable[[Builder], Any], str]] = [
    (lambda n: n.input("x", (1, 1), "u8"), "value 'x' is defined twice"),
    (lambda n: n.input("i16", (1, 1), "u8"), "value 'i16': allowed is a name that is no element type"),
    (lambda n: n.input("y", (1, 1), "f32"), r"input 'y': f32\[1, 1\]; allowed: a matrix of u8, i8, i16, i32"),
    (lambda n: n.input("y", (1, 0), "u8"), r"value 'y': shape \(1, 0\); allowed: positive sizes"),
    (lambda n: n.linear("fc", "z", W, "i16", **LINEAR), r"fc: x: no value %z; defined: x, u, wide, small"),
    (lambda n: n.linear("fc", "x", W.astype(int), "i16", **LINEAR), r"fc: linear: weight is int64\[3, 6\]; allowed"),
    (lambda n: n.linear("fc", "x", W[0], "i16", **LINEAR), r"fc: linear: weight is int8\[6\]"),
    (lambda n: n.linear("fc", "x", W[:0], "i16", **LINEAR), r"fc: linear: weight is int8\[0, 6\]"),
    (
        lambda n: n.linear("fc", "x", np.arange(36, dtype=np.uint8).reshape(2, 3, 6), "i16", **LINEAR),
        r"constant fc.weight: data \[2, 3, 6\]; allowed: one array for each range, of 1",
    ),
    (lambda n: n.const("c", 5, "i8", per="range"), r"constant c: data \[\]; allowed: one array for each range, of 1"),
    (lambda n: n.const("c", [[1], [2]], "i8", per="step"), r"constant c: data \[2, 1\]; .* for each step, of 1"),
    (lambda n: n.linear("fc", "small", W, "i16", **LINEAR), r"fc: linear_centred: x has shape \(4, 5\); .*\(4, 6\)"),
    (lambda n: n.linear("fc", "wide", W, "i16", **LINEAR), r"fc: linear_centred: x %wide has type i32; allowed: u8"),
    (lambda n: n.linear("fc", "x", W, "f8", **LINEAR), r"fc: out = 'f8'; allowed: u8, i8, i16, i32, u4, u6, a Value"),
    (lambda n: n.linear("fc", "x", W, "i16", multiplier=-1, shift=1), r"fc: linear: multiplier -1..-1; allowed: 0.."),
    (lambda n: n.linear("fc", "x", W, "i16", multiplier=1, shift=0), r"fc: linear: shift 0..0; allowed: 1..62"),
    (lambda n: n.linear("fc", "x", W, "i16", multiplier=0.5, shift=1), r"fc: multiplier is float64\[\]; allowed: int"),
    (lambda n: n.linear("fc", "x", W, "i16", weight_zp=200, **LINEAR), r"weight_zp 200..200; allowed: -128..127"),
    (lambda n: n.linear("fc", "x", W, "i16", bias=[1, 2], **LINEAR), r"fc: bias has 2 numbers; allowed: 1 or 3"),
    (lambda n: n.linear("fc", "x", W, Value("o", (4, 4), "i16"), **LINEAR), r"output has shape \(4, 4\); .*\(4, 3\)"),
    *[
        (lambda n, more=more: n.linear_factored("fc", "u", W.astype(np.uint8), "i16", **{**FACTORED, **more}), message)
        for more, message in (
            ({"scale": (1 << 15, 1)}, r"fc: linear: multiplier 32768..32768; allowed: 0..32767"),
            ({"scale": (1, 63)}, r"fc: linear: shift 63..63; allowed: 1..62"),
            ({"x_zp": 256}, r"fc: linear: zero_point 256..256; allowed: 0..255"),
            ({"weight_bits": 7}, r"fc: linear: weight_bits = 7; allowed: 4, 6, 8"),
            ({"fraction_bits": 0}, r"fc: linear_factored: fraction_bits = 0; allowed: 1..15"),
        )
    ],
    (lambda n: n.linear_factored("fc", "u", W, "i16", **FACTORED), r"weight is int8\[3, 6\]; .* of NumPy type uint8$"),
    (lambda n: n.sum("add", "x", "small", "i16", **SUM), r"add: elementwise: b has shape \(4, 5\); allowed: \(4, 6\)"),
    (lambda n: n.sum("add", "x", "u", "i16", **SUM), r"add: sum: b %u has zero point 7; allowed: 0"),
    (lambda n: n.sum("add", "x", "x", "i16", **{**SUM, "shift": 63}), r"add: elementwise: shift = 63; allowed: 1..62"),
    (lambda n: n.sum("add", "wide", "x", "i16", **{**SUM, "a_mul": 2**30 + 1}), r"a_mul = 1073741825; allowed: -"),
    (
        lambda n: n.sum("add", "x", "x", "i16", **{**SUM, "a_mul": [2**31] * 6}),
        r"constant add.a_mul: .* do not fit i32",
    ),
    (lambda n: n.sum("add", "x", "x", "i16", **SUM, b_rows="row"), r"b_rows = 'row'; allowed: '', position, frame"),
    (lambda n: n.product("p", "x", "small", "i16", shift=1), r"p: product: b has shape \(4, 5\)"),
    (lambda n: n.table("t", "u", ramp(), "i16", multiplier=1, shift=1), r"t: table: x %u has type u8; allowed: i16"),
    (lambda n: n.table("t", "x", [1, 2], "i16", multiplier=1, shift=1), r"table has shape \(2,\); allowed: \(513,\)"),
    (lambda n: n.layernorm("n", "wide", 1, 1, "i16", **NORM), r"n: layernorm: x %wide has type i32; allowed: i16"),
    (lambda n: n.layernorm("n", "x", 1, 1, "i16", **{**NORM, "epsilon": 0}), r"n: layernorm: epsilon = 0; allowed: 1"),
    (lambda n: n.attention("a", "x", "x", "small", "i16", **ATTENTION), r"a: attention: v has shape \(4, 5\)"),
    (lambda n: n.attention("a", "x", "x", "x", "i16", **{**ATTENTION, "heads": 4}), r"heads = 4 does not divide the 6"),
    (lambda n: n.attention("a", "x", "x", "x", "i16", **ATTENTION, p_bits=8), r"p_bits = 8 with v of type i16"),
    (
        lambda n: n.attention("a", "x", "x", "x", "i16", **ATTENTION, over="spatial"),
        r"branches x frames x positions = 1",
    ),
    (lambda n: n.view("v", "x", (0, 5), (0, 1)), r"view 'v': rows 0..5 of %x; allowed: within 0..4"),
    (lambda n: n.output("x"), r"output %x: is a view or of kind input; allowed: a tensor that is computed"),
    (lambda n: n.graph(), "the graph has no output"),
    (lambda n: Builder(steps=0), "steps = 0; allowed: at least 1"),
    (lambda n: Builder(2, range_of_step=[0, 2]), r"range_of_step = \[0, 2\]; allowed: ranges 0, 1, .. for each of 2"),
    # Wrong Python types
    (
        lambda n: Builder(2, range_of_step=[0, 0.5]),
        r"Builder.__init__: range_of_step is \[0, 0.5\] of type list; allowed: a list of integers",
    ),
    (lambda n: Builder(range_of_step=0), "range_of_step is 0 of type int; allowed: a list of integers"),
    (
        lambda n: n.sum("add", "x", "x", "i16", **{**SUM, "a_mul": np.zeros(6, [("m", "i4")])}),
        r"add: a_mul is \[.*\[6\]; allowed: integers",
    ),
    (lambda n: Builder(steps="2"), r"Builder.__init__: steps is '2' of type str; allowed: an integer"),
    (lambda n: n.input(3, (1, 1), "u8"), r"Builder.input: name is 3 of type int; allowed: a string"),
    (lambda n: n.input("y", 7, "u8"), "y: shape is 7 of type int; allowed: two integers"),
    (lambda n: n.input("y", (1, 2.0), "u8"), r"y: shape is \(1, 2.0\) of type tuple; allowed: two integers"),
    (lambda n: n.input("y", (1, 1), "u8", zero_point=0.5), "y: zero_point is 0.5 of type float; allowed: an integer"),
    (lambda n: n.const("c", [[1], [2, 3]], "i8"), r"c: data is \[\[1\], \[2, 3\]\] of type list; allowed: integers"),
    (lambda n: n.const("c", [1], "i7"), "constant c: 'i7' per ''; allowed: u8, .* per '', step or range"),
    (lambda n: n.const("c", [1], "i8", per="all"), "constant c: 'i8' per 'all'; allowed: "),
    (lambda n: n.view("v", "x", 3, (0, 1)), "v: rows is 3 of type int; allowed: two integers"),
    (lambda n: n.output(["x"]), r"Builder.output: name is \['x'\] of type list; allowed: a string"),
    (
        lambda n: n.linear("fc", "x", W.tolist(), "i16", **LINEAR),
        r"fc: weight is .* of type list; allowed: a NumPy arr",
    ),
    (lambda n: n.linear("fc", W, W, "i16", **LINEAR), "fc: x is array.* of type ndarray; allowed: a string"),
    (
        lambda n: n.linear("fc", "x", W, ["i16"], **LINEAR),
        r"fc: out is \['i16'\] of type list; allowed: an element type",
    ),
    (lambda n: n.linear("fc", "x", W, "i16", multiplier=None, shift=1), "fc: multiplier is None of type NoneType; all"),
    (
        lambda n: n.sum("add", "x", "x", "i16", **{**SUM, "shift": 1.5}),
        "add: shift is 1.5 of type float; allowed: an int",
    ),
    (lambda n: n.sum("add", "x", "x", "i16", **{**SUM, "a_mul": None}), "add: a_mul is None of type NoneType; allowed"),
    (lambda n: n.product("p", "x", "x", "i16", shift="1"), "p: shift is '1' of type str; allowed: an integer"),
    (
        lambda n: n.attention("a", "x", "x", "x", "i16", **{**ATTENTION, "logit": 5}),
        "a: logit is 5 of type int; allowed: two integers",
    ),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_named(mistake: Callable[[Builder], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mistake(net_with_inputs())


def test_a_path_is_no_machine(tiny_machine: Machine) -> None:
    wrong: Any = "hwconfigs/tiny_8x8.yaml"
    with pytest.raises(
        UserError, match=r"^machine is 'hwconfigs/tiny_8x8\.yaml' of type str; allowed: a Machine: npusim"
    ):
        compile_graph(mlp(), wrong)
    with pytest.raises(UserError, match=r"^graph is 'hwconfigs/tiny_8x8\.yaml' of type str; allowed: a Graph: Builder"):
        compile_graph(wrong, tiny_machine)


def test_inputs_of_the_interpreter_are_checked() -> None:
    graph = mlp()
    good = {"x": np.zeros((TOKENS, WIDTH), np.uint8), "gate": np.zeros((TOKENS, WIDTH), np.int8)}
    for change, message in (
        ({"x": None}, "input 'x' is missing; the graph takes x, gate"),
        ({"y": np.zeros(1, int)}, "input 'y' is unknown"),
        ({"x": np.zeros((1, WIDTH), np.uint8)}, r"input 'x': given uint8\[1, 16\], allowed integers \[12, 16\]"),
        ({"x": np.full((TOKENS, WIDTH), 256)}, "input 'x': values 256..256 do not fit u8"),
    ):
        inputs = {name: values for name, values in {**good, **change}.items() if values is not None}
        with pytest.raises(UserError, match=message):
            run_graph(graph, inputs)


def test_multiplier_wider_than_the_machine_has(tiny_machine: Machine) -> None:
    net = net_with_inputs()
    multiplier = [5, 1 << 15, 5]
    net.output(net.linear("fc", "x", W, "i16", multiplier=multiplier, shift=31))
    message = r"^fc: output channel 1: multiplier 32768; mac_array\.requant_multiplier_bits = 16; allowed: 0\.\.32767$"
    with pytest.raises(UserError, match=message):
        compile_graph(net.graph(), tiny_machine)


def test_layernorm_that_another_operation_reads_cannot_be_compiled(tiny_machine: Machine) -> None:
    net = net_with_inputs()
    n = net.layernorm("norm", "x", 1, 1, "i16", **NORM)
    net.output(net.sum("twice", n, "norm.n", "i16", **SUM))
    with pytest.raises(UserError, match=r"^norm: layernorm cannot be compiled; allowed: elementwise, product, "):
        compile_graph(net.graph(), tiny_machine)


def test_an_output_of_the_prologue_that_the_steps_read(tiny_machine: Machine) -> None:
    net = Builder(steps=2)
    x = net.input("x", (4, 6), "i16")
    net.phase = "prologue"
    early = net.output(net.rescale("early", x, "i16", multiplier=3, shift=1))
    net.phase = "step"
    net.output(net.product("late", early, x, "i32", shift=2))
    program = compile_graph(net.graph(), tiny_machine)
    assert set(program.buffers) == {"x", "early", "late"}
    assert program.dram_bytes == 64 + 64 + 128  # 48, 48 and 96 bytes, each once, at multiples of 64
    assert_same_bits(net.graph(), tiny_machine, steps=2)


@pytest.mark.parametrize("types", [("i16", "i8", "i16"), ("i16", "i16", "i8"), ("i8", "i8", "i16")])
def test_attention_of_operands_of_different_types(tiny_machine: Machine, types: tuple[str, str, str]) -> None:
    net = Builder()
    q, k, v = (net.input(role, (5, 6), dtype) for role, dtype in zip("qkv", types, strict=True))
    scales: dict[str, Any] = {"logit": (20000, 26), "output": (1 << 30, 31), "fraction_bits": 9}
    net.output(net.attention("attn", q, k, v, "i16", heads=2, **scales))
    assert_same_bits(net.graph(), tiny_machine)


def test_numbers_that_an_instruction_has_no_room_for_name_the_layer(tiny_machine: Machine) -> None:
    net = net_with_inputs()
    out = Value("t", (4, 6), "i16")
    table = net.const("t.table", ramp(), "i16")
    # As no method of the builder would let it through.
    net.op("table", "lookup", {"x": "x", "table": table}, out, multiplier=1 << 16, shift=1, out_zp=0)
    net.outputs.append("t")
    with pytest.raises(UserError, match=r"^lookup: table\.multiplier = 65536: allowed 0\.\.65535$"):
        build_program(net.graph(), tiny_machine)
    with pytest.raises(UserError, match=r"step operation 0 \(table of layer lookup\): multiplier = 65536; allowed: 0"):
        compile_graph(net.graph(), tiny_machine)


def test_tensor_that_has_no_place_names_the_layer_that_computes_it(tiny_machine: Machine) -> None:
    net = Builder()
    x = net.input("x", (1 << 16, 500), "i16")
    big = net.rescale("grow", x, "i32", multiplier=1, shift=1)
    net.output(net.rescale("shrink", big, "u8", multiplier=1, shift=1))
    with pytest.raises(UserError, match=r"^grow: tensor grow of 131072000 bytes fits neither the 32768 bytes of SRAM"):
        compile_graph(net.graph(), tiny_machine)
