"""``npusim rtl``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from npusim.commands.shared import Hardware


def rtl(hw: Hardware, out: Annotated[Path, typer.Option(help="Folder to write.")]) -> None:
    """Write a machine's matrix unit in SystemVerilog (npusim.rtl.write_rtl)."""
    from npusim.config import load_machine
    from npusim.rtl import LINT, write_rtl

    machine = load_machine(hw)
    paths = write_rtl(machine, out)
    array = machine.mac_array
    kind = array.dataflow.replace("_", "-")
    typer.echo(f"{out}: {len(paths)} files, {kind} matrix unit of {array.rows} x {array.cols} cells")
    typer.echo(f"check with: cd {shlex.quote(str(out))} && {LINT}")
