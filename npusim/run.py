"""The main job: a workload, a machine and a method go in; a clip, its fidelity and its cost come out.

`run` is what ``npusim run`` calls. It ties the three packages together, stage by stage; every stage's result is a
named type:

    float checkpoint + calibration statistics -> quantized model -> program -> simulation -> RunResult -> the run folder
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler import compile_model
from models.calibrate import collect
from models.fakequant import FakeQuantSTDiT
from models.iddpm import IDDPM, draw_noise
from models.prepare import quantize_for
from models.quantize import Override, QuantizedModel
from models.quantize.outline import outline
from models.sample import Predictor, Trajectory, decode_frames, denoise, fakequant_predictor, float_predictor, replay
from models.stats import CalibrationStats
from models.stdit import STDiT
from models.vae import Autoencoder
from models.workloads import Workload, get_workload
from npusim import callable_module
from npusim.config import Machine, load_machine
from npusim.cost import Energy, energy
from npusim.errors import UserError
from npusim.fidelity import Clip, Fidelity, measure
from npusim.folder import check_folder
from npusim.host import Host
from npusim.memory import Tallies
from npusim.program import Program
from npusim.simulate import BitExact, Simulation
from npusim.timing import ProgramTiming, time_program

callable_module(__name__)

Notify = Callable[[str, int, int], None]
"""Called with a stage's name, and how much of how much of it is done."""

