"""Simulated cycles per second of the cycle model, in processor seconds of one thread.

The GEMM is the STDiT-XL/2 projection of 512 tokens, 1152 x 1152, on a weight-stationary array of 128 x 128. Two
programs of it: operands in SRAM, and with all copies through the DRAM, burst by burst.
"""

from __future__ import annotations

import math
import time
from typing import Any

from npusim.config import Machine, load_machine
from npusim.hw import MACHINES
from npusim.isa.assembly import assemble
from npusim.timing import simulate

M, K, N, SIZE = 512, 1152, 1152, 128
SECONDS = 2.0
"""How long each program is repeated."""
STREAM_BYTES = 1 << 26


def machine() -> Machine:
    """`edge_8k` with an array of SCALE-Sim's size, as many accumulators as the GEMM has rows, and no busy ports."""
    data = load_machine(MACHINES / "edge_8k.yaml").model_dump(mode="json")
    data["mac_array"] |= {"rows": SIZE, "cols": SIZE, "acc_rows": M}
    data["sram"] |= {"capacity_bytes": 4 << 20, "ports": "unlimited"}
    return Machine.model_validate(data)


def program(with_dram: bool) -> Any:
    """One MATMUL for each 128 output channels; with DRAM, weights come in two buffers and results go back.

    In the masks of tokens load is 1, store 2, mac 4.
    """
    lines = []
    if with_dram:
        lines.append(f"load unit=load planes=1 rows=1 row_bytes={M * K} signal_raw=4")
    for tile in range(0, N, SIZE):
        waits, signals = "", ""
        if with_dram:
            again = "wait_war=4" if tile >= 2 * SIZE else ""
            lines.append(
                f"load unit=load planes=1 rows=1 row_bytes={SIZE * K} dram_addr={(1 << 24) + tile * K} "
                f"signal_raw=4 {again}"
            )
            waits = "wait_raw=1"
            signals = "signal_raw=2" + (" signal_war=1" if tile < N - 2 * SIZE else "")
            if tile == 0:  # the activations' token
                lines.append("token unit=mac wait_raw=1")
        lines.append(
            f"matmul unit=mac batch0=1 batch1=1 b_dtype=i8 m={M} k={K} n={SIZE} out_row={SIZE} {waits} {signals}"
        )
        if with_dram:
            lines.append(
                f"store unit=store planes=1 rows={M} row_bytes={SIZE} local_row={SIZE} dram_row={N} "
                f"dram_addr={(1 << 25) + tile} wait_raw=4"
            )
    return assemble("\n".join([*lines, "barrier unit=vector"]))


def rate(code: Any, hw: Machine) -> dict[str, float]:
    """Cycles, best seconds and their ratio."""
    cycles = simulate(code, hw, reuse=False).total_cycles  # compiles the kernels
    best, until = math.inf, time.perf_counter() + SECONDS
    while best == math.inf or time.perf_counter() < until:
        begin = time.process_time_ns()
        simulate(code, hw, reuse=False)
        best = min(best, (time.process_time_ns() - begin) / 1e9)
    return {"cycles": cycles, "seconds": best, "cycles_per_second": cycles / best}


def measure() -> dict[str, Any]:
    """Cycles, seconds and their ratio of the two programs ("sram", "dram"), and bursts of a plain copy per second."""
    hw = machine()
    result: dict[str, Any] = {"sram": rate(program(False), hw), "dram": rate(program(True), hw)}
    stream = rate(assemble(f"load unit=load planes=1 rows=1 row_bytes={STREAM_BYTES}"), hw)
    result["dram_bursts_per_second"] = STREAM_BYTES / hw.dram.device.burst_bytes / stream["seconds"]
    return result
