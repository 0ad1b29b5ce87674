"""The main job: a workload, a machine and a method go in; a clip, its fidelity and its cost come out.

`run` is what ``npusim run`` calls. It ties the three packages together, stage by stage; every stage's result is a
named type:

    float checkpoint + calibration statistics -> quantized model -> program -> simulation -> RunResult -> the run folder
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import reprlib
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import npusim
from compiler.swap import IN_DRAM
from models.prepare import quantize_for
from models.quantize import Override, QuantizedModel
from models.quantize.outline import outline
from models.stats import CalibrationStats
from models.stdit import STDiT
from models.workloads import Workload, get_workload
from npusim import callable_module
from npusim.clips import ClipInputs, Notify, Stages, float_clips, integer_clip, one_thread
from npusim.config import Machine, load_machine
from npusim.cost import Energy, energy
from npusim.errors import UserError
from npusim.fidelity import Clip, Fidelity, measure
from npusim.folder import check_folder
from npusim.memory import Tallies
from npusim.program import Program
from npusim.run_config import RunConfig, config_of, part_of
from npusim.sampled import Sample
from npusim.simulate import BitExact
from npusim.swapped import PartSwap, compiled, swap_rows
from npusim.timing import ProgramTiming, time_program
from npusim.unfinished import Made, Unfinished

callable_module(__name__)


VERIFY_WORDS = ("all", "none")


@dataclass(frozen=True, eq=False)
class TimingResult:
    """What a timing-only run gives, and the part of every run that needs no tensor data.

    quantized, program: outlines in a timing-only run (`models.quantize.outline`); timesteps: of the executed steps;
    passes: text of each compiler stage by name, empty unless asked for; wall_clock: seconds this run took by stage, and
    when it began: the only part that differs between equal runs.
    """

    config: RunConfig
    quantized: QuantizedModel
    program: Program
    timing: ProgramTiming
    timesteps: tuple[int, ...]
    passes: Mapping[str, str]
    wall_clock: Mapping[str, float | str]

    @cached_property
    def energy(self) -> Energy:
        """Of the denoiser, from the counted actions and the tables in hwconfigs/energy."""
        return energy(self.program, self.timing)

    @cached_property
    def swap(self) -> tuple[PartSwap, ...]:
        """What each part fetches; empty where all sets lie in DRAM."""
        return swap_rows(self.program, self.timing)


@dataclass(frozen=True, eq=False)
class RunResult(TimingResult):
    """What a run gives; `npusim.report.write_run` writes the folder from it.

    clips: by "float", "fakequant", "integer", the last alone in an integer-only run, which has no fidelity; tallies: of
    the integer clip, as `npusim.simulate.Simulation` has them.
    """

    calibration: CalibrationStats
    clips: Mapping[str, Clip]
    fidelity: Fidelity | None
    bit_exact: BitExact
    tallies: Mapping[str, Tallies]


@one_thread()
def run(
    workload: str | Workload,
    hw: str | Path | Machine,
    method: str = "cw_tw",
    out: str | Path | None = None,
    *,
    prompt: str | None = None,
    seed: int | None = None,
    verify: str | None = None,
    weight_bits: int = 8,
    act_bits: int = 8,
    attention_bits: int = 16,
    ranges: int | Sequence[int] | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    factored: bool = False,
    policy: str = IN_DRAM,
    checkpoint: str | Path | None = None,
    calibration: str | Path | None = None,
    dump_passes: bool = False,
    steps: int | None = None,
    blocks: int | None = None,
    branch: str | None = None,
    integer_only: bool = False,
    verify_sample: float = 0.0,
    save_seconds: float = 60.0,
    reuse: bool = True,
    notify: Notify | None = None,
) -> RunResult:
    """Quantize, compile, simulate and measure one clip, or go on with an interrupted run of the same arguments.

    Args:
        workload: name of a workload, or one made by hand.
        hw: machine file, or a machine.
        method: quantization method.
        out: run folder to write; it is written when everything has succeeded. Before, a long run keeps what it has
            finished in the folder ``unfinished`` inside (`npusim.unfinished`). Nothing is written if None.
        prompt: a caption with stored text states; by default the workload's first sheet caption.
        seed: of the noise; by default the first sheet caption's.
        verify: which steps the reference executor repeats, to compare all memory bit for bit: "all", "none", or a
            number of steps, spread evenly from first to last. The prologue is compared with them. By default 2, and
            "none" for a network of full size, of which the reference takes days for a step.
        weight_bits: of the block linears' weights.
        act_bits: of the block linears' inputs.
        attention_bits: of queries, keys and values.
        ranges: number of equal time ranges, or the first step of each; by default the method's own.
        alpha: smoothing exponent; by default the one that was searched for.
        overrides: exceptions to the bits, by layer class (the compiler takes none that change between steps).
        factored: requantize in two factors what changes with the time range, see `compiler.compile_model`.
        policy: how the sets of steps and time ranges come from storage, where they begin (`compiler.swap.POLICIES`);
            "in_dram": they lie in DRAM from the start, and bringing them there costs nothing.
        checkpoint: float weights other than the workload's own; calibrated anew unless ``calibration`` is given.
        calibration: calibration statistics other than the workload's own.
        dump_passes: keep the text of every compiler stage.
        steps: run only the first so many denoising steps.
        blocks: run only the first so many transformer blocks; calibrated anew, for the network's output is another.
        branch: run only this guidance branch, "conditional" or "unconditional", without guidance.
        integer_only: without float and fake-quantized clip, which take as long again; fidelity is then not known.
        verify_sample: share 0..1 of the executed instructions, chosen at random by ``seed``, that the reference
            computes again, each from what it met in memory (`npusim.sampled`).
        save_seconds: time after which a run keeps what is finished, and between two savings.
        reuse: time equal pieces of code once; without, every instruction of all steps (`npusim.timing.time_program`).
            The result is the same.
        notify: told of progress.

    Raises:
        UserError, ModelError: the user's input is at fault; nothing was written.
        BitsDifferError: a sampled instruction has other bits in the reference; nothing was written.
    """
    from npusim.report import RUN_FOLDER, write_run  # report.py needs this module's types

    if out is not None:
        check_folder(Path(out), RUN_FOLDER)
    machine = hw if isinstance(hw, Machine) else load_machine(hw)
    work = part_of(with_files(workload, checkpoint, None), steps, blocks, branch).with_files(
        calibration=None if calibration is None else Path(calibration)
    )
    if verify is None:
        verify = "2" if work.quick_calibration is None else "none"
    prompt = work.sheet_captions[0] if prompt is None else prompt
    config = config_of(
        work, machine, ranges, overrides, prompt=prompt, seed=work.sheet_seeds[0] if seed is None else seed,
        method=method, weight_bits=weight_bits, act_bits=act_bits, attention_bits=attention_bits, alpha=alpha,
        factored=factored, verify=verify, steps=steps, blocks=blocks, branch=branch, integer_only=integer_only,
        verify_sample=verify_sample, policy=policy,
    )  # fmt: skip
    if not 0 <= save_seconds < math.inf:
        raise UserError(f"save_seconds = {save_seconds}: allowed seconds from 0 on")
    store = Unfinished(None if out is None else Path(out), _about(config, work), save_seconds)
    result = _run(config, prompt, work, overrides, dump_passes, Stages(notify), store, reuse)
    if out is not None:
        write_run(result, Path(out))
        store.remove()
    return result


def _about(config: RunConfig, work: Workload) -> dict[str, Any]:
    """All that decides a run's results: its settings, the user's files, and the versions of what computes them."""
    files = {}
    for name in ("checkpoint", "vae", "calibration", "alphas", "text_states"):
        path: Path | None = getattr(work, name)
        if path is not None and path.is_file():
            with path.open("rb") as file:
                files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "machine"}
    return {
        "config": fields | {"machine": config.machine.model_dump(mode="json")},
        "network": work.network | {"weights_seed": work.weights_seed},
        "files": files,
        "versions": {"npusim": npusim.__version__, "numpy": np.__version__, "torch": str(torch.__version__)},
    }


def _run(
    config: RunConfig,
    prompt: str,
    work: Workload,
    overrides: Sequence[Override],
    dump_passes: bool,
    stages: Stages,
    store: Unfinished,
    reuse: bool,
) -> RunResult:
    assert config.seed is not None
    assert config.verify is not None
    executed = work.num_steps if config.steps is None else config.steps
    verified = steps_to_verify(config.verify, executed)
    inputs = ClipInputs.of(work, prompt, config.seed, executed, config.branch)
    model = cache(work.load_model)
    vae = work.load_vae() if work.vae else None
    passes: dict[str, str] = {}
    made = None if dump_passes else store.take_made()
    if made is None:
        made = _make(config, work, model, overrides, passes.__setitem__ if dump_passes else None, stages)
        store.keep_made(*made)
    stats, quantized, program = made
    clips, trajectory, fidelity = dict[str, Clip](), None, None
    if not config.integer_only:
        clips, trajectory = float_clips(stages, inputs, model, quantized, vae, store)
    model.cache_clear()  # of a large network, the float weights are most of what is in memory
    sample = Sample(config.verify_sample, config.seed) if config.verify_sample else None
    clips["integer"], simulation = integer_clip(stages, inputs, program, trajectory, vae, verified, sample, store)
    with stages.stage("time"):
        timing = time_program(program, reuse, executed)
    if not config.integer_only:
        with stages.stage("measure"):
            fidelity = measure(clips)
    stages.wall_clock["peak_resident_bytes"] = peak_resident_bytes()
    return RunResult(
        config, quantized, program, timing, timesteps_of(work)[:executed], passes, stages.wall_clock, stats, clips,
        fidelity, simulation.bit_exact, simulation.tallies,
    )  # fmt: skip


class _CachedModel(Protocol):
    """The float model, loaded when it is asked for and held until `cache_clear`."""

    def __call__(self) -> STDiT: ...

    def cache_clear(self) -> None: ...


def _make(
    config: RunConfig,
    work: Workload,
    model: _CachedModel,
    overrides: Sequence[Override],
    dump: Callable[[str, str], None] | None,
    stages: Stages,
) -> Made:
    """Calibrate where there are no statistics, quantize, compile."""
    if work.calibration is None:
        with stages.stage("calibrate"):
            stats = work.collected_stats(model(), lambda done, total: stages.tell("calibrate", done / total, 1))
    else:
        stats = work.load_stats()
    with stages.stage("quantize"):
        quantized = quantize_for(
            work, model(), stats, config.method, config.weight_bits, config.act_bits, ranges=config.ranges,
            alpha=config.alpha, overrides=overrides,
        )  # fmt: skip
    model.cache_clear()
    with stages.stage("compile"):
        program = _compiled(quantized, config, dump)
    return stats, quantized, program


def _compiled(quantized: QuantizedModel, config: RunConfig, dump: Callable[[str, str], None] | None) -> Program:
    return compiled(
        quantized, config.machine, config.policy, config.attention_bits, config.factored, config.branch, dump
    )


def peak_resident_bytes() -> int:
    """The most memory that this process has occupied so far, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere in KiB


