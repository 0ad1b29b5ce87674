"""Makes the report of a run folder: ``report.html`` and, as files, its figures and their data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from npusim.atomic_file import write_atomically
from npusim.folder import Layout, check_folder, writing
from npusim.html.energy import area_picture, by_cause, by_component, by_layer, by_step
from npusim.html.fidelity import fidelity
from npusim.html.figure import Picture
from npusim.html.memory import memory
from npusim.html.page import page
from npusim.html.roofline import roofline
from npusim.html.source import RunData, load_run
from npusim.html.stacks import layers_picture, steps_picture
from npusim.html.swap import swap
from npusim.html.timeline import timeline

PAGE, FIGURES = "report.html", "figures"
REPORT_FOLDER = Layout("report", (PAGE, FIGURES))
PICTURES: tuple[Callable[[RunData], Picture | None], ...] = (
    roofline, layers_picture, steps_picture, timeline, memory, by_component, by_layer, by_cause, by_step, area_picture,
    swap,
    fidelity,
)  # fmt: skip


def write_report(folder: str | Path, out: str | Path | None = None, *, by_layer: bool = False) -> Path:
    """Write the report about the run folder ``folder``; the page's path is returned.

    ``out``: a folder other than the run folder, new, empty, or that of an earlier report. ``by_layer``: also measure
    fidelity by layer, for which the float and the fake-quantized network run again. Equal run folders give equal files,
    whatever ``wall_clock`` says.

    Raises UserError for a folder that holds no run, and if nothing can be written; then nothing is.
    """
    source, target = Path(folder), Path(folder if out is None else out)
    if target.resolve() != source.resolve():
        check_folder(target, REPORT_FOLDER)
    run = load_run(source)
    pictures = [picture for make in PICTURES if (picture := make(run)) is not None]
    if by_layer:
        from npusim.html.layers import layers_fidelity  # imports torch, which the rest of the report does without

        pictures.append(layers_fidelity(run))
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        _write_figures(target, pictures)
        write_atomically(target / PAGE, page(run, pictures, FIGURES).encode())
    return target / PAGE


def _write_figures(target: Path, pictures: list[Picture]) -> None:
    """The page of an earlier report goes first: it never stands beside figures that are not its own."""
    (target / PAGE).unlink(missing_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{FIGURES}.", dir=target))
    try:
        temporary.chmod(0o755)
        for picture in pictures:
            (temporary / f"{picture.name}.png").write_bytes(picture.png)
            (temporary / f"{picture.name}.csv").write_bytes(picture.csv)
        if (target / FIGURES).exists():
            shutil.rmtree(target / FIGURES)
        temporary.rename(target / FIGURES)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
