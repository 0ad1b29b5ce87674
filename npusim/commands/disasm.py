"""``npusim disasm``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa.assembly import disassemble
from npusim.isa.encoding import INSTRUCTION_BYTES, WORDS
from npusim.program_file import load_program


class Part(StrEnum):
    """Which code of a program `disasm` prints."""

    ALL = "all"
    PROLOGUE = "prologue"
    STEP = "step"


def disasm(
    program: Annotated[
        Path, typer.Argument(help="Program file, or instruction words as `npusim asm` writes them without --hw.")
    ],
    part: Annotated[Part, typer.Option(help="Which code of a program.")] = Part.ALL,
) -> None:
    """Print code as assembler text, which `npusim asm` reads (npusim.isa.assembly.disassemble)."""
    words = _read_words(program)
    if words is None:
        pieces = {name: code for name, code in load_program(program).code() if part in (Part.ALL, name)}
    elif part is Part.ALL:
        pieces = {"code": words}
    else:
        raise UserError(f"{program}: instruction words have no parts; allowed: --part with a program file only")
    for name, code in pieces.items():
        typer.echo(f"# {name}: {len(code)} instructions\n{disassemble(code)}", nl=False)


def _read_words(path: Path) -> NDArray[np.uint32] | None:
    """Words (count, 32) of a file of instruction words; None for a file that begins as programs do, or that is none."""
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if data[8:].startswith(b'{"__metadata__"'):
        return None
    if not data or len(data) % INSTRUCTION_BYTES:
        raise UserError(
            f"{path}: {len(data)} bytes; allowed: a program file, or whole instructions of {INSTRUCTION_BYTES} bytes"
        )
    return np.frombuffer(data, "<u4").reshape(-1, WORDS).astype(np.uint32)