def run_timing(
    workload: str | Workload,
    hw: str | Path | Machine,
    method: str = "cw_tw",
    out: str | Path | None = None,
    *,
    weight_bits: int = 8,
    act_bits: int = 8,
    attention_bits: int = 16,
    ranges: int | Sequence[int] | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    factored: bool = False,
    policy: str = IN_DRAM,
    dump_passes: bool = False,
    steps: int | None = None,
    blocks: int | None = None,
    branch: str | None = None,
    reuse: bool = True,
    notify: Notify | None = None,
) -> TimingResult:
    """The cycles of a clip, of any prompt and seed: no checkpoint, calibration or tensor data is needed.

    Cycles, ledger, traffic and addresses are those of `run`, because a program's structure follows from workload,
    method and widths. Immediates (multipliers, shifts, zero points, fractional bits) and constants mean nothing, and
    nothing proves that the accumulators of linears cannot overflow. Arguments and errors as of `run`.
    """
    from npusim.report import RUN_FOLDER, write_run  # report.py needs this module's types

    if out is not None:
        check_folder(Path(out), RUN_FOLDER)
    machine = hw if isinstance(hw, Machine) else load_machine(hw)
    work = part_of(get_workload(workload) if isinstance(workload, str) else workload, steps, blocks, branch)
    config = config_of(
        work, machine, ranges, overrides, prompt=None, seed=None, method=method, weight_bits=weight_bits,
        act_bits=act_bits, attention_bits=attention_bits, alpha=alpha, factored=factored, verify=None, timing_only=True,
        steps=steps, blocks=blocks, branch=branch, policy=policy,
    )  # fmt: skip
    stages, passes = Stages(notify), dict[str, str]()
    with stages.stage("compile"):
        made, program = outlined(work, config, passes.__setitem__ if dump_passes else None)
    with stages.stage("time"):
        timing = time_program(program, reuse, steps)
    stages.wall_clock["peak_resident_bytes"] = peak_resident_bytes()
    result = TimingResult(config, made, program, timing, timesteps_of(work)[:steps], passes, stages.wall_clock)
    if out is not None:
        write_run(result, Path(out))
    return result


