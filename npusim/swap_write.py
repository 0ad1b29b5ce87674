"""The folder of a comparison of swap policies: CSV, Markdown and plots."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from npusim.errors import UserError
from npusim.folder import write_folder
from npusim.html.style import MARKERS, drawing, new_figure, of_number
from npusim.isa.manual import table
from npusim.report import csv_bytes
from npusim.swap import ALL_SETS, FOLDER, Study, SwapCost

NOT_MODELLED = "n/a"
ENERGY_COLUMNS = ("energy_low_uj", "energy_nominal_uj", "energy_high_uj")
COLUMNS = (
    "method", "ranges", "policy", "swapped", "set_bytes", "step_set_bytes", "dram_bytes", "storage_bytes",
    "storage_read_bytes", "dram_write_bytes", "dram_fetch_bytes", "storage_cycles", "startup_cycles", "exposed_cycles",
    "hidden_cycles", "cycles", "plain_cycles", "seconds", "codes",
)  # fmt: skip


def write_study(study: Study, out: Path, fidelity: Path | None) -> None:
    """Write the folder. Raises UserError if it cannot be written, or ``fidelity`` is not a folder of tables."""
    scores = _scores(study, fidelity)

    def write(folder: Path) -> None:
        (folder / "swap.csv").write_bytes(_swap_csv(study))
        (folder / "boundaries.csv").write_bytes(_boundaries_csv(study))
        (folder / "swap.md").write_text(markdown(study), encoding="utf-8")
        (folder / "exposed.png").write_bytes(_exposed_plot(study))
        (folder / "pareto.csv").write_bytes(_pareto_csv(study, scores))
        (folder / "pareto.png").write_bytes(_pareto_plot(study, scores))

    write_folder(out, FOLDER, write)


def _swap_csv(study: Study) -> bytes:
    header = [*COLUMNS, *ENERGY_COLUMNS, "slow_down_against_one_set", "break_even_storage_bytes_per_second", "refused"]
    rows = []
    for cost in study.costs:
        values = [getattr(cost, name) for name in COLUMNS]
        values += [f"{value / 1e6:.3f}" for value in astuple(cost.energy)]
        if cost.refused:
            values[6:] = [NOT_MODELLED] * (len(values) - 6)
        slow = NOT_MODELLED if cost.refused else f"{study.slow_down(cost):.4f}"
        rows.append([*values, slow, NOT_MODELLED if cost.break_even is None else cost.break_even, cost.refused])
    return csv_bytes(header, rows)


def _boundaries_csv(study: Study) -> bytes:
    header = ["method", "ranges", "policy", "boundary", "storage_read_bytes", "dram_write_bytes", "storage_cycles"]
    rows = [
        [cost.method, cost.ranges, cost.policy, b.number, b.storage_read_bytes, b.dram_write_bytes, b.storage_cycles,
         b.exposed_cycles, b.hidden_cycles]
        for cost in study.costs if cost.swapped == ALL_SETS for b in cost.boundaries
    ]  # fmt: skip
    return csv_bytes([*header, "exposed_cycles", "hidden_cycles"], rows)


def markdown(study: Study) -> str:
    """The tables as text."""
    machine, device = study.machine, study.machine.storage.device
    lines = [
        f"# Parameter swap: `{study.workload}` on `{machine.name}`", "",
        f"{machine.clock_mhz} MHz; storage {device.kind}, {device.bandwidth_bytes_per_second / 1e9:g} GB/s, "
        f"{device.latency_us} us, {device.queue_depth} requests of {device.request_bytes} bytes. The denoiser's "
        "time only: text encoder and autoencoder are not modelled. Startup brings the first set (`resident`: all sets) "
        "beside the prologue; exposed is what the boundaries add behind it.", "",
        *(["Storage holds the ranges' sets but the first as differences, which FETCH decodes at up to "
           f"{machine.dma.decoder_bytes_per_cycle} bytes a cycle; `resident` fetches them as they are.", ""]
          if study.delta else []),
    ]  # fmt: skip
    header = (
        "method", "ranges", "set, bytes", "policy", "DRAM, MB", "from storage, MB", "startup, ms", "exposed, ms",
        "hidden, ms", "video, ms", "slow-down", "hidden from, GB/s", "fetches, uJ",
    )  # fmt: skip
    for title, swapped in (("All sets", ALL_SETS), ("The steps' constants alone", "")):
        lines += [f"## {title}", ""]
        costs = [cost for cost in study.costs if (cost.swapped == ALL_SETS) == bool(swapped)]
        lines += table(header, (_cells(study, c) for c in costs))
        lines += [""]
    lines += ["## Sets as differences to the set before", ""]
    shares = ((m, str(r), NOT_MODELLED if s is None else f"{s:.3f}") for (m, r), s in study.coded_shares.items())
    lines += [*table(("method", "ranges", "coded bytes over bytes"), shares), ""]
    return "\n".join(lines)


def _cells(study: Study, cost: SwapCost) -> tuple[str, ...]:
    size = cost.set_bytes if cost.swapped == ALL_SETS else cost.step_set_bytes
    head = (cost.method, str(cost.ranges), f"{size:,}", cost.policy)
    if cost.refused:
        return (*head, f"refused: {cost.refused}", *[NOT_MODELLED] * 8)
    hz = study.machine.clock_hz
    parts = (cost.startup_cycles, cost.exposed_cycles, cost.hidden_cycles, cost.cycles)
    rate = NOT_MODELLED if cost.break_even is None else f"{cost.break_even / 1e9:.2f}"
    times = (f"{cycles / hz * 1e3:.3f}" for cycles in parts)
    megabytes = (f"{size / 1e6:.1f}" for size in (cost.dram_bytes, cost.storage_read_bytes))
    low, nominal, high = (f"{value / 1e6:.0f}" for value in astuple(cost.energy))
    return (*head, *megabytes, *times, f"{study.slow_down(cost):.3f}", rate, f"{nominal} ({low} to {high})")


def _exposed_plot(study: Study) -> bytes:
    """Startup and exposed milliseconds over the number of ranges: a panel for each method, a line for each policy."""
    methods = list(dict.fromkeys(cost.method for cost in study.costs))
    figure = Figure(figsize=(4.5 * len(methods), 4), layout="constrained")
    axes = figure.subplots(1, len(methods), squeeze=False)[0]
    for axis, method in zip(axes, methods, strict=True):
        shown = [c for c in study.costs if c.method == method and c.swapped == ALL_SETS and not c.refused]
        for policy in dict.fromkeys(cost.policy for cost in shown):
            points = [(c.ranges, c.exposed_cycles / study.machine.clock_hz * 1e3) for c in shown if c.policy == policy]
            axis.plot(*zip(*points, strict=True), "o-", markersize=4, linewidth=1, label=policy)
        axis.set_title(method)
        axis.set_xlabel("time ranges")
        axis.set_ylabel("exposed, ms a video")
        axis.set_yscale("symlog", linthresh=0.01)
        axis.grid(alpha=0.3)
    axes[-1].legend()
    return _png(figure)


class Score(NamedTuple):
    """Noise SQNR of a method at a number of ranges: dB, the mean over so many clips and their steps."""

    sqnr_db: float
    clips: int


Scores = dict[tuple[str, int], Score]


def _scores(study: Study, folder: Path | None) -> Scores:
    """The cells of `npusim evaluate --tables`, by method and ranges. One range is one set."""
    if folder is None:
        return {}
    if not (folder / "cells").is_dir():
        raise UserError(f"{folder}: no folder cells; allowed: a folder that `npusim evaluate --tables` wrote")
    same = {("tsw", 1): "cw_tw", ("tsq", 1): "asq"}
    scores = {}
    for method, ranges in {(cost.method, cost.ranges) for cost in study.costs}:
        names = {same.get((method, ranges), method), method}
        bits = f"w{study.weight_bits}a{study.act_bits}-r{ranges}"
        for path in (folder / "cells" / f"emoji-{name}-{bits}.json" for name in sorted(names)):
            if path.is_file():
                scores[method, ranges] = _score(path, study.workload)
    if not scores:
        raise UserError(f"{folder}: no cell emoji-METHOD-w{study.weight_bits}a{study.act_bits}-rRANGES of this study")
    return scores


def _score(path: Path, workload: str) -> Score:
    """Raises UserError for a damaged cell, and one of another workload."""
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
        found, measured = np.array(cell["figures"]["eps_sqnr_db"], float), cell["settings"]["workload"]
        if found.ndim == 0 or not found.size or not np.isfinite(found).all():
            raise ValueError("figures.eps_sqnr_db is no list of numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a cell's file ({error})") from None
    if measured != workload:
        raise UserError(f"{path}: workload = {measured!r}: says nothing of {workload!r}; allowed: {workload!r}")
    return Score(float(np.mean(found)), len(found))


def pareto(study: Study, scores: Scores) -> list[tuple[SwapCost, Score | None, bool]]:
    """(cost, its score, whether no other is at least as good in SQNR, time and DRAM and better in one).

    Without a score nothing can be said, and nothing is on the front.
    """
    costs = [cost for cost in study.costs if cost.swapped == ALL_SETS and not cost.refused]
    found = [scores.get((cost.method, cost.ranges)) for cost in costs]
    points = [
        None if score is None else (score.sqnr_db, -cost.cycles, -cost.dram_bytes)
        for cost, score in zip(costs, found, strict=True)
    ]
    rows = []
    for cost, score, point in zip(costs, found, points, strict=True):
        beaten = point is None or any(
            other is not None and other != point and all(a >= b for a, b in zip(other, point, strict=True))
            for other in points
        )
        rows.append((cost, score, not beaten))
    return rows


def _pareto_csv(study: Study, scores: Scores) -> bytes:
    header = ["method", "ranges", "policy", "noise_sqnr_db", "clips", "seconds", "dram_bytes", "on_front"]
    rows = []
    for cost, score, front in pareto(study, scores):
        measured = [NOT_MODELLED] * 2 if score is None else [f"{score.sqnr_db:.2f}", score.clips]
        best = NOT_MODELLED if score is None else int(front)
        rows.append([cost.method, cost.ranges, cost.policy, *measured, cost.seconds, cost.dram_bytes, best])
    return csv_bytes(header, rows)


def _pareto_plot(study: Study, scores: Scores) -> bytes:
    """Noise SQNR over time, a mark for each policy, filled on the front; each method and number of ranges is named."""
    found = [(cost, score, front) for cost, score, front in pareto(study, scores) if score is not None]
    with drawing():
        figure = new_figure(8, 4.6)
        axis = figure.subplots()
        policies = list(dict.fromkeys(cost.policy for cost, _, _ in found))
        for cost, score, front in found:
            number = policies.index(cost.policy)
            colour = of_number(number)[0]
            axis.scatter(cost.seconds * 1e3, score.sqnr_db, 60, marker=MARKERS[number % len(MARKERS)], edgecolor=colour,
                         facecolor=colour if front else "white", linewidth=1.3, zorder=3)  # fmt: skip
        for method, ranges in dict.fromkeys((cost.method, cost.ranges) for cost, _, _ in found):
            last = max(cost.seconds for cost, _, _ in found if (cost.method, cost.ranges) == (method, ranges))
            place = last * 1e3, scores[method, ranges].sqnr_db
            axis.annotate(f"{method}, {ranges}", place, (8, -3), textcoords="offset points", fontsize=8.5)
        if found:
            handles = [
                Line2D([], [], linestyle="", marker=MARKERS[i % len(MARKERS)], color=of_number(i)[0], label=policy)
                for i, policy in enumerate(policies)
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
            clips = sorted({score.clips for _, score, _ in found})
            axis.set_title(
                "filled: no other is as good in SQNR, time and DRAM\n"
                f"text: method, time ranges; means of {' or '.join(map(str, clips))} clips"
            )
        else:
            axis.text(0.5, 0.5, "fidelity: n/a", ha="center", transform=axis.transAxes)
        axis.set(xlabel="denoiser, ms a video", ylabel="noise SQNR, dB")
        axis.margins(x=0.14, y=0.1)
        axis.grid()
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def refusals(study: Study) -> Iterator[str]:
    """One line for each policy that did not fit."""
    for cost in study.costs:
        if cost.refused:
            yield f"{cost.method}, {cost.ranges} ranges: {cost.refused}"
