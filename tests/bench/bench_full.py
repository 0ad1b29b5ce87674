"""A forward pass of STDiT-XL/2 at 16 x 256 x 256, the engine's and PyTorch's: `python tests/bench/bench_full.py`.

A forward is one denoising step: both branches of guidance, 28 blocks, 4096 tokens each. The network is quantized and
compiled with one block (`cw_tw`, random weights, `edge_8k`), whose instructions are those of every block; the time of
the block's instructions counts 28 times, that of the others once, and PyTorch's modules likewise. All contenders take
turns on the same cores; the best of a few rounds counts, since other work on the machine only adds.

Ratios are the engine's speed over another's: ``vs_fp32`` and ``vs_bf16`` over PyTorch's, ``vs_vnni_peak`` its useful
multiply-accumulates a second over the measured peak of VNNI instructions on as many threads. ``video_minutes``: 20
steps. ``emoji_s``: 20 steps of the emoji workload, both branches, compiled before. ``cpu`` names seconds of processors,
and ratios of these, which other work on the machine disturbs less. ``vs_vnni_peak_512``: a forward at 16 x 512 x 512,
as 28 times the network with one block, compiled with the statistics of the smaller one. ``timing_only_s`` (a whole
clip's cycles) is None without ``--timing-only``. ``--json`` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from compiler import compile_model  # noqa: E402
from models.calibrate import collect  # noqa: E402
from models.prepare import quantize_for  # noqa: E402
from models.stats import CalibrationStats, weights_sha256  # noqa: E402
from models.stdit import STDiT  # noqa: E402
from models.workloads import Workload, get_workload  # noqa: E402
from npusim import engine  # noqa: E402
from npusim.bench.engine import PROBE_LOOPS, PROBE_SUMS, PROBE_UNROLL, make_probe  # noqa: E402
from npusim.clips import ClipInputs  # noqa: E402
from npusim.config import load_machine  # noqa: E402
from npusim.engine import stream  # noqa: E402
from npusim.engine.cache import kernel  # noqa: E402
from npusim.engine.context import COLUMNS, OPCODE, Place, words  # noqa: E402
from npusim.engine.dot import VARIANT  # noqa: E402
from npusim.engine.native import call, intrinsic  # noqa: E402
from npusim.engine.order import NOTES_WORDS  # noqa: E402
from npusim.engine.threads import SETTINGS  # noqa: E402
from npusim.host import Host  # noqa: E402
from npusim.isa import decode  # noqa: E402
from npusim.isa.encoding import DTYPE_NAMES, Decoded  # noqa: E402
from npusim.program import Program  # noqa: E402
from npusim.simulate import Simulation  # noqa: E402

DEPTH, STEPS = 28, 20
ROUNDS = 3
NAMED_BLOCK = "blocks.0"
NOTES_PLACE = int(Place.NOTES)


@intrinsic
def ticks(typing_context: Any) -> Any:
    """The processor's time-stamp counter."""
    from llvmlite import ir
    from numba import types

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=kind), [])

    return types.int64(), generate


@kernel
def timed(context: Any, table: Any, handlers: Any, spent: Any) -> int:
    """As the engine's own loop, with the ticks of each instruction."""
    address, notes = context.ctypes.data, words(context[NOTES_PLACE], NOTES_WORDS)
    before = ticks()
    for index in range(table.shape[0]):
        notes[1] = 0
        handler = handlers[table[index, OPCODE]]
        if handler == 0 or call(handler, address, table.ctypes.data + index * 8 * COLUMNS) == 0:
            return index
        now = ticks()
        spent[index] = now - before
        before = now
    return table.shape[0]


def one_block(size: str, stats: CalibrationStats | None = None) -> tuple[Workload, STDiT, CalibrationStats, Simulation]:
    """STDiT-XL/2 with one block: workload, float model, its statistics unless given, and a run behind its prologue."""
    named = get_workload(f"stdit-xl2-{size}")
    work = replace(
        named, config={**named.config, "depth": 1}, num_steps=2, calibration_captions=named.calibration_captions[:1],
        calibration_seeds=named.calibration_seeds[:1],
    )  # fmt: skip
    model = work.load_model()
    # Those of another size are of the same weights; only the position embedding has another shape.
    stats = replace(stats, weights_sha256=weights_sha256(model)) if stats else collect(model, work)
    quantized = quantize_for(work, model, stats, "cw_tw")
    program = compile_model(quantized, load_machine(REPOSITORY / "hwconfigs" / "edge_8k.yaml"))
    return work, model, stats, ready(work, program)


