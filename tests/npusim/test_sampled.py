"""A share of the instructions, computed again by the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim import engine, reference
from npusim.cli import main
from npusim.errors import BitsDifferError
from npusim.sampled import Sample
from npusim.simulate import Simulation
from tests.npusim.conftest import Tiny


def test_all_instructions_are_computed_again_and_change_nothing(tiny: Tiny) -> None:
    """With a share of 1 memory, held sums and counted events are those of a run without."""
    sample = Sample(1.0)
    checked, plain = Simulation(tiny.program, tiny.inputs, sample=sample), Simulation(tiny.program, tiny.inputs)
    for simulation in (checked, plain):
        simulation.prologue()
        simulation.step(0)
    assert sample.instructions == len(tiny.program.prologue) + len(tiny.program.step)
    assert checked.state.difference(plain.state) is None
    assert checked.tallies == plain.tallies
    assert checked.bit_exact.equal
    assert checked.bit_exact.sampled_instructions == sample.instructions


def test_the_choice_follows_seed_and_share() -> None:
    one, again, other = (Sample(0.1, seed) for seed in (1, 1, 2))
    chosen = one.chosen(3, 10_000)
    assert 850 < chosen.sum() < 1150
    np.testing.assert_array_equal(chosen, again.chosen(3, 10_000))
    assert (chosen != other.chosen(3, 10_000)).any()
    assert (chosen != one.chosen(4, 10_000)).any()
    assert not Sample(0.0).chosen(0, 100).any()


def test_the_reference_runs_as_often_as_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cost in proportion to the share: nothing else runs on the reference, and no memory is copied whole."""
    runs: list[Any] = []
    execute = reference.execute
    monkeypatch.setattr(reference, "execute", lambda state, code: (runs.append(code), execute(state, code)))
    monkeypatch.setattr("npusim.memory.MachineState.copy", lambda state: pytest.fail("copied whole"))
    sample = Sample(0.03, 7)
    simulation = Simulation(tiny.program, tiny.inputs, sample=sample)
    simulation.prologue()
    simulation.step(0)
    expected = sum(int(sample.chosen(n, len(c)).sum()) for n, (_, c) in enumerate(tiny.program.code()))
    assert len(runs) == sample.instructions == expected > 0


@pytest.mark.parametrize("mnemonic", ["matmul", "lnapply", "smexp", "store"])
def test_a_planted_slip_is_found(
    mnemonic: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tiny_file: Path, tmp_path: Path, capsys: Any
) -> None:
    """One bit of one result, in every instruction of a kind: the first one that is chosen names it and stops."""
    exact = engine.EXECUTORS[mnemonic]

    def slip(state: Any, ins: Any) -> None:
        exact(state, ins)
        if mnemonic == "store":
            state.dram[state.bases[ins.base] + ins.dram_addr] ^= 4
        elif not getattr(ins, "acc_hold", 0):
            state.sram[ins.out_addr] ^= 4

    monkeypatch.setitem(engine.EXECUTORS, mnemonic, slip)
    simulation = Simulation(tiny.program, tiny.inputs, sample=Sample(0.2, 1))

    def run_all() -> None:
        simulation.prologue()
        for step in range(4):
            simulation.step(step)

    with pytest.raises(BitsDifferError) as caught:
        run_all()
    found = simulation.bit_exact.first_difference
    assert found is not None
    assert simulation.bit_exact.equal is False
    assert found.mnemonic == mnemonic
    assert found.memory == ("dram" if mnemonic == "store" else "sram")
    assert abs(found.engine - found.reference) in (4, 4 << 8, 4 << 16, 4 << 24)
    text = str(caught.value)
    for part in (
        f"instruction {found.instruction} ({mnemonic}",
        f"byte {found.byte}",
        f"is {found.engine} in the engine",
    ):
        assert part in text
    if mnemonic != "lnapply":
        return
    out = tmp_path / "run"
    command = ["run", "--workload", "tiny", "--hw", str(tiny_file), "--out", str(out), "--integer-only"]
    assert main([*command, "--verify", "none", "--verify-sample", "0.2"]) == 1
    assert "error: engine and reference differ: " in capsys.readouterr().err
    assert not out.exists()
