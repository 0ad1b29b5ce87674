"""Every policy leaves the bits of the program whose sets lie in DRAM, whatever order the tokens allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler import compile_model
from compiler.swap import IN_DRAM, POLICIES, swap_program
from compiler.swap.coded import Codes
from compiler.verify import verify
from models.quantize import quantize
from models.workloads import get_workload
from npusim import engine
from npusim.config import Machine
from npusim.crosscheck import random_inputs
from npusim.errors import UserError
from npusim.isa import decode
from npusim.orders import token_legal_order
from npusim.program import Program
from npusim.program_file import load_program, save_program
from npusim.simulate import Simulation
from npusim.timing import simulate, time_program
from npusim.units import UNITS
from tests.compiler.runs import encoded, machine_like

LOAD, STORAGE = UNITS.index("load"), UNITS.index("storage")


@pytest.fixture(scope="module")
def machine(tiny_machine: Machine) -> Machine:
    """Storage fast enough that part of a set is hidden in a step: 40 and 140 cycles of 165,000."""
    device = tiny_machine.storage.device.model_dump() | {"latency_us": 20, "bandwidth_bytes_per_second": 100_000_000}
    return machine_like(tiny_machine, storage={"device": device})


@pytest.fixture(scope="module")
def base(machine: Machine) -> Any:
    """``base(method, ranges)``: `tiny` with 4 steps, compiled with all sets in DRAM."""
    work = get_workload("tiny")
    model, stats = work.load_model(), work.load_stats()
    return cache(lambda method, ranges: compile_model(quantize(model, stats, method, ranges=ranges), machine))


@pytest.fixture(scope="module")
def swapped(base: Any, machine: Machine) -> Any:
    """``swapped(method, ranges, range_policy, step_policy)``."""

    @cache
    def make(method: str, ranges: int, range_policy: str, step_policy: str) -> Program:
        known: dict[bytes, int] = {}

        def timer(code: NDArray[np.uint32]) -> int:
            key = code.tobytes()
            if key not in known:
                known[key] = simulate(code, machine).total_cycles
            return known[key]

        return swap_program(base(method, ranges), timer, range_policy, step_policy)

    return make


def noise_of(program: Program, inputs: Mapping[str, NDArray[Any]], verify_all: bool = False) -> NDArray[Any]:
    simulation = Simulation(program, inputs, range(program.steps) if verify_all else (), verify_prologue=verify_all)
    simulation.prologue()
    found = []
    for step in range(program.steps):
        simulation.step(step)
        found.append(simulation.read("eps"))
    assert simulation.bit_exact.equal in (True, None)
    return np.stack(found)


CASES = [
    ("tsq", 4, "blocking", "blocking"), ("tsq", 4, "resident", "resident"), ("tsq", 4, "shadow", "shadow"),
    ("tsq", 4, "streamed", "streamed"), ("tsq", 4, "adaptive", "adaptive"), ("tsw", 2, "shadow", "streamed"),
    ("tsw", 4, IN_DRAM, "shadow"), ("cw_tw", 1, "shadow", "streamed"),
    pytest.param(("tsw", 2, "streamed", IN_DRAM), marks=pytest.mark.slow),
    pytest.param(("tsq", 1, "shadow", "blocking"), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain_run(base: Any) -> Any:
    """``plain_run(method, ranges)``: random inputs, the noise predicted with all sets in DRAM, and the cycles."""

    @cache
    def run(method: str, ranges: int) -> tuple[Mapping[str, NDArray[Any]], NDArray[Any], int]:
        plain = base(method, ranges)
        inputs = random_inputs(plain)
        return inputs, noise_of(plain, inputs), time_program(plain).cycles

    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_bits_are_those_of_the_program_with_its_sets_in_dram(
    case: tuple[str, int, str, str], plain_run: Any, swapped: Any, tmp_path: Path
) -> None:
    program = swapped(*case)
    verify(program)
    assert any(ins.op == "fetch" for part in program.decoded().values() for ins in part)
    inputs, expected, plain_cycles = plain_run(*case[:2])
    save_program(program, tmp_path / "swapped.npu")
    found = noise_of(load_program(tmp_path / "swapped.npu"), inputs, verify_all=True)
    np.testing.assert_array_equal(found, expected)
    cycles = time_program(program).cycles
    # Moved sets lie in other rows of DRAM, which can save a few row misses.
    assert cycles == time_program(program, reuse=False).cycles >= 0.998 * plain_cycles


@pytest.mark.parametrize("policy", ["blocking", "shadow", "streamed", "adaptive"])
def test_coded_sets_give_the_same_bits_from_fewer_bytes_of_storage(
    policy: str, base: Any, machine: Machine, tmp_path: Path
) -> None:
    """Both executors decode; the engine's noise is compared with that of the program whose sets lie in DRAM."""
    plain = base("tsq", 4)
    known: dict[bytes, int] = {}

    def timer(code: NDArray[np.uint32]) -> int:
        key = code.tobytes()
        known[key] = known.get(key) or simulate(code, machine).total_cycles
        return known[key]

    program = swap_program(plain, timer, policy, IN_DRAM, codes=Codes(plain.range_sets))
    verify(program)
    fetches = [ins for part in program.decoded().values() for ins in part if ins.op == "fetch"]
    assert sum(ins.coded_bytes > 0 for ins in fetches) > 0
    inputs = random_inputs(plain)
    expected = noise_of(plain, inputs)
    np.testing.assert_array_equal(noise_of(program, inputs, verify_all=policy == "shadow"), expected)
    save_program(program, tmp_path / "coded.npu")
    np.testing.assert_array_equal(noise_of(load_program(tmp_path / "coded.npu"), inputs), expected)
    traffic = time_program(program).traffic
    assert traffic.fetch_bytes == plain.range_sets.size
    assert traffic.storage_read_bytes < traffic.fetch_bytes
    size = int(plain.range_sets.shape[1])
    pieces = {(ins.storage_addr, ins.coded_bytes) for ins in fetches if ins.coded_bytes}
    assert program.storage_bytes == plain.sets.size + size + 3 * sum(size for _, size in pieces)


