"""``npusim hw``: the machines, one in full, a check of a file, and a new file to begin from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from npusim import hw
from npusim.commands.shared import AsJson, print_json
from npusim.config import Machine, load_machine

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Machine files: list them, show or check one, begin a new one (npusim.hw).",
    epilog="Example: npusim hw show edge_8k",
)

MachineFile = Annotated[str, typer.Argument(help="Machine file, or the name of one in hwconfigs.")]


@app.command("list", epilog="Example: npusim hw list --json")
def list_(
    folder: Annotated[Path | None, typer.Option(help="Folder of machine files; by default hwconfigs.")] = None,
    as_json: AsJson = False,
) -> None:
    """List machines with peak rates and ridge points (npusim.hw.list_machines)."""
    machines = hw.list_machines(hw.MACHINES if folder is None else folder)
    if as_json:
        print_json([_summary(path, machine) for path, machine in machines.items()])
        return
    columns = "{:20} {:>11} {:>5} {:>7} {:>9} {:>8} {:>7} {:>8}"
    typer.echo(columns.format("machine", "array", "MHz", "TOPS", "SRAM KiB", "GB/s", "DRAM", "MAC/byte"))
    for machine in machines.values():
        figures, array = hw.derive(machine), machine.mac_array
        row = (
            machine.name,
            f"{'' if array.count == 1 else f'{array.count}x'}{array.rows}x{array.cols} {array.dataflow[0]}s",
            f"{machine.clock_mhz}",
            f"{figures.peak_tops:.3g}",
            f"{machine.sram.capacity_bytes / 1024:,.0f}",
            f"{figures.sram_gb_per_second:,.4g}",
            f"{figures.dram_gb_per_second:,.4g}",
            f"{figures.ridge_macs_per_dram_byte:,.1f}",
        )
        typer.echo(columns.format(*row))
    typer.echo("ws, os, is: weight-, output-, input-stationary; GB/s: the SRAM's port, DRAM: all channels, 1e9 bytes;")
    typer.echo("MAC/byte: the ridge point of the DRAM")


@app.command(epilog="Example: npusim hw show hwconfigs/tiny_8x8.yaml")
def show(machine: MachineFile, as_json: AsJson = False) -> None:
    """Show one machine: fields and meanings, what follows (npusim.hw.derive), area and rates (npusim.cost.rates)."""
    from npusim.cost import rates  # imports the compiler of kernels, which the other commands do without

    path = hw.find_machine(machine)
    loaded = load_machine(path)
    cost = asdict(rates(loaded))
    if as_json:
        print_json(_summary(path, loaded) | {"cost": cost, "machine": loaded.model_dump(mode="json")})
        return
    rows = [(field, str(value).lower() if isinstance(value, bool) else str(value), meaning)
            for field, value, meaning in hw.field_rows(loaded)]  # fmt: skip
    rows += [(f"= {name}", f"{value:,.6g}", "derived") for name, value in asdict(hw.derive(loaded)).items()]
    rows += [(f"= {name}", f"{v['nominal']:.3g} ({v['low']:.3g} to {v['high']:.3g})" if isinstance(v, dict) else str(v),
              "from the tables of hwconfigs/energy") for name, v in cost.items()]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for field, value, meaning in rows:
        typer.echo(f"{field:{widths[0]}}  {value:>{widths[1]}}  {meaning}")


@app.command(epilog="Example: npusim hw check hwconfigs/edge_8k.yaml")
def check(machine: MachineFile) -> None:
    """Check a machine file; exit 2 with a line for each fault (npusim.config.load_machine)."""
    path = hw.find_machine(machine)
    loaded = load_machine(path)
    typer.echo(f"{path}: {loaded.name}, {loaded.peak_tops:.3g} TOPS; no fault")


@app.command(epilog="Example: npusim hw new my_npu --template gemmini_like --folder build")
def new(
    name: Annotated[str, typer.Argument(help="The new machine's name, also of its file.")],
    template: Annotated[str, typer.Option(help="Machine to begin from: a name in hwconfigs, or a file.")] = "edge_8k",
    folder: Annotated[Path, typer.Option(help="Folder to write in.")] = Path(),
) -> None:
    """Write a commented machine file to begin from; never over an existing one (npusim.hw.new_machine)."""
    typer.echo(f"written to {hw.new_machine(name, template, folder)}")


def _summary(path: Path, machine: Machine) -> dict[str, Any]:
    return {"name": machine.name, "file": str(path), "derived": asdict(hw.derive(machine))}
