"""How fast the engine compiles and runs on this computer.

For one instruction of each kind at the emoji workload's sizes, the seconds of its first call in a fresh process with an
empty kernel cache, and the best of later calls; then the rate of int8 matrix products of a full-size STDiT block,
beside the processor's peak and PyTorch's int8 and fp32 products. ``python -m npusim.bench.engine ROUNDS``
prints it as JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

ROWS, COLS = 256, 512
VECTOR = f"unit=vector rows={ROWS} cols={COLS} a_row={2 * COLS} out_addr=0x80000 out_row={2 * COLS} out_dtype=i16"
LINEAR = (
    "matmul unit=mac batch0=1 batch1=1 a_dtype=u8 b_dtype=i8 out_dtype=u8 rq_mode=channel "
    "b_addr=0xa0000 b_k=1 out_addr=0x180000"
)
ABSENT = "0xffffffff"
LINES = {
    "linear 256 x 1024 x 256": f"{LINEAR} m=256 k=1024 n=256 a_row=1024 b_n=1024 out_row=256",
    "linear 256 x 256 x 768": f"{LINEAR} m=256 k=256 n=768 a_row=256 b_n=256 out_row=768",
    "linear 512 x 1152 x 512": f"{LINEAR} m=512 k=1152 n=512 a_row=1152 b_n=1152 out_row=512",
    "attention 64 x 16 x 64 x 16": (
        "matmul unit=mac m=16 k=64 n=16 batch0=16 batch1=4 a_dtype=i16 b_dtype=i16 out_dtype=i16 "
        "a_row=512 a_b0=8192 a_b1=128 b_k=2 b_n=512 b_b0=8192 b_b1=128 "
        "out_addr=0x80000 out_row=32 out_b0=2048 out_b1=512"
    ),
    "attention 64 x 16 x 16 x 64": (
        "matmul unit=mac m=16 k=16 n=64 batch0=16 batch1=4 a_dtype=i16 b_dtype=i16 out_dtype=i16 "
        "a_row=32 a_b0=2048 a_b1=512 b_k=512 b_n=2 b_b0=8192 b_b1=128 "
        "out_addr=0x80000 out_row=512 out_b0=8192 out_b1=128"
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

SHAPES = {
    "qkv": (4096, 1152, 3456),
    "proj": (4096, 1152, 1152),
    "q_linear": (4096, 1152, 1152),
    "kv_linear": (120, 1152, 2304),
    "fc1": (4096, 1152, 4608),
    "fc2": (4096, 4608, 1152),
}
"""(M, K, N) of the linears of a block of STDiT-XL/2 at 16 x 256 x 256: 16 frames of 256 tokens, 120 of text."""
PROBE_SUMS = 12
"""More than the cycles of a product times the two that start in one, and few enough for 16 registers."""
PROBE_UNROLL = 8
PROBE_LOOPS = (100_000, 1_000_000)
"""About 1.5 and 15 ms. On a busy machine only the short one finds all cores free; of the long one, the 0.05 ms that it
takes to hand over to threads are a third of a percent."""


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, Any]:
    """Both, in this process, which should be a fresh one with an empty kernel cache; the best of ``rounds`` calls."""
    return {"instructions": time_instructions(rounds), **time_products(rounds)}


def time_instructions(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the first and of the best later call, and multiply-accumulates, of each line."""
    import numpy as np

    from npusim import engine
    from npusim.config import load_machine
    from npusim.hw import MACHINES
    from npusim.isa import decode
    from npusim.isa.assembly import assemble
    from npusim.isa.matmul import RECORD
    from npusim.memory import MachineState

    state = MachineState(load_machine(MACHINES / "edge_8k.yaml"), 1 << 20)
    rng = np.random.default_rng(0)
    for memory in (state.dram, state.sram, state.param):
        memory[:] = rng.integers(0, 256, memory.size)
    records = state.vector("param", 0, RECORD, 1024)
    records["multiplier"], records["shift"], records["bias_high"] = 20000, 30, 0
    found = {}
    for name, line in LINES.items():
        code = decode(assemble(line))
        first = clock(partial(engine.execute, state, code))
        best = min(clock(partial(engine.execute, state, code)) for _ in range(rounds))
        ins = code[0]
        macs = ins.m * ins.k * ins.n * ins.batch0 * ins.batch1 if ins.op == "matmul" else 0
        found[name] = {"first_s": first, "best_s": best, "macs": macs}
    return found


