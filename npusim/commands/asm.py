"""``npusim asm``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.atomic_file import write_atomically
from npusim.commands.shared import naming
from npusim.folder import writing
from npusim.isa.assembly import assemble
from npusim.program_file import save_program
from npusim.program_rules import bare_program
from npusim.text_file import read_text


def asm(
    file: Annotated[Path, typer.Argument(help="Assembler text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    hw: Annotated[Path | None, typer.Option(help="Machine file: write a program for it, which verify takes.")] = None,
) -> None:
    """Assemble text to instruction words, 128 little-endian bytes each (npusim.isa.assembly.assemble).

    With --hw, check each instruction against the machine and write a program of one step that runs the text's code;
    the DRAM that it reaches is its only buffer (npusim.program_rules.bare_program).
    """
    from npusim.config import load_machine

    text = read_text(file, "text file")
    machine = None if hw is None else load_machine(hw)
    code = assemble(text, str(file), machine)
    if machine is None:
        with writing(out):
            write_atomically(out, code.astype("<u4").tobytes())
    else:
        with naming(file):
            program = bare_program(code, machine)
        with writing(out):
            save_program(program, out)
    typer.echo(f"{out}: {len(code)} instructions")
