"""``npusim calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from npusim.commands.shared import Checkpoint, Workload
from npusim.errors import UserError
from npusim.folder import check_above


def calibrate(
    workload: Workload,
    out: Annotated[Path, typer.Option(help="Statistics file to write (safetensors).")],
    checkpoint: Checkpoint = None,
    text: Annotated[Path | None, typer.Option(help="Text states of captions of your own (models/README.md).")] = None,
    prompts: Annotated[int | None, typer.Option(help="Only the first so many captions.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps other than the workload's.")] = None,
    moments: Annotated[
        bool, typer.Option("--moments", help="Also collect what GPTQ needs, under build/calibration.")
    ] = False,
) -> None:
    """Measure the ranges of a float model's tensors, which every method quantizes by (models.calibrate.calibrate)."""
    from models.calibrate import calibrate as job

    if out.is_dir():
        raise UserError(f"{out}: is a folder; allowed: a file to write")
    check_above(out)
    console = Console(stderr=True)
    stats = job(
        workload, out, checkpoint=checkpoint, text_states=text, prompts=prompts, num_steps=steps, moments=moments,
        console=console if console.is_terminal else None,
    )  # fmt: skip
    typer.echo(f"{out}: {len(stats.minimum)} points, {len(stats.captions)} captions, {stats.steps} steps")
