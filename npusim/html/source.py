"""What a report is made from: a run folder, read and timed again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from npusim.cost import Energy, energy
from npusim.errors import UserError
from npusim.program import Program
from npusim.record import Rows, read_record, read_rows, section
from npusim.run_folder import program_of
from npusim.timing import Ledger, ProgramTiming, time_program
from npusim.trace.part import Part, parts_of

NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, eq=False)
class RunData:
    """A run folder's contents.

    record: run.json; steps, swap: rows of steps.csv and swap.csv, empty where there is none; clips: an animation, or
    None.
    """

    folder: Path
    record: Mapping[str, Any]
    program: Program
    timing: ProgramTiming
    parts: Mapping[str, Part]
    steps: Rows
    swap: Rows
    clips: bytes | None

    @property
    def step(self) -> Part:
        return self.parts["step"]

    @property
    def timing_only(self) -> bool:
        """Whether no data flowed: then there are no clips, and nothing that is measured on them."""
        return not self.program.contents

    @property
    def ledgers(self) -> list[tuple[str, Ledger]]:
        """Name and ledger of the prologue and of each step, in order of execution."""
        steps = ((str(step), self.timing.codes[code].ledger) for step, code in enumerate(self.timing.code_of_step))
        return [("prologue", self.timing.prologue.ledger), *steps]

    @property
    def units(self) -> tuple[str, ...]:
        """Units that the program uses."""
        return tuple(unit for unit in self.program.machine.units if self.timing.ledger[unit]["busy"])

    @cached_property
    def energy(self) -> Energy:
        """By the tables of this version, which may be others than the run's."""
        return energy(self.program, self.timing)


def load_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises UserError if it is none, if a file is damaged, or if its program takes other cycles now than run.json says.
    """
    record = read_record(folder / "run.json")
    program = program_of(folder, record)
    timing = time_program(program, steps=_steps(section(record, "config").get("steps"), program))
    then = section(record, "cost").get("cycles")
    if then != timing.cycles:
        raise UserError(
            f"{folder}: run.json says {then} cycles, its program takes {timing.cycles} now: it was timed by another "
            "version; allowed: a folder that this version made (run it again)"
        )
    clips = folder / "clips.gif"
    return RunData(
        folder, record, program, timing, parts_of(program, timing), read_rows(folder / "steps.csv"),
        read_rows(folder / "swap.csv"), clips.read_bytes() if clips.is_file() else None,
    )  # fmt: skip


def _steps(given: object, program: Program) -> int | None:
    """How many steps a run of a part of the video took; None for all."""
    return given if type(given) is int and 1 <= given <= program.steps else None


def layer_class(name: str) -> str:
    """Layers that differ in their numbers only, as in blocks.3.mlp.fc1, are one class: blocks.*.mlp.fc1."""
    return NUMBER.sub(".*", name)


def layer_group(name: str) -> str:
    """The larger piece of the model that a layer belongs to: attn_temp of blocks.3.attn_temp.qkv."""
    pieces = [piece for piece in name.split(".") if not piece.isdigit()]
    return pieces[1] if len(pieces) > 1 and pieces[0] == "blocks" else pieces[0] if pieces else ""


def groups_by_time(part: Part, most: int) -> list[str]:
    """The groups of layers of a part that keep units busy longest, at most ``most``, longest first."""
    names, which = part.by_name(layer_group)
    busy = np.zeros(len(names), np.int64)
    np.add.at(busy, which[~part.cost.barrier], (part.cost.busy + part.cost.transfer)[~part.cost.barrier])
    of_layers = {name: cycles for name, cycles in zip(names, busy.tolist(), strict=True) if name}
    return sorted(of_layers, key=lambda name: (-of_layers[name], name))[:most]
