"""The command ``npusim``. Every subcommand is one documented call of the library, which is named in its help.

Exit codes: 0 success; 1 engine and reference (or, with `verify --tosa`, TOSA's model) differ, or a fault of npusim
itself; 2 the user's input is at fault (one message on stderr, nothing written); 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from models.errors import ModelError
from npusim.commands import hw as hw_commands
from npusim.commands.asm import asm
from npusim.commands.bench import bench
from npusim.commands.calibrate import calibrate
from npusim.commands.compare import compare
from npusim.commands.compile import compile_
from npusim.commands.disasm import disasm
from npusim.commands.evaluate import evaluate
from npusim.commands.explain import explain
from npusim.commands.group import Commands
from npusim.commands.quantize import quantize
from npusim.commands.report import report
from npusim.commands.rtl import rtl
from npusim.commands.shared import (
    ActBits,
    Alpha,
    AsJson,
    AttentionBits,
    Calibration,
    Checkpoint,
    Factored,
    Hardware,
    Method,
    Overrides,
    Ranges,
    WeightBits,
    Workload,
    given,
    print_json,
    progress,
    quantization,
)
from npusim.commands.swap import swap
from npusim.commands.sweep import sweep
from npusim.commands.trace import trace
from npusim.commands.verify import verify
from npusim.errors import BitsDifferError, UserError

if TYPE_CHECKING:
    from npusim.run import TimingResult

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Bit-accurate and cycle-level simulator of an integer NPU that runs a quantized video diffusion transformer.",
    epilog="Example: npusim run --workload emoji --hw hwconfigs/edge_8k.yaml --out runs/demo",
)
app.add_typer(hw_commands.app, name="hw")


@app.command(epilog="Example: npusim run --workload emoji --hw hwconfigs/edge_8k.yaml --method cw_tw --out runs/demo")
def run(
    context: typer.Context,
    workload: Workload,
    hw: Hardware,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    method: Method = "cw_tw",
    prompt: Annotated[str | None, typer.Option(help="A caption with stored text states.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    verify: Annotated[str | None, typer.Option(help="Steps that the reference repeats: all, none, 2.")] = None,
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    attention_bits: AttentionBits = 16,
    ranges: Ranges = None,
    alpha: Alpha = None,
    overrides: Overrides = None,
    factored: Factored = False,
    policy: Annotated[
        str,
        typer.Option(help="Sets from storage: blocking, resident, shadow, streamed, adaptive.", show_default=False),
    ] = "in_dram",
    checkpoint: Checkpoint = None,
    calibration: Calibration = None,
    dump_passes: Annotated[bool, typer.Option("--dump-passes", help="Keep every compiler stage as text.")] = False,
    timing_only: Annotated[bool, typer.Option("--timing-only", help="Cycles alone: needs no weights or data.")] = False,
    integer_only: Annotated[bool, typer.Option("--integer-only", help="No float clips: fidelity n/a.")] = False,
    steps: Annotated[int | None, typer.Option(help="A part: the first denoising steps.")] = None,
    blocks: Annotated[int | None, typer.Option(help="A part: the first transformer blocks.")] = None,
    branch: Annotated[str | None, typer.Option(help="A part: conditional or unconditional.")] = None,
    verify_sample: Annotated[float, typer.Option(help="Share of instructions to repeat.")] = 0.0,
    save_seconds: Annotated[float, typer.Option(help="Time between savings.")] = 60.0,
    no_reuse: Annotated[bool, typer.Option("--no-reuse", help="Time all steps anew: same totals, slow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make one clip with the float model and on the NPU; report fidelity and cost (npusim.run.run).

    With --timing-only, only the cost (npusim.run.run_timing). Interrupted, a long run goes on when the same command
    is given again.
    """
    from npusim import run as job

    if timing_only:
        if misplaced := sorted(given(context) & OF_DATA):
            name = misplaced[0].replace("_", "-")
            raise UserError(f"--{name}: cycles depend on no data; allowed without --timing-only only")
        with progress() as notify:
            timed = job.run_timing(
                workload, hw, method, out, weight_bits=weight_bits, act_bits=act_bits, attention_bits=attention_bits,
                **quantization(ranges, alpha, overrides), factored=factored, policy=policy, dump_passes=dump_passes,
                steps=steps, blocks=blocks, branch=branch, reuse=not no_reuse, notify=notify,
            )  # fmt: skip
        _show(timed, out, as_json)
        return
    with _going_on(out), progress() as notify:
        result = job.run(
            workload, hw, method, out, prompt=prompt, seed=seed, verify=verify, weight_bits=weight_bits,
            act_bits=act_bits, attention_bits=attention_bits, **quantization(ranges, alpha, overrides),
            factored=factored, policy=policy, checkpoint=checkpoint, calibration=calibration, dump_passes=dump_passes,
            steps=steps, blocks=blocks, branch=branch, integer_only=integer_only, verify_sample=verify_sample,
            save_seconds=save_seconds, reuse=not no_reuse, notify=notify,
        )  # fmt: skip
    _show(result, out, as_json)
    if result.bit_exact.equal is False:
        raise typer.Exit(1)


