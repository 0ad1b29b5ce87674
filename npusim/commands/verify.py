"""``npusim verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.commands.shared import AsJson, naming, print_json, progress
from npusim.errors import UserError
from npusim.program_file import load_program


def verify(
    source: Annotated[Path, typer.Argument(help="Program file; with --tosa a run folder, or a quantized model.")],
    steps: Annotated[
        int | None, typer.Option(help="Steps on both executors behind the prologue (1); 0 alone: legality.")
    ] = None,
    orders: Annotated[int | None, typer.Option(help="Random orders that the tokens allow, on the engine.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random inputs and orders.")] = None,
    tosa: Annotated[bool, typer.Option("--tosa", help="Compare with Arm's TOSA reference model, bit for bit.")] = False,
    hw: Annotated[Path | None, typer.Option(help="Machine file, for --tosa with a quantized model.")] = None,
    block: Annotated[int | None, typer.Option(help="With --tosa: one transformer block only.")] = None,
    step: Annotated[int | None, typer.Option(help="With --tosa: which denoising step (0).")] = None,
    attention_bits: Annotated[int | None, typer.Option(help="For --tosa with a quantized model: 8 or 16.")] = None,
    factored: Annotated[
        bool, typer.Option("--factored", help="For --tosa with a quantized model: compile it in two factors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that a program is legal, and that engine and reference agree on random inputs (npusim.crosscheck).

    With --tosa, compare what the simulator computes with Arm's TOSA reference model (npusim.translation.verify_tosa).
    """
    from compiler.verify import verify as check
    from npusim.crosscheck import crosscheck

    if tosa:
        if (steps, orders, seed) != (None, None, None):
            raise UserError(f"{source}: --steps, --orders and --seed are allowed without --tosa only")
        _verify_tosa(source, hw, block, step or 0, attention_bits, factored, as_json)
        return
    if (hw, block, step, attention_bits, factored) != (None, None, None, None, False):
        raise UserError(
            f"{source}: --hw, --block, --step, --attention-bits and --factored are allowed with --tosa only"
        )
    loaded = load_program(source)
    result = None
    with naming(source):
        check(loaded)
        if steps != 0 or orders:
            with progress() as notify:
                result = crosscheck(loaded, 1 if steps is None else steps, orders or 0, seed or 0, notify=notify)
    if as_json:
        counts = {part: len(code) for part, code in loaded.code()}
        print_json({"program": source, "legal": True, "instructions": counts, "crosscheck": result})
    else:
        typer.echo(f"{source}: legal, {len(loaded.prologue)} + {len(loaded.step)} instructions")
        if result is not None:
            typer.echo(str(result))
    if result is not None and not result.equal:
        raise typer.Exit(1)


def _verify_tosa(
    source: Path,
    hw: Path | None,
    block: int | None,
    step: int,
    attention_bits: int | None,
    factored: bool,
    as_json: bool,
) -> None:
    from npusim.translation import report_text, verify_tosa

    with progress() as notify:
        report = verify_tosa(source, hw, block, attention_bits, notify, step, factored)
    if as_json:
        print_json({"equal": report.equal, "rows": report.rows, "operations": report.ops, "products": report.macs})
    else:
        typer.echo(report_text(report))
    if not report.equal:
        raise typer.Exit(1)
