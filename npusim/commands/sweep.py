"""``npusim sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.commands.shared import AsJson, print_json


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (npusim/sweep/README.md).")],
    out: Annotated[Path, typer.Option(help="Folder of results; an earlier sweep there goes on.")],
    jobs: Annotated[int, typer.Option(help="Processes on this machine.", min=1, max=1024)] = 1,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler instead, tcp://host:port.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile and time many machines, methods and widths (npusim.sweep.run.sweep); needs the extra `sweep`."""
    from npusim.sweep.run import sweep as job

    rows = job(file, out, jobs=jobs, dask=dask)
    if as_json:
        print_json(rows)
        return
    refused = sum(row["status"] != "ok" for row in rows)
    typer.echo(f"{out}: {len(rows)} points, {refused} of them refused; see {out / 'pareto.md'}")
