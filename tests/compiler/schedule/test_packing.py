"""Temporal attention leaves most cells of the array idle; packing its small products would save no time.

The closed form and the measured figures are in compiler/README.md, "Padding".
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler import compile_model
from compiler.schedule.bounds import layer_bounds
from compiler.schedule.cost_model import matmul_cycles
from models.quantize.outline import outline
from models.workloads import get_workload
from npusim.config import Machine
from npusim.congruence import joins, pieces
from npusim.isa import BY_MNEMONIC
from npusim.timing import reuse
from npusim.timing.cost import costs

FRAMES, WIDTH, FILL = 16, 72, 64 + 190 + 4
"""Frames and head width of STDiT-XL/2; first load, skew and requantizer of one MATMUL on `edge_8k`."""


@pytest.mark.parametrize("side", [2, 4, 8])
def test_keys_side_by_side_stream_as_long(edge_machine: Machine, side: int) -> None:
    """Folds become fewer and stream so many more rows; none waits for its weights, before or after."""
    batches = 32
    apart = matmul_cycles(edge_machine, FRAMES, WIDTH, FRAMES, "i16", "i16", batches)
    packed = matmul_cycles(edge_machine, side * FRAMES, WIDTH, side * FRAMES, "i16", "i16", batches // side)
    assert apart == packed == batches * 2 * FRAMES * 4 + FILL
    values = matmul_cycles(edge_machine, FRAMES, FRAMES, WIDTH, "i16", "i16", batches)
    assert values == batches * FRAMES * 4 + FILL
    under = matmul_cycles(edge_machine, side * FRAMES, side * FRAMES, WIDTH, "i16", "i16", batches // side)
    assert under >= values  # along the rows, with zeros streamed for the others


@pytest.mark.slow
def test_a_faster_array_does_not_shorten_temporal_attention(edge_machine: Machine) -> None:
    """Not even one that takes a cycle for each product: the DRAM is what it waits for."""
    work = get_workload("stdit-xl2-16x256x256")
    program = compile_model(outline(replace(work, config={**work.config, "depth": 2}), "asq"), edge_machine)
    layer, code = program.layers.index("blocks.1.attn_temp"), program.step
    bounds = layer_bounds(code, edge_machine)[layer]
    assert (bounds.array_bound_cycles, bounds.padding_cycles) == (147_456, 1_425_408)
    times = list[int]()
    for begin, end in pieces(joins(code)):
        cost = costs(code[begin:end], edge_machine, program.bases(0))
        products = (cost.layer == layer) & ((code[begin:end, 0] & 0xFF) == BY_MNEMONIC["matmul"].opcode)
        if products.any():
            assert cost.busy[products].sum() == 8192 * (2 + 1) * FRAMES * 4 + products.sum() * FILL
            # Block-diagonal operands: scores of 8 heads in 9 folds, not 16; weighted sums of 3 in 2.
            scores = products & (cost.busy > 32 * FRAMES * 4 + FILL)
            packed = np.where(scores, cost.busy * 9 // 16, cost.busy * 2 // 3)
            for busy in (cost.busy, np.where(products, packed, cost.busy), np.where(products, 1, cost.busy)):
                run = reuse.run_whole(replace(cost, busy=busy), edge_machine)
                times.append(run.total)
    as_it_is, packed_rows, nothing = times
    assert as_it_is == pytest.approx(1_926_887, rel=0.01)
    assert min(packed_rows, nothing) > 0.99 * as_it_is