def ready(work: Workload, program: Program) -> Simulation:
    """A simulation of the workload's first sheet caption, behind its prologue."""
    inputs = ClipInputs.of(work, work.sheet_captions[0], work.sheet_seeds[0])
    contents = Host(program, inputs.latent_shape).inputs(
        *(tensor.numpy() for tensor in (inputs.text, inputs.mask, inputs.x_T, inputs.noises))
    )
    simulation = Simulation(program, contents)
    simulation.prologue()
    return simulation


def by_instruction(simulation: Simulation) -> np.ndarray:
    """Seconds of each instruction of step 0 on one thread: the best of some rounds, in proportion to ticks."""
    simulation.step(0)  # compiles, too
    code = engine.Code(simulation.program.step)
    code.parts = 1
    best, seconds = np.full(len(code), 1 << 62), math.inf
    for _ in range(ROUNDS):
        session, spent = stream.Session(simulation.state, code, stream.HANDLERS), np.zeros(len(code), np.int64)
        started, ticked = time.thread_time(), time.perf_counter()
        if timed(session.contexts[0], code.table, session.handlers, spent) != len(code):
            raise SystemExit("an instruction has no handler: the table would not tell the whole time")
        seconds = min(seconds, time.thread_time() - started)
        rate = spent.sum() / (time.perf_counter() - ticked)
        best = np.minimum(best, spent)
    return best / rate


def macs_of(ins: Decoded) -> int:
    return ins.m * ins.k * ins.n * ins.batch0 * ins.batch1 if ins.op == "matmul" else 0


def kind_of(ins: Decoded) -> str:
    """Line of the table: MATMULs of 16 by 16 bits are attention's."""
    if ins.op != "matmul":
        return str(ins.op)
    return "matmul, attention" if DTYPE_NAMES[ins.b_dtype] == "i16" else "matmul, linear"


@contextmanager
def timed_module(module: torch.nn.Module, total: list[float]) -> Any:
    """Add the seconds that a module's calls take to ``total[0]``."""
    begun = [0.0]

    def before(*_: Any) -> None:
        begun[0] = time.perf_counter()

    def after(*_: Any) -> None:
        total[0] += time.perf_counter() - begun[0]

    hooks = module.register_forward_pre_hook(before), module.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def torch_forward(model: STDiT, work: Workload) -> tuple[float, float]:
    """Seconds of a forward of both branches with 28 blocks, and seconds of processors."""
    kind, inside = next(model.parameters()).dtype, [0.0]
    text = torch.zeros(2, 1, work.config["model_max_length"], work.config["caption_channels"], dtype=kind)
    with torch.inference_mode(), timed_module(model.blocks[0], inside):
        started, processor = time.perf_counter(), time.process_time()
        model(torch.zeros(2, *work.latent_shape, dtype=kind), torch.full((2,), 500.0), text)
        whole, processor = time.perf_counter() - started, time.process_time() - processor
    scale = 1 + (DEPTH - 1) * inside[0] / whole
    return whole * scale, processor * scale


def vnni_peak(probe: Any) -> float:
    """Multiply-accumulates of VNNI instructions on registers, in a second of one processor."""
    best = 0.0
    for loops in PROBE_LOOPS:
        started = time.thread_time()
        probe(loops, 0, 1)
        work = loops * PROBE_UNROLL * PROBE_SUMS * VARIANT.lanes * 4
        best = max(best, work / (time.thread_time() - started))
    return best


def counted(program: Program) -> tuple[list[Decoded], np.ndarray, np.ndarray]:
    """Instructions of a step, their multiply-accumulates, and how often each counts in a forward."""
    instructions = decode(program.step)
    in_block = [program.layers[ins.layer].startswith(NAMED_BLOCK) for ins in instructions]
    return instructions, np.array([macs_of(ins) for ins in instructions], np.float64), np.where(in_block, DEPTH, 1)


def rate_512(stats: CalibrationStats) -> tuple[float, float]:
    """Multiply-accumulates of a forward at 16 x 512 x 512, and how many a second, were all of it as often as blocks."""
    simulation = one_block("16x512x512", stats)[3]
    _, macs, repeats = counted(simulation.program)
    total, best = float((macs * repeats).sum()), math.inf
    for _ in range(ROUNDS):
        started = time.perf_counter()
        simulation.step(0)
        best = min(best, time.perf_counter() - started)
    return total, total / (DEPTH * best)


