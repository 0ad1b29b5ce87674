"""A step cut into segments by barriers: fetches are spread over them, bits stay, equal segments are timed once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler import Builder, Graph, compile_graph
from compiler.schedule import segments
from compiler.swap import IN_DRAM, POLICIES, swap_program
from compiler.swap.coded import Codes
from compiler.verify import verify
from npusim.config import Machine
from npusim.congruence import joins, pieces, time_digest
from npusim.crosscheck import random_inputs
from npusim.isa import decode
from npusim.program import Program
from npusim.simulate import Simulation
from npusim.swap import Timer, compare, rate_that_hides, with_rate
from npusim.timing import simulate, time_program
from tests.compiler.runs import machine_like

ROWS, WIDTH, BLOCKS, STEPS = 400, 64, 6, 4


def network(range_of_step: tuple[int, ...]) -> Graph:
    """Equal blocks: LayerNorm with each step's factors, two linears with each range's weights, and a sum."""
    rng = np.random.default_rng(5)
    net = Builder(steps=STEPS, range_of_step=range_of_step)
    x = net.input("x", (ROWS, WIDTH), "i16")
    for block in range(BLOCKS):
        name = f"block{block}"
        g = net.const(f"{name}.g", rng.integers(8192, 24576, (STEPS, WIDTH)), "i16", per="step")
        b = net.const(f"{name}.b", rng.integers(-(2**20), 2**20, (STEPS, WIDTH)), "i32", per="step")
        h = net.layernorm(f"{name}.norm", x, g, b, "i16", epsilon=1, fraction_bits=12, shift=14)
        for layer in ("fc1", "fc2"):
            first = rng.integers(-99, 100, (WIDTH, WIDTH))
            change = rng.integers(-9, 10, (1 + max(range_of_step), WIDTH, WIDTH))
            h = net.linear(f"{name}.{layer}", h, (first + change).astype(np.int8), "i16", multiplier=20000, shift=23)
        x = net.sum(f"{name}.sum", x, h, "i16", a_mul=3, b_mul=1, shift=2)
    net.output(x)
    return net.graph()


@pytest.fixture(scope="module")
def machine(tiny_machine: Machine) -> Machine:
    """Storage so fast that a set is hidden in a step or two."""
    device = tiny_machine.storage.device.model_dump() | {"latency_us": 5, "bandwidth_bytes_per_second": 200_000_000}
    dma = {"setup_cycles": 1, "decoder_bytes_per_cycle": 8}
    return machine_like(tiny_machine, dram={"interconnect_ns": 0}, dma=dma, storage={"device": device})


@pytest.fixture(scope="module")
def plain(machine: Machine) -> Callable[..., Program]:
    def make(*range_of_step: int) -> Program:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segments, "SHARE", 20)  # so a small network is cut often
            return compile_graph(network(range_of_step), machine)

    return cache(make)


def outputs(program: Program, inputs: Mapping[str, NDArray[Any]], verify_all: bool = False) -> list[NDArray[Any]]:
    simulation = Simulation(program, inputs, range(program.steps) if verify_all else (), verify_prologue=verify_all)
    simulation.prologue()
    (name,) = program.buffers.keys() - inputs.keys()
    found = []
    for step in range(program.steps):
        simulation.step(step)
        found.append(simulation.read(name))
    assert simulation.bit_exact.equal in (True, None)
    return found


def segments_that_fetch(program: Program) -> int:
    """Of the step that fetches in most."""
    counts = []
    for code in program.step_codes:
        parts = [decode(code[begin:end]) for begin, end in pieces(joins(code))]
        counts.append(sum(any(ins.op == "fetch" for ins in part) for part in parts))
    return max(counts)


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "coded"])
@pytest.mark.parametrize("policy", POLICIES)
def test_bits_and_bytes(policy: str, coded: bool, plain: Any, machine: Machine) -> None:
    program = plain(*((0, 1, 2, 3) if coded else (0, 0, 1, 2)))
    assert len(pieces(joins(program.step))) > BLOCKS
    timer, codes = Timer(machine, program.bases(0)), Codes(program.range_sets) if coded else None
    made = swap_program(program, timer, policy, IN_DRAM if coded else policy, codes=codes)
    verify(made)
    assert (segments_that_fetch(made) > 2) == (policy not in ("blocking", "resident"))
    inputs = random_inputs(program)
    np.testing.assert_array_equal(outputs(made, inputs, verify_all=policy == "streamed"), outputs(program, inputs))
    timing = time_program(made)
    assert timing.cycles == time_program(made, reuse=False).cycles
    # Each set is brought once; of coded sets, storage delivers their codes.
    fetches = [ins for step in range(-1, made.steps) for ins in fetched(made, step)]
    assert timing.traffic.fetch_bytes == program.range_sets.size + (0 if coded else program.sets.size)
    assert timing.traffic.storage_read_bytes == sum(ins.coded_bytes or ins.bytes for ins in fetches)
    if coded and policy != "resident":
        rooms = {(ins.storage_addr, ins.coded_bytes) for ins in fetches if ins.coded_bytes}
        assert made.coded.size == (len(program.range_sets) - 1) * sum(size for _, size in rooms)
        assert made.coded.size + program.range_sets.shape[1] == timing.traffic.storage_read_bytes
        assert made.coded.size < 0.9 * program.range_sets[1:].size


def fetched(program: Program, step: int) -> list[Any]:
    part = program.part_of_step(step) if step >= 0 else "prologue"
    return [ins for ins in program.decoded()[part] if ins.op == "fetch"]


def test_equal_segments_fetch_alike_and_are_timed_once(
    plain: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = plain(0, 1, 2, 3)
    made = swap_program(program, Timer(machine, program.bases(0)), "shadow", IN_DRAM)
    from npusim.timing import reuse

    monkeypatch.setattr(reuse, "_kept", type(reuse._kept)())
    simulate(made.step, machine, made.bases(0))
    fetching = segments_that_fetch(made)
    long = [run for run in reuse._kept.values() if len(run.start) > 1]
    assert fetching > 1
    assert len(long) < len(pieces(joins(made.step))) - 1


def test_what_is_hidden_is_hidden_at_the_rate_that_was_found(plain: Any, machine: Machine) -> None:
    """One set for each step: `streamed` needs no second place and hides as much, in the halves of a step."""
    program = plain(0, 1, 2, 3)
    shadow, streamed, blocking = compare(program, machine, ("shadow", "streamed", "blocking"), "x")
    assert blocking.exposed_cycles > 2 * max(shadow.exposed_cycles, streamed.exposed_cycles)
    assert streamed.dram_bytes < shadow.dram_bytes
    assert shadow.break_even is not None
    for factor, hidden in ((1.0, True), (0.97, False)):
        slower = with_rate(machine, int(shadow.break_even * factor))
        made = swap_program(program, Timer(machine, program.bases(0)), "shadow", "shadow", slower)
        ledgers = [simulate(code, slower, made.bases(0)).ledger for code in made.step_codes]
        waits = sum(causes["wait_param_swap"] for ledger in ledgers for causes in ledger.values())
        assert (waits == 0) is hidden


def test_the_rate_is_searched_once_for_equal_pieces(
    plain: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that differ in layers' numbers and whole turns of DRAM alone need the same rate."""
    program = plain(0, 1, 2, 3)
    made = swap_program(program, Timer(machine, program.bases(0)), "shadow", "shadow")
    fetching = [
        code[begin:end]
        for code in made.step_codes
        for begin, end in pieces(joins(code))
        if any(ins.op == "fetch" for ins in decode(code[begin:end]))
    ]
    module, searched = sys.modules["npusim.swap"], list[Any]()
    search = module._rate_of_piece

    def noted(piece: Any, *rest: Any) -> Any:
        searched.append(piece)
        return search(piece, *rest)

    monkeypatch.setattr(module, "_rate_of_piece", noted)
    assert rate_that_hides(program, made, machine) is not None
    assert len(searched) == len({time_digest(piece, made.bases(0), machine) for piece in fetching})
    assert len(searched) < len({piece.tobytes() for piece in fetching})