OF_DATA = {"prompt", "seed", "verify", "checkpoint", "calibration", "integer_only", "verify_sample", "save_seconds"}
"""Options of `run` that mean nothing for the cycles."""


@contextmanager
def _going_on(out: Path) -> Iterator[None]:
    """Say at an interruption that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if (kept := out / "unfinished").is_dir():
            typer.echo(f"interrupted; {kept} holds what is finished, and the same command goes on from there", err=True)
        raise


def _show(result: TimingResult, out: Path, as_json: bool) -> None:
    if as_json:
        from npusim.report import as_dict

        print_json(as_dict(result))
        return
    from npusim.summary import summary, written_line

    console = Console(highlight=False)
    console.print(summary(result))
    console.print(written_line(result, out), soft_wrap=True, markup=False)


def _add(command: Callable[..., None], example: str, name: str | None = None, **settings: bool) -> None:
    app.command(name, epilog=f"Example: npusim {example}", context_settings=dict(settings))(command)


_add(
    evaluate,
    "evaluate --workload emoji --hw hwconfigs/edge_8k.yaml --out runs/evaluation, or npusim evaluate "
    "--tables all --out runs/tables",
)
_add(calibrate, "calibrate --workload emoji --out emoji_stats.safetensors")
_add(quantize, "quantize --workload emoji --method tsq --ranges 4 --out quantized.safetensors")
_add(compile_, "compile quantized.safetensors --hw hwconfigs/edge_8k.yaml -o emoji.npu", "compile")
_add(disasm, "disasm runs/demo/program.npu --part step > step.s")
_add(asm, "asm step.s --hw hwconfigs/tiny_8x8.yaml -o step.npu")
_add(verify, "verify runs/demo/program.npu --orders 5, or npusim verify runs/demo --tosa")
_add(swap, "swap --workload emoji --hw hwconfigs/edge_8k.yaml --out runs/swap")
_add(rtl, "rtl --hw hwconfigs/edge_8k.yaml --out build/rtl")
# So that -1 is taken for an instruction's number, which has a message of its own, not for an option.
_add(explain, "explain runs/demo/program.npu 120 --part step", ignore_unknown_options=True)
_add(compare, "compare runs/demo runs/all")
_add(report, "report runs/demo")
_add(sweep, "sweep hwconfigs/sweeps/tiny.yaml --jobs 2 --out runs/sweep")
_add(bench, "bench --json")
_add(trace, "trace runs/demo --window 0:20000 --out runs/demo.pftrace")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code. ``arguments`` default to the process's own."""
    try:
        app(arguments, prog_name="npusim")
    except (UserError, ModelError, BitsDifferError) as error:
        typer.echo(f"error: {error}", err=True)
        return 1 if isinstance(error, BitsDifferError) else 2
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
