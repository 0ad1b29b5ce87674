"""``npusim compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from npusim.commands.shared import AsJson, print_json

MOST_ROWS = 12
FILE_COLUMNS = 160
"""Width of tables that do not go to a terminal."""


def compare(
    before: Annotated[Path, typer.Argument(help="Run folder, as `npusim run` writes it.")],
    after: Annotated[Path, typer.Argument(help="Run folder to compare with it.")],
    as_json: AsJson = False,
) -> None:
    """Say which settings, causes, layers and bytes changed between two runs (npusim.compare.compare)."""
    from npusim.compare import LAYER_COUNTS, Change
    from npusim.compare import compare as library

    found = library(before, after)
    if as_json:
        print_json(found)
        return
    if not found.differs:
        typer.echo("no difference")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_COLUMNS)

    def new_table(title: str, *columns: str) -> Table:
        table = Table(title=title, title_justify="left", box=None)
        for index, column in enumerate(columns):
            table.add_column(column, no_wrap=index == 0, justify="left" if index == 0 else "right")
        return table

    def show(title: str, changes: tuple[Change, ...]) -> None:
        if not changes:
            console.print(f"{title}: none")
            return
        table = new_table(title, "", "before", "after", "change", "%")
        for change in changes[:MOST_ROWS]:
            table.add_row(change.name, *map(_text, (change.before, change.after)), *_difference(change))
        console.print(table)
        if len(changes) > MOST_ROWS:
            console.print(f"and {len(changes) - MOST_ROWS} more (--json prints all)")

    show("settings that differ", found.settings)
    show("whole run", found.totals)
    show("ledger, cycles by unit and cause, largest change first", found.causes)
    if not found.layers:
        console.print("layers that differ: none")
        return
    table = new_table("layers, change of all executions", "layer", *LAYER_COUNTS)
    for layer in found.layers[:MOST_ROWS]:
        table.add_row(f"{layer.part}: {layer.layer}", *(f"{layer.difference(name):+,}" for name in LAYER_COUNTS))
    console.print(table)
    if len(found.layers) > MOST_ROWS:
        console.print(f"and {len(found.layers) - MOST_ROWS} more layers (--json prints all)")


def _text(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _difference(change: Any) -> tuple[str, str]:
    difference = change.difference
    if difference is None:
        return "", ""
    text = f"{difference:+,}" if isinstance(difference, int) else f"{difference:+.4g}"
    return text, f"{100 * difference / change.before:+.1f}" if change.before else ""
