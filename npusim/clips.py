"""One clip three ways, from the same noise: float model, fake-quantized copy, integer machine.

Each can stop after a number of steps, and go on from what an `npusim.unfinished.Unfinished` keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.fakequant import FakeQuantSTDiT
from models.iddpm import IDDPM, draw_noise
from models.quantize import QuantizedModel
from models.sample import Predictor, Trajectory, decode_frames, denoise, fakequant_predictor, float_predictor, replay
from models.stdit import STDiT
from models.vae import Autoencoder
from models.workloads import Workload
from npusim.engine.cache import first_use
from npusim.fidelity import Clip
from npusim.host import Host
from npusim.program import Program
from npusim.sampled import Sample
from npusim.simulate import Simulation
from npusim.unfinished import Unfinished

Notify = Callable[[str, float, int], None]
"""Called with a stage's name, and how much of how much of it is done; of nothing (0 of 0): with a remark."""
COMPILING = "compiling kernels, once for this version..."


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
        if first_use():
            self.tell(COMPILING, 0, 0)

    @contextmanager
    def stage(self, name: str, total: int = 1, begun: float = 0) -> Iterator[Callable[[float], None]]:
        """``begun``: how much of it an earlier run has done."""
        start = time.perf_counter()
        self.tell(name, begun, total)
        yield lambda done: self.tell(name, done, total)
        self.tell(name, total, total)
        self.wall_clock[f"{name.replace(' ', '_').replace('-', '_')}_seconds"] = round(time.perf_counter() - start, 3)

    def tell(self, name: str, done: float, total: int) -> None:
        """Tell of a stage without measuring it."""
        if self._notify:
            self._notify(name, done, total)


@dataclass(frozen=True, eq=False)
class ClipInputs:
    """What all three runs share: text (L, width), mask (L,), x_T (4, T, H, W), noises (steps, 4, T, H, W), sampler.

    ``steps``: how many of the sampler's are run; ``branch``: the one guidance branch that is, or None.
    """

    text: Tensor
    mask: Tensor
    x_T: Tensor  # noqa: N815
    noises: Tensor
    sampler: IDDPM
    latent_shape: tuple[int, ...]
    steps: int
    branch: str | None = None

    @classmethod
    def of(
        cls, work: Workload, prompt: str, seed: int, steps: int | None = None, branch: str | None = None
    ) -> ClipInputs:
        drawn = draw_noise(seed, work.latent_shape, work.num_steps)
        steps = work.num_steps if steps is None else steps
        return cls(*work.text(prompt), *drawn, work.sampler(), work.latent_shape, steps, branch)


def float_clips(
    stages: Stages,
    inputs: ClipInputs,
    model: Callable[[], STDiT],
    quantized: QuantizedModel,
    vae: Autoencoder | None,
    store: Unfinished | None = None,
) -> tuple[dict[str, Clip], Trajectory]:
    """The float and the fake-quantized clip, and the float run's states. ``model`` is called where it is needed."""
    store, sampler, steps = store or Unfinished(), inputs.sampler, inputs.steps
    noise = inputs.x_T, inputs.noises

    def conditions() -> tuple[Any, ...]:
        return sampler, inputs.text, inputs.mask, model().y_embedder.y_embedding.detach(), inputs.branch

    exact, rounded, forced = _begun(store, "float"), _begun(store, "fakequant"), store.take("fakequant_equal_inputs")
    repeated = [] if forced is None else list(forced[0]["eps"])
    with stages.stage("float run", steps, _steps(exact)) as tell:
        if exact is None or len(exact.eps) < steps:
            predict = _counted(float_predictor(model(), *conditions()), tell, _steps(exact))
            exact = denoise(predict, *noise, sampler, steps, exact, _keeper(store, "float", steps))
    with stages.stage("fake-quant run", 2 * steps, _steps(rounded) + len(repeated)) as tell:
        if rounded is None or len(rounded.eps) < steps or len(repeated) < steps:
            copied = FakeQuantSTDiT(model(), quantized)
            done = _steps(rounded) + len(repeated)
            predict = _counted(fakequant_predictor(copied, *conditions()), tell, done)
            rounded = denoise(predict, *noise, sampler, steps, rounded, _keeper(store, "fakequant", steps))
            repeated = list(replay(predict, exact, sampler, repeated, _eps_keeper(store, steps)))
    return {
        "float": _clip(exact.eps, exact.eps, exact.states[-1], vae),
        "fakequant": _clip(rounded.eps, np.stack(repeated), rounded.states[-1], vae),
    }, exact