VERIFY_WORDS = ("all", "none")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's results, as it was asked for.

    ``seed`` is the noise's; ``ranges`` and ``alpha`` are None for the method's own; ``overrides`` are the fields of
    each `models.quantize.Override`; the machine stands in full. A timing-only run has no prompt, seed and verify.
    """

    workload: str
    prompt: str | None
    seed: int | None
    method: str
    weight_bits: int
    act_bits: int
    attention_bits: int
    ranges: int | tuple[int, ...] | None
    alpha: float | None
    overrides: tuple[Mapping[str, Any], ...]
    factored: bool
    num_steps: int
    cfg_scale: float
    cfg_channels: int
    verify: str | None
    machine: Machine
    timing_only: bool = False


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


@dataclass(frozen=True, eq=False)
class RunResult(TimingResult):
    """What a run gives; `npusim.report.write_run` writes the folder from it.

    clips: by "float", "fakequant", "integer"; tallies: of the integer clip, as `npusim.simulate.Simulation` has them.
    """

    calibration: CalibrationStats
    clips: Mapping[str, Clip]
    fidelity: Fidelity
    bit_exact: BitExact
    tallies: Mapping[str, Tallies]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: float sums then do not depend on the number of cores, nor does the run folder.

    Models of this size lose nothing by it, and on a busy machine waiting threads cost far more than they bring.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stages:
    """Tells of each stage and measures its time, in `wall_clock`."""

    def __init__(self, notify: Notify | None) -> None:
        self._notify = notify
        self.wall_clock: dict[str, float | str] = {"started_utc": datetime.now(UTC).isoformat(timespec="seconds")}

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Callable[[int], None]]:
        def tell(done: int) -> None:
            if self._notify:
                self._notify(name, done, total)

        start = time.perf_counter()
        tell(0)
        yield tell
        tell(total)
        self.wall_clock[f"{name.replace(' ', '_').replace('-', '_')}_seconds"] = round(time.perf_counter() - start, 3)


@one_thread()
def run(
    workload: str | Workload,
    hw: str | Path | Machine,
    method: str = "cw_tw",
    out: str | Path | None = None,
    *,
    prompt: str | None = None,
    seed: int | None = None,
    verify: str = "2",
    weight_bits: int = 8,
    act_bits: int = 8,
    attention_bits: int = 16,
    ranges: int | Sequence[int] | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    factored: bool = False,
    checkpoint: str | Path | None = None,
    calibration: str | Path | None = None,
    dump_passes: bool = False,
    notify: Notify | None = None,
) -> RunResult:
    """Quantize, compile, simulate and measure one clip.

    Args:
        workload: name of a workload, or one made by hand.
        hw: machine file, or a machine.
        method: quantization method.
        out: run folder to write; nothing is written before everything has succeeded, and nothing if None.
        prompt: a caption with stored text states; by default the workload's first sheet caption.
        seed: of the noise; by default the first sheet caption's.
        verify: which steps the reference executor repeats, to compare all memory bit for bit: "all", "none", or a
            number of steps, spread evenly from first to last. The prologue is compared with them.
        weight_bits: of the block linears' weights.
        act_bits: of the block linears' inputs.
        attention_bits: of queries, keys and values.
        ranges: number of equal time ranges, or the first step of each; by default the method's own.
        alpha: smoothing exponent; by default the one that was searched for.
        overrides: exceptions to the bits, by layer class (the compiler takes none that change between steps).
        factored: requantize in two factors what changes with the time range, see `compiler.compile_model`.
        checkpoint: float weights other than the workload's own; calibrated anew unless ``calibration`` is given.
        calibration: calibration statistics other than the workload's own.
        dump_passes: keep the text of every compiler stage.
        notify: told of progress.

    Raises:
        UserError, ModelError: the user's input is at fault; nothing was written.
    """
    from npusim.report import RUN_FOLDER, write_run  # report.py needs this module's types

    if out is not None:
        check_folder(Path(out), RUN_FOLDER)
    machine = hw if isinstance(hw, Machine) else load_machine(hw)
    work = with_files(workload, checkpoint, calibration)
    prompt = work.sheet_captions[0] if prompt is None else prompt
    config = RunConfig(
        work.name, prompt, work.sheet_seeds[0] if seed is None else seed, method, weight_bits, act_bits, attention_bits,
        ranges if ranges is None or isinstance(ranges, int) else tuple(ranges), alpha,
        tuple(dataclasses.asdict(override) for override in overrides), factored, work.num_steps, work.cfg_scale,
        work.cfg_channels, verify, machine,
    )  # fmt: skip
    result = _run(config, prompt, work, overrides, dump_passes, Stages(notify))
    if out is not None:
        write_run(result, Path(out))
    return result


def _run(
    config: RunConfig, prompt: str, work: Workload, overrides: Sequence[Override], dump_passes: bool, stages: Stages
) -> RunResult:
    assert config.seed is not None
    assert config.verify is not None
    steps = steps_to_verify(config.verify, work.num_steps)
    inputs = ClipInputs.of(work, prompt, config.seed)
    with stages.stage("quantize"):
        model = work.load_model()
        vae = work.load_vae() if work.vae else None
        stats = stats_of(work, model)
        quantized = quantize_for(
            work, model, stats, config.method, config.weight_bits, config.act_bits, ranges=config.ranges,
            alpha=config.alpha, overrides=overrides,
        )  # fmt: skip
    passes: dict[str, str] = {}
    with stages.stage("compile"):
        dump = passes.__setitem__ if dump_passes else None
        program = compile_model(quantized, config.machine, config.attention_bits, dump, config.factored)
        timing = time_program(program)
    clips, trajectory = float_clips(stages, inputs, model, quantized, vae)
    clips["integer"], simulation = integer_clip(stages, inputs, program, trajectory, vae, steps)
    with stages.stage("measure"):
        fidelity = measure(clips)
    return RunResult(
        config, quantized, program, timing, timesteps_of(work), passes, stages.wall_clock, stats, clips, fidelity,
        simulation.bit_exact, simulation.tallies,
    )  # fmt: skip


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
    dump_passes: bool = False,
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
    work = get_workload(workload) if isinstance(workload, str) else workload
    config = RunConfig(
        work.name, None, None, method, weight_bits, act_bits, attention_bits,
        ranges if ranges is None or isinstance(ranges, int) else tuple(ranges), alpha,
        tuple(dataclasses.asdict(override) for override in overrides), factored, work.num_steps, work.cfg_scale,
        work.cfg_channels, None, machine, timing_only=True,
    )  # fmt: skip
    stages, passes = Stages(notify), dict[str, str]()
    with stages.stage("compile"):
        made = outline(work, method, weight_bits, act_bits, ranges=ranges, alpha=alpha, overrides=overrides)
        dump = passes.__setitem__ if dump_passes else None
        program = compile_model(made, machine, attention_bits, dump, factored)
    with stages.stage("time"):
        timing = time_program(program)
    result = TimingResult(config, made, program, timing, timesteps_of(work), passes, stages.wall_clock)
    if out is not None:
        write_run(result, Path(out))
    return result


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
    if checkpoint is not None:
        # Statistics belong to weights: those of the workload's own checkpoint would be refused.
        work = dataclasses.replace(work, checkpoint=Path(checkpoint), calibration=None)
    if calibration is not None:
        work = dataclasses.replace(work, calibration=Path(calibration))
    return work


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


@dataclass(frozen=True, eq=False)
class ClipInputs:
    """What all three runs share: text (L, width), mask (L,), x_T (4, T, H, W), noises (steps, 4, T, H, W), sampler."""

    text: Tensor
    mask: Tensor
    x_T: Tensor  # noqa: N815
    noises: Tensor
    sampler: IDDPM
    latent_shape: tuple[int, ...]

    @classmethod
    def of(cls, work: Workload, prompt: str, seed: int) -> ClipInputs:
        text, mask = work.text(prompt)
        return cls(text, mask, *draw_noise(seed, work.latent_shape, work.num_steps), work.sampler(), work.latent_shape)


def stats_of(work: Workload, model: STDiT) -> CalibrationStats:
    """The statistics, collected with the model at hand where the workload names no file."""
    return collect(model, work) if work.calibration is None else work.load_stats()


def float_clips(
    stages: Stages, inputs: ClipInputs, model: STDiT, quantized: QuantizedModel, vae: Autoencoder | None
) -> tuple[dict[str, Clip], Trajectory]:
    """The float and the fake-quantized clip, and the float run's states."""
    sampler, noise = inputs.sampler, (inputs.x_T, inputs.noises)
    conditions = inputs.text, inputs.mask, model.y_embedder.y_embedding.detach()
    with stages.stage("float run", sampler.num_sampling_steps) as tell:
        predict = _counted(float_predictor(model, sampler, *conditions), tell)
        exact = denoise(predict, *noise, sampler)
    with stages.stage("fake-quant run", 2 * sampler.num_sampling_steps) as tell:
        predict = _counted(fakequant_predictor(FakeQuantSTDiT(model, quantized), sampler, *conditions), tell)
        rounded = denoise(predict, *noise, sampler)
        repeated = replay(predict, exact, sampler)
    return {
        "float": _clip(exact.eps, exact.eps, exact.states[-1], vae),
        "fakequant": _clip(rounded.eps, repeated, rounded.states[-1], vae),
    }, exact


