"""``npusim compile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.atomic_file import write_atomically
from npusim.commands.shared import AttentionBits, Factored, Hardware
from npusim.errors import UserError
from npusim.folder import check_above, writing
from npusim.program_file import save_program


def compile_(
    quantized: Annotated[Path, typer.Argument(help="Quantized model, from `npusim quantize` or a run folder.")],
    hw: Hardware,
    out: Annotated[Path, typer.Option("--out", "-o", help="Program file to write.")],
    attention_bits: AttentionBits = 16,
    factored: Factored = False,
    dump_passes: Annotated[Path | None, typer.Option(help="Folder for every compiler stage as text.")] = None,
) -> None:
    """Compile a quantized model for a machine (compiler.compile_model)."""
    from compiler import compile_model
    from models.quantize import QuantizedModel
    from npusim.config import load_machine

    if quantized.is_dir():
        raise UserError(f"{quantized}: is a folder; did you mean {quantized / 'quantized.safetensors'}?")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; allowed: a file to write")
    check_above(out)
    if dump_passes is not None:
        if dump_passes.exists() and not dump_passes.is_dir():
            raise UserError(f"{dump_passes}: exists and is not a folder")
        check_above(dump_passes)
    passes: dict[str, str] = {}
    dump = None if dump_passes is None else passes.__setitem__
    program = compile_model(QuantizedModel.load(quantized), load_machine(hw), attention_bits, dump, factored)
    for stage, text in passes.items():
        path = Path(dump_passes or "", f"{stage}.txt")
        with writing(path):
            write_atomically(path, text.encode())
    with writing(out):
        save_program(program, out)
    typer.echo(f"{out}: {len(program.prologue)} + {len(program.step)} instructions, {program.dram_bytes} bytes of DRAM")