def test_sets_larger_than_the_storage_are_refused_with_the_numbers(base: Any, machine: Machine) -> None:
    plain = base("tsq", 4)
    device = machine.storage.device.model_dump() | {"capacity_bytes": 1 << 20}
    small = machine_like(machine, storage={"device": device})
    sets = np.broadcast_to(plain.range_sets[:1], (4, plain.range_sets.shape[1])).repeat(20, axis=1)
    big = replace(plain, range_sets=sets, dram_bytes=plain.dram_bytes + sets.size - plain.range_sets.size)
    needed = plain.sets.size + sets.size
    with pytest.raises(UserError, match=f"{needed} bytes of storage are needed.* {4} range sets of {sets.shape[1]}, 0"):
        swap_program(big, lambda code: 1, "resident", IN_DRAM, small)


def test_a_set_that_comes_from_the_wrong_place_changes_bits(plain_run: Any, swapped: Any) -> None:
    """So the comparison above would notice it."""
    program = swapped("tsq", 4, "shadow", "shadow")
    inputs, expected, _ = plain_run("tsq", 4)
    rows = [list(row) for row in program.swap.registers]
    rows[2][8] = rows[1][8]  # step 1 fetches its own range's set again for step 2
    wrong = replace(program, swap=replace(program.swap, registers=tuple(map(tuple, rows))))
    found = noise_of(wrong, inputs)
    np.testing.assert_array_equal(found[:2], expected[:2])
    assert (found[2] != expected[2]).any()


def test_any_order_that_the_tokens_allow_gives_the_same_bits(plain_run: Any, swapped: Any) -> None:
    program = swapped("tsq", 4, "streamed", "streamed")
    (inputs, expected, _), code = plain_run("tsq", 4), program.decoded()
    assert any(ins.wait_war >> LOAD & 1 for part in code.values() for ins in part if ins.op == "fetch")
    assert any(ins.wait_raw >> STORAGE & 1 for part in code.values() for ins in part if ins.op == "load")
    for seed in range(2):
        simulation = Simulation(program, inputs)
        simulation.prologue()
        for step in range(program.steps):
            part = code[program.part_of_step(step)]
            simulation.state.bases = program.bases(step)
            order = token_legal_order(part, np.random.default_rng([seed, step]), stay=0.95)
            engine.execute(simulation.state, [part[index] for index in order])
            np.testing.assert_array_equal(simulation.read("eps"), expected[step])