def outlined(
    work: Workload, config: RunConfig, dump: Callable[[str, str], None] | None = None
) -> tuple[QuantizedModel, Program]:
    """The model and program of a timing-only run. Raises UserError or ModelError for what cannot be compiled."""
    overrides = [Override(**override) for override in config.overrides]
    made = outline(
        work, config.method, config.weight_bits, config.act_bits, ranges=config.ranges, alpha=config.alpha,
        overrides=overrides,
    )  # fmt: skip
    return made, _compiled(made, config, dump)


def timesteps_of(work: Workload) -> tuple[int, ...]:
    """The timesteps of a workload's sampler, in order of execution."""
    return tuple(int(t) for t in work.sampler().timesteps[::-1])


@one_thread()
def quantize_workload(
    workload: str | Workload,
    method: str = "cw_tw",
    *,
    weight_bits: int = 8,
    act_bits: int = 8,
    checkpoint: str | Path | None = None,
    calibration: str | Path | None = None,
    ranges: int | Sequence[int] | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    num_steps: int | None = None,
    out: Path | None = None,
) -> QuantizedModel:
    """The first stage alone; arguments and errors as in `run` and `models.prepare.quantize_for`.

    ``num_steps``: sampling steps other than the workload's. With ``out`` the model is written there as it is made.
    """
    work = with_files(workload, checkpoint, calibration)
    if num_steps is not None:
        work = dataclasses.replace(work, num_steps=num_steps)
    model = work.load_model()
    return quantize_for(
        work, model, stats_of(work, model), method, weight_bits, act_bits, ranges=ranges, alpha=alpha,
        overrides=overrides, out=out,
    )  # fmt: skip