def _counted(predict: Predictor, tell: Callable[[int], None]) -> Predictor:
    done = 0

    def counted(step: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal done
        out = predict(step, x)
        done += 1
        tell(done)
        return out

    return counted


def integer_clip(
    stages: Stages,
    inputs: ClipInputs,
    program: Program,
    trajectory: Trajectory,
    vae: Autoencoder | None,
    verify: tuple[int, ...],
) -> tuple[Clip, Simulation]:
    """The machine's clip, and the simulation that made it.

    A twin of the simulation is fed the float run's states, for the comparison on equal inputs.
    """
    host = Host(program, inputs.latent_shape)
    contents = host.inputs(*(tensor.numpy() for tensor in (inputs.text, inputs.mask, inputs.x_T, inputs.noises)))
    free, forced = [], []
    with stages.stage("integer run", program.steps + 1) as tell:
        simulation = Simulation(program, contents, verify, verify_prologue=bool(verify))
        simulation.prologue()
        tell(1)
        twin = simulation.twin()
        for step in range(program.steps):
            simulation.step(step)
            free.append(host.eps_out(simulation.read("eps")))
            twin.write("state", host.state_in(trajectory.states[step]))
            twin.step(step)
            forced.append(host.eps_out(twin.read("eps")))
            tell(step + 2)
    latent = host.state_out(simulation.read("state"))
    return _clip(np.stack(free), np.stack(forced), latent, vae), simulation


def _clip(eps: np.ndarray, equal: np.ndarray, latent: np.ndarray, vae: Autoencoder | None) -> Clip:
    frames = decode_frames(vae, latent.astype(np.float32)) if vae else None
    return Clip(eps, equal, latent, frames)
