"""``npusim explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.commands.shared import naming
from npusim.program_file import load_program


def explain(
    program: Annotated[Path, typer.Argument(help="Program file.")],
    index: Annotated[int, typer.Argument(help="Number of the instruction, counted from 0.")],
    part: Annotated[str, typer.Option(help="Which code: step or prologue.")] = "step",
    step: Annotated[int, typer.Option(help="The step whose parameters are shown.")] = 0,
) -> None:
    """Say what one instruction does, with operands, parameters, tokens and cost (npusim.explain.explain)."""
    from npusim.explain import explain as text

    loaded = load_program(program)
    with naming(program):
        typer.echo(text(loaded, index, part, step), nl=False)
