"""Fidelity by step: how far the integer clip's noise prediction is from the others'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from npusim.fidelity import PAIRS
from npusim.html.figure import Picture
from npusim.html.source import RunData
from npusim.html.style import BLUE, DASHES, GREEN, GREY, INK, VERMILION, drawing, new_figure

KINDS = {"eps_equal_inputs": "equal inputs: the loss of each step alone", "eps": "free running: with the steps before"}
COLOURS = (VERMILION, BLUE, GREEN)
CAPTION = (
    "SQNR of the guided noise prediction, in dB; the second of each pair is the reference. At the left every model "
    "gets the float run's state of that step, at the right each goes on from its own. Grey: a new time range."
)


def value(text: object) -> float | None:
    """A figure of a file as a number; None for what was not measured ("n/a")."""
    try:
        return float(str(text))
    except ValueError:
        return None


def fidelity(run: RunData) -> Picture | None:
    """None where the run measured no fidelity."""
    series = {(kind, pair): [value(row.get(f"{kind}_{pair}_sqnr_db")) for row in run.steps]
              for kind in KINDS for pair in PAIRS}  # fmt: skip
    if not any(number is not None for numbers in series.values() for number in numbers):
        return None
    ranges = [row.get("time_range", "") for row in run.steps]
    begins = [i for i in range(1, len(ranges)) if ranges[i] != ranges[i - 1]]
    with drawing():
        figure = new_figure(13, 3.8)
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
            for begin in begins:
                axis.axvline(begin - 0.5, color=GREY, linewidth=0.8)
            for pair, colour, dash, marker in zip(PAIRS, COLOURS, DASHES, "osD", strict=False):
                numbers = [_finite(number) for number in series[kind, pair]]
                axis.plot(range(len(numbers)), numbers, dash, color=colour, marker=marker, markersize=4.5,
                          markeredgecolor=INK, markeredgewidth=0.4, label=pair.replace("_", " "))  # fmt: skip
            axis.set_title(title)
            axis.set_xlabel("step (0 is the noisiest)")
            axis.grid()
        axes[0].set_ylabel("SQNR, dB")
        axes[0].legend()
    header = ["step", *(f"{kind}_{pair}_sqnr_db" for kind, pair in series)]
    rows = [[step, *(numbers[step] if numbers[step] is not None else "n/a" for numbers in series.values())]
            for step in range(len(run.steps))]  # fmt: skip
    return Picture.of("fidelity", "Fidelity by step", CAPTION, figure, header, rows)


def _finite(number: float | None) -> float:
    return math.nan if number is None or math.isinf(number) else number


def figures(record: Mapping[str, Any]) -> list[tuple[str, list[object]]]:
    """(name with unit, a value for each of `PAIRS`) of the whole clip; "n/a" for what was not measured."""
    found = record.get("fidelity")
    found = found if isinstance(found, dict) else {}

    def row(name: str, mean: bool = False) -> list[object]:
        values = found.get(name)
        if not isinstance(values, dict):
            return ["n/a"] * len(PAIRS)
        if not mean:
            return [values.get(pair, "n/a") for pair in PAIRS]
        numbers = [[value(v) for v in values.get(pair, [])] for pair in PAIRS]
        return [
            sum(v for v in row if v is not None) / len(row) if row and None not in row else "n/a" for row in numbers
        ]

    return [
        ("noise SQNR, equal inputs, mean over steps, dB", row("eps_equal_inputs_sqnr_db", mean=True)),
        ("noise SQNR, free running, mean over steps, dB", row("eps_sqnr_db", mean=True)),
        ("final latent SQNR, dB", row("latent_sqnr_db")),
        ("frames PSNR, dB", row("frames_psnr_db")),
        ("frames SSIM", row("frames_ssim")),
    ]
