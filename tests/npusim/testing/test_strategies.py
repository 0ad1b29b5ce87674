"""Random networks and instructions are legal, of every kind, and compute the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from compiler import Graph, compile_graph
from compiler.operations import OPERATIONS
from compiler.verify_graph import verify_graph
from npusim import engine, reference
from npusim.config import Machine, load_machine
from npusim.errors import UserError
from npusim.memory import MEMORIES
from npusim.program import Program
from npusim.testing import assert_same_bits
from npusim.testing.networks import graphs, programs
from npusim.testing.strategies import families
from tests.compiler.runs import machine_like
from tests.conftest import REPOSITORY

EDGE = load_machine(REPOSITORY / "hwconfigs" / "edge_8k.yaml")
TINY = load_machine(REPOSITORY / "hwconfigs" / "tiny_8x8.yaml")


@given(graph=graphs(), sram_words=st.integers(128, 4096), seed=st.integers(0, 9))
def test_random_networks_compute_the_same_on_any_machine(graph: Graph, sram_words: int, seed: int) -> None:
    machine = machine_like(TINY, sram={"capacity_bytes": 64 * (sram_words // 4)})
    try:
        compile_graph(graph, machine)
    except UserError as error:
        event("refused")
        assert "too small" in str(error)  # noqa: PT017
        return
    event("compiled")
    assert_same_bits(graph, machine, steps=graph.steps, orders=1, seed=seed)


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    found: list[Any] = []

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(value: Any) -> None:
        found.append(value)

    draw()
    return found


def test_networks_are_of_every_kind() -> None:
    found = drawn(graphs(), 150)
    kinds: Counter[str] = Counter()
    for graph in found:
        verify_graph(graph)
        kinds.update(op.kind for op in (*graph.prologue, *graph.step))
    # Passes make two of them; not every machine can requantize in two factors.
    assert set(kinds) == set(OPERATIONS) - {"linear", "layernorm_modulate", "linear_dynamic", "linear_factored"}
    assert {graph.steps for graph in found} == {1, 2, 3}
    assert any(graph.ranges == 2 for graph in found)
    assert any(value.kind == "range_const" for graph in found for value in graph.values.values())
    assert {value.dtype for graph in found for value in graph.values.values()} >= {"u4", "u6", "i16"}
    assert 20 < sum(bool(graph.prologue) for graph in found) < 140
    assert any(value.kind == "step_const" for graph in found for value in graph.values.values())


@settings(max_examples=10)
@given(program=programs(TINY))
def test_programs_are_legal(program: Program) -> None:
    assert program.machine == TINY
    assert_same_bits(program)


@pytest.mark.parametrize("machine", [EDGE, TINY], ids=["edge", "tiny"])
def test_instructions_of_a_machine_of_the_users(machine: Machine) -> None:
    found = families(machine)
    assert set(found) & {"rtquant", "pswitch"} == set()  # neither machine has them
    for strategy in found.values():
        for case in drawn(strategy, 5):
            fast, slow = case.state, case.state.copy()
            try:
                reference.execute(slow, [case.ins])
            except OverflowError:
                continue
            engine.execute(fast, [case.ins])
            assert all((getattr(fast, name) == getattr(slow, name)).all() for name in MEMORIES)


def test_machine_too_small_for_random_instructions() -> None:
    small = machine_like(TINY, sram={"capacity_bytes": 8192})
    with pytest.raises(UserError, match=r"sram.capacity_bytes = 8192: random instructions need at least 16384"):
        families(small)


def test_only_strategies_need_hypothesis() -> None:
    code = (
        "import sys\n"
        "sys.modules['hypothesis'] = sys.modules['pytest'] = None\n"
        "from npusim.testing import assert_golden, assert_same_bits, random_inputs\n"
        "try:\n    import npusim.testing.strategies\n"
        "except ImportError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "need hypothesis, which is not installed: pip install 'npusim[testing]'" in result.stdout
