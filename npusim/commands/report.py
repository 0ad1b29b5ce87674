"""``npusim report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, as `npusim run` writes it.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default the run folder itself.")] = None,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Also fidelity by layer: runs float and fake-quantized networks again.")
    ] = False,
) -> None:
    """Write one self-contained HTML file about a run, its figures and their data (npusim.html.report.write_report)."""
    from npusim.html.report import write_report

    typer.echo(f"written to {write_report(run_folder, out, by_layer=by_layer)}")
