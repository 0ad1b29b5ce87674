"""Chains of operations by blocks of rows: the same bits, in any order that tokens allow, and nothing inner in DRAM."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.builder import Builder
from compiler.graph import Graph
from compiler.passes import PASSES
from compiler.schedule.blocks import order
from compiler.schedule.build import build_program
from compiler.schedule.fuse import group_of, uses_of
from npusim.config import Machine
from npusim.isa import decode
from npusim.isa.dma import dma_bytes
from npusim.testing import assert_same_bits
from tests.compiler.runs import machine_like

ROWS, WIDTH, HIDDEN = 600, 64, 96


def mlp(rows: int = ROWS) -> Graph:
    """LayerNorm, two linears with a table between, and a sum with the input: far too large for 64 KiB of SRAM."""
    rng = np.random.default_rng(5)
    net = Builder()
    x = net.input("x", (rows, WIDTH), "i16")
    g, b = rng.integers(8192, 24576, WIDTH), rng.integers(-(2**20), 2**20, WIDTH)
    n = net.layernorm("norm", x, g, b, "i16", epsilon=1, fraction_bits=12, shift=14)
    w = rng.integers(-127, 128, (HIDDEN, WIDTH), np.int8)
    h = net.linear("fc1", n, w, "i16", multiplier=20000, shift=22, bias=500)
    relu = np.maximum(np.arange(513) * 128 - 32768, 0).clip(max=32767)
    h = net.table("relu", h, relu, "i16", multiplier=1 << 14, shift=21)
    h = net.linear("fc2", h, rng.integers(-127, 128, (WIDTH, HIDDEN), np.int8), "i16", multiplier=20000, shift=25)
    net.output(net.sum("residual", x, h, "i16", a_mul=3, b_mul=rng.integers(1, 4, WIDTH), shift=2))
    return net.graph()


def after_passes(graph: Graph) -> Graph:
    for one_pass in PASSES:
        graph = one_pass(graph)
    return graph


@pytest.mark.parametrize("rows", [ROWS, ROWS - 1])
def test_what_passes_between_operations_stays_in_sram(tiny_machine: Machine, rows: int) -> None:
    graph = mlp(rows)
    machine = machine_like(tiny_machine, dram={"interconnect_ns": 0}, dma={"setup_cycles": 1})
    program = build_program(after_passes(graph), machine)
    stored = sum(dma_bytes(ins) for ins in decode(program.step) if ins.op == "store")
    assert stored == rows * WIDTH * 2  # the result
    assert_same_bits(graph, machine, orders=2)


def test_stages_of_a_chain() -> None:
    graph = after_passes(mlp())
    group = group_of(graph, graph.step, uses_of(graph))
    assert group is not None
    assert [[op.layer for op in stage.ops] for stage in group.stages] == [
        ["norm"],
        ["fc1", "relu"],
        ["fc2", "residual"],
    ]


def test_a_tensor_that_others_read_ends_a_group() -> None:
    graph = after_passes(mlp())
    norm = graph.step[0].output
    assert group_of(graph, graph.step, uses_of(graph) | {norm: 2}) is None
    assert group_of(graph, graph.step[:1], uses_of(graph) | {norm: 2}) is not None


@given(blocks=st.integers(1, 5), stages=st.integers(1, 6), ahead=st.booleans())
def test_every_stage_of_every_block_in_order(blocks: int, stages: int, ahead: bool) -> None:
    steps = list(order(blocks, stages, ahead))
    assert sorted(steps) == [(stage, block) for stage in range(stages) for block in range(blocks)]
    for (stage, block), at in zip(steps, range(len(steps)), strict=True):
        assert stage == 0 or steps.index((stage - 1, block)) < at
        assert block == 0 or steps.index((stage, block - 1)) < at


def dynamic_mlp(rows: int = ROWS) -> Graph:
    """Two linears quantized at run time, a table between, and a sum with the input."""
    rng = np.random.default_rng(6)
    net = Builder()
    x = net.input("x", (rows, WIDTH), "i16")

    def linear(layer: str, x: str, channels: int, k: int, bits: int) -> str:
        return net.linear_dynamic(
            layer, x, rng.integers(0, 256, (channels, k), np.uint8), "i16", bits=bits, row=(1 << 30, 44),
            multiplier=rng.integers(1 << 14, 1 << 15, channels), shift=14, bias=rng.integers(-99999, 99999, channels),
            weight_zp=rng.integers(100, 150, channels), weight_bits=8, fraction_bits=8,
        )  # fmt: skip

    relu = np.maximum(np.arange(513) * 128 - 32768, 0).clip(max=32767)
    h = net.table("relu", linear("fc1", x, HIDDEN, WIDTH, 8), relu, "i16", multiplier=1 << 14, shift=21)
    h = linear("fc2", h, WIDTH, HIDDEN, 4)
    net.output(net.sum("residual", x, h, "i16", a_mul=3, b_mul=rng.integers(1, 4, WIDTH), shift=2))
    return net.graph()


@pytest.mark.parametrize("rows", [ROWS, ROWS - 1])
def test_rows_quantized_at_run_time_stay_in_sram_and_are_made_once(tiny_machine: Machine, rows: int) -> None:
    graph = dynamic_mlp(rows)
    machine = machine_like(
        tiny_machine,
        dram={"interconnect_ns": 0},
        dma={"setup_cycles": 1},
        vector_unit={"runtime_quantization": True, "lanes": 64},
    )
    program = decode(build_program(after_passes(graph), machine).step)
    assert sum(dma_bytes(ins) for ins in program if ins.op == "store") == rows * WIDTH * 2
    assert sum(ins.rows for ins in program if ins.op == "rtquant") == 2 * rows
    assert_same_bits(graph, machine, orders=2)
