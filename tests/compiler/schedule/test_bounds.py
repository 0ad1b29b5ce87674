"""Bounds of layers against numbers worked out by hand, and against what the cycle model counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compiler.builder import Builder
from compiler.graph import Graph
from compiler.pipeline import compile_graph
from compiler.schedule.bounds import layer_bounds, total
from compiler.schedule.build import build_program
from npusim.config import Machine
from npusim.timing import time_program


def test_padding_of_ragged_edges_by_hand(tiny_machine: Machine) -> None:
    """10 rows, K = 9 and 12 channels on 8 x 8 cells: 2 x 2 folds of 10 rows stream, of 10 * 9 * 12 / 64 needed."""
    net = Builder()
    net.input("x", (10, 9), "u8")
    net.output(net.linear("fc", "x", np.ones((12, 9), np.uint8), "i16", multiplier=1, shift=1))
    program = compile_graph(net.graph(), tiny_machine)
    row = layer_bounds(program.step, program.machine)[program.layers.index("fc")]
    assert row.array_bound_cycles == 10 * 9 * 12 / 64
    assert row.array_bound_cycles + row.padding_cycles == 40
    assert row.fill_cycles == 8 + 14 + 4  # the first load, the skew, the requantizer
    assert row.compulsory_dram_bytes == row.moved_dram_bytes == 90 + 108 + 12 * 12 + 240
    assert row.bound_cycles == row.dram_bound_cycles == row.compulsory_dram_bytes / 16


@pytest.mark.parametrize("sram_bytes", [32768, 1 << 20])
def test_sums_are_those_of_the_cycle_model(
    graph_of: Callable[[int, int], Graph], tiny_machine: Machine, sram_bytes: int
) -> None:
    sram = tiny_machine.sram.model_copy(update={"capacity_bytes": sram_bytes})
    program = build_program(graph_of(8, 16), tiny_machine.model_copy(update={"sram": sram}))
    sums, step = total(layer_bounds(program.step, program.machine).values()), time_program(program).step
    assert sums.moved_dram_bytes == step.traffic.load_bytes + step.traffic.store_bytes
    assert sums.array_bound_cycles + sums.padding_cycles + sums.fill_cycles == pytest.approx(step.ledger["mac"]["busy"])
    assert sums.vector_bound_cycles == step.ledger["vector"]["busy"]
    again = sums.moved_dram_bytes - sums.compulsory_dram_bytes
    assert (again > 4096) == (sram_bytes == 32768)  # some records of the attentions are fetched for each of its blocks
    assert sums.bound_cycles <= step.total_cycles