def measure() -> dict[str, Any]:
    threads = SETTINGS.NUMBA_NUM_THREADS
    torch.set_num_threads(threads)
    work, model, stats, simulation = one_block("16x256x256")
    spent = by_instruction(simulation)
    instructions, macs, repeats = counted(simulation.program)
    scale = float((spent * repeats).sum() / spent.sum())
    halves = model, STDiT(**work.config).to(torch.bfloat16).eval()
    probe, best = make_probe(), dict[str, float]()
    peak = vnni_peak(probe)
    for _ in range(ROUNDS):
        started, processor = time.perf_counter(), time.process_time()
        simulation.step(0)
        found = {"forward": scale * (time.perf_counter() - started)}
        found["forward_cpu"] = scale * (time.process_time() - processor)
        for name, network in zip(("fp32", "bf16"), halves, strict=True):
            found[name], found[f"{name}_cpu"] = torch_forward(network, work)
        best = {name: min(seconds, best.get(name, math.inf)) for name, seconds in found.items()}
        peak = max(peak, vnni_peak(probe))
    total = float((macs * repeats).sum())
    macs_512, speed_512 = rate_512(stats)
    return {
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "macs": total,
        "instructions_a_block": int((repeats == DEPTH).sum()),
        "vnni_peak_gmac_per_s": threads * peak / 1e9,
        "tiles": bool(stream.amx.available()),
        "forward_one_thread_s": float((spent * repeats).sum()),
        **{f"{name}_s": seconds for name, seconds in best.items()},
        "vs_fp32": best["fp32"] / best["forward"],
        "vs_bf16": best["bf16"] / best["forward"],
        "vs_vnni_peak": total / best["forward"] / (threads * peak),
        "vs_fp32_cpu": best["fp32_cpu"] / best["forward_cpu"],
        "vs_bf16_cpu": best["bf16_cpu"] / best["forward_cpu"],
        "vs_vnni_peak_cpu": total / best["forward_cpu"] / peak,
        "macs_512": macs_512,
        "vs_vnni_peak_512": speed_512 / (threads * peak),
        "video_minutes": STEPS * best["forward"] / 60,
        "table": table(instructions, spent * repeats, macs * repeats, repeats),
    }


def table(
    instructions: list[Decoded], spent: np.ndarray, macs: np.ndarray, repeats: np.ndarray
) -> dict[str, dict[str, float]]:
    """By kind of instruction: how many, seconds on one thread, share of all, multiply-accumulates a second."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for ins, seconds, work, count in zip(instructions, spent, macs, repeats, strict=True):
        line = found[kind_of(ins)]
        for column, value in enumerate((count, seconds, work)):
            line[column] += float(value)
    order = sorted(found.items(), key=lambda item: -item[1][1])
    return {
        name: {
            "instructions": count, "seconds": seconds, "share": seconds / float(spent.sum()),
            "gmac_per_s": work / seconds / 1e9,
        }
        for name, (count, seconds, work) in order
    }  # fmt: skip


def emoji_seconds() -> tuple[float, float]:
    """Seconds of 20 steps of the emoji workload, compiled before, and seconds of processors."""
    work = get_workload("emoji")
    quantized = quantize_for(work, work.load_model(), work.load_stats(), "cw_tw")
    program = compile_model(quantized, load_machine(REPOSITORY / "hwconfigs" / "edge_8k.yaml"))
    simulation = ready(work, program)
    simulation.step(0)
    started, processor = time.perf_counter(), time.process_time()
    for step in range(program.steps):
        simulation.step(step)
    return time.perf_counter() - started, time.process_time() - processor


def timing_seconds(call: Callable[..., Any]) -> float:
    """Seconds to compile and time a whole clip without contents."""
    started = time.perf_counter()
    call("stdit-xl2-16x256x256", REPOSITORY / "hwconfigs" / "edge_8k.yaml", "asq")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--timing-only", action="store_true", help="also time a whole clip's cycles: minutes")
    options = parser.parse_args()
    result = measure()
    result["emoji_s"], result["emoji_cpu_s"] = emoji_seconds()
    result["timing_only_s"] = None
    if options.timing_only:
        from npusim.run import run_timing

        result["timing_only_s"] = timing_seconds(run_timing)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    lines = result.pop("table")
    for name, value in result.items():
        print(f"{name:24s} {'n/a' if value is None else f'{value:.4g}' if isinstance(value, float) else value}")
    print(f"\n{'one thread, 28 blocks':24s} {'instructions':>12s} {'seconds':>9s} {'share':>7s} {'GMAC/s':>8s}")
    for name, line in lines.items():
        rate = f"{line['gmac_per_s']:8.0f}" if line["gmac_per_s"] else f"{'':8s}"
        print(f"{name:24s} {line['instructions']:12.0f} {line['seconds']:9.2f} {line['share']:7.1%} {rate}")


if __name__ == "__main__":
    main()
