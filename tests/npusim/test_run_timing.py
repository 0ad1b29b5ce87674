"""Timing-only runs: a program without weights takes the real one's time, and is neither run nor saved."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compiler import compile_model
from models.errors import ModelError
from models.prepare import quantize_for
from models.quantize import Override
from models.quantize.outline import outline
from models.workloads import get_workload
from npusim.cli import main
from npusim.config import Machine, load_machine
from npusim.congruence import joins
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.program import Program
from npusim.program_file import save_program
from npusim.run import run_timing
from npusim.simulate import Simulation
from npusim.timing import reuse, time_program
from npusim.timing.cost import Costs
from tests.compiler.runs import machine_like

IMMEDIATES = {"multiplier", "shift", "out_zp", "a_mul", "b_mul", "fraction_bits", "epsilon"}
"""Fields that hold numbers of the data; all others are the real program's."""
CASES = [
    *((method, 8, 8, None, False) for method in ("cw_tw", "tsw", "asq", "ssq", "tsq", "tsq_pot", "dynamic")),
    *((method, 8, 8, None, True) for method in ("tsw", "tsq", "tsq_pot")), ("cw_tw", 4, 6, 2, False),
    ("tsq", 6, 16, (0, 3), True), ("asq", 8, 16, 2, True), ("tsq_pot", 4, 4, 2, True),
]  # fmt: skip
TINY = get_workload("tiny")


def able(machine: Machine) -> Machine:
    return machine_like(machine, vector_unit={"runtime_quantization": True})


def assert_same_time(real: Program, bare: Program) -> None:
    """Equal cycles by cause, traffic and DRAM rows; equal instructions but for immediates; equal map of DRAM."""
    for (part, left), (_, right) in zip(real.decoded().items(), bare.decoded().items(), strict=True):
        assert [ins.op for ins in left] == [ins.op for ins in right]
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            for name in BY_MNEMONIC[one.op].by_name.keys() - IMMEDIATES - {"opcode"}:
                assert getattr(one, name) == getattr(other, name), (part, index, one.op, name)
    for name in ("dram_bytes", "buffers", "layers", "set_address", "range_address", "range_of_step"):
        assert getattr(real, name) == getattr(bare, name)
    for name, (address, data) in real.areas.items():
        assert (bare.areas[name][0], bare.areas[name][1].size) == (address, data.size)
    first, second = time_program(real), time_program(bare)
    assert (first.cycles, first.ledger, first.traffic, first.dram) == (
        second.cycles, second.ledger, second.traffic, second.dram,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_tiny_takes_the_same_time_without_weights(case: tuple, tiny_stats, edge_machine: Machine) -> None:
    method, weight_bits, act_bits, ranges, factored = case
    machine, (model, stats) = able(edge_machine), tiny_stats
    made = quantize_for(TINY, model, stats, method, weight_bits, act_bits, ranges=ranges)
    bare = outline(TINY, method, weight_bits, act_bits, ranges=ranges)
    assert_same_time(compile_model(made, machine, 16, None, factored), compile_model(bare, machine, 16, None, factored))


def test_overrides_and_attention_bits(tiny_stats, edge_machine: Machine) -> None:
    model, stats = tiny_stats
    overrides = (Override(("mlp.fc1", "attn.qkv"), weight_bits=4), Override(("mlp.fc2",), act_bits=16))
    made = quantize_for(TINY, model, stats, "asq", overrides=overrides)
    bare = outline(TINY, "asq", overrides=overrides)
    assert_same_time(compile_model(made, edge_machine, 8), compile_model(bare, edge_machine, 8))
    smoothed = quantize_for(TINY, model, stats, "dynamic", alpha=0.5), outline(TINY, "dynamic", alpha=0.5)
    assert_same_time(*(compile_model(one, able(edge_machine)) for one in smoothed))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:10], ids=lambda case: "-".join(map(str, case)))
def test_emoji_takes_the_same_time_without_weights(case: tuple) -> None:
    method, _, _, _, factored = case
    work = get_workload("emoji")
    machine = load_machine(Path("hwconfigs") / f"edge_8k{'_dynamic' * (method == 'dynamic')}.yaml")
    real = compile_model(quantize_for(work, work.load_model(), work.load_stats(), method), machine, factored=factored)
    assert_same_time(real, compile_model(outline(work, method), machine, factored=factored))


@pytest.fixture(scope="module")
def tiny_stats():
    return TINY.load_model(), TINY.load_stats()


