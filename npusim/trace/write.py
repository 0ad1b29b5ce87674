"""Writes a program's trace, and a page to look at it without a network."""

from __future__ import annotations

import re
from pathlib import Path

from npusim.atomic_file import write_atomically
from npusim.errors import UserError
from npusim.folder import check_above
from npusim.program_file import load_program
from npusim.run_folder import program_of
from npusim.timing import time_program
from npusim.trace.part import Part, the_part
from npusim.trace.perfetto import Window, perfetto_trace, within
from npusim.trace.viewer import viewer

MOST_INSTRUCTIONS = 200_000
"""What one trace shows: about 70 MB, and 20 seconds to write."""
INSTRUCTION_BYTES = 350
"""Of a trace for an instruction with its tokens and counters, roughly."""


def write_trace(
    source: str | Path, out: str | Path, *, part: str = "step", window: Window | None = None, page: bool = False
) -> list[Path]:
    """Write the Perfetto trace of one part of a program; returns the paths written.

    source: a program file, or a run folder; window: [first cycle, last cycle) of the part, by default all of
    it; page: write an HTML timeline beside the trace, under its name with ``.html`` at the end.

    Raises UserError for a source that is no program, a part that it lacks, a window that is empty or begins behind its
    end, one of more than `MOST_INSTRUCTIONS`, and if nothing can be written.
    """
    source, out = Path(source), Path(out)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; allowed: a file to write")
    check_above(out)
    program = program_of(source) if source.is_dir() else load_program(source)
    found = the_part(program, time_program(program), part)
    total = found.timing.total_cycles
    if window is not None:
        if not 0 <= window[0] < min(window[1], total):
            raise UserError(f"window = {window[0]}:{window[1]}: allowed A:B with 0 <= A < B and A < {total} cycles")
        window = window[0], min(window[1], total)
    _check_size(found, window or (0, total))
    files = {out: perfetto_trace(found, window)}
    if page:
        files[out.with_suffix(".html")] = viewer(found, f"{part} of {source.name}", window).encode()
    for path, data in files.items():
        try:
            write_atomically(path, data)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return list(files)


def _check_size(part: Part, window: Window) -> None:
    """Refuse a trace that would be too large to write and to look at."""
    count = len(within(part, *window))
    if count > MOST_INSTRUCTIONS:
        cycles = (window[1] - window[0]) * MOST_INSTRUCTIONS // count
        rounded = cycles // (unit := 10 ** (len(str(cycles)) - 1)) * unit
        raise UserError(
            f"window = {window[0]}:{window[1]}: {part.name} has {count:,} instructions there, about "
            f"{count * INSTRUCTION_BYTES / 1e6:,.0f} MB of trace: allowed up to {MOST_INSTRUCTIONS:,} instructions; "
            f"choose a shorter --window A:B, here of about {rounded} cycles (one cycle is 1 ns)"
        )


def parse_window(text: str) -> Window:
    """``A:B``, both whole numbers of cycles. Raises UserError for anything else."""
    found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", text, re.ASCII)
    if found is None:
        raise UserError(f"window = {text[:40]!r}: allowed A:B, two whole numbers of cycles, as 0:5000")
    return int(found[1]), int(found[2])
