"""Tokens order all that has to be ordered, and the check of it finds every token that is missing."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.graph import Graph
from compiler.schedule.build import build_program
from compiler.schedule.tokens import insert_tokens
from compiler.verify import completed_before, hazards
from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.encoding import NO_ADDRESS, Decoded
from npusim.orders import execute_in_random_order, token_legal_order, tokens
from npusim.program import Program
from npusim.units import UNITS
from tests.compiler.orders import conflicts, ordered_before, without
from tests.compiler.runs import Inputs, assert_same_bits, encoded, machine_like, run_program


@pytest.fixture(scope="module", params=["edge", "tiny", "spilling"])
def program(
    request: pytest.FixtureRequest, graph_of: Callable[[int, int], Graph], edge_machine: Machine, tiny_machine: Machine
) -> Program:
    spilling = machine_like(tiny_machine, sram={"capacity_bytes": 32768}, param_memory={"capacity_bytes": 2304})
    machine = {"edge": edge_machine, "tiny": tiny_machine, "spilling": spilling}[request.param]
    return build_program(graph_of(8, 16), machine)


@pytest.fixture(scope="module")
def step_code(graph_of: Callable[[int, int], Graph], tiny_machine: Machine) -> list[Decoded]:
    return decode(build_program(graph_of(8, 16), tiny_machine).step)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_that_the_tokens_allow_gives_the_same_bits(program: Program, inputs: Inputs, seed: int) -> None:
    shuffled = partial(execute_in_random_order, rng=np.random.default_rng(seed))
    assert_same_bits(run_program(program, inputs, execute=shuffled), run_program(program, inputs))


@st.composite
def any_code(draw: st.DrawFn) -> list[Decoded]:
    """Loads, stores and sums of a few bytes each, on few addresses, results that nobody reads among them."""
    code = []
    for _ in range(draw(st.integers(1, 25))):
        op = draw(st.sampled_from(["load", "store", "ewlin"]))
        spec = BY_MNEMONIC[op]
        fields = dict.fromkeys(spec.by_name, 0) | {"unit": UNITS.index(spec.units[0]), "shift": 1}
        fields |= {name: 4 * draw(st.integers(0, 5)) for name in ("local_addr", "dram_addr", "a_addr", "out_addr")}
        fields |= dict.fromkeys(("b_addr", "a_mul_addr", "b_mul_addr", "bias_addr"), NO_ADDRESS)
        fields |= {"row_bytes": draw(st.integers(1, 9)), "cols": draw(st.integers(1, 9))}
        fields |= dict.fromkeys(("rows", "planes", "batch"), 1)
        code.append(SimpleNamespace(**{n: v for n, v in fields.items() if n in spec.by_name}, op=op))
    return code


@given(any_code())
def test_tokens_order_every_conflict_of_any_code(code: list[Decoded]) -> None:
    for ins, header in zip(code, insert_tokens(code), strict=True):
        for name, mask in header.items():
            setattr(ins, name, mask)
    assert hazards(code) == []
    before = ordered_before(code, tokens(code))
    assert all(before[later] >> earlier & 1 for earlier, later in conflicts(code))


def test_orders_differ_from_program_order(program: Program) -> None:
    code = decode(program.step)
    order = token_legal_order(code, np.random.default_rng(0))
    assert sorted(order) == list(range(len(code)))
    assert order != list(range(len(code)))


def test_every_conflict_is_ordered(program: Program) -> None:
    for _, code in program.code():
        instructions = decode(code)
        before = ordered_before(instructions, tokens(instructions))
        assert all(before[later] >> earlier & 1 for earlier, later in conflicts(instructions))
        assert hazards(instructions) == []


def test_knowledge_of_units_equals_reachability(step_code: list[Decoded]) -> None:
    # `completed_before` counts instructions of each unit; the sets here know nothing of units.
    knowledge, faults = completed_before(step_code)
    assert faults == []
    before = ordered_before(step_code, tokens(step_code))
    for index, ins in enumerate(step_code):
        for unit in range(len(knowledge[index])):
            done = [before[index] >> i & 1 for i in range(index) if step_code[i].unit == unit]
            assert knowledge[index][unit] == sum(done)
            assert done == sorted(done, reverse=True)
        assert knowledge[index][ins.unit] == sum(1 for i in range(index) if step_code[i].unit == ins.unit)


def test_removed_tokens_are_found_exactly(step_code: list[Decoded]) -> None:
    pairs, order = conflicts(step_code), tokens(step_code)
    rng = np.random.default_rng(0)
    needed = 0
    for number in rng.choice(len(order), 30, replace=False):
        changed = without(step_code, order[number])
        rest = [token for at, token in enumerate(order) if at != number]
        before = ordered_before(changed, rest)
        unordered = {later for earlier, later in pairs if not before[later] >> earlier & 1}
        assert {fault.at for fault in hazards(changed)} == unordered
        needed += bool(unordered)
    assert needed > 15  # the others are implied by what is left, through a third unit


def test_an_order_without_a_needed_token_can_change_the_bits(
    graph_of: Callable[[int, int], Graph], tiny_machine: Machine, inputs: Inputs
) -> None:
    program = build_program(graph_of(8, 16), tiny_machine)
    code, expected = decode(program.step), run_program(program, inputs, steps=(1,))
    order, rng, changed_runs, runs = tokens(code), np.random.default_rng(5), 0, 0
    for number in rng.choice(len(order), 14, replace=False):
        token, broken = order[number], without(code, order[number])
        if not hazards(broken):
            continue
        words = program.step.copy()
        for index in (token.sender, token.taker):
            words[index] = encoded(broken[index])
        runs += 1
        shuffled = partial(execute_in_random_order, rng=rng)
        try:
            outputs = run_program(replace(program, step=words), inputs, steps=(1,), execute=shuffled)
        except ValueError:  # an instruction met operands that are none
            changed_runs += 1
            continue
        changed_runs += any(not np.array_equal(outputs[0][name], bits) for name, bits in expected[0].items())
    assert runs > 5
    assert changed_runs >= 3


def changed(instructions: list[Decoded], index: int, field: str, mask: int) -> list[Decoded]:
    result = [copy(ins) for ins in instructions]
    setattr(result[index], field, getattr(result[index], field) ^ mask)
    return result


def test_half_a_token_is_found(step_code: list[Decoded]) -> None:
    for token in tokens(step_code)[::31]:
        sender, taker = step_code[token.sender], step_code[token.taker]
        only_sent = changed(step_code, token.taker, f"wait_{token.kind}", 1 << sender.unit)
        rules = [fault.rule for fault in hazards(only_sent)]
        assert rules == [f"its {token.kind} token to {UNITS[taker.unit]} is never taken"]
        only_taken = changed(step_code, token.sender, f"signal_{token.kind}", 1 << taker.unit)
        rules = [fault.rule for fault in hazards(only_taken)]
        assert rules == [f"waits for a {token.kind} token that {UNITS[sender.unit]} has not been told to send"]


def test_token_across_a_barrier_is_found(step_code: list[Decoded]) -> None:
    used = {(token.kind, step_code[token.sender].unit, step_code[token.taker].unit) for token in tokens(step_code)}
    kind, a, b = min((k, a, b) for k in ("raw", "war") for a in range(4) for b in range(4) if (k, a, b) not in used)
    code = [copy(ins) for ins in step_code * 2]
    sender = next(i for i, ins in enumerate(code) if ins.unit == a)
    taker = next(i for i, ins in enumerate(code) if ins.unit == b and i > len(step_code))
    code = changed(changed(code, sender, f"signal_{kind}", 1 << b), taker, f"wait_{kind}", 1 << a)
    assert hazards(code) == [
        (sender, f"its {kind} token to {UNITS[b]} is never taken"),
        (taker, f"waits for a {kind} token that {UNITS[a]} has not been told to send"),
    ]
