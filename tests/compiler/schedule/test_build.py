"""A compiled program computes what its graph computes, on every machine that is large enough; others are refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from compiler.graph import Graph
from compiler.pipeline import integer_graph
from compiler.schedule.build import build_program
from compiler.verify import verify
from models.quantize import quantize
from models.workloads import get_workload
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.program import Program
from tests.compiler.conftest import BITS
from tests.compiler.runs import STEPS, Inputs, Outputs, assert_same_bits, machine_like, run_graph, run_program

GraphOf = Callable[[int, int], Graph]
TOO_SMALL = r"^\S+: .*\d+ bytes.*\d+.*too small: allowed is a larger (sram|param_memory)\.capacity_bytes"


@pytest.fixture(scope="module")
def expected(graph_of: GraphOf, inputs: Inputs) -> Callable[[int, int], list[Outputs]]:
    known: dict[tuple[int, int], list[Outputs]] = {}

    def run(act_bits: int, attention_bits: int) -> list[Outputs]:
        if (act_bits, attention_bits) not in known:
            known[act_bits, attention_bits] = run_graph(graph_of(act_bits, attention_bits), inputs)
        return known[act_bits, attention_bits]

    return run


@pytest.mark.parametrize("name", ["edge_machine", "tiny_machine"])
@pytest.mark.parametrize(("act_bits", "attention_bits"), BITS)
def test_program_equals_its_graph(
    request: pytest.FixtureRequest, graph_of: GraphOf, inputs: Inputs, expected: Callable[[int, int], list[Outputs]],
    name: str, act_bits: int, attention_bits: int,
) -> None:  # fmt: skip
    program = build_program(graph_of(act_bits, attention_bits), request.getfixturevalue(name))
    verify(program)
    assert_same_bits(run_program(program, inputs), expected(act_bits, attention_bits))


@pytest.mark.slow
def test_program_equals_its_graph_at_full_size(edge_machine: Machine) -> None:
    """The architecture of `emoji`, with random weights."""
    emoji = get_workload("emoji")
    shorter = {"num_steps": 2, "calibration_captions": emoji.calibration_captions[:1], "calibration_seeds": (1,)}
    workload = replace(emoji, checkpoint=None, calibration=None, **shorter)
    graph = integer_graph(quantize(workload.load_model(), workload.load_stats()))
    rng = np.random.default_rng(0)
    shapes = {name: graph.values[name].shape for name in ("text", "state", "noise")}
    inputs = {
        "text": rng.normal(0, 0.2 / graph.values["text"].scale, shapes["text"]).astype(np.int64),
        "text_len": np.array([[7]]),
        "state": rng.normal(0, 1 / graph.values["state"].scale, shapes["state"]).astype(np.int64),
        "noise": rng.normal(0, 1 / graph.values["noise"].scale, (2, *shapes["noise"])).astype(np.int64),
    }
    program = build_program(graph, edge_machine)
    verify(program)
    assert_same_bits(run_program(program, inputs, (0, 1)), run_graph(graph, inputs, (0, 1)))


def kinds(program: Program) -> Counter[str]:
    return Counter(ins.op for ins in decode(program.step))


@pytest.mark.parametrize(
    ("sram_bytes", "param_bytes", "fits"),
    [
        (1 << 20, 1 << 16, True),  # nothing leaves SRAM
        (49152, 8192, True),
        (32768, 4096, True),
        (24576, 2176, True),  # the least parameter memory that holds two tables
        (24576, 2175, False),
        (20480, 2304, True),  # K in pieces, positions in parts
        (4096, 2304, False),
        (1024, 8192, False),
    ],
)
def test_machines_down_to_the_smallest(
    graph_of: GraphOf, inputs: Inputs, expected: Callable[[int, int], list[Outputs]], tiny_machine: Machine,
    sram_bytes: int, param_bytes: int, fits: bool,
) -> None:  # fmt: skip
    sizes = {"sram": {"capacity_bytes": sram_bytes}, "param_memory": {"capacity_bytes": param_bytes}}
    machine = machine_like(tiny_machine, **sizes)
    if not fits:
        with pytest.raises(UserError, match=TOO_SMALL):
            build_program(graph_of(8, 16), machine)
        return
    program = build_program(graph_of(8, 16), machine)
    verify(program)
    assert_same_bits(run_program(program, inputs), expected(8, 16))


def test_less_sram_means_more_traffic(graph_of: GraphOf, tiny_machine: Machine) -> None:
    sizes = [1 << 20, 65536, 32768]
    programs = [build_program(graph_of(8, 16), machine_like(tiny_machine, sram={"capacity_bytes": s})) for s in sizes]
    stores = [kinds(program)["store"] for program in programs]
    assert stores == sorted(stores)
    assert stores[0] == 3  # only the outputs: eps, raw, state
    assert stores[-1] > 100
    assert [p.dram_bytes for p in programs] == sorted(p.dram_bytes for p in programs)


@st.composite
def machines(draw: st.DrawFn) -> dict[str, dict[str, int]]:
    """Array, SRAM and parameter memory of any size between too small and ample for `tiny`."""
    return {
        "mac_array": {
            "rows": draw(st.integers(4, 64)),
            "cols": draw(st.integers(1, 24)),
            "acc_rows": draw(st.integers(1, 64)),
        },
        "sram": {"capacity_bytes": 64 * draw(st.integers(350, 2048))},
        "param_memory": {"capacity_bytes": draw(st.integers(2100, 8192))},
    }


@settings(max_examples=12 * settings.default.max_examples // 100)  # an example compiles and runs a program
@given(changes=machines(), bits=st.sampled_from(BITS))
def test_any_machine_computes_the_same_or_is_refused(
    graph_of: GraphOf, inputs: Inputs, expected: Callable[[int, int], list[Outputs]], tiny_machine: Machine,
    changes: dict[str, dict[str, int]], bits: tuple[int, int],
) -> None:  # fmt: skip
    try:
        program = build_program(graph_of(*bits), machine_like(tiny_machine, **changes))
    except UserError as error:
        event("refused")
        with pytest.raises(UserError, match=TOO_SMALL):
            raise error from None
        return
    event("compiled")
    verify(program)
    # Step 2 follows step 0, so both have to run.
    assert_same_bits(run_program(program, inputs, STEPS), expected(*bits))


def test_dram_budget_is_respected(graph_of: GraphOf, tiny_machine: Machine) -> None:
    graph = graph_of(8, 16)
    program = build_program(graph, tiny_machine)
    used = program.dram_bytes

    def with_budget(size: int) -> Machine:  # A machine file could not say so little; a larger model needs more.
        return tiny_machine.model_copy(update={"dram": tiny_machine.dram.model_copy(update={"npu_budget_bytes": size})})

    assert build_program(graph, with_budget(used)).dram_bytes == used
    # With less, other tensors stay in SRAM; at some point even those that pass through are too many.
    refused = ""
    while not refused:
        try:
            smaller = build_program(graph, with_budget(used - 1)).dram_bytes
        except UserError as error:
            refused = str(error)
        else:
            assert smaller < used
            used = smaller
    assert re.search(rf"tensor \S+ of \d+ bytes fits neither .* dram\.npu_budget_bytes = {used - 1}", refused)
    with pytest.raises(UserError, match=r"need \d+ bytes of DRAM; the NPU's budget is 100000"):
        build_program(graph, with_budget(100_000))


def test_buffers_are_those_of_the_host_and_do_not_overlap(graph_of: GraphOf, tiny_machine: Machine) -> None:
    program = build_program(graph_of(8, 16), tiny_machine)
    shapes = {name: (buffer.dtype, buffer.shape) for name, buffer in program.buffers.items()}
    assert shapes == {
        "text": ("i16", (16, 384)), "text_len": ("i32", (1, 1)), "state": ("i32", (64, 16)),
        "noise": ("i16", (4, 64, 16)), "eps": ("i32", (64, 16)), "raw": ("i16", (128, 32)),
    }  # fmt: skip
    spans = [(address, address + data.size) for address, data in program.areas.values() if data.size]
    spans += [(buffer.address, buffer.address + buffer.bytes) for buffer in program.buffers.values()]
    for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        assert end <= start
    assert max(end for _, end in spans) <= program.dram_bytes
    assert all(isinstance(bits, int) for bits in program.host.values())


def test_state_is_not_read_once_the_new_one_is_being_written(graph_of: GraphOf, tiny_machine: Machine) -> None:
    graph = graph_of(8, 16)
    writer = graph.step[-1]
    assert writer.output == "state.next"
    itself = (*graph.step[:-1], replace(writer, inputs={**writer.inputs, "a": "state"}))
    reader = next(op for op in graph.step if "state" in op.inputs.values() and op.layer == "update")
    later = (*(op for op in graph.step[:-1] if op is not reader), writer, reader)
    for ops in (itself, later):
        with pytest.raises(
            UserError, match=r"^update: elementwise reads %state, which %state\.next overwrites; allowed:"
        ):
            build_program(replace(graph, step=ops), tiny_machine)
