"""Whole programs: the step is timed once and counted often, and that is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.program import Buffer, Program
from npusim.timing import CAUSES, core, simulate, time_program
from npusim.units import KINDS
from tests.npusim.timing.programs import Words, equipped, random_code, random_machine


def program(machine: Machine, prologue: Words, step: Words, steps: int) -> Program:
    noise = Buffer(4096, "i16", (steps, 8))
    sets = np.zeros((steps, 16), np.uint8)
    for code in (prologue, step):  # a part has no halt inside
        code[:-1, 0] += (code[:-1, 0] & 0xFF) == BY_MNEMONIC["halt"].opcode
    constants, none, ranges = np.zeros(16, np.uint8), np.zeros((1, 0), np.uint8), (0,) * steps
    buffers = {"noise": noise}
    return Program(
        machine, prologue, step, constants, sets, none, 64, 64 + sets.size, ranges, 1 << 16, buffers, ("layer",), {}
    )


def test_reuse_gives_the_totals_of_the_long_run(tiny_machine: Machine) -> None:
    for seed in range(30):
        rng = np.random.default_rng([7, seed])
        machine = random_machine(rng, tiny_machine)
        prologue = random_code(rng, 12, 0.4, True)
        if seed % 3 == 0:
            prologue = prologue[:0]
        video = program(machine, prologue, random_code(rng, 25, 0.4, True), int(rng.integers(1, 8)))
        quick, long = time_program(video), time_program(video, reuse=False)
        for name in ("cycles", "seconds", "mac_utilisation", "traffic", "ledger", "steps"):
            assert getattr(quick, name) == getattr(long, name), (seed, name)
        assert quick.cycles == quick.prologue.total_cycles + video.steps * quick.step.total_cycles
        assert all(sum(quick.ledger[unit].values()) == quick.cycles for unit in KINDS)
        assert set(quick.ledger["mac"]) == set(CAUSES)
        assert quick.ledger["mac"]["idle_done"] == 0


def test_seconds_and_utilisation(tiny_machine: Machine) -> None:
    rng = np.random.default_rng(8)
    video = program(equipped(tiny_machine), random_code(rng, 5, 0.2, True), random_code(rng, 20, 0.2, True), 20)
    timing = time_program(video)
    assert timing.seconds == timing.cycles / 200e6
    macs = timing.prologue.traffic.mac_operations + 20 * timing.step.traffic.mac_operations
    assert timing.traffic.mac_operations == macs
    assert timing.mac_utilisation == pytest.approx(macs / (64 * timing.cycles))
    assert 0 < timing.mac_utilisation < 1


def test_code_without_a_final_barrier_is_refused(tiny_machine: Machine) -> None:
    rng = np.random.default_rng(9)
    whole = random_code(rng, 8, 0.0, True)
    with pytest.raises(UserError, match="step: does not end in a barrier"):
        time_program(program(equipped(tiny_machine), whole, whole[:-1], 2))
    with pytest.raises(UserError, match="step: does not end in a barrier"):
        time_program(program(equipped(tiny_machine), whole, whole[:0], 2))
    with pytest.raises(UserError, match="prologue: does not end in a barrier"):
        time_program(program(equipped(tiny_machine), whole[:-1], whole, 2))


def test_an_error_names_the_piece_of_code(tiny_machine: Machine) -> None:
    good = random_code(np.random.default_rng(9), 8, 0.0, True)
    bad = good.copy()
    bad[3] = 0
    with pytest.raises(UserError, match="step: instruction 3: opcode 0"):
        time_program(program(equipped(tiny_machine), good, bad, 2))


def test_a_ledger_that_does_not_sum_is_caught(tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = core.run

    def leaking(*arguments: Any) -> Any:
        outcome, total, ledger, *rest = run(*arguments)
        ledger[2, 0] += 1
        return outcome, total, ledger, *rest

    monkeypatch.setattr(core, "run", leaking)
    with pytest.raises(AssertionError, match=r"ledger of .*'mac'.* sums to \[.*\], not to \d+ cycles"):
        simulate(random_code(np.random.default_rng(1), 10, 0.1, True), equipped(tiny_machine))
