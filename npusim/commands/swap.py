"""``npusim swap``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.commands.shared import ActBits, AsJson, Factored, Hardware, WeightBits, Workload, print_json, progress
from npusim.errors import UserError


def swap(
    workload: Workload,
    hw: Hardware,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    methods: Annotated[str, typer.Option(help="Quantization methods, with commas.")] = "tsw,tsq,tsq_pot",
    ranges: Annotated[str, typer.Option(help="Numbers of time ranges, with commas.")] = "1,2,4,10,20",
    policies: Annotated[str, typer.Option(help="all, or some of blocking,resident,shadow,streamed,adaptive.")] = "all",
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    factored: Factored = False,
    delta: Annotated[
        bool, typer.Option("--delta", help="Storage holds sets as differences, decoded by FETCH.")
    ] = False,
    fidelity: Annotated[Path | None, typer.Option(help="Folder of `npusim evaluate --tables`, for the front.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare policies of parameter swap by time, bytes and DRAM (npusim.swap.swap)."""
    from compiler.swap import POLICIES
    from npusim import swap as job
    from npusim.swap_write import refusals

    counts = ranges.split(",")
    if not all(count.isascii() and count.isdigit() and len(count) < 6 for count in counts):
        raise UserError(f"ranges = {ranges[:40]!r}: allowed whole numbers with commas, e.g. 1,2,4")
    chosen = tuple(POLICIES) if policies == "all" else tuple(policies.split(","))
    with progress() as notify:
        study = job.swap(
            workload, hw, methods.split(","), [int(count) for count in counts], chosen, out, weight_bits=weight_bits,
            act_bits=act_bits, factored=factored, delta=delta, fidelity=fidelity, notify=notify,
        )  # fmt: skip
    if as_json:
        print_json(study.costs)
        return
    for line in refusals(study):
        typer.echo(f"refused: {line}")
    typer.echo(f"{out}: {len(study.costs)} rows; see {out / 'swap.md'}")
