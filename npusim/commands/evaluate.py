"""``npusim evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from npusim.commands.shared import (
    ActBits,
    Alpha,
    AsJson,
    AttentionBits,
    Factored,
    Method,
    Overrides,
    Ranges,
    WeightBits,
    given,
    print_json,
    progress,
    quantization,
)
from npusim.errors import UserError


def evaluate(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    workload: Annotated[str | None, typer.Option(help="Named workload; with --tables by default emoji.")] = None,
    hw: Annotated[Path | None, typer.Option(help="Machine file; with --tables by default edge_8k.")] = None,
    method: Method = "cw_tw",
    captions: Annotated[str, typer.Option(help="Which captions of the workload: evaluation or sheet.")] = "evaluation",
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    attention_bits: AttentionBits = 16,
    ranges: Ranges = None,
    alpha: Alpha = None,
    overrides: Overrides = None,
    factored: Factored = False,
    tables: Annotated[str | None, typer.Option(help="Make the paper's tables: all, or some, as I,III,integer.")] = None,
    clips: Annotated[int, typer.Option(help="With --tables: clips per cell, 2 to 32.")] = 32,
    cell: Annotated[str | None, typer.Option(help="With --tables: measure this cell only, a name in cells/.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With --tables: measure again what is measured.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make many clips and compare them with the float model's, on average (npusim.evaluate.evaluate).

    With --tables, measure every method on two data sets and write the paper's tables, going on with what an earlier run
    has measured in the same folder (npusim.tables.make.evaluate_tables).
    """
    named = given(context)
    both, of_tables = {"out", "workload", "hw", "as_json"}, {"tables", "clips", "cell", "force"}
    if misplaced := sorted(named - both - of_tables if tables else named & of_tables):
        raise UserError(f"--{misplaced[0].replace('_', '-')}: allowed {'without' if tables else 'with'} --tables only")
    if tables is not None:
        _evaluate_tables(out, tables, workload, hw, clips, cell, force, as_json)
        return
    if workload is None or hw is None:
        raise UserError(f"--{'workload' if workload is None else 'hw'} is missing; without --tables it is needed")
    from npusim import evaluate as job
    from npusim.summary import evaluation_table

    with progress() as notify:
        result = job.evaluate(
            workload, hw, method, out, captions=captions, weight_bits=weight_bits, act_bits=act_bits,
            attention_bits=attention_bits, **quantization(ranges, alpha, overrides), factored=factored, notify=notify,
        )  # fmt: skip
    if as_json:
        print_json({"settings": result.settings, "means": result.means, "clips": result.rows})
        return
    console = Console(highlight=False)
    console.print(evaluation_table(result))
    console.print(f"written to {out}", soft_wrap=True, markup=False)


def _evaluate_tables(
    out: Path,
    tables: str,
    workload: str | None,
    hw: Path | None,
    clips: int,
    cell: str | None,
    force: bool,
    as_json: bool,
) -> None:
    from npusim.tables.make import MACHINE, evaluate_tables

    with progress() as notify:
        measured = evaluate_tables(
            out, tables, workload=workload or "emoji", machine=hw or MACHINE, clips=clips, cell=cell, force=force,
            notify=notify,
        )  # fmt: skip
    if as_json:
        print_json(measured.figures)
        return
    typer.echo(f"{out}: {len(measured.figures)} of {len(measured.cells)} cells are measured; see {out / 'results.md'}")