def with_files(
    workload: str | Workload, checkpoint: str | Path | None = None, calibration: str | Path | None = None
) -> Workload:
    """The workload, with other files in place of its own. Raises ModelError for an unknown name."""
    work = get_workload(workload) if isinstance(workload, str) else workload
    return work.with_files(
        checkpoint=None if checkpoint is None else Path(checkpoint),
        calibration=None if calibration is None else Path(calibration),
    )


def steps_to_verify(verify: str, steps: int) -> tuple[int, ...]:
    """Steps meant by "all", "none" or a number. Raises UserError for anything else."""
    if verify in VERIFY_WORDS:
        return tuple(range(steps)) if verify == "all" else ()
    # Python refuses to convert a number of thousands of digits, with an error of its own.
    if not (verify.isascii() and verify.isdigit() and len(verify) < 10 and 1 <= int(verify) <= steps):
        near = difflib.get_close_matches(verify, VERIFY_WORDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"verify = {reprlib.repr(verify)}: allowed all, none, or a number of steps 1..{steps}{hint}")
    return tuple(sorted({int(step) for step in np.linspace(0, steps - 1, int(verify)).round()}))


def stats_of(work: Workload, model: STDiT) -> CalibrationStats:
    """The statistics, collected with the model at hand where the workload names no file."""
    return work.collected_stats(model) if work.calibration is None else work.load_stats()
