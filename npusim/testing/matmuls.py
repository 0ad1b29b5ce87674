"""Random legal MATMULs with their records, for hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim.config import Machine
from npusim.isa.encoding import DTYPES
from npusim.isa.matmul import A_TYPES, B_TYPES, FACTORED, RECORD, ROW_RECORD, RQ_MODES, SCALARS
from npusim.memory import MachineState, Sums
from npusim.testing._hypothesis import st
from npusim.testing.cases import (
    Case,
    address,
    dtypes,
    legal,
    make,
    put,
    randoms,
    size_of,
    states,
    stride_of,
    zero_points,
)
from npusim.units import of_kind


def records(draw: st.DrawFn, state: MachineState, mode: str, rows: int, n: int) -> Any:
    """Records of mode ``tensor``, ``channel`` or ``row``."""
    if mode != "row":
        return _records(draw, state, n if mode == "channel" else 1)
    made = np.zeros(rows, ROW_RECORD)
    made["multiplier"], made["shift"] = _scales(draw, rows, 16)
    return made


def _records(draw: st.DrawFn, state: MachineState, count: int) -> Any:
    bits = state.machine.mac_array.requant_multiplier_bits
    records = np.zeros(count, RECORD)
    width = draw(st.sampled_from([4, 23, 40, 47]))
    bias = randoms(draw, -(1 << width), 1 << width, count)
    records["bias_low"], records["bias_high"] = bias & 0xFFFF_FFFF, bias >> 32
    records["zero_point"] = _weight_zeros(draw, state, count)
    records["multiplier"], records["shift"] = _scales(draw, count, bits)
    return records


def _weight_zeros(draw: st.DrawFn, state: MachineState, count: int) -> Any:
    return randoms(draw, -128, 128, count) * state.machine.mac_array.row_sum_column


def _scales(draw: st.DrawFn, count: int, bits: int) -> tuple[Any, Any]:
    """Multipliers and shifts: any, or 2^n with a shift a little above n, where many sums are ties."""
    if draw(st.booleans()):
        exponent = randoms(draw, 0, bits - 1, count)
        return 1 << exponent, exponent + randoms(draw, 1, 4, count)
    return randoms(draw, 0, 1 << (bits - 1), count), randoms(draw, 1, 63, count)


@st.composite
def matmuls(draw: st.DrawFn, on: Machine) -> Case:
    state = draw(states(on))
    array = on.mac_array
    a_kind, b_kind = draw(st.sampled_from(operand_modes(on)))
    out_kind, mode = draw(dtypes), draw(st.sampled_from(_rq_modes(on)))
    m, k, n = draw(st.integers(1, 9)), draw(st.integers(1, 33)), draw(st.integers(1, 20))
    held = draw(st.sampled_from([0, 0, 1, 2, 3]))
    unit = draw(st.sampled_from(of_kind("mac")[: array.count]))
    m, n = (min(m, array.rows, array.cols, array.acc_rows), min(n, array.cols, array.acc_rows)) if held else (m, n)
    batch0, batch1 = (1, 1) if held else (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    values: dict[str, Any] = {"a_dtype": a_kind, "b_dtype": b_kind, "out_dtype": out_kind, "rq_mode": mode}
    values |= {"acc_continue": held & 1, "acc_hold": held >> 1}
    for name, rows, size in (("a", m, size_of(a_kind, k)), ("out", m, size_of(out_kind, n))):
        row = stride_of(draw, size, repeat=name == "a")
        b1 = stride_of(draw, rows * max(row, size), repeat=name == "a")
        b0 = stride_of(draw, batch1 * max(b1, rows * max(row, size)), repeat=name == "a")
        extent = (batch0 - 1) * b0 + (batch1 - 1) * b1 + (rows - 1) * row + size
        values |= {
            f"{name}_row": row,
            f"{name}_b1": b1,
            f"{name}_b0": b0,
            f"{name}_addr": address(draw, extent, state.sram.size),
        }
    values |= _stationary(draw, state, b_kind, k, n, (batch0, batch1))
    values |= _requantizers(draw, state, mode, a_kind, batch0 * batch1 * m, n)
    if array.input_shift and A_TYPES[a_kind] <= 8 and draw(st.booleans()):
        values |= {"shifted": 1, "shift_addr": address(draw, k, state.param.size)}
    if held & 1:
        bits = array.acc_bits
        low, high = draw(st.sampled_from([(-9, 9), (-(1 << bits - 1), 1 << bits - 1)]))
        sums = randoms(draw, low, high, m * n).reshape(m, n)
        state.held[unit] = Sums(sums, randoms(draw, -999, 999, m).reshape(m, 1))
    values |= {"unit": unit, "m": m, "k": k, "n": n, "batch0": batch0, "batch1": batch1, "out_zp": draw(zero_points)}
    return legal(state, make("matmul", **values))


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
    return [mode for mode in RQ_MODES if on.mac_array.factored_requant or not mode.startswith("factored")]


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
    return {"b_k": b_k, "b_n": b_n, "b_b0": b_b0, "b_b1": b_b1, "b_addr": address(draw, extent, state.sram.size)}


def _requantizers(draw: st.DrawFn, state: MachineState, mode: str, a_kind: str, rows: int, n: int) -> dict[str, Any]:
    """Records of one mode, written where no other operand's records lie; their addresses."""
    if not mode.startswith("factored"):
        made, memory = records(draw, state, mode, rows, n), state.sram if mode == "row" else state.param
        at = address(draw, made.nbytes, memory.size)
        put(memory, at, made.dtype, made)
        return {"rq_addr": at}
    channels, count = np.zeros(n, FACTORED), 1 if mode == "factored" else rows
    channels["bias"] = randoms(draw, *draw(st.sampled_from([(-9, 9), (-(1 << 31), 1 << 31)])), n)
    channels["zero_point"] = _weight_zeros(draw, state, n)
    channels["multiplier"], channels["shift"] = _scales(draw, n, 16)
    scalars = np.zeros(count, SCALARS)
    scalars["multiplier"], scalars["shift"] = _scales(draw, count, 16)
    _, low, high = DTYPES[a_kind]
    scalars["zero_point"] = randoms(draw, low, high + 1, count)
    middle = state.param.size // 2
    channel_at, scalar_at = draw(st.integers(0, middle - 8 * n)), draw(st.integers(middle, state.param.size - 8))
    put(state.param, channel_at, FACTORED, channels)
    if mode == "factored_row":
        scalar_at = address(draw, 8 * count, state.sram.size)
    put(state.param if mode == "factored" else state.sram, scalar_at, SCALARS, scalars)
    return {"rq_addr": channel_at, "scalars_addr": scalar_at, "fraction_bits": draw(st.integers(1, 15))}
