"""Engine against reference on any program, and other orders: what differs is found and named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compiler import Builder, compile_graph
from npusim import crosscheck as module
from npusim import engine
from npusim.config import Machine
from npusim.crosscheck import crosscheck, random_inputs
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.assembly import assemble
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState
from npusim.orders import tokens
from npusim.program import Program
from tests.compiler.orders import without
from tests.compiler.runs import encoded
from tests.npusim.strategies import small_program


@pytest.fixture(scope="module")
def program(tiny_machine: Machine) -> Program:
    """Text through a linear, in tiles, then added to a gate of other width."""
    rng = np.random.default_rng(0)
    net = Builder()
    x, count = net.input("x", (40, 24), "i16"), net.input("count", (1, 1), "i32")
    q = net.linear("q", x, rng.integers(-9, 9, (16, 24), np.int8), "i8", multiplier=20000, shift=24)
    k = net.linear("k", x, rng.integers(-9, 9, (16, 24), np.int8), "i8", multiplier=20000, shift=24)
    scales: dict[str, Any] = {"logit": (20000, 20), "output": (1 << 30, 31), "fraction_bits": 6}
    a = net.attention("attn", q, k, k, "i16", heads=2, **scales, valid=count)
    net.output(net.product("square", a, a, "i32", shift=1))
    return compile_graph(net.graph(), tiny_machine)


def off_by_one(row: int, column: int) -> Any:
    """A product of which one element is too large by 1."""

    def execute(state: MachineState, ins: Decoded) -> None:
        BY_MNEMONIC["ewmul"].execute(state, ins)
        state.vector("sram", ins.out_addr + row * ins.out_row + 4 * column, np.int32, 1)[0] += 1

    return execute


def test_equal_executors_and_orders(program: Program) -> None:
    result = crosscheck(program, orders=5)
    assert result.equal
    assert str(result).splitlines() == [
        "engine = reference in every byte, prologue and 1 step",
        "5 random orders give the same bytes, prologue and 1 step",
    ]


def test_a_slip_is_named_with_its_element(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.EXECUTORS, "ewmul", off_by_one(2, 7))
    result = crosscheck(program, orders=1)
    index = next(i for i, ins in enumerate(decode(program.step)) if ins.op == "ewmul")
    ins = decode(program.step)[index]
    assert not result.equal
    assert result.executors is not None
    assert result.executors.startswith(f"step 0, instruction {index} (ewmul, layer square): sram byte ")
    assert f"byte {ins.out_addr + 2 * ins.out_row + 28} (i32)" in result.executors
    assert result.executors.endswith(f"; element [0, 2, 7] of out [1, {ins.rows}, 16]")
    assert str(result).startswith("DIFFER: step 0, instruction")


@pytest.fixture
def holding() -> Program:
    """Two steps whose second MATMUL leaves 2 x 3 sums in the accumulators, of operands that are 0."""
    line = "matmul m=2 n=3 k=4 batch0=1 batch1=1 b_dtype=i8 acc_hold=1 layer=1"
    return small_program(lambda v: v.update(step=assemble(f"{line}\n{line} acc_continue=1\nbarrier\n")))


def test_held_sums_are_compared(holding: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(state: MachineState, ins: Decoded) -> None:
        BY_MNEMONIC["matmul"].execute(state, ins)
        state.held[ins.unit].products[1, 2] += ins.acc_continue

    assert crosscheck(holding, orders=1).equal
    monkeypatch.setitem(engine.EXECUTORS, "matmul", slip)
    result = crosscheck(holding)
    assert not result.equal
    assert result.executors == (
        "step 0, instruction 1 (matmul, layer sampler.add): accumulators byte 56 (i64) is 1 in the engine, "
        "0 in the reference"
    )


def test_lost_sums_are_a_difference(holding: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.EXECUTORS, "matmul", lambda state, ins: None)
    found = crosscheck(holding).bit_exact.first_difference
    assert found is not None
    assert (found.instruction, found.memory, found.byte, found.engine, found.reference) == (0, "accumulators", 0, 0, 2)


def test_orders_that_leave_other_sums_differ(holding: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (f"matmul m={m} n=3 k=4 batch0=1 batch1=1 b_dtype=i8 acc_hold=1 layer=1\n" for m in (2, 1))
    words = assemble("".join(lines) + "barrier\n")
    monkeypatch.setattr(module, "token_legal_order", lambda code, rng: [1, 0, 2] if len(code) > 1 else [0])
    assert crosscheck(replace(holding, step=words), orders=1).order == (
        "step 0: accumulators byte 0 (u8) is 1 in program order, 2 in random order 0; last written in program order "
        "instruction 1 (matmul, layer sampler.add), in the random one instruction 0 (matmul, layer sampler.add)"
    )


def test_a_missing_token_changes_the_bits_in_some_order(program: Program) -> None:
    code = decode(program.step)
    found = 0
    for token in tokens(code):
        words = program.step.copy()
        changed = without(code, token)
        for index in (token.sender, token.taker):
            words[index] = encoded(changed[index])
        try:
            result = crosscheck(replace(program, step=words), orders=30)
        except UserError:  # an instruction met operands that are none
            continue
        assert result.executors is None  # program order hides it
        if result.order:
            found += 1
            assert " in program order, " in result.order
            assert "; last written in program order instruction " in result.order
    assert found > 3


def test_random_inputs_fit_their_buffers_and_differ(program: Program) -> None:
    first, again, other = random_inputs(program), random_inputs(program), random_inputs(program, 1)
    assert list(first) == ["x", "count"]
    assert (first["x"].dtype, first["x"].shape) == (np.int16, (40, 24))
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    sizes = np.abs(first["x"].astype(int)).max(axis=1)
    assert sizes.min() < 300
    assert sizes.max() > 3000
    counts = {int(random_inputs(program, seed)["count"][0, 0]) for seed in range(300)}
    assert counts == set(range(1, 41))


@pytest.mark.parametrize(("steps", "orders", "message"), [
    (-1, 0, r"steps = -1: the program has 1; allowed 0\.\.1"), (2, 0, "steps = 2"), (1, -1, "orders = -1"),
])  # fmt: skip
def test_bad_requests(program: Program, steps: int, orders: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        crosscheck(program, steps, orders)


def test_a_negative_seed_is_refused(program: Program) -> None:
    with pytest.raises(UserError, match=r"^seed = -1: allowed: at least 0$"):
        crosscheck(program, seed=-1)


def test_a_fault_in_another_order_names_its_instruction(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    index = next(i for i, ins in enumerate(decode(program.step)) if ins.op == "recip")
    monkeypatch.setattr(module, "token_legal_order", lambda code, rng: [index] if len(code) > index else [0])
    with pytest.raises(UserError, match=rf"step 0, instruction {index} \(recip, layer attn\): a row sum"):
        crosscheck(program, orders=1)
