"""Square matrix products on a TPU v3: measured cycles, what four simulators say, and ours on `tpuv3_like`.

`python tests/conformance/tpu_rows.py` prints the table of npusim/VALIDATION.md. Our products are of int16 by int16, in
place of bfloat16; input, weights and result lie in DRAM.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from compiler import Builder, compile_graph  # noqa: E402
from compiler.graph import Graph, Value  # noqa: E402
from compiler.schedule.bounds import layer_bounds, total  # noqa: E402
from npusim.config import load_machine  # noqa: E402
from npusim.isa.matmul import RECORD  # noqa: E402
from npusim.timing import time_program  # noqa: E402

SIZES = (256, 512, 1024, 2048)
MEASURED = (3101, 9490, 47099, 317435)
"""Cycles at 940 MHz of one core: PyTorchSim (MIT), experiments/artifact/baseline_cycle.csv, as are the others; read in
github.com/anonymousresearcher01/PyTorchSim at fe04c9ae3ceec1fbe83930a46ad5f48be09dae27."""
OTHERS = {
    "mNPUsim": (2426, 8584, 32625, 3046069),
    "Timeloop": (512, 4096, 32768, 262144),
    "MAESTRO": (522, 4162, 33282, 266242),
    "SCALE-Sim 3": (1020, 6128, 40896, 294656),
}


def product(size: int) -> Graph:
    """The product of two square matrices of int16, to int16."""
    net = Builder(contents=False)
    x = net.input("x", (size, size), "i16")
    roles = {
        "x": x,
        "weight": net.const("weight", np.zeros((size, size), np.int16), "i16"),
        "records": net.const("records", np.zeros(size, RECORD), "record"),
    }
    net.output(net.op("linear", "product", roles, Value("y", (size, size), "i16"), out_zp=0))
    return net.graph()


def ours(size: int) -> tuple[int, int, int]:
    """Cycles without the barrier at the end; of the array alone; of the bytes that must move, at the DRAM's peak."""
    machine = load_machine(ROOT / "hwconfigs" / "tpuv3_like.yaml")
    program = compile_graph(product(size), machine)
    timing, bounds = time_program(program).step, total(layer_bounds(program.step, machine).values())
    cycles = timing.total_cycles - machine.barrier_cycles
    return cycles, timing.ledger["mac"]["busy"], round(bounds.dram_bound_cycles)


def errors(cycles: tuple[int, ...]) -> list[float]:
    """Relative, against the measured cycles."""
    return [own / known - 1 for own, known in zip(cycles, MEASURED, strict=True)]


def mean_error(cycles: tuple[int, ...]) -> float:
    """Mean of the errors' magnitudes."""
    return float(np.mean(np.abs(errors(cycles))))


def main() -> None:
    results = [ours(size) for size in SIZES]
    tools = {"npusim": tuple(cycles for cycles, _, _ in results), **OTHERS}
    print("| measured |", " | ".join(f"{cycles:,}" for cycles in MEASURED), "| |")
    for name, cycles in tools.items():
        cells = [f"{own:,} ({error:+.0%})" for own, error in zip(cycles, errors(cycles), strict=True)]
        print("|", name, "|", " | ".join(cells), "|", f"{mean_error(cycles):.0%} |")
    for name, index in (("array alone", 1), ("DRAM alone", 2)):
        print("|", name, "|", " | ".join(f"{result[index]:,}" for result in results), "| |")


if __name__ == "__main__":
    main()
