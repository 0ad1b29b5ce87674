"""The program of a run folder: from its file, or, of a timing-only run, compiled again as its run.json says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npusim.errors import UserError
from npusim.program import Program
from npusim.program_file import load_program
from npusim.record import read_record, section

PROGRAM, RECORD = "program.npu", "run.json"


def program_of(folder: Path, record: Mapping[str, Any] | None = None) -> Program:
    """The program that the run in ``folder`` executed or timed; ``record``: its run.json, if it has been read.

    A timing-only run keeps no program, whose constants would mean nothing; compiling is deterministic, so the same
    version makes the same one.

    Raises UserError for a folder without a run, a damaged file, and settings that no run has written.
    """
    path = folder / PROGRAM
    if path.is_file():
        return load_program(path)
    record = read_record(folder / RECORD) if record is None else record
    if section(record, "config").get("timing_only") is not True:
        return load_program(path)  # which says that it is missing
    from models.errors import ModelError  # imports torch, which folders with programs do without
    from models.workloads import get_workload
    from npusim.run import outlined
    from npusim.run_config import part_of, recorded_config

    try:
        config = recorded_config(record)
        work = part_of(get_workload(config.workload), config.steps, config.blocks, config.branch)
        return outlined(work, config)[1]
    except (UserError, ModelError) as error:
        raise UserError(f"{folder / RECORD}: {error}") from None
