"""The comparison of policies: its sums, its break-even rate against a closed form, its folder."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from compiler.swap import swap_program, with_ranges, without_fetches
from npusim.cli import main
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.run import quantize_workload
from npusim.swap import ALL_SETS, Study, SwapCost, compare, rate_that_hides, swap
from npusim.swap_timer import Timer, with_rate
from npusim.swap_write import Score, _scores, pareto
from npusim.timing import time_program

QUICK = ("blocking", "resident", "shadow")


@pytest.fixture(scope="module")
def program(tiny_machine: Machine) -> Any:
    from compiler import compile_model

    return compile_model(quantize_workload("tiny", "tsq", ranges=2), tiny_machine)


def with_latency(machine: Machine, latency_us: int) -> Machine:
    fields = machine.model_dump(mode="json")
    fields["storage"]["device"]["latency_us"] = latency_us
    return Machine.model_validate(fields)


def test_sums_of_a_comparison(program: Any, tiny_machine: Machine) -> None:
    timer, plain = Timer(tiny_machine, program.bases(0)), time_program(program)
    for cost in compare(program, tiny_machine, QUICK, "tsq", break_even=False):
        made = swap_program(program, timer, cost.policy, cost.policy)
        timing = time_program(made)
        assert cost.cycles == timing.cycles
        assert cost.plain_cycles == pytest.approx(plain.cycles, rel=2e-3)  # other neighbours in DRAM rows
        assert cost.cycles == cost.plain_cycles + cost.startup_cycles + cost.exposed_cycles
        assert cost.storage_cycles == timing.ledger["storage"]["busy"]
        assert (
            cost.storage_read_bytes == timing.traffic.storage_read_bytes == program.sets.size + program.range_sets.size
        )
        assert cost.dram_bytes == made.dram_bytes
        assert [b.number for b in cost.boundaries] == ([0] if cost.policy == "resident" else [0, 1])
        assert sum(b.storage_read_bytes for b in cost.boundaries) == program.range_sets.size
        assert cost.seconds == cost.cycles / 200e6
        if cost.policy == "blocking":  # nothing is hidden, and each boundary costs the same
            assert cost.boundaries[0].exposed_cycles == cost.boundaries[1].exposed_cycles
            assert cost.exposed_cycles + cost.startup_cycles > cost.storage_cycles
        if cost.policy == "resident":
            assert cost.exposed_cycles == 0


def test_the_break_even_rate_of_shadow_is_its_closed_form(program: Any, tiny_machine: Machine) -> None:
    """In each of a range's two steps, both fetches must end before the step's last barrier begins."""
    machine = with_latency(tiny_machine, 20)
    timer = Timer(machine, program.bases(0))
    made = swap_program(program, timer, "shadow", "shadow", machine)
    rate = rate_that_hides(program, made, machine)
    assert rate is not None
    busiest = max(([ins.bytes for ins in decode(code) if ins.op == "fetch"] for code in made.step_codes), key=sum)
    assert len(busiest) == 2
    # halt (1 cycle) and the barrier stand behind the last instruction of a step
    timer = Timer(machine, made.bases(0))
    without = without_fetches(program, made)[1]
    room = timer(without) - 1 - machine.barrier_cycles

    def needed(rate: int) -> int:
        return sum(16 + 20 * 200 + ceil(Fraction(size * 200_000_000, rate)) for size in busiest)

    tail = 100  # from the last bytes' arrival of a fetch to the end of their write: a row, a refresh, the interconnect
    taken = machine.dram_stream_cycles(sum(busiest))  # the most that writing them takes from others at the DRAM
    assert needed(rate) <= room + taken
    assert room < needed(int(rate / 1.02)) + len(busiest) * tail
    for faster, hidden in ((1.0, True), (0.98, False)):
        timer = Timer(with_rate(machine, int(rate * faster)), made.bases(0))
        extra = [timer(code) - timer(without) for code in made.step_codes]
        assert (max(extra) <= taken) is hidden


def test_what_nothing_hides_has_no_break_even_rate(program: Any, tiny_machine: Machine) -> None:
    """200 us of latency for each of two fetches leave a step of 165,000 cycles room, but 1,000 us do not."""
    machine = with_latency(tiny_machine, 1000)
    (cost,) = compare(program, machine, ("shadow",), "tsq")
    assert cost.break_even is None
    assert cost.exposed_cycles > 0


def test_folder_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "swap"
    arguments = ["swap", "--workload", "tiny", "--hw", "hwconfigs/tiny_8x8.yaml", "--methods", "tsw", "--ranges", "1,4"]
    assert main([*arguments, "--policies", "blocking,shadow", "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "swap.csv").read_text().splitlines()))
    assert [(row["ranges"], row["policy"], row["swapped"]) for row in rows] == [
        (ranges, policy, swapped)
        for ranges, swapped in (("1", "step constants"), ("1", "all sets"), ("4", "all sets"))
        for policy in ("blocking", "shadow")
    ]
    assert all(int(row["startup_cycles"]) > 0 for row in rows)
    assert float(rows[-1]["slow_down_against_one_set"]) < float(rows[-2]["slow_down_against_one_set"])
    assert (out / "pareto.csv").read_text().count("n/a") == 3 * 4
    assert "The denoiser's time only" in (out / "swap.md").read_text()
    capsys.readouterr()
    for extra, message in (
        (["--policies", "lazy"], "policy = 'lazy': allowed all, or some of blocking"),
        (["--ranges", "1,x"], "ranges = '1,x': allowed whole numbers"),
        (["--ranges", "5"], "allowed some, of 1..4"),
        (["--fidelity", str(tmp_path), "--policies", "shadow"], "no folder cells; allowed"),
    ):
        assert main([*arguments, *extra, "--out", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_a_program_of_other_ranges_is_the_one_that_is_compiled_for_them(tiny_machine: Machine) -> None:
    """But for less than a turn of the address mapping, by which what lies behind the sets may begin elsewhere."""
    from compiler import compile_model
    from models.quantize.outline import outline
    from models.workloads import get_workload

    work, turn = get_workload("tiny"), tiny_machine.dram.turn_bytes
    two, four = (compile_model(outline(work, "tsq", ranges=count), tiny_machine) for count in (2, 4))
    made = with_ranges(two, (0, 1, 2, 3))
    assert made.range_sets.shape == four.range_sets.shape
    assert made.range_of_step == four.range_of_step
    assert 0 <= made.dram_bytes - four.dram_bytes < turn
    assert time_program(made).traffic.dram_read_bytes == pytest.approx(time_program(four).traffic.dram_read_bytes)
    for policy in ("shadow", "streamed"):
        costs = [compare(program, tiny_machine, (policy,), break_even=False)[0] for program in (made, four)]
        assert costs[0].dram_bytes == pytest.approx(costs[1].dram_bytes, abs=turn)
        assert costs[0].cycles == pytest.approx(costs[1].cycles, rel=5e-3)
        assert costs[0].boundaries[1].storage_read_bytes == costs[1].boundaries[1].storage_read_bytes
    with pytest.raises(UserError, match="allowed: one compiled from an outline"):
        with_ranges(compile_model(quantize_workload("tiny", "tsq", ranges=2), tiny_machine), (0, 1, 2, 3))


def test_a_policy_that_does_not_fit_is_a_refused_row(program: Any, tiny_machine: Machine) -> None:
    budget = program.dram_bytes - int(program.range_sets.shape[1])
    machine = tiny_machine.model_copy(
        update={"dram": tiny_machine.dram.model_copy(update={"npu_budget_bytes": budget})}
    )
    blocking, resident = compare(program, machine, ("blocking", "resident"), "tsq", break_even=False)
    assert not blocking.refused
    assert blocking.dram_bytes <= budget
    assert f"allowed: dram.npu_budget_bytes = {budget}" in resident.refused


def test_the_front_has_what_nothing_beats() -> None:
    def cost(ranges: int, cycles: int, dram_bytes: int, refused: str = "") -> SwapCost:
        head = SwapCost("tsq", ranges, "shadow", ALL_SETS, 1, 1)
        return replace(head, cycles=cycles, dram_bytes=dram_bytes, refused=refused)

    costs = (cost(1, 10, 10), cost(2, 12, 10), cost(2, 12, 11), cost(4, 9, 20), cost(4, 8, 8, "no"), cost(10, 1, 1))
    study = Study("tiny", Any, costs, {"tsq": 1}, {})  # type: ignore[arg-type]
    rows = pareto(study, {("tsq", 1): Score(30.0, 2), ("tsq", 2): Score(31.0, 2), ("tsq", 4): Score(29.0, 2)})
    assert [(c.ranges, c.dram_bytes, front) for c, _, front in rows] == [
        (1, 10, True), (2, 10, True), (2, 11, False), (4, 20, True), (10, 1, False),
    ]  # fmt: skip


def test_scores_are_means_of_the_cells_of_the_same_workload_and_bits(tmp_path: Path) -> None:
    def cell(name: str, workload: str, decibels: Any) -> None:
        body = {"settings": {"workload": workload}, "figures": {"eps_sqnr_db": decibels}}
        (tmp_path / "cells" / f"emoji-{name}.json").write_text(json.dumps(body))

    heads = [SwapCost(method, ranges, "shadow", ALL_SETS, 1, 1) for method, ranges in (("tsq", 1), ("tsq", 4))]
    study = Study("emoji", Any, tuple(heads), {"tsq": 1}, {})  # type: ignore[arg-type]
    (tmp_path / "cells").mkdir()
    with pytest.raises(UserError, match="no cell emoji-METHOD-w8a8-rRANGES"):
        _scores(study, tmp_path)
    cell("asq-w8a8-r1", "emoji", [[30.0, 31.0], [32.0, 33.0]])
    cell("tsq-w8a8-r4", "emoji", [[34.0, 36.0]])
    cell("tsq-w4a8-r4", "emoji", [[1.0]])
    assert _scores(study, tmp_path) == {("tsq", 1): (31.5, 2), ("tsq", 4): (35.0, 1)}
    with pytest.raises(UserError, match="workload = 'emoji': says nothing of 'tiny'"):
        _scores(replace(study, workload="tiny"), tmp_path)
    for figures in (None, 31.5):
        cell("tsq-w8a8-r4", "emoji", figures)
        with pytest.raises(UserError, match="not a cell's file"):
            _scores(study, tmp_path)


def test_methods_must_be_known(tiny_machine: Machine) -> None:
    with pytest.raises(UserError, match="allowed some, of"):
        swap("tiny", tiny_machine, methods=())
