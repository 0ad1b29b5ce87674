"""``npusim trace``."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def trace(
    source: Annotated[Path, typer.Argument(help="Run folder, or program file.")],
    out: Annotated[Path, typer.Option(help="Trace file to write.")] = Path("trace.pftrace"),
    part: Annotated[str, typer.Option(help="Which code: step, prologue; with swap also step_1, ...")] = "step",
    window: Annotated[str | None, typer.Option(help="Cycles of the part, A:B; by default all.")] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Also write a timeline as HTML, and open it in a browser; needs no network.")
    ] = False,
) -> None:
    """Write a Perfetto trace of one step or the prologue (npusim.trace.write.write_trace).

    Units are tracks, instructions slices, tokens flows; SRAM and DRAM are counters; one cycle is one nanosecond.
    Perfetto's own viewer is a web page (ui.perfetto.dev) and no part of npusim; --open shows units, instructions and
    tokens without it.
    """
    from npusim.trace.write import parse_window, write_trace

    paths = write_trace(source, out, part=part, window=parse_window(window) if window else None, page=open_)
    for path in paths:
        typer.echo(f"written to {path}")
    if not open_:
        typer.echo("shown by ui.perfetto.dev; with --open also as a page that needs no network")
    if open_:
        webbrowser.open(paths[-1].resolve().as_uri())
