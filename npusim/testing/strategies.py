"""Random legal instructions with memories to run them on, for hypothesis. ``networks.py`` draws networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, BY_OPCODE, violations
from npusim.isa.encoding import (
    DTYPE_NAMES,
    DTYPES,
    NO_ADDRESS,
    UNITS,
    Decoded,
    decode_row,
    encode,
    row_bytes,
)
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import A_TYPES, B_TYPES, FACTORED, RECORD, ROW_RECORD, RQ_MODES, SCALARS
from npusim.isa.softmax import MAX_P_BITS
from npusim.memory import MEMORIES, MachineState, Sums
from npusim.testing._hypothesis import st

DRAM_BYTES = 8192
LEAST = {"sram.capacity_bytes": 16384, "param_memory.addressable_bytes": 2048}
"""What the instructions drawn here need of a machine's memories."""
ON_CHIP = ("sram", "param", "param_next")
FILLS = ("random", "extremes", "small", "ones")


def make(op: str, **values: int | str) -> Decoded:
    """One decoded instruction; enumerations by name, the unit filled in."""
    spec = BY_MNEMONIC[op]
    numbers = {n: spec.by_name[n].names.index(v) if isinstance(v, str) else v for n, v in values.items()}
    words = encode(spec, {"unit": UNITS.index(spec.units[0]), **numbers})
    return decode_row(words.tolist(), BY_OPCODE)


@dataclass
class Case:
    """A legal instruction and the state before it."""

    ins: Decoded
    state: MachineState

    def __repr__(self) -> str:
        return repr(self.ins)


def fill(state: MachineState, style: str, seed: int) -> None:
    """Fill every memory: any bytes, least and greatest values of each width, values near 0, or odd values near 0."""
    rng = np.random.default_rng(seed)
    for memory in (getattr(state, name) for name in MEMORIES):
        if style == "random":
            memory[:] = rng.integers(0, 256, memory.size)
        elif style == "extremes":
            memory[:] = rng.choice(np.array([0x00, 0xFF, 0x7F, 0x80], np.uint8), memory.size)
        else:
            values = rng.integers(-3, 4, memory.size // 2)
            memory.view(np.int16)[:] = values * 2 + 1 if style == "ones" else values


def size_of(dtype: str, count: int = 1) -> int:
    """Bytes of ``count`` elements in a row."""
    return row_bytes(DTYPE_NAMES.index(dtype), count)


@st.composite
def states(draw: st.DrawFn, on: Machine) -> MachineState:
    """Memories of a machine with any contents."""
    state = MachineState(on, DRAM_BYTES)
    fill(state, draw(st.sampled_from(FILLS)), draw(st.integers(0, 2**32 - 1)))
    return state


def _case(state: MachineState, ins: Decoded) -> Case:
    broken = violations([ins], state.machine)
    assert not broken, broken
    return Case(ins, state)


def _stride(draw: st.DrawFn, at_least: int, repeat: bool) -> int:
    """A stride that keeps rows apart, with a gap of any size, or 0 where a row may be repeated."""
    stride = at_least + draw(st.integers(0, 9))
    return draw(st.sampled_from([0, stride])) if repeat else stride


def _address(draw: st.DrawFn, size: int, capacity: int) -> int:
    """Any alignment; operands may overlap."""
    return draw(st.integers(0, capacity - size))


def _window(
    draw: st.DrawFn, state: MachineState, name: str, dtype: str, batch: int, rows: int, cols: int
) -> dict[str, int]:
    size, repeat = size_of(dtype, cols), name != "out"
    row = _stride(draw, size, repeat)
    plane = _stride(draw, rows * max(row, size), repeat)
    extent = (batch - 1) * plane + (rows - 1) * row + size
    return {f"{name}_addr": _address(draw, extent, state.sram.size), f"{name}_row": row, f"{name}_batch": plane}


shifts = st.one_of(st.integers(1, 4), st.integers(1, 62))
"""Small ones more often: they make ties."""
dtypes = st.sampled_from(DTYPE_NAMES)
zero_points = st.one_of(st.just(0), st.integers(-(2**31), 2**31 - 1), st.integers(-200, 200))
powers = st.integers(0, 14).map(lambda n: 1 << n)


@st.composite
def dma(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    op, memory = (
        draw(st.sampled_from(["load", "store"])),
        draw(st.sampled_from(ON_CHIP if state.param_next.size else ON_CHIP[:2])),
    )
    planes, rows, row_bytes = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 40))
    base = draw(st.integers(0, 2))
    state.bases = [0, 100, 301]
    load = op == "load"
    dram_row = _stride(draw, row_bytes, repeat=load)
    dram_plane = _stride(draw, rows * max(dram_row, row_bytes), repeat=load)
    local_row = _stride(draw, row_bytes, repeat=not load)
    local_plane = _stride(draw, rows * max(local_row, row_bytes), repeat=not load)
    dram_extent = (planes - 1) * dram_plane + (rows - 1) * dram_row + row_bytes
    local_extent = (planes - 1) * local_plane + (rows - 1) * local_row + row_bytes
    capacity = getattr(state, memory).size
    return _case(
        state,
        make(
            op, base=base, memory=memory, planes=planes, rows=rows, row_bytes=row_bytes, dram_row=dram_row,
            dram_addr=_address(draw, dram_extent, DRAM_BYTES - state.bases[base]), dram_plane=dram_plane,
            local_addr=_address(draw, local_extent, capacity), local_row=local_row, local_plane=local_plane,
        ),
    )  # fmt: skip


