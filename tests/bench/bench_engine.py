"""How fast the engine compiles and runs, on this machine: `python tests/bench/bench_engine.py`.

Prints, for one instruction of each kind at the emoji workload's sizes, the seconds of its first call in a fresh process
with an empty kernel cache, and the best of 30 later calls. Matrix products also in multiply-accumulates per second.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

ROWS, COLS = 256, 512
VECTOR = f"unit=vector rows={ROWS} cols={COLS} a_row={2 * COLS} out_addr=0x80000 out_row={2 * COLS} out_dtype=i16"
LINEAR = (
    "matmul unit=mac m=256 batch0=1 batch1=1 a_dtype=u8 b_dtype=i8 out_dtype=u8 rq_mode=channel "
    "b_addr=0x40000 b_k=1 out_addr=0x80000"
)
ABSENT = "0xffffffff"
LINES = {
    "linear 256 x 1024 x 256": f"{LINEAR} k=1024 n=256 a_row=1024 b_n=1024 out_row=256",
    "linear 256 x 256 x 768": f"{LINEAR} k=256 n=768 a_row=256 b_n=256 out_row=768",
    "attention 64 x 16 x 64 x 16": (
        "matmul unit=mac m=16 k=64 n=16 batch0=16 batch1=4 a_dtype=i16 b_dtype=i16 out_dtype=i16 "
        "a_row=512 a_b0=8192 a_b1=128 b_k=2 b_n=512 b_b0=8192 b_b1=128 "
        "out_addr=0x80000 out_row=32 out_b0=2048 out_b1=512"
    ),
    "ewlin": f"ewlin {VECTOR} batch=1 a_dtype=i16 b_dtype=i16 b_addr=0x40000 b_row={2 * COLS} shift=9 "
    "a_mul_addr=0x3000 b_mul_addr=0x3000 bias_addr=0x3000",
    "ewmul": f"ewmul {VECTOR} batch=1 a_dtype=i16 b_dtype=i16 b_addr=0x40000 b_row={2 * COLS} shift=9",
    "table": f"table {VECTOR} table_addr=0x3000 multiplier=30000 shift=20",
    "lnstat": f"lnstat unit=vector rows={ROWS} cols={COLS} a_row={2 * COLS} stat_addr=0x100000 epsilon=100",
    "lnapply": f"lnapply {VECTOR} stat_addr=0x100000 fraction_bits=12 shift=10 g_addr=0x3000 b_addr=0x3000",
    "smexp": f"smexp {VECTOR} sum_addr=0x110000 valid_addr={ABSENT} fraction_bits=8 p_bits=15",
    "recip": f"recip unit=vector rows={ROWS} sum_addr=0x110000 out_addr=0x120000 multiplier=0x40000000 shift=31",
    "load": "load unit=load row_bytes=1024 rows=256 planes=1 dram_row=1024 local_row=1024",
    "store": "store unit=store row_bytes=1024 rows=256 planes=1 dram_row=1024 local_row=1024",
}
"""In an order in which each finds what it needs: row statistics and row sums come from the instruction before."""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        started = time.perf_counter()
        import numpy as np

        from npusim import engine
        from npusim.config import load_machine
        from npusim.isa import decode
        from npusim.isa.assembly import assemble
        from npusim.isa.matmul import RECORD
        from npusim.memory import MachineState

        print(f"import {time.perf_counter() - started:.2f} s")
        state = MachineState(load_machine(REPOSITORY / "hwconfigs" / "edge_8k.yaml"), 1 << 20)
        rng = np.random.default_rng(0)
        for memory in (state.dram, state.sram, state.param):
            memory[:] = rng.integers(0, 256, memory.size)
        records = state.vector("param", 0, RECORD, 1024)
        records["multiplier"], records["shift"], records["bias_high"] = 20000, 30, 0
        total = 0.0
        for name, line in LINES.items():
            code = decode(assemble(line))
            first = clock(lambda code=code: engine.execute(state, code))
            best = min(clock(lambda code=code: engine.execute(state, code)) for _ in range(30))
            ins, total = code[0], total + first
            macs = ins.m * ins.k * ins.n * ins.batch0 * ins.batch1 if ins.op == "matmul" else 0
            rate = f"{macs / best / 1e9:8.1f} GMAC/s" if macs else ""
            print(f"{name:28s} first {first:6.2f} s   then {best * 1e6:8.0f} us {rate}")
        print(f"all first calls {total:.1f} s")


def clock(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
