"""What several commands share: options, progress, JSON, and messages that name a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from npusim.errors import UserError

Workload = Annotated[
    str,
    typer.Option(
        help="emoji; tiny (random weights: quick, its fidelity means nothing); stdit-xl2-16x256x256 or -16x512x512."
    ),
]
Hardware = Annotated[Path, typer.Option(help="Machine file, or a name in hwconfigs: hwconfigs/edge_8k.yaml.")]
Method = Annotated[str, typer.Option(help="Quantization method, e.g. cw_tw, asq, tsq_pot (models/quantize/README.md).")]
Ranges = Annotated[str | None, typer.Option(help="Number of time ranges, or first steps: 0,5,12.")]
Alpha = Annotated[float | None, typer.Option(help="Smoothing exponent; by default the searched one.")]
Factored = Annotated[bool, typer.Option("--factored", help="Requantize in two factors: smaller sets to swap.")]
Overrides = Annotated[Path | None, typer.Option(help="YAML of bits by layer class and step.")]
WeightBits = Annotated[int, typer.Option(help="Bits of block linears' weights: 4, 6, 8.")]
ActBits = Annotated[int, typer.Option(help="Bits of their inputs: 4, 6, 8 or 16.")]
AttentionBits = Annotated[int, typer.Option(help="Bits of q, k and v: 8 or 16.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Other float weights; calibrated anew.")]
Calibration = Annotated[Path | None, typer.Option(help="Calibration statistics other than the workload's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def quantization(ranges: str | None, alpha: float | None, overrides: Path | None) -> dict[str, Any]:
    """The options that say how a method is applied, as arguments of the library."""
    from models.quantize import load_overrides, parse_ranges

    return {
        "ranges": None if ranges is None else parse_ranges(ranges),
        "alpha": alpha,
        "overrides": () if overrides is None else load_overrides(overrides),
    }


def print_json(value: object) -> None:
    """The one form that ``--json`` has: one document on stdout; NaN is "n/a", infinity "inf", as in files."""
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not isfinite(value):
        return "n/a" if isnan(value) else ("inf" if value > 0 else "-inf")
    return str(value) if isinstance(value, Path) else value


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name in front of a message about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


TOLD_SECONDS = 60
"""Between two lines of progress where there is no terminal."""


@contextmanager
def progress() -> Iterator[Callable[[str, float, int], None]]:
    """Each stage's progress on stderr, with the time it still needs: a line that moves, or a new one each minute."""
    columns = (
        TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    begun: dict[str, tuple[float, float]] = {}  # when a stage began, and how much of it was done then
    told = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as shown:

        def notify(stage: str, done: float, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if stage not in tasks:
                begun[stage] = now, done
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done)
            start, before = begun[stage]
            if console.is_terminal or now - told < TOLD_SECONDS or done in (before, total):
                return
            told, minutes = now, (now - start) / (done - before) * (total - done) / 60
            console.print(f"{stage}: {done:.1f} of {total}, {minutes:.0f} min left", soft_wrap=True)

        yield notify
