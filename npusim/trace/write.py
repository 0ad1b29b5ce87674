"""Writes a program's trace, and a page to look at it without a network."""

from __future__ import annotations

import re
from pathlib import Path

from npusim.atomic_file import write_atomically
from npusim.errors import UserError
from npusim.folder import check_above
from npusim.program_file import load_program
from npusim.timing import time_program
from npusim.trace.part import parts_of, the_part
from npusim.trace.perfetto import Window, perfetto_trace
from npusim.trace.viewer import viewer

PROGRAM = "program.npu"


def write_trace(
    source: str | Path, out: str | Path, *, part: str = "step", window: Window | None = None, page: bool = False
) -> list[Path]:
    """Write the Perfetto trace of one part of a program; returns the paths written.

    source: a program file, or a run folder with one; window: [first cycle, last cycle) of the part, by default all of
    it; page: write an HTML timeline beside the trace, under its name with ``.html`` at the end.

    Raises UserError for a source that is no program, a part that it lacks, a window that is empty or begins behind its
    end, and if nothing can be written.
    """
    source, out = Path(source), Path(out)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; allowed: a file to write")
    check_above(out)
    program = load_program(source / PROGRAM if source.is_dir() else source)
    found = the_part(parts_of(program, time_program(program)), part)
    total = found.timing.total_cycles
    if window is not None:
        if not 0 <= window[0] < min(window[1], total):
            raise UserError(f"window = {window[0]}:{window[1]}: allowed A:B with 0 <= A < B and A < {total} cycles")
        window = window[0], min(window[1], total)
    files = {out: perfetto_trace(found, window)}
    if page:
        files[out.with_suffix(".html")] = viewer(found, f"{part} of {source.name}", window).encode()
    for path, data in files.items():
        try:
            write_atomically(path, data)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return list(files)


def parse_window(text: str) -> Window:
    """``A:B``, both whole numbers of cycles. Raises UserError for anything else."""
    found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", text, re.ASCII)
    if found is None:
        raise UserError(f"window = {text[:40]!r}: allowed A:B, two whole numbers of cycles, as 0:5000")
    return int(found[1]), int(found[2])