def test_the_folder_says_what_was_not_modelled(tiny_machine: Machine, tmp_path: Path) -> None:
    result = run_timing(TINY, tiny_machine, "asq", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["layers.csv", "run.json", "steps.csv"]
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("fidelity", "calibration", "saturation", "bit_exact"):
        assert held[name] == "n/a"
    assert held["config"]["timing_only"] is True
    assert held["seeds"] == {"noise": "n/a"}
    assert held["cost"]["cycles"] == result.timing.cycles
    rows = list(csv.DictReader((tmp_path / "run" / "steps.csv").read_text().splitlines()))
    assert len(rows) == TINY.num_steps
    assert {row["compared_bit_for_bit"] for row in rows} == {"n/a"}


def test_no_file_is_needed(tmp_path: Path, tiny_machine: Machine) -> None:
    """Not even those that the workload names."""
    gone = replace(TINY, checkpoint=tmp_path / "none", calibration=tmp_path / "none", vae=tmp_path / "none")
    assert run_timing(gone, tiny_machine).timing.cycles > 0


def test_a_program_without_contents_is_neither_run_nor_saved(tiny_machine: Machine, tmp_path: Path) -> None:
    program = compile_model(outline(TINY), tiny_machine)
    with pytest.raises(UserError, match="without contents is for timing only"):
        save_program(program, tmp_path / "p.npu")
    with pytest.raises(UserError, match="without contents is for timing only"):
        Simulation(program, {})
    with pytest.raises(ModelError, match="an outline holds no weights"):
        outline(TINY).save(tmp_path / "q.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "fire"], "--prompt: cycles depend on no data; allowed without --timing-only only"),
        (["--verify", "2"], "--verify: cycles depend on no data"),
        (["--seed", "1"], "--seed: cycles depend on no data"),
        (["--checkpoint", "x.safetensors"], "--checkpoint: cycles depend on no data"),
        (["--calibration", "x.safetensors"], "--calibration: cycles depend on no data"),
        (["--method", "tsq_dp"], "method 'tsq_dp' chooses its time ranges by calibration statistics"),
        (["--method", "cwtw"], "method 'cwtw' is unknown"),
        (["--ranges", "3"], "ranges=3: allowed of 4 steps"),
    ],
)
def test_options_that_need_data_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, out = "hwconfigs/tiny_8x8.yaml", tmp_path / "out"
    given = ["run", "--timing-only", "--workload", "tiny", "--hw", machine, "--out", str(out), *options]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_equal_blocks_of_the_real_model_are_timed_once(edge_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of STDiT-XL/2's first blocks: a block, and what only the first has, are timed; the totals are the same."""
    work = get_workload("stdit-xl2-16x256x256")
    small = replace(work, config={**work.config, "depth": 3}, num_steps=2)
    program = compile_model(outline(small, "asq"), edge_machine)
    run, timed = reuse._run, list[slice]()

    def noted(cost: Costs, part: slice, known: reuse._Machine) -> reuse.Run:
        timed.append(part)
        return run(cost, part, known)

    monkeypatch.setattr(reuse, "_run", noted)
    quick = time_program(program)
    pieces = int(joins(program.step).sum())
    long_segments = [part for part in timed if part.stop - part.start > 100]
    assert pieces > 3 * 7
    # The prologue, the first block, what the others have in place of its own, what follows.
    assert len(long_segments) == 1 + 7 + 2 + 1, long_segments
    whole = time_program(program, reuse=False)
    assert (quick.cycles, quick.ledger, quick.traffic, quick.dram) == (
        whole.cycles, whole.ledger, whole.traffic, whole.dram,
    )  # fmt: skip


@pytest.mark.parametrize("options", [["--timing-only"], ["--integer-only", "--verify", "none", "--steps", "2"]])
def test_no_reuse_times_every_instruction_and_gives_the_same_files(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a piece of code may be reused")

    def files(name: str, *more: str) -> dict[str, bytes]:
        given = ["run", "--workload", "tiny", "--hw", "hwconfigs/tiny_8x8.yaml", "--out", str(tmp_path / name)]
        assert main([*given, *options, *more]) == 0
        held = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        record = json.loads(held.pop("run.json"))
        assert record.pop("wall_clock")
        return held | {"run.json": json.dumps(record).encode()}

    quick = files("quick")
    monkeypatch.setattr(sys.modules["npusim.timing.simulate"], "run_pieces", refuse)
    assert files("whole", "--no-reuse") == quick
