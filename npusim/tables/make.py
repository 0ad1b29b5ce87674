"""``npusim evaluate --tables``: measures the cells that are not measured yet, in parallel, and writes the tables.

A folder of tables grows: every finished cell is a file in ``cells/``, so an interrupted run goes on where it was, and
what is written at the end tells of all cells that are there.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.store import write_atomically
from models.workloads import Workload, get_workload
from npusim.config import load_machine
from npusim.errors import UserError
from npusim.folder import Layout, check_folder
from npusim.tables.cells import CLIPS, Cell, cells_of, parse_tables
from npusim.tables.files import cell_path, read_cell, write_cell
from npusim.tables.inputs import PREPARED, Inputs, Setup, prepare, prepared_for
from npusim.tables.measure import measure_cell, measure_integer
from npusim.workers import in_processes

Notify = Callable[[str, int, int], None]

HARDWARE = Path(os.path.relpath(Path(__file__).parents[2] / "hwconfigs"))
MACHINE, DYNAMIC_MACHINE = HARDWARE / "edge_8k.yaml", HARDWARE / "edge_8k_dynamic.yaml"
"""The machines of the integer table: for all methods, and one with run-time quantization for `dynamic`."""

MARKER = "tables.json"
LAYOUT = Layout("evaluation with --tables", (MARKER,))
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """What the tables are written from. ``figures``: of every cell that is measured, by name."""

    inputs: Inputs
    tables: tuple[str, ...]
    cells: Mapping[str, Cell]
    figures: Mapping[str, Mapping[str, Any]]


def evaluate_tables(
    out: str | Path,
    tables: str = "all",
    *,
    workload: str | Workload = "emoji",
    machine: Path = MACHINE,
    dynamic_machine: Path = DYNAMIC_MACHINE,
    clips: int = CLIPS,
    cell: str | None = None,
    force: bool = False,
    jobs: int = -1,
    notify: Notify | None = None,
) -> Measured:
    """Measure what is missing of some tables and write them into the folder ``out``.

    Args:
        out: a new folder, or that of an earlier run with the same workload and number of clips.
        tables: "all", or numerals and "integer", as "I,III".
        workload: a name, or one made by hand; it needs an autoencoder.
        machine: machine file of the integer table.
        dynamic_machine: machine file for the method `dynamic`.
        clips: per cell, 2 to 32.
        cell: measure this cell only, by its name.
        force: measure again what is there.
        jobs: processes; -1 for one per core, 1 for none beside this one.
        notify: told of progress.

    Raises:
        UserError, ModelError: the input is at fault; or a worker process was killed, and then finished cells are kept.
    """
    from npusim.tables.write import write_tables  # write.py needs this module's types

    folder, chosen = Path(out), parse_tables(tables)
    if not 2 <= clips <= CLIPS:
        raise UserError(f"clips = {clips}: allowed 2..{CLIPS}")
    check_folder(folder, LAYOUT)
    for path in (machine, dynamic_machine):
        load_machine(path)  # a fault in it is told before the work, whichever tables are asked for
    work = get_workload(workload) if isinstance(workload, str) else workload
    cells = cells_of(chosen, work.num_steps)
    if cell is not None and cell not in cells:
        near = difflib.get_close_matches(cell, cells, n=3, cutoff=0.0)
        raise UserError(f"cell = {cell[:60]!r}: not of tables {', '.join(chosen)}; nearest: {', '.join(near)}")
    inputs = Inputs(Setup(folder, work, clips, machine, dynamic_machine))
    inputs.vae  # noqa: B018 - a workload without one is refused before anything is written
    if any(one.integer for one in cells.values()):
        load_machine(machine)
    _mark(folder, {"schema_version": SCHEMA_VERSION, "workload": work.name, "clips": clips})
    wanted = [one for one in cells.values() if cell is None or one.name == cell]
    _in_parallel(inputs, [_Job(name) for name in prepared_for(wanted)], jobs, "shared inputs", notify)
    todo = [one for one in wanted if force or _finished(inputs, one) is None]
    _in_parallel(inputs, [_Job(one.name, one) for one in sorted(todo, key=_cost, reverse=True)], jobs, "cells", notify)
    figures = {
        name: found for name, one in cells.items() if (found := _finished(inputs, one, refused=True)) is not None
    }
    measured = Measured(inputs, chosen, cells, figures)
    write_tables(measured, folder)
    return measured


def _mark(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder one of tables, or check that it is one of the same settings."""
    path = folder / MARKER
    if not path.exists():
        write_atomically(path, (json.dumps(settings) + "\n").encode())
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); give another folder") from None
    if found != settings:
        raise UserError(f"{path}: holds {json.dumps(found)}, asked for is {json.dumps(settings)}; give another folder")


def _finished(inputs: Inputs, cell: Cell, refused: bool = False) -> dict[str, Any] | None:
    """Figures of a measured cell; those of a method that did not compile with ``refused`` only.

    Else it is measured again: the compiler may have learned it since.
    """
    found = read_cell(inputs.setup.folder, cell, inputs.settings(cell))
    return None if found is not None and found.get("refused") and not refused else found


def _cost(cell: Cell) -> float:
    """Roughly the seconds that a cell takes, so that the longest are begun first."""
    gptq_sets = cell.ranges if "_gptq" in cell.method and cell.method.startswith("tsq") else 1
    return 5.0 * gptq_sets + (200.0 if cell.method == "fp16" else 50.0)


@dataclass(frozen=True)
class _Job:
    """One of `PREPARED` by name, or a cell."""

    name: str
    cell: Cell | None = None


_inputs: Inputs | None = None
"""A worker keeps what it has loaded from one job to the next."""


def _work(setup: Setup, job: _Job) -> None:
    global _inputs
    if _inputs is None or _inputs.setup != setup:
        _inputs = Inputs(setup)
    _run(_inputs, job)


def _run(inputs: Inputs, job: _Job) -> None:
    if job.cell is None:
        assert job.name in PREPARED
        prepare(inputs, job.name)
        return
    settings = inputs.settings(job.cell)
    if job.cell.integer:
        write_cell(inputs.setup.folder, job.cell, settings, measure_integer(inputs, job.cell), None)
    else:
        write_cell(inputs.setup.folder, job.cell, settings, *measure_cell(inputs, job.cell))


def _in_parallel(inputs: Inputs, todo: Sequence[_Job], jobs: int, stage: str, notify: Notify | None) -> None:
    """Run jobs in worker processes, each on one thread."""
    if notify:
        notify(stage, 0, len(todo))
    for done, _ in enumerate(_results(inputs, todo, jobs), 1):
        if notify:
            notify(stage, done, len(todo))


def _results(inputs: Inputs, todo: Sequence[_Job], jobs: int) -> Iterable[None]:
    if jobs == 1 or len(todo) < 2:
        for job in todo:
            _run(inputs, job)
            yield
        return
    try:
        yield from in_processes(_work, ((inputs.setup, job) for job in todo), jobs, threads=1)
    except BrokenProcessPool:
        folder = inputs.setup.folder
        kept = sum(job.cell is not None and cell_path(folder, job.cell).exists() for job in todo)
        raise UserError(
            f"{folder}: a worker process was killed (out of memory?); {kept} of {len(todo)} cells are kept, "
            "the same command goes on"
        ) from None