@st.composite
def elementwise(draw: st.DrawFn, on: Machine, op: str = "ewlin") -> Case:
    state = draw(states(on))
    batch, rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 40))
    kinds = {name: draw(dtypes) for name in ("a", "b", "out")}
    values: dict[str, Any] = {f"{name}_dtype": kind for name, kind in kinds.items()}
    for name, kind in kinds.items():
        values |= _window(draw, state, name, kind, batch, rows, cols)
    if op == "ewlin":
        if draw(st.booleans()):
            values["b_addr"] = NO_ADDRESS
        for name in ("a", "b"):
            wide = kinds[name] == "i32"
            limit = 2**30 if wide else 2**31 - 1
            values[f"{name}_mul"] = draw(
                st.one_of(st.sampled_from([0, 1, -1, limit, -limit]), st.integers(-limit, limit))
            )
            values[f"{name}_mul_addr"] = draw(
                st.one_of(st.just(NO_ADDRESS), st.integers(0, state.param.size - 4 * cols))
            )
            if wide and values[f"{name}_mul_addr"] != NO_ADDRESS:
                low, high = draw(st.sampled_from([(-3, 4), (-(2**30), 2**30)]))
                _put(state.param, values[f"{name}_mul_addr"], np.dtype("<i4"), _random(draw, low, high, cols))
        values["bias_addr"] = draw(st.one_of(st.just(NO_ADDRESS), st.integers(0, state.param.size - 4 * cols)))
        _repair_multipliers(state, kinds, values, cols)
    values |= {"batch": batch, "rows": rows, "cols": cols, "shift": draw(shifts), "out_zp": draw(zero_points)}
    return _case(state, make(op, **values))


def _repair_multipliers(state: MachineState, kinds: dict[str, str], values: dict[str, Any], cols: int) -> None:
    """Two 32-bit vectors may overlap each other: clip both again until what the instruction reads is legal."""
    for _ in range(2):
        for name in ("a", "b"):
            at = values[f"{name}_mul_addr"]
            if kinds[name] == "i32" and at != NO_ADDRESS:
                vector = np.ndarray((cols,), "<i4", state.param, at)
                vector[np.abs(vector.astype(np.int64)) > 2**30] = 0


def _random(draw: st.DrawFn, low: int, high: int, count: int) -> Any:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(low, high, count)


def _put(memory: Any, address: int, dtype: np.dtype[Any], values: Any) -> None:
    np.ndarray((len(values),), dtype, memory, address)[...] = values