def _begun(store: Unfinished, name: str) -> Trajectory | None:
    found = store.take(name)
    return None if found is None else Trajectory(found[0]["states"], found[0]["eps"])


def _keeper(store: Unfinished, name: str, steps: int) -> Callable[[Trajectory], None]:
    """Keeps all that a stage has done."""
    return lambda done: store.keep_if_due(
        name, lambda: ({"states": done.states, "eps": done.eps}, {}), last=len(done.eps) == steps
    )


def _eps_keeper(store: Unfinished, steps: int) -> Callable[[NDArray[np.float32]], None]:
    return lambda eps: store.keep_if_due("fakequant_equal_inputs", lambda: ({"eps": eps}, {}), last=len(eps) == steps)


def _steps(begun: Trajectory | None) -> int:
    return 0 if begun is None else len(begun.eps)


def _counted(predict: Predictor, tell: Callable[[float], None], done: int) -> Predictor:
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
    trajectory: Trajectory | None,
    vae: Autoencoder | None,
    verify: tuple[int, ...],
    sample: Sample | None = None,
    store: Unfinished | None = None,
) -> tuple[Clip, Simulation]:
    """The machine's clip, and the simulation that made it.

    A twin of the simulation is fed the float run's states, for the comparison on equal inputs; none without them.
    """
    store, steps, runs = store or Unfinished(), inputs.steps, 1 if trajectory is None else 2
    host = Host(program, inputs.latent_shape)
    contents = host.inputs(*(tensor.numpy() for tensor in (inputs.text, inputs.mask, inputs.x_T, inputs.noises)))
    with stages.stage("fill memory"):
        simulation = Simulation(program, contents, verify, verify_prologue=bool(verify), sample=sample)
        free, forced, twin = _restored(store, simulation, trajectory is not None)
    done = runs * len(free) + bool(free)
    with stages.stage("integer run", 1 + runs * steps, done) as tell:
        if not free:
            simulation.prologue(_told(tell, done))
            twin = simulation.twin() if trajectory is not None else None
            done = 1
        for step in range(len(free), steps):
            simulation.step(step, _told(tell, done))
            done += 1
            free.append(host.eps_out(simulation.read("eps")))
            if twin is not None and trajectory is not None:
                twin.write("state", host.state_in(trajectory.states[step]))
                twin.step(step, _told(tell, done))
                done += 1
                forced.append(host.eps_out(twin.read("eps")))
            store.keep_if_due("integer", lambda: _snapshot(simulation, twin, free, forced))
    latent = host.state_out(simulation.read("state"))
    return _clip(np.stack(free), np.stack(forced or free), latent, vae), simulation


def _told(tell: Callable[[float], None], before: int) -> Callable[[int, int], None]:
    return lambda done, count: tell(before + done / count)


Kept = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def _snapshot(
    simulation: Simulation, twin: Simulation | None, free: list[NDArray[Any]], forced: list[NDArray[Any]]
) -> Kept:
    """All that an integer run needs to go on behind its last finished step."""
    arrays, facts = simulation.snapshot()
    arrays = {f"run/{name}": array for name, array in arrays.items()} | {"eps": np.stack(free)}
    if twin is not None:
        more, others = twin.snapshot()
        arrays |= {f"twin/{name}": array for name, array in more.items()} | {"eps_equal_inputs": np.stack(forced)}
        facts = {**facts, "twin": others}
    return arrays, facts


def _restored(
    store: Unfinished, simulation: Simulation, twinned: bool
) -> tuple[list[NDArray[Any]], list[NDArray[Any]], Simulation | None]:
    """Bring a simulation to the last step that was kept; what both runs gave so far, and the twin."""
    found = store.take("integer")
    if found is None:
        return [], [], None
    arrays, facts = found
    with store.naming("integer"):
        if ("eps_equal_inputs" in arrays) != twinned:
            raise KeyError("eps_equal_inputs")
        simulation.restore(_under("run/", arrays), facts)
        twin = simulation.twin() if twinned else None
        if twin is not None:
            twin.restore(_under("twin/", arrays), facts["twin"])
    return list(arrays["eps"]), list(arrays["eps_equal_inputs"]) if twinned else [], twin


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _clip(eps: NDArray[Any], equal: NDArray[Any], latent: NDArray[Any], vae: Autoencoder | None) -> Clip:
    frames = decode_frames(vae, latent.astype(np.float32)) if vae else None
    return Clip(eps, equal, latent, frames)
