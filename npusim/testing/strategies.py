"""Random legal instructions with memories to run them on, for hypothesis. ``networks.py`` draws networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.config import Machine
from npusim.delta import encode
from npusim.errors import UserError
from npusim.isa.addressing import BASES
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, NO_ADDRESS
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import SCALARS
from npusim.isa.softmax import MAX_P_BITS
from npusim.memory import MachineState
from npusim.testing._hypothesis import st
from npusim.testing.cases import (
    DRAM_BYTES,
    Case,
    address,
    addresses,
    aligned,
    dtypes,
    legal,
    make,
    powers,
    put,
    randoms,
    shifts,
    size_of,
    states,
    stride_of,
    window,
    zero_points,
)
from npusim.testing.matmuls import matmuls

LEAST = {"sram.capacity_bytes": 16384, "param_memory.addressable_bytes": 2048}
"""What the instructions drawn here need of a machine's memories."""
ON_CHIP = ("sram", "param", "param_next")


@st.composite
def dma(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    op, memory = (
        draw(st.sampled_from(["load", "store"])),
        draw(st.sampled_from(ON_CHIP if state.param_next.size else ON_CHIP[:2])),
    )
    planes, rows, row_bytes = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 40))
    base = draw(st.integers(0, BASES - 1))
    state.bases = [0, 100, 301, 77, *range(400, 400 + BASES - 4)]
    load = op == "load"
    dram_row = stride_of(draw, row_bytes, repeat=load)
    dram_plane = stride_of(draw, rows * max(dram_row, row_bytes), repeat=load)
    local_row = stride_of(draw, row_bytes, repeat=not load)
    local_plane = stride_of(draw, rows * max(local_row, row_bytes), repeat=not load)
    dram_extent = (planes - 1) * dram_plane + (rows - 1) * dram_row + row_bytes
    local_extent = (planes - 1) * local_plane + (rows - 1) * local_row + row_bytes
    capacity = getattr(state, memory).size
    return legal(
        state,
        make(
            op, base=base, memory=memory, planes=planes, rows=rows, row_bytes=row_bytes, dram_row=dram_row,
            dram_addr=address(draw, dram_extent, DRAM_BYTES - state.bases[base]), dram_plane=dram_plane,
            local_addr=address(draw, local_extent, capacity), local_row=local_row, local_plane=local_plane,
        ),
    )  # fmt: skip


@st.composite
def elementwise(draw: st.DrawFn, on: Machine, op: str = "ewlin") -> Case:
    state = draw(states(on))
    batch, rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 40))
    kinds = {name: draw(dtypes) for name in ("a", "b", "out")}
    values: dict[str, Any] = {f"{name}_dtype": kind for name, kind in kinds.items()}
    for name, kind in kinds.items():
        values |= window(draw, state, name, kind, batch, rows, cols)
    if op == "ewlin":
        if draw(st.booleans()):
            values["b_addr"] = NO_ADDRESS
        for name in ("a", "b"):
            wide = kinds[name] == "i32"
            limit = 2**30 if wide else 2**31 - 1
            values[f"{name}_mul"] = draw(
                st.one_of(st.sampled_from([0, 1, -1, limit, -limit]), st.integers(-limit, limit))
            )
            values[f"{name}_mul_addr"] = draw(st.one_of(st.just(NO_ADDRESS), addresses(0, state.param.size - 4 * cols)))
            if wide and values[f"{name}_mul_addr"] != NO_ADDRESS:
                low, high = draw(st.sampled_from([(-3, 4), (-(2**30), 2**30)]))
                put(state.param, values[f"{name}_mul_addr"], np.dtype("<i4"), randoms(draw, low, high, cols))
        values["bias_addr"] = draw(st.one_of(st.just(NO_ADDRESS), addresses(0, state.param.size - 4 * cols)))
        values |= {name: draw(st.integers(0, 1)) for name in ("wide", "shared_mul", "shared_bias")}
        _repair_multipliers(state, kinds, values, cols)
    values |= {"batch": batch, "rows": rows, "cols": cols, "shift": draw(shifts), "out_zp": draw(zero_points)}
    return legal(state, make(op, **values))


def _repair_multipliers(state: MachineState, kinds: dict[str, str], values: dict[str, Any], cols: int) -> None:
    """Two 32-bit vectors may overlap each other: clip both again until what the instruction reads is legal."""
    for _ in range(2):
        for name in ("a", "b"):
            at = values[f"{name}_mul_addr"]
            if kinds[name] == "i32" and at != NO_ADDRESS:
                vector = np.ndarray((cols,), "<i4", state.param, at)
                vector[np.abs(vector.astype(np.int64)) > 2**30] = 0


