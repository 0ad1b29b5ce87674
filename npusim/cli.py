"""The command ``npusim``. Every subcommand is one documented call of the library, which is named in its help.

Exit codes: 0 success; 1 engine and reference (or, with `verify --tosa`, TOSA's model) differ, or a fault of npusim
itself; 2 the user's input is at fault (one message on stderr, nothing written); 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from models.errors import ModelError
from npusim.commands import hw as hw_commands
from npusim.commands.compare import compare
from npusim.commands.group import Commands
from npusim.commands.report import report
from npusim.commands.sweep import sweep
from npusim.commands.trace import trace
from npusim.errors import UserError
from npusim.folder import check_above
from npusim.isa.assembly import assemble, disassemble
from npusim.isa.encoding import INSTRUCTION_BYTES, WORDS
from npusim.program import bare_program, load_program, save_program, write_atomically

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


class Part(StrEnum):
    """Which code of a program `disasm` prints."""

    ALL = "all"
    PROLOGUE = "prologue"
    STEP = "step"


Workload = Annotated[
    str, typer.Option(help="Named workload: emoji, or tiny (random weights: quick, its fidelity means nothing).")
]
Hardware = Annotated[Path, typer.Option(help="Machine file, or a name in hwconfigs: hwconfigs/edge_8k.yaml.")]
Method = Annotated[str, typer.Option(help="Quantization method, e.g. cw_tw, asq, tsq_pot (models/quantize/README.md).")]
Ranges = Annotated[str | None, typer.Option(help="Number of time ranges, or first step of each: 0,5,12.")]
Alpha = Annotated[float | None, typer.Option(help="Smoothing exponent; by default the one searched for.")]
Factored = Annotated[
    bool, typer.Option("--factored", help="Requantize in two factors what changes by range: smaller sets to swap.")
]
Overrides = Annotated[Path | None, typer.Option(help="YAML of bits by layer class and step.")]
WeightBits = Annotated[int, typer.Option(help="Bits of the block linears' weights: 4, 6 or 8.")]
ActBits = Annotated[int, typer.Option(help="Bits of the block linears' inputs: 4, 6, 8 or 16.")]
AttentionBits = Annotated[int, typer.Option(help="Bits of queries, keys and values: 8 or 16.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Float weights other than the workload's; calibrated anew.")]
Calibration = Annotated[Path | None, typer.Option(help="Calibration statistics other than the workload's.")]


@app.command(epilog="Example: npusim run --workload emoji --hw hwconfigs/edge_8k.yaml --method cw_tw --out runs/demo")
def run(
    context: typer.Context,
    workload: Workload,
    hw: Hardware,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    method: Method = "cw_tw",
    prompt: Annotated[str | None, typer.Option(help="A caption with stored text states.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    verify: Annotated[str, typer.Option(help="Steps to compare with the reference: a number, all, none.")] = "2",
    weight_bits: WeightBits = 8,
    act_bits: ActBits = 8,
    attention_bits: AttentionBits = 16,
    ranges: Ranges = None,
    alpha: Alpha = None,
    overrides: Overrides = None,
    factored: Factored = False,
    checkpoint: Checkpoint = None,
    calibration: Calibration = None,
    dump_passes: Annotated[bool, typer.Option("--dump-passes", help="Keep every compiler stage as text.")] = False,
    timing_only: Annotated[
        bool, typer.Option("--timing-only", help="Cycles alone: needs no weights, calibration or tensor data.")
    ] = False,
) -> None:
    """Make one clip with the float model and on the NPU; report fidelity and cost (npusim.run.run).

    With --timing-only, report the cost of any clip, which depends on no data (npusim.run.run_timing).
    """
    from npusim import run as job
    from npusim.summary import summary

    console = Console(highlight=False)
    if timing_only:
        if misplaced := sorted(_given(context) & {"prompt", "seed", "verify", "checkpoint", "calibration"}):
            raise UserError(f"--{misplaced[0]}: cycles depend on no data; allowed without --timing-only only")
        with _progress() as notify:
            timed = job.run_timing(
                workload, hw, method, out, weight_bits=weight_bits, act_bits=act_bits, attention_bits=attention_bits,
                **_quantization(ranges, alpha, overrides), factored=factored, dump_passes=dump_passes, notify=notify,
            )  # fmt: skip
        console.print(summary(timed))
        console.print(f"written to {out}", soft_wrap=True, markup=False)
        return
    with _progress() as notify:
        result = job.run(
            workload, hw, method, out, prompt=prompt, seed=seed, verify=verify, weight_bits=weight_bits,
            act_bits=act_bits, attention_bits=attention_bits, **_quantization(ranges, alpha, overrides),
            factored=factored, checkpoint=checkpoint, calibration=calibration, dump_passes=dump_passes, notify=notify,
        )  # fmt: skip
    console.print(summary(result))
    console.print(f"written to {out}", soft_wrap=True, markup=False)
    if result.bit_exact.equal is False:
        raise typer.Exit(1)


@app.command(
    epilog="Example: npusim evaluate --workload emoji --hw hwconfigs/edge_8k.yaml --out runs/evaluation, "
    "or npusim evaluate --tables all --out runs/tables"
)
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
) -> None:
    """Make many clips and compare them with the float model's, on average (npusim.evaluate.evaluate).

    With --tables, measure every method on two data sets and write the paper's tables, going on with what an earlier run
    has measured in the same folder (npusim.tables.make.evaluate_tables).
    """
    given = _given(context)
    both, of_tables = {"out", "workload", "hw"}, {"tables", "clips", "cell", "force"}
    if misplaced := sorted(given - both - of_tables if tables else given & of_tables):
        raise UserError(f"--{misplaced[0].replace('_', '-')}: allowed {'without' if tables else 'with'} --tables only")
    if tables is not None:
        _evaluate_tables(out, tables, workload, hw, clips, cell, force)
        return
    if workload is None or hw is None:
        raise UserError(f"--{'workload' if workload is None else 'hw'} is missing; without --tables it is needed")
    from npusim import evaluate as job
    from npusim.summary import evaluation_table

    with _progress() as notify:
        result = job.evaluate(
            workload, hw, method, out, captions=captions, weight_bits=weight_bits, act_bits=act_bits,
            attention_bits=attention_bits, **_quantization(ranges, alpha, overrides), factored=factored, notify=notify,
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(evaluation_table(result))
    console.print(f"written to {out}", soft_wrap=True, markup=False)


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _evaluate_tables(
    out: Path, tables: str, workload: str | None, hw: Path | None, clips: int, cell: str | None, force: bool
) -> None:
    from npusim.tables.make import MACHINE, evaluate_tables

    with _progress() as notify:
        measured = evaluate_tables(
            out, tables, workload=workload or "emoji", machine=hw or MACHINE, clips=clips, cell=cell, force=force,
            notify=notify,
        )  # fmt: skip
    typer.echo(f"{out}: {len(measured.figures)} of {len(measured.cells)} cells are measured; see {out / 'results.md'}")


@app.command(epilog="Example: npusim quantize --workload emoji --method tsq --ranges 4 --out quantized.safetensors")
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
        **_quantization(ranges, alpha, overrides), num_steps=steps, out=out,
    )  # fmt: skip
    smoothing = "" if quantized.alpha is None else f", alpha {quantized.alpha}"
    typer.echo(f"{out}: {len(quantized.linears)} linears, {quantized.num_ranges} time range(s){smoothing}")


def _quantization(ranges: str | None, alpha: float | None, overrides: Path | None) -> dict[str, Any]:
    """The options that say how a method is applied, as arguments of the library."""
    from models.quantize import load_overrides, parse_ranges

    return {
        "ranges": None if ranges is None else parse_ranges(ranges),
        "alpha": alpha,
        "overrides": () if overrides is None else load_overrides(overrides),
    }


@app.command(
    name="compile", epilog="Example: npusim compile quantized.safetensors --hw hwconfigs/edge_8k.yaml -o emoji.npu"
)
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
        with _writing(path):
            write_atomically(path, text.encode())
    with _writing(out):
        save_program(program, out)
    typer.echo(f"{out}: {len(program.prologue)} + {len(program.step)} instructions, {program.dram_bytes} bytes of DRAM")


@app.command(epilog="Example: npusim disasm runs/demo/program.npu --part step > step.s")
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


@app.command(epilog="Example: npusim asm step.s --hw hwconfigs/tiny_8x8.yaml -o step.npu")
def asm(
    file: Annotated[Path, typer.Argument(help="Assembler text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    hw: Annotated[Path | None, typer.Option(help="Machine file: write a program for it, which verify takes.")] = None,
) -> None:
    """Assemble text to instruction words, 128 little-endian bytes each (npusim.isa.assembly.assemble).

    With --hw, check each instruction against the machine and write a program of one step that runs the text's code;
    the DRAM that it reaches is its only buffer (npusim.program.bare_program).
    """
    from npusim.config import load_machine

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable text file ({getattr(error, 'strerror', None) or error})") from None
    machine = None if hw is None else load_machine(hw)
    code = assemble(text, str(file), machine)
    if machine is None:
        with _writing(out):
            write_atomically(out, code.astype("<u4").tobytes())
    else:
        with _naming(file):
            program = bare_program(code, machine)
        with _writing(out):
            save_program(program, out)
    typer.echo(f"{out}: {len(code)} instructions")


@app.command(epilog="Example: npusim verify runs/demo/program.npu --orders 5, or npusim verify runs/demo --tosa")
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
) -> None:
    """Check that a program is legal, and that engine and reference agree on random inputs (npusim.crosscheck).

    With --tosa, compare what the simulator computes with Arm's TOSA reference model (npusim.translation.verify_tosa).
    """
    from compiler.verify import verify as check
    from npusim.crosscheck import crosscheck

    if tosa:
        if (steps, orders, seed) != (None, None, None):
            raise UserError(f"{source}: --steps, --orders and --seed are allowed without --tosa only")
        _verify_tosa(source, hw, block, step or 0, attention_bits, factored)
        return
    if (hw, block, step, attention_bits, factored) != (None, None, None, None, False):
        raise UserError(
            f"{source}: --hw, --block, --step, --attention-bits and --factored are allowed with --tosa only"
        )
    loaded = load_program(source)
    result = None
    with _naming(source):
        check(loaded)
        if steps != 0 or orders:
            with _progress() as notify:
                result = crosscheck(loaded, 1 if steps is None else steps, orders or 0, seed or 0, notify=notify)
    typer.echo(f"{source}: legal, {len(loaded.prologue)} + {len(loaded.step)} instructions")
    if result is not None:
        typer.echo(str(result))
        if not result.equal:
            raise typer.Exit(1)


def _verify_tosa(
    source: Path, hw: Path | None, block: int | None, step: int, attention_bits: int | None, factored: bool
) -> None:
    from npusim.translation import report_text, verify_tosa

    with _progress() as notify:
        report = verify_tosa(source, hw, block, attention_bits, notify, step, factored)
    typer.echo(report_text(report))
    if not report.equal:
        raise typer.Exit(1)


@app.command(epilog="Example: npusim swap --workload emoji --hw hwconfigs/edge_8k.yaml --out runs/swap")
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
    fidelity: Annotated[Path | None, typer.Option(help="Folder of `npusim evaluate --tables`, for the front.")] = None,
) -> None:
    """Compare policies of parameter swap by time, bytes and DRAM (npusim.swap.swap)."""
    from compiler.swap import POLICIES
    from npusim import swap as job
    from npusim.swap_write import refusals

    counts = ranges.split(",")
    if not all(count.isascii() and count.isdigit() and len(count) < 6 for count in counts):
        raise UserError(f"ranges = {ranges[:40]!r}: allowed whole numbers with commas, e.g. 1,2,4")
    chosen = tuple(POLICIES) if policies == "all" else tuple(policies.split(","))
    with _progress() as notify:
        study = job.swap(
            workload, hw, methods.split(","), [int(count) for count in counts], chosen, out, weight_bits=weight_bits,
            act_bits=act_bits, factored=factored, fidelity=fidelity, notify=notify,
        )  # fmt: skip
    for line in refusals(study):
        typer.echo(f"refused: {line}")
    typer.echo(f"{out}: {len(study.costs)} rows; see {out / 'swap.md'}")


@app.command(epilog="Example: npusim rtl --hw hwconfigs/edge_8k.yaml --out build/rtl")
def rtl(hw: Hardware, out: Annotated[Path, typer.Option(help="Folder to write.")]) -> None:
    """Write a machine's matrix unit in SystemVerilog (npusim.rtl.write_rtl)."""
    from npusim.config import load_machine
    from npusim.rtl import LINT, write_rtl

    machine = load_machine(hw)
    paths = write_rtl(machine, out)
    array = machine.mac_array
    kind = array.dataflow.replace("_", "-")
    typer.echo(f"{out}: {len(paths)} files, {kind} matrix unit of {array.rows} x {array.cols} cells")
    typer.echo(f"check with: cd {shlex.quote(str(out))} && {LINT}")