def test_a_missing_token_of_a_fetch_is_found(swapped: Any) -> None:
    program = swapped("tsq", 4, "streamed", "streamed")
    number, words = next(
        (n, code.copy())
        for n, code in enumerate(program.step_codes)
        if any(i.op == "fetch" and i.wait_war for i in decode(code))
    )
    instructions = decode(words)
    index = next(i for i, ins in enumerate(instructions) if ins.op == "fetch" and ins.wait_war >> LOAD & 1)
    sender = max(i for i, ins in enumerate(instructions[:index]) if ins.op == "load" and ins.signal_war >> STORAGE & 1)
    for at, field, unit in ((index, "wait_war", LOAD), (sender, "signal_war", STORAGE)):
        words[at] = encoded(instructions[at], **{field: getattr(instructions[at], field) & ~(1 << unit)})
    codes = [words if n == number else code for n, code in enumerate(program.step_codes)]
    with pytest.raises(UserError, match=r"\(fetch\) of layer parameter swap: writes dram bytes .* while load"):
        verify(replace(program, step=codes[0], more_steps=tuple(codes[1:])))


def test_fetches_stay_within_their_places_and_hide_from_no_register(swapped: Any) -> None:
    program = swapped("tsw", 2, "shadow", IN_DRAM)
    rows = [list(row) for row in program.swap.registers]

    def with_place(address: int) -> Program:
        changed = [[*row[:9], address if number == 2 else row[9]] for number, row in enumerate(rows)]
        return replace(program, swap=replace(program.swap, registers=tuple(map(tuple, changed))))

    (low, high) = program.places["places of range_sets"]
    with pytest.raises(UserError, match=rf"in step 1; allowed: places of range_sets at {low}\.\.{high}"):
        verify(with_place(high - 64))
    with pytest.raises(UserError, match=r"through base 9, which instruction \d+ reaches through base 3"):
        verify(with_place(rows[2][3]))
    with pytest.raises(UserError, match="lie outside its 0 bytes"):
        verify(replace(program, swap=None))


def test_dram_holds_the_places_and_nothing_moves_otherwise(base: Any, swapped: Any, machine: Machine) -> None:
    plain, turn = base("tsq", 4), 1024 * 4
    for policy, sets in (("blocking", 1), ("shadow", 2), ("resident", 4)):
        program = swapped("tsq", 4, policy, policy)
        saved = (4 - sets) * (plain.sets.shape[1] + plain.range_sets.shape[1])
        assert plain.dram_bytes - program.dram_bytes == saved // turn * turn
        assert (program.swap.set_places, program.swap.range_places) == (sets, sets)
    blocking = swapped("tsq", 4, "blocking", IN_DRAM)
    fetches = [i for i in decode(blocking.step) if i.op == "fetch"]
    assert [i.bytes for i in fetches] == [plain.range_sets.shape[1]]


@pytest.mark.slow
def test_adaptive_costs_no_more_than_any_policy(swapped: Any) -> None:
    for method, ranges in (("tsq", 4), ("tsw", 2)):
        cycles = {policy: time_program(swapped(method, ranges, policy, policy)).cycles for policy in POLICIES}
        assert cycles["adaptive"] == min(cycles.values())
        assert cycles["blocking"] == max(cycles.values())
        assert cycles["streamed"] < cycles["blocking"]


def with_budget(machine: Machine, budget: int) -> Machine:
    """A smaller budget than machine files may name: `tiny` needs less than the least of these."""
    return machine.model_copy(update={"dram": machine.dram.model_copy(update={"npu_budget_bytes": budget})})


def test_a_policy_that_does_not_fit_is_refused_with_the_numbers(base: Any, machine: Machine) -> None:
    plain = base("tsq", 4)
    size = plain.range_sets.shape[1]
    budget = plain.dram_bytes - 2 * size - 1  # room for one set beside the present one, short of a byte

    def timer(code: NDArray[np.uint32]) -> int:
        return simulate(code, machine).total_cycles

    small = with_budget(machine, budget)
    message = rf"resident: 4 places of {size} bytes for the range sets .* need {plain.dram_bytes} bytes of DRAM; "
    with pytest.raises(UserError, match=rf"{message}allowed: dram.npu_budget_bytes = {budget}"):
        swap_program(plain, timer, "resident", machine=small)
    small = with_budget(machine, plain.dram_bytes - 3 * size)
    with pytest.raises(UserError, match=rf"shadow: 2 places of {size} bytes"):
        swap_program(plain, timer, "shadow", machine=small)
    assert swap_program(plain, timer, "adaptive", machine=small).swap.range_places == 1
    with pytest.raises(UserError, match="policy = 'lazy': allowed blocking, resident, shadow, streamed, adaptive"):
        swap_program(plain, timer, "lazy")
