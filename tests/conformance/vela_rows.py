"""What Arm's compiler Vela estimates for a linear on an Ethos-U85, and what our compiler and cycle model make of it.

`python tests/conformance/vela_rows.py` prints the table of npusim/VALIDATION.md. Both sides take one int8 linear with
int8 weights whose input and result lie in DRAM: Vela as TensorFlow Lite's FULLY_CONNECTED with
Ethos_U85_SYS_DRAM_High, ours on `ethos_u85_like`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from compiler import Builder, compile_graph  # noqa: E402
from compiler.schedule.bounds import layer_bounds, total  # noqa: E402
from npusim.config import load_machine  # noqa: E402
from npusim.timing import time_program  # noqa: E402
from tests.conformance.side_venv import work  # noqa: E402

SHAPES = {
    "XL/2 qkv": (8192, 1152, 3456),
    "XL/2 proj; cross-attention q": (8192, 1152, 1152),
    "XL/2 cross-attention kv": (240, 1152, 2304),
    "XL/2 fc1": (8192, 1152, 4608),
    "XL/2 fc2": (8192, 4608, 1152),
    "emoji qkv": (256, 256, 768),
    "emoji proj; cross-attention q": (256, 256, 256),
    "emoji cross-attention kv": (32, 256, 512),
    "emoji fc1": (256, 256, 1024),
    "emoji fc2": (256, 1024, 256),
}
"""Rows, inputs and outputs (m, k, n) of the linears of a block, both branches of guidance together."""


@dataclass(frozen=True)
class Estimate:
    """Cycles of a linear, those of the array and of the DRAM alone, bytes of DRAM, and products."""

    cycles: int
    array_cycles: int
    dram_cycles: int
    dram_bytes: int
    products: int


def velas(shapes: list[tuple[int, int, int]]) -> list[Estimate]:
    """Vela's estimates, from its own environment."""
    jobs = [{"shape": list(shape), "seed": 0, "arrays": []} for shape in shapes]
    found = work("vela", "vela_run.py", jobs, {})
    return [Estimate(*found[str(number)].tolist()) for number in range(len(shapes))]


def ours(shape: tuple[int, int, int]) -> Estimate:
    """One linear, compiled and timed; ``dram_cycles`` are those of the bytes moved, at the peak rate."""
    (m, k, n), machine = shape, load_machine(ROOT / "hwconfigs" / "ethos_u85_like.yaml")
    net, rng = Builder(), np.random.default_rng(0)
    x = net.input("x", (m, k), "i8")
    net.output(net.linear("linear", x, rng.integers(-127, 128, (n, k), np.int8), "i8", multiplier=1 << 30, shift=40))
    program = compile_graph(net.graph(), machine)
    timing = time_program(program).step
    bounds = total(layer_bounds(program.step, machine).values())
    return Estimate(
        timing.total_cycles - machine.barrier_cycles,
        timing.ledger["mac"]["busy"],
        round(bounds.moved_dram_bytes / machine.dram_bytes_per_cycle),
        bounds.moved_dram_bytes,
        timing.traffic.mac_operations,
    )


def main() -> None:
    for (name, shape), vela in zip(SHAPES.items(), velas(list(SHAPES.values())), strict=True):
        own = ours(shape)
        cells = [name, " x ".join(map(str, shape))]
        cells += [f"{vela.array_cycles:,}", f"{own.array_cycles:,}", f"{own.array_cycles / vela.array_cycles - 1:+.1%}"]
        cells += [f"{vela.dram_bytes / 1e6:.1f}", f"{own.dram_bytes / 1e6:.1f}"]
        cells += [f"{vela.cycles:,}", f"{own.cycles:,}", f"{own.cycles / vela.cycles - 1:+.1%}"]
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
