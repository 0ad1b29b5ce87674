"""Single operations of any shape, tiled for small machines, compute what the graph says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from compiler.builder import Builder
from compiler.graph import Graph, Value
from compiler.interpret import Interpreter
from compiler.passes.fold_zero_points import fold_zero_points
from compiler.schedule.build import build_program
from compiler.verify import verify
from compiler.verify_graph import verify_graph
from npusim import reference
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.isa.encoding import DTYPES, NO_ADDRESS
from npusim.program import Program
from npusim.testing import assert_same_bits
from tests.compiler.runs import Array, Inputs, loaded, machine_like, window


def one_step(build: Builder, outputs: tuple[str, ...], branches: int, frames: int, positions: int) -> Graph:
    build.add(Value("noise", (1, 1), "i16", "input"))  # every program has noise
    return Graph(build.values, (), tuple(build.ops["step"]), 1, branches, frames, positions, outputs)


def assert_equal_or_refused(graph: Graph, machine: Machine, inputs: Inputs) -> None:
    """The program computes what the graph computes, or the machine is refused as too small."""
    verify_graph(graph)
    try:
        program = build_program(graph, machine)
    except UserError as error:
        event("refused")
        with pytest.raises(UserError, match=r"^layer: .*\d+ bytes.*too small: allowed is a larger"):
            raise error from None
        return
    event("compiled")
    assert_program_equals_graph(program, graph, inputs)


def assert_program_equals_graph(program: Program, graph: Graph, inputs: Inputs) -> None:
    verify(program)
    interpreter = Interpreter(graph, inputs)
    interpreter.run("step", 0)
    state = loaded(program, {**inputs, "noise": np.zeros((1, 1, 1))})
    state.bases = program.bases(0)
    reference.execute(state, decode(program.step))
    for name in graph.outputs:
        np.testing.assert_array_equal(window(program, state, name), interpreter.tensors[name])


def integers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    _, low, high = DTYPES[dtype]
    return rng.integers(low, high + 1, shape)


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Graph, Inputs]:
    over = draw(st.sampled_from(["spatial", "temporal", "cross"]))
    branches, frames, positions = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 7))
    heads, width, text = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from(["i8", "i16"]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rows, columns = branches * frames * positions, heads * width
    keys = branches * text if over == "cross" else rows
    build, inputs = Builder(), {}
    build.phase = "step"
    # As a fused projection leaves them: keys and values are columns of one tensor.
    for name, shape in {"q": (rows, columns), "kv": (keys, 2 * columns)}.items():
        build.add(Value(name, shape, dtype, "input"))
        inputs[name] = integers(rng, dtype, shape)
    roles = {"q": "q"}
    for index, part in enumerate("kv"):
        roles[part] = build.view(part, "kv", (0, keys), (index * columns, (index + 1) * columns))
    if over == "cross":
        build.add(Value("valid", (1, 1), "i32", "input"))
        inputs["valid"], roles["valid"] = np.array([[draw(st.integers(1, text))]]), "valid"
    attrs: dict[str, Any] = {
        "over": over, "heads": heads, "fraction_bits": 9, "p_bits": 8 if dtype == "i8" else 15,
        "logit_multiplier": 20000, "logit_shift": 16 if dtype == "i8" else 31,
        "out_multiplier": 3 << 29, "out_shift": 31, "out_zp": 5,
    }  # fmt: skip
    out = Value("out", (rows, columns), draw(st.sampled_from(["u8", "i16"])))
    build.op("attention", "layer", roles, out, **attrs)
    return one_step(build, ("out",), branches, frames, positions), inputs


@given(case=attentions(), sram_words=st.integers(64, 1024))
def test_attention(tiny_machine: Machine, case: tuple[Graph, Inputs], sram_words: int) -> None:
    graph, inputs = case
    machine = machine_like(tiny_machine, sram={"capacity_bytes": 64 * (sram_words // 4)})
    assert_equal_or_refused(graph, machine, inputs)


@st.composite
def linears(draw: st.DrawFn) -> tuple[Graph, Inputs]:
    rows, k, n = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x = Value("x", (rows, k), draw(st.sampled_from(["u8", "i16"])), "input")
    bits, shifted = draw(st.sampled_from([4, 6, 8])), x.dtype == "u8" and draw(st.booleans())
    build = Builder()
    build.phase = "step"
    build.add(x)
    build.linear(
        "layer", "x", rng.integers(0, 1 << bits, (n, k), np.uint8),
        Value("out", (rows, n), draw(st.sampled_from(["u8", "i8", "i16"])), zero_point=draw(st.integers(-9, 9))),
        multiplier=rng.integers(1, 2**15, n), shift=rng.integers(12, 36, n), weight_bits=bits,
        bias=rng.integers(-(2**38), 2**38, n) // 2 ** rng.integers(0, 38, n), weight_zp=rng.integers(0, 1 << bits, n),
        x_zp=draw(st.integers(-100, 200)), x_shift=rng.integers(0, 4, k) if shifted else 0,
    )  # fmt: skip
    return fold_zero_points(one_step(build, ("out",), 1, 1, rows)), {"x": integers(rng, x.dtype, x.shape)}


@st.composite
def two_factor_linears(draw: st.DrawFn) -> tuple[Graph, Inputs]:
    """Linears requantized in two factors: per channel, and per row at run time or per layer."""
    rows, k, n = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 60))
    rng, bits = np.random.default_rng(draw(st.integers(0, 1000))), draw(st.sampled_from([4, 6, 8]))
    at_run_time = draw(st.booleans())
    dtype = "i16" if at_run_time else draw(st.sampled_from(["u8", "i16"]))
    build = Builder()
    build.phase = "step"
    build.add(Value("x", (rows, k), dtype, "input"))
    weight, out = rng.integers(0, 1 << bits, (n, k), np.uint8), Value("out", (rows, n), "i16")
    records = {
        "multiplier": rng.integers(1, 2**15, n), "shift": rng.integers(2, 16, n), "weight_bits": bits,
        "bias": rng.integers(-(2**27), 2**27, n), "weight_zp": rng.integers(0, 1 << bits, n),
        "fraction_bits": draw(st.integers(1, 15)),
    }  # fmt: skip
    if at_run_time:
        row = int(rng.integers(2**30, 2**31)), int(rng.integers(40, 50))
        build.linear_dynamic("layer", "x", weight, out, bits=draw(st.sampled_from([4, 6, 8])), row=row, **records)
    else:
        x_shift = rng.integers(0, 4, k) if dtype == "u8" and draw(st.booleans()) else 0
        scale, x_zp = (rng.integers(1, 2**15, 1), rng.integers(1, 30, 1)), rng.integers(0, 256, 1)
        build.linear_factored("layer", "x", weight, out, scale=scale, x_zp=x_zp, x_shift=x_shift, **records)
    return one_step(build, ("out",), 1, 1, rows), {"x": integers(rng, dtype, (rows, k))}


@given(
    case=linears(), array=st.tuples(st.integers(1, 16), st.integers(1, 16)), sram_words=st.integers(64, 512),
    param_bytes=st.integers(256, 2048),
)  # fmt: skip
def test_linear(
    tiny_machine: Machine, case: tuple[Graph, Inputs], array: tuple[int, int], sram_words: int, param_bytes: int
) -> None:
    graph, inputs = case
    sizes = {"sram": {"capacity_bytes": 64 * (sram_words // 4)}, "param_memory": {"capacity_bytes": param_bytes}}
    machine = machine_like(tiny_machine, mac_array={"rows": array[0], "cols": array[1]}, **sizes)
    assert_equal_or_refused(graph, machine, inputs)


@given(case=two_factor_linears(), sram_words=st.integers(64, 512))
def test_linear_in_two_factors(tiny_machine: Machine, case: tuple[Graph, Inputs], sram_words: int) -> None:
    graph, inputs = case
    able = {"sram": {"capacity_bytes": 64 * (sram_words // 4)}, "vector_unit": {"runtime_quantization": True}}
    assert_equal_or_refused(graph, machine_like(tiny_machine, **able), inputs)


def chain(branches: int, frames: int, positions: int, cols: int, seed: int, pattern: str = "", **changes: Any) -> Graph:
    """Scaling per channel, sum with a table of rows, LayerNorm with modulation, sum with factors and bias.

    One vector stands in parameter memory before the modulation's two: those may then wrap round between them.
    """
    rng, rows = np.random.default_rng(seed), branches * frames * positions
    build = Builder()
    build.phase = "step"
    build.add(Value("a", (rows, cols), "i16", "input"))
    vectors = {
        name: build.const(name, integers(rng, dtype, (cols,)) // 4, dtype)
        for name, dtype in (("s", "i16"), ("g", "i16"), ("b", "i32"), ("m", "i16"), ("t", "i32"))
    }
    roles = {"a": "a", "a_mul": vectors["s"]}
    build.op("elementwise", "layer", roles, Value("scaled", (rows, cols), "i16"), shift=13, out_zp=0)
    table_rows = {"position": positions, "frame": frames, "": rows}[pattern]
    roles = {"a": "scaled", "b": build.const("table", integers(rng, "i16", (table_rows, cols)), "i16")}
    shared = {"a_mul": 3, "b_mul": -2, "shift": 2, "out_zp": 1, "b_rows": pattern}
    build.op("elementwise", "layer", roles, Value("sum", (rows, cols), "i16"), **shared)
    roles = {"x": "sum", "g": vectors["g"], "b": vectors["b"]}
    norm = Value("norm", (rows, cols), changes.get("dtype", "i16"))
    attrs = {"epsilon": 7, "fraction_bits": 10, "shift": 12, "out_zp": 3}
    build.op("layernorm_modulate", "layer", roles, norm, **attrs)
    roles = {"a": "norm", "b": "sum", "b_mul": vectors["m"], "bias": vectors["t"]}
    build.op("elementwise", "layer", roles, Value("out", (rows, cols), "i16"), a_mul=99, shift=9, out_zp=0)
    return one_step(build, changes.get("outputs", ("out",)), branches, frames, positions)


@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 6), st.integers(1, 40)),
    seed=st.integers(0, 1000), pattern=st.sampled_from(["position", "frame", ""]), dtype=st.sampled_from(["u8", "i16"]),
    outputs=st.sampled_from([("out",), ("out", "norm")]), sram_words=st.integers(64, 512),
    param_bytes=st.integers(256, 1024),
)  # fmt: skip
def test_row_operations(
    tiny_machine: Machine, sizes: tuple[int, int, int, int], seed: int, pattern: str, dtype: str,
    outputs: tuple[str, ...], sram_words: int, param_bytes: int,
) -> None:  # fmt: skip
    graph = chain(*sizes, seed, pattern, dtype=dtype, outputs=outputs)
    memories = {"sram": {"capacity_bytes": 64 * (sram_words // 4)}, "param_memory": {"capacity_bytes": param_bytes}}
    inputs = {"a": integers(np.random.default_rng(seed), "i16", graph.values["a"].shape)}
    assert_equal_or_refused(graph, machine_like(tiny_machine, **memories), inputs)


def test_vectors_needed_together_must_fit_half_of_parameter_memory_together(tiny_machine: Machine) -> None:
    # 128 and 192 bytes (40 channels of 16 and of 32 bits, aligned): each alone fits 192, where the second would wrap
    # round onto the first.
    graph = chain(1, 1, 4, 40, seed=0)
    with pytest.raises(UserError, match=r"layer: 320 bytes do not fit half of the parameter memory zone \(192 bytes\)"):
        build_program(graph, machine_like(tiny_machine, param_memory={"capacity_bytes": 400}))
    program = build_program(graph, machine_like(tiny_machine, param_memory={"capacity_bytes": 640}))
    assert_program_equals_graph(program, graph, {"a": integers(np.random.default_rng(0), "i16", (4, 40))})


def test_table_of_rows_that_lives_in_sram_is_refused(tiny_machine: Machine) -> None:
    """Tables are loaded from DRAM; nothing loads from SRAM."""
    build = Builder()
    build.phase = "step"
    build.add(Value("a", (8, 4), "i16", "input"))
    build.add(Value("small", (4, 4), "i16", "input"))
    build.op("elementwise", "layer", {"a": "small"}, Value("table", (4, 4), "i16"), a_mul=2, shift=1, out_zp=0)
    attrs: dict[str, Any] = {"a_mul": 2, "b_mul": 2, "shift": 1, "out_zp": 0, "b_rows": "position"}
    build.op("elementwise", "layer", {"a": "a", "b": "table"}, Value("out", (8, 4), "i16"), **attrs)
    with pytest.raises(UserError, match=r"^layer: %table is loaded whole; allowed: whole rows of a tensor in DRAM$"):
        build_program(one_step(build, ("out",), 1, 2, 4), tiny_machine)


def test_a_last_block_of_one_packed_column_takes_a_byte_a_row(tiny_machine: Machine) -> None:
    """17 output channels of 4 bits on 8 columns, with x in SRAM and the result in DRAM: the last block has one."""
    build, weight = Builder(), np.random.default_rng(0).integers(0, 256, (17, 16), np.uint8)
    build.input("x", (60, 16), "u8")
    build.rescale("kept", "x", "u8", multiplier=3, shift=2)
    build.linear("layer", "kept", weight, "u4", multiplier=20000, shift=24)
    build.output(build.rescale("seen", "layer", "i16", multiplier=2, shift=1))
    build.output(build.rescale("held", "kept", "i16", multiplier=2, shift=1))
    sizes = {"sram": {"capacity_bytes": 16 * 136}, "param_memory": {"capacity_bytes": 1024}}
    assert_same_bits(build.graph(), machine_like(tiny_machine, **sizes))


def test_blocks_of_channels_leave_room_for_the_table_of_shifts(tiny_machine: Machine) -> None:
    """256 bytes at once: 16 records of 12 bytes, and 64 for the shifts; the other four channels come after."""
    rng, build = np.random.default_rng(0), Builder()
    build.input("x", (3, 40), "u8")
    weight, shifts = rng.integers(0, 256, (20, 40), np.uint8), rng.integers(0, 4, 40)
    build.output(build.linear("layer", "x", weight, "i16", multiplier=20000, shift=28, x_shift=shifts))
    assert_same_bits(build.graph(), machine_like(tiny_machine, param_memory={"capacity_bytes": 512}))


def test_tiles_of_rows_quantized_at_run_time_leave_room_for_what_rtquant_writes(tiny_machine: Machine) -> None:
    """A row of 4 bytes in and out needs 9 more between."""
    build, weight = Builder(), np.full((1, 1), 200, np.uint8)
    build.input("x", (90, 1), "i16")
    build.linear_dynamic(
        "layer", "x", weight, "i16", bits=8, row=(1 << 30, 45), multiplier=20000, shift=8, bias=7, weight_zp=9,
        weight_bits=8, fraction_bits=4,
    )  # fmt: skip
    build.output("layer")
    able = {"sram": {"capacity_bytes": 4096}, "vector_unit": {"runtime_quantization": True}}
    assert_same_bits(build.graph(), machine_like(tiny_machine, **able))


@pytest.mark.parametrize("dtype", ["u8", "i16"])
def test_a_reduction_too_long_for_the_weight_ring_is_cut_into_pieces(tiny_machine: Machine, dtype: str) -> None:
    """Half the weight ring has 8192 bytes here: 8 channels of at most 1024 weights, so K = 2500 takes three pieces."""
    rng = np.random.default_rng(4)
    net = Builder()
    net.input("x", (70, 2500), dtype)
    weight = rng.integers(0, 256, (20, 2500), np.uint8)
    shifts = rng.integers(0, 4, 2500) if dtype == "u8" else 0
    bias = rng.integers(-(2**20), 2**20, 20)
    net.linear("l", "x", weight, "i16", multiplier=20000, shift=26, weight_zp=130, bias=bias, x_shift=shifts)
    net.output("l")
    graph = fold_zero_points(net.graph())
    program = build_program(graph, tiny_machine)
    flags = [(ins.acc_continue, ins.acc_hold) for ins in decode(program.step) if ins.op == "matmul"]
    assert [set(flags[first::3]) for first in range(3)] == [{(0, 1)}, {(1, 1)}, {(1, 0)}]
    assert_same_bits(net.graph(), tiny_machine, {"x": integers(rng, dtype, (70, 2500))})


@pytest.mark.parametrize("pattern", ["position", "frame"])
def test_a_frame_too_large_for_the_rings_is_cut_into_positions(tiny_machine: Machine, pattern: str) -> None:
    graph = chain(2, 3, 40, 200, seed=1, pattern=pattern)
    program = build_program(graph, tiny_machine)
    assert max(ins.rows for ins in decode(program.step) if ins.op == "ewlin" and ins.b_addr != NO_ADDRESS) < 40
    assert_program_equals_graph(program, graph, {"a": integers(np.random.default_rng(1), "i16", (240, 200))})
