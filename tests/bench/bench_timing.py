"""Simulated cycles per second of the cycle model (`npusim bench`), beside SCALE-Sim on the same GEMM.

The GEMM is the STDiT-XL/2 projection of 512 tokens, 1152 x 1152, on a weight-stationary array of 128 x 128. Two
programs of it: operands in SRAM, which is what SCALE-Sim simulates, and with all copies through the DRAM, burst by
burst. Processor seconds of one thread, the best of several runs; SCALE-Sim runs once, in its own environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from npusim.bench import timing  # noqa: E402
from npusim.bench.timing import SIZE, K, M, N  # noqa: E402
from tests.conformance.side_venv import python_of, work  # noqa: E402


def measure() -> dict[str, Any]:
    result = timing.measure()
    python_of("scalesim")
    job = {"shape": [M, K, N], "rows": SIZE, "cols": SIZE, "dataflow": "ws", "arrays": []}
    last_cycle, _, seconds = work("scalesim", "scalesim_run.py", [job], {})["0"].tolist()
    cycles = int(last_cycle + 1)
    result["scalesim"] = {"cycles": cycles, "seconds": seconds, "cycles_per_second": cycles / seconds}
    for name, ours in (("vs_scalesim", "sram"), ("vs_scalesim_with_dram", "dram")):
        result[name] = result[ours]["cycles_per_second"] / result["scalesim"]["cycles_per_second"]
    return result


def main() -> None:
    result = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(result, indent=2))
        return
    print(f"GEMM {M} x {K} x {N} on {SIZE} x {SIZE}, weight-stationary; processor seconds of one thread")
    for name, label in (
        ("sram", "npusim, operands in SRAM"),
        ("dram", "npusim, copies through DRAM"),
        ("scalesim", "SCALE-Sim"),
    ):
        row = result[name]
        print(
            f"{label:30s}{row['cycles']:10,d} cycles{row['seconds']:12.6f} s{row['cycles_per_second']:18,.0f} cycles/s"
        )
    print(f"vs_scalesim {result['vs_scalesim']:,.0f}, with DRAM {result['vs_scalesim_with_dram']:,.0f}")
    print(f"DRAM alone: {result['dram_bursts_per_second'] / 1e6:.1f} million bursts/s")


if __name__ == "__main__":
    main()
