"""What several commands share: options, progress, JSON, and messages that name a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from npusim.errors import UserError

Workload = Annotated[
    str, typer.Option(help="Named workload: emoji, or tiny (random weights: quick, its fidelity means nothing).")
]
Hardware = Annotated[Path, typer.Option(help="Machine file, e.g. hwconfigs/edge_8k.yaml.")]
Method = Annotated[str, typer.Option(help="Quantization method, e.g. cw_tw, asq, tsq_pot (models/quantize/README.md).")]
Ranges = Annotated[str | None, typer.Option(help="Number of time ranges, or first step of each: 0,5,12.")]
Alpha = Annotated[float | None, typer.Option(help="Smoothing exponent; by default the one searched for.")]
Factored = Annotated[
    bool, typer.Option("--factored", help="Requantize in two factors what changes by range: smaller sets to swap.")
]
Overrides = Annotated[Path | None, typer.Option(help="YAML of bits by layer class and step.")]
WeightBits = Annotated[int, typer.Option(help="Bits of the block linears' weights: 4, 6 or 8.")]
ActBits = Annotated[int, typer.Option(help="Bits of the block linears' inputs: 4, 6, 8 or 16.")]
AttentionBits = Annotated[int, typer.Option(help="Bits of queries, keys and values: 8 or 16.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Float weights other than the workload's; calibrated anew.")]
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of which file it was that the disk refused it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress line for each stage on stderr; on a terminal only."""
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:

        def notify(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done)

        yield notify
