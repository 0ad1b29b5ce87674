"""``npusim quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npusim.commands.shared import (
    ActBits,
    Alpha,
    Calibration,
    Checkpoint,
    Method,
    Overrides,
    Ranges,
    WeightBits,
    Workload,
    quantization,
)


def quantize(
    workload: Workload,
    out: Annotated[Path, typer.Option(help="File to write; weight sets that differ by range lie beside it.")],
    method: Method = "cw_tw",
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    ranges: Ranges = None,
    alpha: Alpha = None,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    calibration: Calibration = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps other than the workload's.")] = None,
) -> None:
    """Quantize a workload's model (npusim.run.quantize_workload)."""
    from npusim.run import quantize_workload

    quantized = quantize_workload(
        workload, method, weight_bits=weight_bits, act_bits=act_bits, checkpoint=checkpoint, calibration=calibration,
        **quantization(ranges, alpha, overrides), num_steps=steps, out=out,
    )  # fmt: skip
    smoothing = "" if quantized.alpha is None else f", alpha {quantized.alpha}"
    typer.echo(f"{out}: {len(quantized.linears)} linears, {quantized.num_ranges} time range(s){smoothing}")
