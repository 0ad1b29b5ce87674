"""One cell: from its settings to its figures and the frames of its first clips. Equal settings give equal figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compiler import compile_model
from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.metrics import psnr_db, sqnr_db, ssim
from models.metrics.features import clip_means, feature_frechet, frame_features, temp_consistency
from models.metrics.text_sim import TextHeads, text_sim
from models.metrics.vmaf import vmaf_vs_fp
from models.prepare import network_for, quantize_for
from models.quantize import QuantizedModel
from models.sample import ClipBatch, Frames, denoise_clips, replay_clips
from npusim.clips import one_thread
from npusim.config import load_machine
from npusim.errors import UserError
from npusim.host import Host
from npusim.program import Program
from npusim.simulate import Simulation
from npusim.tables.cells import FLOAT, INTEGER_CLIPS, REAL, REPLAYED_CLIPS, SHEET_CLIPS, Cell, clips_of
from npusim.tables.inputs import FloatClips, Inputs
from npusim.tables.size import float_size, quantized_size

Figures = dict[str, Any]
"""As a cell's file holds them: one number per clip, in order of the data set's captions; None where it has none."""


@one_thread()
def measure_cell(inputs: Inputs, cell: Cell) -> tuple[Figures, Frames]:
    """A cell in torch: figures, and the first clips' frames (`SHEET_CLIPS` or fewer, T, H, W, 3) uint8.

    Figures by name: ``eps_sqnr_db`` of the guided noise prediction with the float run's state as input, one list over
    the steps for each of the `REPLAYED_CLIPS` first clips; ``psnr_db``, ``ssim``, ``vmaf_vs_fp`` of the frames against
    the float model's, ``temp_consistency`` and ``text_sim``, one number per clip; ``feature_frechet`` of all clips;
    ``size`` as `npusim.tables.size.ModelSize`.

    Raises:
        ModelError: as `models.prepare.network_for`; or the extra `metrics` is not installed.
    """
    exact = inputs.float_clips(cell.data_set)
    found: Figures = {"eps_sqnr_db": None, "psnr_db": None, "ssim": None, "vmaf_vs_fp": None, "size": None}
    if cell.method in FLOAT:
        frames = exact.frames if cell.method != REAL else inputs.real_frames(cell.data_set)
        if cell.method != REAL:
            found["size"] = float_size(inputs.model, 4).as_dict()
    else:
        network, found["size"] = _network(inputs, cell)
        frames = _sample(inputs, cell, network, exact, found)
    if cell.method != REAL:
        pairs = list(zip(exact.frames, frames, strict=True))
        for metric in (psnr_db, ssim, vmaf_vs_fp):
            found[metric.__name__] = [metric(reference, test) for reference, test in pairs]
    features = exact.features if cell.method == "fp32" else frame_features(frames)
    captions, _ = clips_of(cell.data_set, inputs.setup.clips)
    found["temp_consistency"] = [temp_consistency(clip) for clip in features]
    found["text_sim"] = text_sim(features, captions, TextHeads.load()).tolist()
    found["feature_frechet"] = feature_frechet(clip_means(features), inputs.real(cell.data_set))
    return found, frames[:SHEET_CLIPS]


def _network(inputs: Inputs, cell: Cell) -> tuple[nn.Module, dict[str, int]]:
    if not cell.quantized:
        return network_for(inputs.work, inputs.model, inputs.stats, cell.method), float_size(inputs.model, 2).as_dict()
    quantized = _quantize(inputs, cell)
    return FakeQuantSTDiT(inputs.model, quantized), quantized_size(quantized).as_dict()


def _quantize(inputs: Inputs, cell: Cell) -> QuantizedModel:
    return quantize_for(
        inputs.work, inputs.model, inputs.stats, cell.method, cell.weight_bits, cell.act_bits, ranges=cell.ranges,
        alpha=inputs.alpha(cell),
    )  # fmt: skip


def _sample(inputs: Inputs, cell: Cell, network: nn.Module, exact: FloatClips, found: Figures) -> Frames:
    """The network's frames; its noise predictions on equal inputs go to ``found``."""
    batch = inputs.batch(cell.data_set)
    latents = denoise_clips(network, inputs.sampler, batch).states[-1]
    found["eps_sqnr_db"] = _replayed_sqnr_db(inputs, network, batch, exact, REPLAYED_CLIPS)
    return inputs.decode(latents)


