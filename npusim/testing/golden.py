"""``assert_golden``: a program equals the one that was stored, instruction by instruction."""

from __future__ import annotations

import hashlib
import json
import os
import re
from itertools import zip_longest
from pathlib import Path

from npusim.atomic_file import write_atomically
from npusim.isa import decode
from npusim.isa.assembly import disassemble
from npusim.program import Program

UPDATE = "NPUSIM_UPDATE_GOLDEN"


def assert_golden(program: Program, path: str | Path) -> None:
    """Compare a program with a stored text: digests of its data, its map of DRAM, and its code as assembler text.

    With the environment variable ``NPUSIM_UPDATE_GOLDEN=1`` the file is written instead. Raises AssertionError where
    the file is missing or differs; the message shows the first instruction that differs, with its number and layer.
    """
    path, text = Path(path), golden_text(program)
    if os.environ.get(UPDATE) == "1":
        write_atomically(path, text.encode())
        return
    if not path.is_file():
        raise AssertionError(f"{path}: no such golden file; write it with {UPDATE}=1")
    stored = path.read_text(encoding="utf-8")
    if stored != text:
        raise AssertionError(f"{path}: {_first_difference(stored, text)}accept it with {UPDATE}=1")


def golden_text(program: Program) -> str:
    """What a golden file holds; equal programs give equal text, others give different text."""
    lines = [
        f"# {kind}{name} at {at} sha256 {hashlib.sha256(data.tobytes()).hexdigest()}"
        for kind, areas in (("", program.areas), ("stored ", program.storage_areas))
        for name, (at, data) in areas.items()
    ]
    machine = json.dumps(program.machine.model_dump(mode="json"), sort_keys=True)
    lines += [
        f"# machine {program.machine.name} sha256 {hashlib.sha256(machine.encode()).hexdigest()}",
        f"# steps {program.steps} of ranges {list(program.range_of_step)}, {program.dram_bytes} bytes of DRAM",
        *(f"# buffer {name} {b.dtype}{list(b.shape)} at {b.address}" for name, b in program.buffers.items()),
        *([f"# codes of steps {list(program.code_of_step)}, {program.swap}"] if program.swap else []),
        *(f"# layer {number} {name}" for number, name in enumerate(program.layers)),
        *(f"# host {name} {value}" for name, value in program.host.items()),
    ]
    for part, code in program.code():
        lines.append(f"# {part}: {len(code)} instructions")
        names = [program.layers[ins.layer] for ins in decode(code)]
        lines += [f"{line}  # {name}" for line, name in zip(disassemble(code).splitlines(), names, strict=False)]
    return "\n".join(lines) + "\n"


def _first_difference(stored: str, text: str) -> str:
    """The first instruction that differs; if the code is equal, the first line of the description that does."""
    old, new = _sections(stored), _sections(text)
    for part in sorted({*old, *new}, key=lambda name: (name == "description", name)):
        lines = zip_longest(old.get(part, []), new.get(part, []), fillvalue="(nothing)")
        for number, (left, right) in enumerate(lines):
            if left != right:
                where = "the program's description" if part == "description" else f"{part} instruction {number}"
                return f"{where} differs: stored\n  {left}\nnow\n  {right}\n"
    return "lines stand in another order; "


def _sections(text: str) -> dict[str, list[str]]:
    """Lines of the description, the prologue and each step code."""
    sections: dict[str, list[str]] = {"description": [], "prologue": [], "step": []}
    name = "description"
    for line in text.splitlines():
        if part := re.match(r"# (prologue|step|step_\d+):", line):
            name = part[1]
        sections.setdefault(name if not line.startswith("# ") else "description", []).append(line)
    return sections
