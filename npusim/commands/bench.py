"""``npusim bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from npusim.bench import ROUNDS
from npusim.commands.shared import AsJson, print_json

CONTENDERS = {"engine": "engine", "vnni_peak": "peak", "int_mm": "int_mm", "fp32": "fp32"}
RATIOS = {"vs_vnni_peak": "/ peak", "vs_int_mm": "/ int_mm", "vs_fp32": "/ fp32"}


def bench(
    rounds: Annotated[int, typer.Option(help="Of how many calls the best counts.")] = ROUNDS,
    as_json: AsJson = False,
) -> None:
    """Measure engine and cycle model on this computer; about two minutes (npusim.bench.bench).

    Seconds of each kind of instruction; int8 products beside the processor's peak and PyTorch; simulated cycles per
    second. Figures count on a quiet computer only.
    """
    from npusim.bench import bench as job

    result = job(rounds)
    if as_json:
        print_json(result)
        return
    console = Console(highlight=False)
    console.print(_instructions(result["instructions"]))
    console.print(_products(result))
    model = result["cycle_model"]
    for name, label in (("sram", "operands in SRAM"), ("dram", "copies through DRAM")):
        console.print(f"cycle model, {label}: {model[name]['cycles_per_second']:,.0f} simulated cycles/s")
    console.print(f"cycle model, DRAM alone: {model['dram_bursts_per_second'] / 1e6:.1f} million bursts/s")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _instructions(lines: dict[str, dict[str, float]]) -> Table:
    compiled = sum(line["first_s"] for line in lines.values())
    table = _table(f"one thread, all first calls {compiled:.1f} s", "instruction", "first s", "best us", "GMAC/s")
    for name, line in lines.items():
        rate = f"{line['macs'] / line['best_s'] / 1e9:.1f}" if line["macs"] else ""
        table.add_row(name, f"{line['first_s']:.2f}", f"{line['best_s'] * 1e6:.0f}", rate)
    return table


def _products(result: dict[str, Any]) -> Table:
    title = f"int8 products, GMAC/s, {result['threads']} threads, {result['variant']}; engine's ratio to the others"
    table = _table(title, "shape", *CONTENDERS.values(), *RATIOS.values())

    def cell(value: float | str | None, digits: int) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else "n/a"

    for shape, rates in result["gmac_per_s"].items():
        row = (cell(rates.get(name), 1) for name in CONTENDERS)
        table.add_row(shape, *row, *(cell(result[name].get(shape), 2) for name in RATIOS))
    means = (cell(result[name]["geometric_mean"], 2) for name in RATIOS)
    table.add_row("geometric mean", *[""] * len(CONTENDERS), *means)
    return table