def _replayed_sqnr_db(
    inputs: Inputs, network: nn.Module, batch: ClipBatch, exact: FloatClips, count: int
) -> list[list[float]]:
    """SQNR of the first clips' noise predictions on equal inputs, clip by clip and step by step."""
    eps = replay_clips(network, inputs.sampler, batch.first(count), exact.states[:, :count])
    return _sqnr_db(exact.eps[:, :count], eps)


def _sqnr_db(reference: NDArray[np.floating], test: NDArray[np.floating]) -> list[list[float]]:
    """Of noise predictions (steps, N, ...): [clip][step]."""
    clips = zip(np.moveaxis(reference, 1, 0), np.moveaxis(test, 1, 0), strict=True)
    return [[sqnr_db(a, b) for a, b in zip(exact, rounded, strict=True)] for exact, rounded in clips]


@one_thread()
def measure_integer(inputs: Inputs, cell: Cell) -> Figures:
    """A method on the simulator, with the float run's state as input of every step, beside its fake-quantized network.

    Figures: ``refused``, why the method does not compile for the machine, and then nothing else; or None, and
    ``integer_eps_sqnr_db`` and ``fakequant_eps_sqnr_db``, one list over the steps for each of the `INTEGER_CLIPS` first
    clips; ``range_set_bytes``, what a change of range loads; ``factored_eps_sqnr_db`` and ``factored_range_set_bytes``,
    the same for the program that requantizes in two factors (`compiler.compile_model`), None with one range;
    ``steps_compared`` and ``bit_exact``, whether engine and reference executor agreed in every byte after the first
    clip's prologue and these steps.

    Raises:
        ModelError: as `models.prepare.quantize_for`.
    """
    quantized, machine = _quantize(inputs, cell), load_machine(inputs.machine(cell))
    try:
        program = compile_model(quantized, machine)
        factored = compile_model(quantized, machine, factored=True) if quantized.num_ranges > 1 else None
    except (UserError, ModelError) as error:
        return {"refused": str(error)}
    exact, batch = inputs.float_clips(cell.data_set), inputs.batch(cell.data_set)
    count = min(INTEGER_CLIPS, len(exact.frames))
    verified = (0, program.steps - 1)
    eps, bit_exact = _simulate(inputs, cell, program, exact.states[:, :count], verified)
    found: Figures = {"factored_eps_sqnr_db": None, "factored_range_set_bytes": None}
    if factored is not None:
        less, equal = _simulate(inputs, cell, factored, exact.states[:, :count], verified)
        found = {
            "factored_eps_sqnr_db": _sqnr_db(exact.eps[:, :count], less),
            "factored_range_set_bytes": factored.range_sets.shape[1],
        }
        bit_exact = bit_exact and equal
    network = FakeQuantSTDiT(inputs.model, quantized)
    return {
        "refused": None,
        "integer_eps_sqnr_db": _sqnr_db(exact.eps[:, :count], eps),
        "fakequant_eps_sqnr_db": _replayed_sqnr_db(inputs, network, batch, exact, count),
        "range_set_bytes": program.range_sets.shape[1],
        **found,
        "steps_compared": list(verified),
        "bit_exact": bit_exact,
    }


def _simulate(
    inputs: Inputs, cell: Cell, program: Program, states: NDArray[np.float32], verify: tuple[int, ...]
) -> tuple[NDArray[np.float64], bool]:
    """Noise predictions (steps, N, 4, T, H, W) for given states (steps + 1, N, ...), and whether the executors agreed.

    The reference repeats the steps ``verify`` of the first clip.
    """
    host, clips, agreed = Host(program, inputs.work.latent_shape), [], True
    for index, caption in enumerate(clips_of(cell.data_set, states.shape[1])[0]):
        text, mask = inputs.work.text(caption)
        noises = inputs.batch(cell.data_set).noises[:, index]
        contents = host.inputs(text.numpy(), mask.numpy(), states[0, index], noises.numpy())
        simulation = Simulation(program, contents, () if index else verify, verify_prologue=not index)
        simulation.prologue()
        eps = []
        for step in range(program.steps):
            simulation.write("state", host.state_in(states[step, index]))
            simulation.step(step)
            eps.append(host.eps_out(simulation.read("eps")))
        clips.append(np.stack(eps))
        agreed = agreed and simulation.bit_exact.equal is not False
    return np.stack(clips, axis=1), agreed