@st.composite
def tables(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols, kind = draw(st.integers(1, 5)), draw(st.integers(1, 60)), draw(dtypes)
    a, out = window(draw, state, "a", "i16", 1, rows, cols), window(draw, state, "out", kind, 1, rows, cols)
    values: dict[str, Any] = {
        "a_addr": a["a_addr"],
        "a_row": a["a_row"],
        "out_addr": out["out_addr"],
        "out_row": out["out_row"],
    }
    values |= {"multiplier": draw(st.one_of(powers, st.integers(0, 65535))), "shift": draw(shifts)}
    at = address(draw, 1026, state.param.size)
    return legal(
        state, make("table", rows=rows, cols=cols, table_addr=at, out_zp=draw(zero_points), out_dtype=kind, **values)
    )


@st.composite
def layernorm_statistics(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    a = window(draw, state, "a", "i16", 1, rows, cols)
    epsilon = draw(st.one_of(st.integers(1, 1000), st.integers(1, 2**58 - 1)))
    at = address(draw, 12 * rows, state.sram.size)
    return legal(
        state, make("lnstat", a_addr=a["a_addr"], a_row=a["a_row"], rows=rows, cols=cols, stat_addr=at, epsilon=epsilon)
    )


@st.composite
def layernorm_apply(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols, kind = draw(st.integers(1, 6)), draw(st.integers(1, 70)), draw(dtypes)
    a, out = window(draw, state, "a", "i16", 1, rows, cols), window(draw, state, "out", kind, 1, rows, cols)
    records = np.zeros(rows, STATISTICS)
    records["sum"] = randoms(draw, -cols * 32768, cols * 32767 + 1, rows)
    records["mantissa"] = 1 << 20 if draw(st.booleans()) else randoms(draw, 1 << 20, (1 << 21) + 1, rows)
    records["shift"] = randoms(draw, 21, 52, rows)
    at = address(draw, 12 * rows, state.sram.size)
    put(state.sram, at, STATISTICS, records)
    return legal(
        state,
        make(
            "lnapply", a_addr=a["a_addr"], a_row=a["a_row"], out_addr=out["out_addr"], out_row=out["out_row"],
            rows=rows, cols=cols, stat_addr=at, out_dtype=kind, out_zp=draw(zero_points), shift=draw(shifts),
            fraction_bits=draw(st.integers(0, 15)), g_addr=address(draw, 2 * cols, state.param.size),
            b_addr=address(draw, 4 * cols, state.param.size),
        ),
    )  # fmt: skip


@st.composite
def small_tables(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    a_kind = draw(st.sampled_from(["u4", "i4", "u6", "i6", "u8", "i8"]))
    kind = draw(st.sampled_from([name for name in DTYPE_NAMES if name != "i32"]))
    rows, cols = draw(st.integers(1, 5)), draw(st.integers(1, 60))
    a, out = window(draw, state, "a", a_kind, 1, rows, cols), window(draw, state, "out", kind, 1, rows, cols)
    at = address(draw, 512, state.param.size)
    stored, low, high = DTYPES[kind]
    put(state.param, at, np.dtype(stored), randoms(draw, low, high + 1, 1 << int(a_kind[1:])))
    values = {"a_addr": a["a_addr"], "a_row": a["a_row"], "out_addr": out["out_addr"], "out_row": out["out_row"]}
    shape = {"rows": rows, "cols": cols, "table_addr": at}
    return legal(state, make("table8", a_dtype=a_kind, out_dtype=kind, **shape, **values))


@st.composite
def transposes(draw: st.DrawFn, on: Machine) -> Case:
    state, kind = draw(states(on)), draw(st.sampled_from(["u8", "i8", "u16", "i16", "i32"]))
    batch, rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    values = window(draw, state, "a", kind, batch, rows, cols) | window(draw, state, "out", kind, batch, cols, rows)
    return legal(state, make("transpose", batch=batch, rows=rows, cols=cols, out_dtype=kind, **values))


@st.composite
def bank_switches(draw: st.DrawFn, on: Machine) -> Case:
    param = on.param_memory
    return legal(draw(states(on)), make("pswitch", bank_start=param.common_bytes, bank_bytes=param.bank_bytes))


def _beside(draw: st.DrawFn, rows: int, out: dict[str, int], row_bytes: int, size: int, capacity: int) -> int:
    """An address for a second result of ``size`` bytes before or behind the first one, the window ``out``."""
    before, end = out["out_addr"] - size, out["out_addr"] + (rows - 1) * out["out_row"] + row_bytes
    places = [(0, before), (end, capacity - size)]
    return draw(st.one_of([addresses(low, high) for low, high in places if aligned(low) <= high]))


@st.composite
def runtime_quantizations(draw: st.DrawFn, on: Machine) -> Case:
    state, kind = draw(states(on)), draw(st.sampled_from(["u4", "u6", "u8"]))
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    a, out = window(draw, state, "a", "i16", 1, rows, cols), window(draw, state, "out", kind, 1, rows, cols)
    values = {"a_addr": a["a_addr"], "a_row": a["a_row"], "out_addr": out["out_addr"], "out_row": out["out_row"]}
    values |= {"multiplier": draw(st.integers(2**30, 2**31 - 1)), "shift": draw(st.integers(34, 62))}
    at = _beside(draw, rows, out, size_of(kind, cols), SCALARS.itemsize * rows, state.sram.size)
    return legal(state, make("rtquant", rows=rows, cols=cols, scalars_addr=at, out_dtype=kind, **values))


@st.composite
def exponentials(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols, kind = draw(st.integers(1, 6)), draw(st.integers(1, 70)), draw(st.sampled_from(["u8", "i16", "u16"]))
    a, out = window(draw, state, "a", "i16", 1, rows, cols), window(draw, state, "out", kind, 1, rows, cols)
    at = NO_ADDRESS
    if draw(st.booleans()):
        at = address(draw, 4, state.sram.size)
        put(state.sram, at, np.dtype("<i4"), [draw(st.integers(-2, cols + 2))])
    return legal(
        state,
        make(
            "smexp", a_addr=a["a_addr"], a_row=a["a_row"], out_addr=out["out_addr"], out_row=out["out_row"], rows=rows,
            cols=cols, sum_addr=_beside(draw, rows, out, size_of(kind, cols), 4 * rows, state.sram.size),
            valid_addr=at, out_dtype=kind,
            fraction_bits=draw(st.integers(0, 16)), p_bits=draw(st.integers(8, MAX_P_BITS[kind])),
        ),
    )  # fmt: skip


@st.composite
def fetches(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    state.storage = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 256, 900, np.uint8)
    state.bases = [0, *range(60, 60 + 10 * (BASES - 1), 10)]
    size, base, storage_base = draw(st.integers(1, 200)), *(draw(st.integers(0, BASES - 1)) for _ in range(2))
    places = {
        "storage_addr": address(draw, size, state.storage.size - state.bases[storage_base]),
        "dram_addr": address(draw, size, DRAM_BYTES - state.bases[base]),
    }
    plain = make("fetch", **places, bytes=size, base=base, storage_base=storage_base)
    if not on.dma.decoder_bytes_per_cycle or draw(st.booleans()):
        return legal(state, plain)
    # The code of random bytes, against old bytes anywhere in DRAM, or against the run's own place.
    old_base = draw(st.one_of(st.just(base), st.integers(0, BASES - 1)))
    old_addr = draw(st.one_of(st.just(places["dram_addr"]), st.integers(0, DRAM_BYTES - size)))
    old_addr = min(old_addr, DRAM_BYTES - size - state.bases[old_base])
    at = state.bases[old_base] + old_addr
    old = state.dram[at : at + size]
    spread = draw(st.sampled_from([0, 1, 9, 127]))
    new = old + np.random.default_rng(size).integers(-spread, spread + 1, size).astype(np.uint8)
    code = encode(new, old)
    start = state.bases[storage_base] + places["storage_addr"]
    room = state.storage.size - start
    if code.size > room:
        return legal(state, plain)
    state.storage[start : start + code.size] = code
    coded = {"coded_bytes": code.size, "old_base": old_base, "old_addr": old_addr}
    return legal(state, make("fetch", **places, bytes=size, base=base, storage_base=storage_base, **coded))


@st.composite
def reciprocals(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows = draw(st.integers(1, 50))
    at = address(draw, 4 * rows, state.sram.size)
    high = draw(st.sampled_from([2, 300, 2**16, 2**31]))
    put(state.sram, at, np.dtype("<i4"), randoms(draw, 1, high, rows))
    multiplier, shift = draw(st.integers(2**30, 2**31 - 1)), draw(st.integers(0, 63))
    out = address(draw, 4 * rows, state.sram.size)
    return legal(state, make("recip", sum_addr=at, out_addr=out, rows=rows, multiplier=multiplier, shift=shift))


def families(on: Machine) -> dict[str, st.SearchStrategy[Case]]:
    """Every instruction of a machine that computes or moves, by name of its strategy.

    Raises UserError for a machine whose memories are too small for what is drawn.
    """
    sizes = on.sram.capacity_bytes, on.param_memory.addressable_bytes
    for (name, least), size in zip(LEAST.items(), sizes, strict=True):
        if size < least:
            raise UserError(f"{name} = {size}: random instructions need at least {least}")
    found = {
        "dma": dma(on),
        "fetch": fetches(on),
        "matmul": matmuls(on),
        "ewlin": elementwise(on),
        "ewmul": elementwise(on, "ewmul"),
        "table": tables(on),
        "table8": small_tables(on),
        "transpose": transposes(on),
        "lnstat": layernorm_statistics(on),
        "lnapply": layernorm_apply(on),
        "smexp": exponentials(on),
        "recip": reciprocals(on),
    }
    if on.vector_unit.runtime_quantization:
        found["rtquant"] = runtime_quantizations(on)
    if on.param_memory.bank_bytes:
        found["pswitch"] = bank_switches(on)
    return found