def make_probe() -> Any:
    """A kernel that does nothing but VNNI products of registers, with more independent sums than they take cycles."""
    from llvmlite import ir  # type: ignore[import-untyped]
    from numba import njit, types
    from numba.extending import intrinsic

    from npusim.engine.dot import I32, I64, VARIANT, broadcast, dot_bytes, vector

    @intrinsic
    def products(typing_context: Any, loops: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = vector(I32, VARIANT.lanes)
            x = broadcast(builder, builder.trunc(arguments[0], I32), VARIANT.lanes)  # no constant: it has a register
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            count = builder.phi(I64)
            sums = [builder.phi(kind) for _ in range(PROBE_SUMS)]
            added = sums
            for _ in range(PROBE_UNROLL):
                added = [dot_bytes(builder, total, x, x) for total in added]
            following = builder.add(count, I64(1))
            count.add_incoming(I64(0), before)
            count.add_incoming(following, loop)
            for number, total in enumerate(sums):  # different, so that no two are one
                total.add_incoming(ir.Constant(kind, [number] * VARIANT.lanes), before)
                total.add_incoming(added[number], loop)
            builder.cbranch(builder.icmp_signed("<", following, arguments[0]), loop, after)
            builder.position_at_end(after)
            total = added[0]
            for other in added[1:]:
                total = builder.xor(total, other)
            return builder.sext(builder.extract_element(total, I32(0)), I64)

        return types.int64(types.int64), generate

    @njit(nogil=True)
    def probe(loops: int, first: int, last: int) -> int:
        return products(loops)  # type: ignore[call-arg]  # numba gives it the first argument

    return probe


def time_products(rounds: int) -> dict[str, Any]:
    """Rates of the contenders in G multiply-accumulates per second, and the engine's ratios to the others.

    The contenders take turns in each round, and the best time of all rounds counts, so that other work on the machine
    hits all of them alike.
    """
    import numpy as np
    import torch

    from npusim.engine import gemm
    from npusim.engine.dot import VARIANT, VARIANTS
    from npusim.engine.threads import SETTINGS, in_threads

    threads = SETTINGS.NUMBA_NUM_THREADS
    torch.set_num_threads(threads)
    probe: Any = make_probe() if VARIANT.takes_bytes else None
    macs_per_loop = threads * PROBE_UNROLL * PROBE_SUMS * VARIANT.lanes * 4
    peak = 0.0  # of all rounds: it does not depend on the shape
    rng = np.random.default_rng(0)
    rates: dict[str, dict[str, float]] = {}
    for shape, (m, k, n) in SHAPES.items():
        a = rng.integers(0, 256, (m, k), np.uint8)
        b = rng.integers(-128, 128, (k, n)).astype(np.int8)
        packed = gemm.pack_weights(b)
        signed_a, signed_b = torch.from_numpy(a.view(np.int8)), torch.from_numpy(b)
        float_a, float_b = torch.from_numpy(a).float(), signed_b.float()
        calls: dict[str, Callable[[], object]] = {
            "engine": partial(gemm.gemm, a, packed),
            "int_mm": partial(torch._int_mm, signed_a, signed_b),
            "fp32": partial(torch.matmul, float_a, float_b),
        }
        for call in calls.values():  # not to time what is compiled or allocated at first
            call()
        best = dict.fromkeys(calls, math.inf)
        for _ in range(rounds):
            for name, call in calls.items():
                best[name] = min(best[name], clock(call))
                for loops in PROBE_LOOPS if probe else ():  # between any two others, to meet the clock that they meet
                    seconds = clock(partial(in_threads, probe, threads, 1 << 40, loops))
                    peak = max(peak, loops * macs_per_loop / seconds)
        rates[shape] = {name: m * k * n / best[name] / 1e9 for name in calls}
    if probe is not None:
        for rate in rates.values():
            rate["vnni_peak"] = peak / 1e9
    result: dict[str, Any] = {
        "threads": threads,
        "torch_threads": torch.get_num_threads(),
        "variant": next(name for name, variant in VARIANTS.items() if variant == VARIANT),
        "gmac_per_s": rates,
    }
    for other in ("vnni_peak", "int_mm", "fp32"):
        ratios = {shape: rate["engine"] / rate[other] for shape, rate in rates.items() if other in rate}
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios)) if ratios else "n/a"
        result[f"vs_{other}"] = {"geometric_mean": mean, **ratios}
    return result


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
