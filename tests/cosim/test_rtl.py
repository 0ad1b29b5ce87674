"""The RTL of the matrix unit against the reference executor (bits, overflow flag) and the timing model (cycles)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from npusim.config import Machine
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState
from npusim.rtl import TOP, write_rtl
from tests.cosim.cases import Case, random_case
from tests.cosim.compare import differences
from tests.cosim.edges import all_cases
from tests.cosim.machines import NO_SHADOW_TRAP, OUTPUT_STATIONARY, SIZES, SMALL, Fields, variant
from tests.cosim.rtl import MatrixUnit, Outcome, require_tools, run_tool

UnitOf = Callable[[Machine], MatrixUnit]

STYLE = ("-Wno-UNUSEDSIGNAL", "-Wno-PINCONNECTEMPTY", "-Wno-UNUSEDPARAM")
"""Warnings that mean nothing here: the grid's last row and column drive nobody, shared counters have spare outputs."""


def lint(machine: Machine, folder: Path) -> None:
    require_tools()
    write_rtl(machine, folder)
    run_tool(["verilator", "--lint-only", "-Wall", *STYLE, "--top-module", TOP, "-f", "npu.f"], folder)


def test_8x8_equals_the_reference_in_bits_and_the_closed_form_in_cycles(tiny_machine: Machine, unit_of: UnitOf) -> None:
    machine = variant(tiny_machine, {})
    assert differences(unit_of(machine), all_cases(machine, seed=1, scale_up=2)) == []


def test_8x8_output_stationary(tiny_machine: Machine, unit_of: UnitOf) -> None:
    machine = variant(tiny_machine, OUTPUT_STATIONARY)
    assert differences(unit_of(machine), all_cases(machine, seed=1, scale_up=2)) == []


@pytest.mark.slow
def test_8x8_with_everything_else_different(tiny_machine: Machine, unit_of: UnitOf) -> None:
    machine = variant(tiny_machine, NO_SHADOW_TRAP)
    assert differences(unit_of(machine), all_cases(machine, seed=2, scale_up=2)) == []


def test_a_difference_is_found_and_named(tiny_machine: Machine, unit_of: UnitOf) -> None:
    """The comparison can fail: a unit that is a cycle late, loses a value and flips a bit of the first one."""
    machine = variant(tiny_machine, {})
    case = random_case(machine, np.random.default_rng(3), ("i8", "i8", "i16"), "channel", (1, 1, 5, 9, 3))

    class Faulty(MatrixUnit):
        def __init__(self, inner: MatrixUnit) -> None:
            self.machine, self.inner = inner.machine, inner

        def run(self, instructions: Sequence[Decoded], states: Sequence[MachineState]) -> list[Outcome]:
            (outcome,) = self.inner.run(instructions, states)
            states[0].sram[instructions[0].out_addr] ^= 1
            return [replace(outcome, cycles=outcome.cycles + 1, values=outcome.values - 1)]

    (line,) = differences(Faulty(unit_of(machine)), [case])
    assert line.startswith("random: i8 x i8 -> i16, channel, 1x1x5x9x3: 40 cycles, closed form 39; 14 values and 0 out")
    assert "; 1 of 15 values differ, first (0, 0, 0, 0): " in line


@pytest.mark.parametrize("fields", [{}, OUTPUT_STATIONARY], ids=["weight_stationary", "output_stationary"])
def test_sources_are_clean(tiny_machine: Machine, tmp_path: Path, fields: Fields) -> None:
    lint(variant(tiny_machine, fields), tmp_path)


def test_a_missing_verilator_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "verilator" else f"/usr/bin/{program}")
    with pytest.raises(pytest.fail.Exception, match=r"without verilator.*apt-get install -y .* verilator g.. make"):
        require_tools()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SIZES, *SMALL])
def test_other_arrays(tiny_machine: Machine, unit_of: UnitOf, name: str) -> None:
    machine = variant(tiny_machine, (SIZES | SMALL)[name])
    cases: list[Case] = [case for seed in range(2) for case in all_cases(machine, seed, scale_up=3)]
    assert differences(unit_of(machine), cases) == []


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, OUTPUT_STATIONARY], ids=["weight_stationary", "output_stationary"])
def test_sources_are_clean_at_size(edge_machine: Machine, tmp_path: Path, fields: Fields) -> None:
    lint(variant(edge_machine, fields | {"rows": 32, "cols": 64}), tmp_path)  # memory and time grow with the cells