@st.composite
def tables(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols, kind = draw(st.integers(1, 5)), draw(st.integers(1, 60)), draw(dtypes)
    a, out = _window(draw, state, "a", "i16", 1, rows, cols), _window(draw, state, "out", kind, 1, rows, cols)
    values: dict[str, Any] = {
        "a_addr": a["a_addr"],
        "a_row": a["a_row"],
        "out_addr": out["out_addr"],
        "out_row": out["out_row"],
    }
    values |= {"multiplier": draw(st.one_of(powers, st.integers(0, 65535))), "shift": draw(shifts)}
    at = draw(st.integers(0, state.param.size - 1026))
    return _case(
        state, make("table", rows=rows, cols=cols, table_addr=at, out_zp=draw(zero_points), out_dtype=kind, **values)
    )


@st.composite
def layernorm_statistics(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    a = _window(draw, state, "a", "i16", 1, rows, cols)
    epsilon = draw(st.one_of(st.integers(1, 1000), st.integers(1, 2**58 - 1)))
    at = draw(st.integers(0, state.sram.size - 12 * rows))
    return _case(
        state, make("lnstat", a_addr=a["a_addr"], a_row=a["a_row"], rows=rows, cols=cols, stat_addr=at, epsilon=epsilon)
    )


@st.composite
def layernorm_apply(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols, kind = draw(st.integers(1, 6)), draw(st.integers(1, 70)), draw(dtypes)
    a, out = _window(draw, state, "a", "i16", 1, rows, cols), _window(draw, state, "out", kind, 1, rows, cols)
    records = np.zeros(rows, STATISTICS)
    records["sum"] = _random(draw, -cols * 32768, cols * 32767 + 1, rows)
    records["mantissa"] = 1 << 20 if draw(st.booleans()) else _random(draw, 1 << 20, (1 << 21) + 1, rows)
    records["shift"] = _random(draw, 21, 52, rows)
    at = draw(st.integers(0, state.sram.size - 12 * rows))
    _put(state.sram, at, STATISTICS, records)
    return _case(
        state,
        make(
            "lnapply", a_addr=a["a_addr"], a_row=a["a_row"], out_addr=out["out_addr"], out_row=out["out_row"],
            rows=rows, cols=cols, stat_addr=at, out_dtype=kind, out_zp=draw(zero_points), shift=draw(shifts),
            fraction_bits=draw(st.integers(0, 15)), g_addr=draw(st.integers(0, state.param.size - 2 * cols)),
            b_addr=draw(st.integers(0, state.param.size - 4 * cols)),
        ),
    )  # fmt: skip


@st.composite
def small_tables(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    a_kind = draw(st.sampled_from(["u4", "i4", "u6", "i6", "u8", "i8"]))
    kind = draw(st.sampled_from([name for name in DTYPE_NAMES if name != "i32"]))
    rows, cols = draw(st.integers(1, 5)), draw(st.integers(1, 60))
    a, out = _window(draw, state, "a", a_kind, 1, rows, cols), _window(draw, state, "out", kind, 1, rows, cols)
    at = draw(st.integers(0, state.param.size - 512))
    stored, low, high = DTYPES[kind]
    _put(state.param, at, np.dtype(stored), _random(draw, low, high + 1, 1 << int(a_kind[1:])))
    values = {"a_addr": a["a_addr"], "a_row": a["a_row"], "out_addr": out["out_addr"], "out_row": out["out_row"]}
    shape = {"rows": rows, "cols": cols, "table_addr": at}
    return _case(state, make("table8", a_dtype=a_kind, out_dtype=kind, **shape, **values))


@st.composite
def transposes(draw: st.DrawFn, on: Machine) -> Case:
    state, kind = draw(states(on)), draw(st.sampled_from(["u8", "i8", "u16", "i16", "i32"]))
    batch, rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    values = _window(draw, state, "a", kind, batch, rows, cols) | _window(draw, state, "out", kind, batch, cols, rows)
    return _case(state, make("transpose", batch=batch, rows=rows, cols=cols, out_dtype=kind, **values))


@st.composite
def bank_switches(draw: st.DrawFn, on: Machine) -> Case:
    param = on.param_memory
    return _case(draw(states(on)), make("pswitch", bank_start=param.common_bytes, bank_bytes=param.bank_bytes))


@st.composite
def runtime_quantizations(draw: st.DrawFn, on: Machine) -> Case:
    state, kind = draw(states(on)), draw(st.sampled_from(["u4", "u6", "u8"]))
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    a, out = _window(draw, state, "a", "i16", 1, rows, cols), _window(draw, state, "out", kind, 1, rows, cols)
    values = {"a_addr": a["a_addr"], "a_row": a["a_row"], "out_addr": out["out_addr"], "out_row": out["out_row"]}
    values |= {"multiplier": draw(st.integers(2**30, 2**31 - 1)), "shift": draw(st.integers(34, 62))}
    at = draw(st.integers(0, state.sram.size - SCALARS.itemsize * rows))
    return _case(state, make("rtquant", rows=rows, cols=cols, scalars_addr=at, out_dtype=kind, **values))


@st.composite
def exponentials(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows, cols, kind = draw(st.integers(1, 6)), draw(st.integers(1, 70)), draw(st.sampled_from(["u8", "i16", "u16"]))
    a, out = _window(draw, state, "a", "i16", 1, rows, cols), _window(draw, state, "out", kind, 1, rows, cols)
    at = NO_ADDRESS
    if draw(st.booleans()):
        at = draw(st.integers(0, state.sram.size - 4))
        _put(state.sram, at, np.dtype("<i4"), [draw(st.integers(-2, cols + 2))])
    return _case(
        state,
        make(
            "smexp", a_addr=a["a_addr"], a_row=a["a_row"], out_addr=out["out_addr"], out_row=out["out_row"], rows=rows,
            cols=cols, sum_addr=draw(st.integers(0, state.sram.size - 4 * rows)), valid_addr=at, out_dtype=kind,
            fraction_bits=draw(st.integers(0, 16)), p_bits=draw(st.integers(8, MAX_P_BITS[kind])),
        ),
    )  # fmt: skip


@st.composite
def reciprocals(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    rows = draw(st.integers(1, 50))
    at = draw(st.integers(0, state.sram.size - 4 * rows))
    high = draw(st.sampled_from([2, 300, 2**16, 2**31]))
    _put(state.sram, at, np.dtype("<i4"), _random(draw, 1, high, rows))
    multiplier, shift = draw(st.integers(2**30, 2**31 - 1)), draw(st.integers(0, 63))
    out = draw(st.integers(0, state.sram.size - 4 * rows))
    return _case(state, make("recip", sum_addr=at, out_addr=out, rows=rows, multiplier=multiplier, shift=shift))


def _records(draw: st.DrawFn, state: MachineState, count: int) -> Any:
    bits = state.machine.mac_array.requant_multiplier_bits
    records = np.zeros(count, RECORD)
    width = draw(st.sampled_from([4, 23, 40, 47]))
    bias = _random(draw, -(1 << width), 1 << width, count)
    records["bias_low"], records["bias_high"] = bias & 0xFFFF_FFFF, bias >> 32
    records["zero_point"] = _random(draw, -128, 128, count)
    records["multiplier"], records["shift"] = _scales(draw, count, bits)
    return records


def _scales(draw: st.DrawFn, count: int, bits: int) -> tuple[Any, Any]:
    """Multipliers and shifts: any, or 2^n with a shift a little above n, where many sums are ties."""
    if draw(st.booleans()):
        exponent = _random(draw, 0, bits - 1, count)
        return 1 << exponent, exponent + _random(draw, 1, 4, count)
    return _random(draw, 0, 1 << (bits - 1), count), _random(draw, 1, 63, count)


@st.composite
def matmuls(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    array = on.mac_array
    a_kind, b_kind = draw(st.sampled_from(operand_modes(on)))
    out_kind, mode = draw(dtypes), draw(st.sampled_from(_rq_modes(on)))
    m, k, n = draw(st.integers(1, 9)), draw(st.integers(1, 33)), draw(st.integers(1, 20))
    held = draw(st.sampled_from([0, 0, 1, 2, 3]))
    m, n = (min(m, array.rows, array.cols, array.acc_rows), min(n, array.cols, array.acc_rows)) if held else (m, n)
    batch0, batch1 = (1, 1) if held else (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    values: dict[str, Any] = {"a_dtype": a_kind, "b_dtype": b_kind, "out_dtype": out_kind, "rq_mode": mode}
    values |= {"acc_continue": held & 1, "acc_hold": held >> 1}
    for name, rows, size in (("a", m, size_of(a_kind, k)), ("out", m, size_of(out_kind, n))):
        row = _stride(draw, size, repeat=name == "a")
        b1 = _stride(draw, rows * max(row, size), repeat=name == "a")
        b0 = _stride(draw, batch1 * max(b1, rows * max(row, size)), repeat=name == "a")
        extent = (batch0 - 1) * b0 + (batch1 - 1) * b1 + (rows - 1) * row + size
        values |= {
            f"{name}_row": row,
            f"{name}_b1": b1,
            f"{name}_b0": b0,
            f"{name}_addr": _address(draw, extent, state.sram.size),
        }
    values |= _stationary(draw, state, b_kind, k, n, (batch0, batch1))
    values |= _requantizers(draw, state, mode, a_kind, batch0 * batch1 * m, n)
    if array.input_shift and A_TYPES[a_kind] <= 8 and draw(st.booleans()):
        values |= {"shifted": 1, "shift_addr": draw(st.integers(0, state.param.size - k))}
    if held & 1:
        bits = array.acc_bits
        low, high = draw(st.sampled_from([(-9, 9), (-(1 << bits - 1), 1 << bits - 1)]))
        sums = _random(draw, low, high, m * n).reshape(m, n)
        state.held = Sums(sums, _random(draw, -999, 999, m).reshape(m, 1))
    values |= {"m": m, "k": k, "n": n, "batch0": batch0, "batch1": batch1, "out_zp": draw(zero_points)}
    return _case(state, make("matmul", **values))


def operand_modes(on: Machine) -> list[tuple[str, str]]:
    """Operand types of the array, activation and weight."""
    least_a, least_b = on.mac_array.narrowest_activation_bits, on.mac_array.narrowest_weight_bits
    return [
        (a, b)
        for a in A_TYPES
        for b in B_TYPES
        if A_TYPES[a] >= least_a and B_TYPES[b] >= least_b and (B_TYPES[b] < 16 or A_TYPES[a] == 16)
    ]


def _rq_modes(on: Machine) -> list[str]:
    factored = on.mac_array.factored_requant and on.mac_array.requant_rounding == "single"
    return [mode for mode in RQ_MODES if factored or not mode.startswith("factored")]


def _stationary(
    draw: st.DrawFn, state: MachineState, kind: str, k: int, n: int, batch: tuple[int, int]
) -> dict[str, Any]:
    """Strides and address of operand b: any for elements of whole bytes, rows along k for packed ones."""
    size = size_of(kind)
    if int(kind[1:]) < 8:
        size = size_of(kind, k)
        b_k, b_n = 0, draw(st.sampled_from([size, size + 3, 0]))
    else:
        b_k, b_n = draw(st.sampled_from([(n * size, size), (size, k * size), (0, size), (n * size + 3, size + 1)]))
    b_b0, b_b1 = draw(st.sampled_from([(0, 0), (2 * n * k * size, n * k * size), (17, 5)]))
    extent = (batch[0] - 1) * b_b0 + (batch[1] - 1) * b_b1 + (k - 1) * b_k + (n - 1) * b_n + size
    return {"b_k": b_k, "b_n": b_n, "b_b0": b_b0, "b_b1": b_b1, "b_addr": _address(draw, extent, state.sram.size)}


def _requantizers(draw: st.DrawFn, state: MachineState, mode: str, a_kind: str, rows: int, n: int) -> dict[str, Any]:
    """Records of one mode, written where no other operand's records lie; their addresses."""
    if mode in ("tensor", "channel"):
        count = n if mode == "channel" else 1
        address = draw(st.integers(0, state.param.size - 12 * count))
        _put(state.param, address, RECORD, _records(draw, state, count))
        return {"rq_addr": address}
    if mode == "row":
        records = np.zeros(rows, ROW_RECORD)
        records["multiplier"], records["shift"] = _scales(draw, rows, 16)
        address = draw(st.integers(0, state.sram.size - 4 * rows))
        _put(state.sram, address, ROW_RECORD, records)
        return {"rq_addr": address}
    channels, count = np.zeros(n, FACTORED), 1 if mode == "factored" else rows
    channels["bias"] = _random(draw, *draw(st.sampled_from([(-9, 9), (-(1 << 31), 1 << 31)])), n)
    channels["zero_point"] = _random(draw, -128, 128, n)
    channels["multiplier"], channels["shift"] = _scales(draw, n, 16)
    scalars = np.zeros(count, SCALARS)
    scalars["multiplier"], scalars["shift"] = _scales(draw, count, 16)
    _, low, high = DTYPES[a_kind]
    scalars["zero_point"] = _random(draw, low, high + 1, count)
    middle = state.param.size // 2
    channel_at, scalar_at = draw(st.integers(0, middle - 8 * n)), draw(st.integers(middle, state.param.size - 8))
    _put(state.param, channel_at, FACTORED, channels)
    if mode == "factored_row":
        scalar_at = draw(st.integers(0, state.sram.size - 8 * count))
    _put(state.param if mode == "factored" else state.sram, scalar_at, SCALARS, scalars)
    return {"rq_addr": channel_at, "scalars_addr": scalar_at, "fraction_bits": draw(st.integers(1, 15))}


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