# So that -1 is taken for an instruction's number, which has a message of its own, not for an option.
@app.command(
    epilog="Example: npusim explain runs/demo/program.npu 120 --part step",
    context_settings={"ignore_unknown_options": True},
)
def explain(
    program: Annotated[Path, typer.Argument(help="Program file.")],
    index: Annotated[int, typer.Argument(help="Number of the instruction, counted from 0.")],
    part: Annotated[str, typer.Option(help="Which code: step or prologue.")] = "step",
    step: Annotated[int, typer.Option(help="The step whose parameters are shown.")] = 0,
) -> None:
    """Say what one instruction does, with operands, parameters, tokens and cost (npusim.explain.explain)."""
    from npusim.explain import explain as text

    loaded = load_program(program)
    with _naming(program):
        typer.echo(text(loaded, index, part, step), nl=False)


app.command(epilog="Example: npusim compare runs/demo runs/all")(compare)
app.command(epilog="Example: npusim report runs/demo")(report)
app.command(epilog="Example: npusim sweep hwconfigs/sweeps/tiny.yaml --jobs 2 --out runs/sweep")(sweep)
app.command(epilog="Example: npusim trace runs/demo --window 0:20000 --out runs/demo.pftrace")(trace)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the program's name in front of a message about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress line for each stage on stderr; on a terminal only."""
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def notify(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield notify


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code. ``arguments`` default to the process's own."""
    try:
        app(arguments, prog_name="npusim")
    except (UserError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
