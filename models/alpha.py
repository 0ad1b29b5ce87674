"""Grid search of the smoothing exponent alpha of Eq. 2, method by method; resumable.

    python -m models.alpha --workload emoji

Every exponent from 0.1 to 1.0 in steps of 0.1 is tried on captions that are neither calibrated nor evaluated on. Each
trial is saved as soon as it is known, so the same command goes on where it was stopped. Trials of other weights or of
another metric are thrown away.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.iddpm import IDDPM, draw_noise
from models.metrics import sqnr_db
from models.quantize import METHODS, quantize
from models.quantize.alpha import ALPHAS, AlphaTable, Trial
from models.sample import ClipBatch, denoise, denoise_clips, float_predictor, replay_clips
from models.stats import weights_sha256
from models.stdit import STDiT
from models.workloads import Workload, get_workload

SEARCHED = tuple(name for name, method in METHODS.items() if method.average is not None and name == method.base)
BITS = ((8, 8), (4, 8))


@dataclass(frozen=True)
class Reference:
    """The float model's runs of the search captions, N clips.

    batch: captions and noise; states: (steps + 1, N, 4, T, H, W); eps: (steps, N, 4, T, H, W), guided.
    """

    sampler: IDDPM
    batch: ClipBatch
    states: NDArray[np.float32]
    eps: NDArray[np.float32]

    @classmethod
    def of(cls, model: STDiT, workload: Workload) -> Reference:
        """Sample the workload's search captions with the float model."""
        sampler, null = workload.sampler(), model.y_embedder.y_embedding
        runs = []
        for caption, seed in zip(workload.search_captions, workload.search_seeds, strict=True):
            predict = float_predictor(model, sampler, *workload.text(caption), null)
            runs.append(denoise(predict, *draw_noise(seed, workload.latent_shape, workload.num_steps), sampler))
        batch = ClipBatch.of(workload, workload.search_captions, workload.search_seeds, null)
        states, eps = (np.stack([getattr(run, name) for run in runs], axis=1) for name in ("states", "eps"))
        return cls(sampler, batch, states, eps)


def step_sqnr_db(network: FakeQuantSTDiT, reference: Reference) -> float:
    """Mean over steps and clips of the noise prediction's SQNR, each step fed the float run's state."""
    eps = replay_clips(network, reference.sampler, reference.batch, reference.states)
    steps = zip(reference.eps, eps, strict=True)
    return float(np.mean([sqnr_db(a, b) for exact, rounded in steps for a, b in zip(exact, rounded, strict=True)]))


def latent_sqnr_db(network: FakeQuantSTDiT, reference: Reference) -> float:
    """Mean over clips of the finished latent clip's SQNR, the network running freely with the float run's noise."""
    latents = denoise_clips(network, reference.sampler, reference.batch).states[-1]
    return float(np.mean([sqnr_db(a, b) for a, b in zip(reference.states[-1], latents, strict=True)]))


SEARCH_METRICS: dict[str, Callable[[FakeQuantSTDiT, Reference], float]] = {
    "step_sqnr_db": step_sqnr_db,
    "latent_sqnr_db": latent_sqnr_db,
}


def search(
    workload: Workload,
    methods: Sequence[str] = SEARCHED,
    bits: Sequence[tuple[int, int]] = BITS,
    metric: str = "step_sqnr_db",
    out: Path | None = None,
    console: Console | None = None,
) -> AlphaTable:
    """Try every exponent of `ALPHAS` with every method at every (weight, activation) bits.

    Args:
        workload: its search captions are sampled.
        methods: of `SEARCHED`.
        bits: pairs of weight and activation bits.
        metric: of `SEARCH_METRICS`.
        out: where every trial is saved at once; trials found there are not repeated.
        console: shows a progress bar where given.

    Raises:
        ModelError: an unknown method or metric, or a file that cannot be read or written.
    """
    for name, value, allowed in (("metric", metric, SEARCH_METRICS), *(("method", m, SEARCHED) for m in methods)):
        if value not in allowed:
            raise ModelError(f"{name}={value!r}: allowed: {', '.join(allowed)}")
    model, stats = workload.load_model(), workload.load_stats()
    table = AlphaTable(weights_sha256(model), metric, ())
    if out is not None and out.exists():
        found = AlphaTable.load(out)
        if (found.weights_sha256, found.metric) == (table.weights_sha256, metric):
            table = found
    done = {(t.method, t.weight_bits, t.act_bits, t.alpha) for t in table.trials}
    wanted = [(method, *pair, alpha) for pair in bits for method in methods for alpha in ALPHAS]
    todo = [one for one in wanted if one not in done]
    if not todo:
        return table
    columns = (TextColumn("alpha"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("alpha", total=len(wanted), completed=len(wanted) - len(todo))
        reference = Reference.of(model, workload)
        for method, weight_bits, act_bits, alpha in todo:
            quantized = quantize(model, stats, method, weight_bits, act_bits, alpha=alpha)
            figure = SEARCH_METRICS[metric](FakeQuantSTDiT(model, quantized), reference)
            trial = Trial(method, weight_bits, act_bits, alpha, round(figure, 3))
            table = AlphaTable(table.weights_sha256, metric, (*table.trials, trial))
            if out is not None:
                table.save(out)
            progress.advance(task)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code (2 on a user error)."""
    parser = argparse.ArgumentParser(prog="python -m models.alpha", description="Search the smoothing exponents.")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--out", type=Path, help="JSON file to write or go on with; by default the workload's own")
    parser.add_argument("--methods", default=",".join(SEARCHED), help=f"of {', '.join(SEARCHED)}")
    bits = [f"{w}/{a}" for w, a in BITS]
    parser.add_argument("--bits", choices=bits, help="of weights and activations; by default all of these")
    parser.add_argument("--metric", default="step_sqnr_db", help=f"one of {', '.join(SEARCH_METRICS)}")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True)
    torch.set_num_threads(1)  # results must not depend on the number of cores
    wanted = BITS if options.bits is None else (BITS[bits.index(options.bits)],)
    try:
        workload = get_workload(options.workload)
        out = options.out or workload.alphas
        if out is None:
            raise ModelError(f"workload '{workload.name}' has no file of exponents of its own; give --out")
        table = search(workload, options.methods.split(","), wanted, metric=options.metric, out=out, console=console)
    except ModelError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 2
    for method in dict.fromkeys(trial.method for trial in table.trials):
        best = ", ".join(f"W{w}A{a} {table.best(method, w, a)}" for w, a in BITS)
        console.print(f"{method}: {best}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
