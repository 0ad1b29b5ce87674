"""``assert_golden``: a program equals the one that was stored, instruction by instruction."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import zip_longest
from pathlib import Path

from npusim.isa import decode
from npusim.isa.assembly import disassemble
from npusim.program import Program, write_atomically

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
        raise AssertionError(f"{path}: {_first_difference(program, stored, text)}; accept it with {UPDATE}=1")


def golden_text(program: Program) -> str:
    """What a golden file holds; equal programs give equal text, others give different text."""
    data = {"constants": program.constants, "sets": program.sets}
    lines = [f"# {name} sha256 {hashlib.sha256(values.tobytes()).hexdigest()}" for name, values in data.items()]
    machine = json.dumps(program.machine.model_dump(mode="json"), sort_keys=True)
    lines += [
        f"# machine {program.machine.name} sha256 {hashlib.sha256(machine.encode()).hexdigest()}",
        f"# steps {program.steps}, sets at {program.set_address}, {program.dram_bytes} bytes of DRAM",
        *(f"# buffer {name} {b.dtype}{list(b.shape)} at {b.address}" for name, b in program.buffers.items()),
        *(f"# layer {number} {name}" for number, name in enumerate(program.layers)),
        *(f"# host {name} {value}" for name, value in program.host.items()),
    ]
    for part, code in program.code():
        lines.append(f"# {part}: {len(code)} instructions")
        names = [program.layers[ins.layer] for ins in decode(code)]
        lines += [f"{line}  # {name}" for line, name in zip(disassemble(code).splitlines(), names, strict=False)]
    return "\n".join(lines) + "\n"


def _first_difference(program: Program, stored: str, text: str) -> str:
    """The first instruction that differs; if the code is equal, the first line that does."""
    differing = []
    part, number = "", 0
    for old, new in zip_longest(stored.splitlines(), text.splitlines(), fillvalue="(nothing)"):
        is_code = not new.startswith("#")
        if new.startswith(("# prologue:", "# step:")):
            part, number = new[2:].partition(":")[0], 0
        if old != new:
            where = f"{part} instruction {number}" if is_code and part else "the program's description"
            differing.append((not is_code, f"{where} differs: stored\n  {old}\nnow\n  {new}"))
        number += is_code
    return min(differing, key=lambda entry: entry[0])[1]
