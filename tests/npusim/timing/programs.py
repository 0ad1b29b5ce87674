"""Random programs that are legal: instructions of every family, and tokens that cannot deadlock."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.config import Machine
from npusim.config_dram import Dram
from npusim.isa import BY_MNEMONIC
from npusim.isa.control import JOINS
from npusim.isa.encoding import NO_ADDRESS, encode
from npusim.units import KINDS, UNITS

Words = np.ndarray[Any, np.dtype[np.uint32]]
U8, I8, I16, I32 = range(4)
BANK = 1024


def pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def number(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def dma(rng: np.random.Generator) -> dict[str, int]:
    """A copy whose rows, and whose planes, touch in DRAM or leave a gap."""
    row, rows, planes = number(rng, 1, 100), number(rng, 1, 4), number(rng, 1, 3)
    dram_row = row + pick(rng, 0, number(rng, 1, 60))
    dram_plane = rows * dram_row + pick(rng, 0, number(rng, 1, 60))
    return {
        "dram_addr": number(rng, 0, pick(rng, 1 << 12, 1 << 40)), "base": number(rng, 0, 2),
        "memory": number(rng, 0, 1), "local_addr": number(rng, 0, 1000), "row_bytes": row, "rows": rows, "planes":
        planes, "dram_row": dram_row, "dram_plane": dram_plane, "local_row": row, "local_plane": row * rows,
    }  # fmt: skip


def matmul(rng: np.random.Generator) -> dict[str, int]:
    """Dense operands of small ragged sizes, in any mode of the array."""
    a, b, out = *pick(rng, (U8, I8), (I8, I8), (I16, I8), (I16, I16)), pick(rng, U8, I8, I16, I32)
    m, k, n, b0, b1 = (number(rng, 1, high) for high in (40, 20, 20, 2, 2))
    size = {U8: 1, I8: 1, I16: 2, I32: 4}
    return {
        "a_addr": number(rng, 0, 1000), "a_row": k * size[a], "a_b1": m * k * size[a], "a_b0": b1 * m * k * size[a],
        "b_addr": number(rng, 0, 1000), "b_n": size[b], "b_k": n * size[b], "b_b1": k * n * size[b],
        "b_b0": b1 * k * n * size[b], "out_addr": number(rng, 0, 1000), "out_row": n * size[out],
        "out_b1": m * n * size[out], "out_b0": b1 * m * n * size[out],
        "m": m, "k": k, "n": n, "batch0": b0, "batch1": b1,
        "a_dtype": a, "b_dtype": b, "out_dtype": out, "rq_mode": number(rng, 0, 2), "rq_addr": number(rng, 0, 1000),
    }  # fmt: skip


def elementwise(rng: np.random.Generator, linear: bool) -> dict[str, int]:
    batch, rows, cols = number(rng, 1, 2), number(rng, 1, 6), number(rng, 1, 30)
    values = {"batch": batch, "rows": rows, "cols": cols, "shift": number(rng, 1, 30)}
    for name in ("a", "b", "out"):
        kind = pick(rng, U8, I8, I16, I32)
        size = (1, 1, 2, 4)[kind]
        values |= {f"{name}_addr": number(rng, 0, 1000), f"{name}_dtype": kind}
        values |= {f"{name}_row": cols * size, f"{name}_batch": rows * cols * size}
    if not linear:
        return values
    values["b_addr"] = pick(rng, values["b_addr"], NO_ADDRESS)
    return values | {name: pick(rng, 64, NO_ADDRESS) for name in ("a_mul_addr", "b_mul_addr", "bias_addr")}


def transpose(rng: np.random.Generator) -> dict[str, int]:
    batch, rows, cols, kind = number(rng, 1, 2), number(rng, 1, 6), number(rng, 1, 9), pick(rng, U8, I16, I32)
    size = {U8: 1, I16: 2, I32: 4}[kind]
    return {
        "a_addr": number(rng, 0, 1000), "a_row": cols * size, "a_batch": rows * cols * size,
        "out_addr": number(rng, 0, 1000), "out_row": rows * size, "out_batch": rows * cols * size,
        "batch": batch, "rows": rows, "cols": cols, "out_dtype": kind,
    }  # fmt: skip


def vector(rng: np.random.Generator, op: str) -> dict[str, int]:
    """TABLE, TABLE8, LNSTAT, LNAPPLY, SMEXP, RECIP or RTQUANT on dense rows."""
    rows, cols, out = number(rng, 1, 12), number(rng, 1, 40), pick(rng, U8, I16)
    size = 2 if out == I16 else 1
    common = {"a_addr": number(rng, 0, 1000), "a_row": 2 * cols, "rows": rows, "cols": cols}
    result = {"out_addr": number(rng, 0, 1000), "out_row": cols * size, "out_dtype": out}
    if op == "table":
        return common | result | {"table_addr": number(rng, 0, 1000), "multiplier": 1, "shift": 7}
    if op == "table8":
        return common | result | {"table_addr": number(rng, 0, 1000), "a_dtype": U8, "a_row": cols}
    if op == "rtquant":
        return (
            common
            | result
            | {"out_dtype": U8, "out_row": cols, "scalars_addr": 4000, "multiplier": 1 << 30, "shift": 40}
        )
    if op == "lnstat":
        return common | {"stat_addr": number(rng, 0, 1000), "epsilon": 1 << 40}
    if op == "lnapply":
        return common | result | {"stat_addr": 8, "g_addr": 16, "b_addr": 24, "shift": 8}
    if op == "smexp":
        valid = pick(rng, 32, NO_ADDRESS)
        return common | result | {"sum_addr": 4000, "valid_addr": valid, "p_bits": 8, "fraction_bits": 8}
    return {"sum_addr": 40, "out_addr": 48, "rows": rows, "multiplier": 1 << 30, "shift": 31}


def instruction(rng: np.random.Generator, units: tuple[str, ...] = KINDS) -> tuple[str, dict[str, int]]:
    """(mnemonic, fields) of a random instruction without tokens, on one of ``units``."""
    op = pick(rng, "load", "load", "store", "fetch", "matmul", "matmul", *BY_MNEMONIC)
    if op in ("load", "store"):
        values = dma(rng)
    elif op == "matmul":
        values = matmul(rng)
    elif op in ("ewlin", "ewmul"):
        values = elementwise(rng, op == "ewlin")
    elif op == "transpose":
        values = transpose(rng)
    elif op in ("barrier", "halt", "token"):
        values = {}
    elif op == "fetch":
        values = {"storage_addr": number(rng, 0, 1 << 30), "dram_addr": number(rng, 0, 1 << 30)}
        values |= {"bytes": number(rng, 1, 3000), "storage_base": number(rng, 0, 9)}
        values |= {"base": number(rng, 0, 9), "old_base": number(rng, 0, 9)}
        if rng.integers(2):
            most = values["bytes"] + -(-values["bytes"] // 64)
            values |= {"coded_bytes": number(rng, 1, most), "old_addr": number(rng, 0, 1 << 30)}
    elif op == "pswitch":
        values = {"bank_start": 3 * BANK, "bank_bytes": BANK}
    else:
        values = vector(rng, op)
    unit = UNITS.index(pick(rng, *(unit for unit in units if unit.rstrip("2") in BY_MNEMONIC[op].units)))
    return op, values | {"unit": unit, "layer": number(rng, 0, 5)}


def add_tokens(rng: np.random.Generator, code: list[tuple[str, dict[str, int]]], density: float) -> None:
    """Add tokens between random pairs so that program order is legal: then nothing deadlocks and no token is left over.

    The senders and takers of a semaphore are matched in order; a pair is kept where the sender comes first and no
    barrier lies between.
    """
    segment, segments, units = 0, [], sorted({values["unit"] for _, values in code})
    for op, _ in code:
        segments.append(segment)
        segment += op in JOINS
    for kind in ("raw", "war"):
        for a in units:
            for b in units:
                senders = [i for i, (op, v) in enumerate(code) if v["unit"] == a and op not in JOINS]
                takers = [i for i, (op, v) in enumerate(code) if v["unit"] == b and op not in JOINS]
                last = -1
                for sender in senders:
                    later = [i for i in takers if i > max(sender, last) and segments[i] == segments[sender]]
                    if later and rng.random() < density:
                        last = later[min(len(later) - 1, int(rng.geometric(0.6)) - 1)]
                        code[sender][1][f"signal_{kind}"] = code[sender][1].get(f"signal_{kind}", 0) | 1 << b
                        code[last][1][f"wait_{kind}"] = code[last][1].get(f"wait_{kind}", 0) | 1 << a


def random_code(
    rng: np.random.Generator,
    length: int,
    density: float,
    final_barrier: bool,
    ops: Any = None,
    units: tuple[str, ...] = KINDS,
) -> Words:
    """``length`` random instructions with tokens, on ``units``; ``ops`` limits the mnemonics. Needs `equipped` unless
    it does so.
    """
    code: list[tuple[str, dict[str, int]]] = []
    barriers = number(rng, 0, 2)
    while len(code) < length:
        op, values = instruction(rng, units)
        barriers -= op in JOINS
        if (op not in JOINS or barriers >= 0) and (ops is None or op in ops):
            code.append((op, values))
    if final_barrier:
        code.append(("barrier", {"unit": UNITS.index("vector")}))
    add_tokens(rng, code, density)
    return np.stack([encode(BY_MNEMONIC[op], values) for op, values in code])


def equipped(base: Machine) -> Machine:
    """``base`` with parameter banks and run-time quantization, so that every instruction is legal on it."""
    fields = base.model_dump(mode="json")
    fields["param_memory"] |= {"capacity_bytes": 5 * BANK, "bank_bytes": BANK}
    fields["vector_unit"]["runtime_quantization"] = True
    fields["dma"]["decoder_bytes_per_cycle"] = 4
    return Machine.model_validate(fields)


def several(rng: np.random.Generator, machine: Machine) -> Machine:
    """``machine`` with one or two units of each kind, two of one kind at least."""
    fields = machine.model_dump(mode="json")
    counts = rng.integers(1, 3, 5)
    counts[rng.integers(5)] = 2
    fields["mac_array"]["count"], fields["vector_unit"]["count"] = counts[:2].tolist()
    fields["dma"] |= dict(zip(("load_units", "store_units", "storage_units"), counts[2:].tolist(), strict=True))
    return Machine.model_validate(fields)


def random_dram(rng: np.random.Generator) -> dict[str, Any]:
    """The section ``dram`` of a machine: any device and queue, refresh often, background traffic at times."""
    device: dict[str, Any] = {
        "kind": "random",
        "clock_mhz": number(rng, 50, 1500),
        "channel_bits": pick(rng, 8, 16, 64),
    }
    device |= {"burst_beats": pick(rng, 8, 16), "burst_clocks": number(rng, 1, 6), "bank_groups": pick(rng, 1, 2, 4)}
    device |= {"banks_per_group": pick(rng, 1, 2, 4), "row_bytes": pick(rng, 256, 1024)}
    device |= {f"{name}_clocks": number(rng, 1, 12) for name in ("trcd", "trp", "cas", "cwl", "twr", "trtp")}
    device |= {"tras_clocks": number(rng, 1, 30), "tfaw_clocks": number(rng, 1, 40), "trfc_clocks": number(rng, 1, 60)}
    burst = device["burst_clocks"]
    for name, least in (("trrd", 1), ("tccd", burst), ("twtr", 1)):
        device[f"{name}_s_clocks"] = least + number(rng, 0, 3)
        device[f"{name}_l_clocks"] = device[f"{name}_s_clocks"] + number(rng, 0, 4)
    device["trtw_clocks"] = max(1, device["cas_clocks"] + burst - device["cwl_clocks"]) + number(rng, 0, 3)
    written = device["cwl_clocks"] + burst + device["twr_clocks"]
    row_cycle = max(device["trcd_clocks"] + written, device["tras_clocks"]) + device["trp_clocks"]
    device["trefi_clocks"] = device["trfc_clocks"] + 2 * row_cycle + pick(rng, 0, number(rng, 1, 200), 3000)
    burst_bytes = device["channel_bits"] * device["burst_beats"] // 8
    channels = pick(rng, 1, 2, 4)
    peak = channels * device["clock_mhz"] * 1_000_000 * burst_bytes // burst
    return {
        "device": device, "channels": channels, "capacity_bytes": 1 << 28, "npu_budget_bytes": 1 << 27,
        "mapping": pick(rng, "row_bank_column_group_channel", "row_column_bank_group_channel"),
        "interleave_bytes": pick(rng, *(size for size in (8, 16, 32, 64, 128, 256) if size >= burst_bytes)),
        "queue_entries": pick(rng, 1, 2, number(rng, 3, 12)), "passed_limit": number(rng, 1, 10),
        "interconnect_ns": number(rng, 0, 60),
        "background_bytes_per_second": pick(rng, 0, 0, peak // number(rng, 2, 60)),
        "background_pattern": pick(rng, "sequential", "random"), "background_write_percent": number(rng, 0, 100),
    }  # fmt: skip


def random_machine(rng: np.random.Generator, base: Machine) -> Machine:
    """``base``, equipped, with another clock, DRAM, DMA, array and vector unit."""
    fields = equipped(base).model_dump(mode="json")
    fields["clock_mhz"] = number(rng, 50, 1500)
    fields["dram"] = random_dram(rng)
    fields["barrier_cycles"] = Dram.model_validate(fields["dram"]).recovery_cycles(fields["clock_mhz"])
    fields["barrier_cycles"] += number(rng, 0, 80)
    fields["dma"] = {"setup_cycles": number(rng, 1, 30), "decoder_bytes_per_cycle": pick(rng, 1, number(rng, 2, 64))}
    fields["storage"]["device"] |= {
        "latency_us": number(rng, 1, 2),
        "bandwidth_bytes_per_second": number(rng, 1 << 26, pick(rng, 1 << 30, 1 << 33)),
        "request_bytes": pick(rng, 512, number(rng, 512, 2000)), "queue_depth": number(rng, 1, 4),
    }  # fmt: skip
    fields["mac_array"]["shadow_weights"] = bool(rng.integers(2))
    fields["mac_array"]["acc_rows"] = number(rng, 4, 40)
    fields["vector_unit"]["lanes"] = number(rng, 1, 16)
    fields["sram"] |= {
        "banks": pick(rng, 1, 2, 4, 16), "bytes_per_cycle": pick(rng, 1, 2, 4, 8, 16, 32),
        "ports": pick(rng, "1rw", "1r1w", "2rw", "unlimited"), "mapping": pick(rng, "interleaved", "blocked"),
    }  # fmt: skip
    own = fields["vector_unit"]["latency_by_op"]
    own |= {name: pick(rng, 0, number(rng, 1, 50)) for name in own}
    return Machine.model_validate(fields)
