"""One random legal instruction with memories to run it on, and what all families' strategies draw alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, BY_OPCODE, violations
from npusim.isa.encoding import DTYPE_NAMES, Decoded, decode_row, encode, row_bytes
from npusim.memory import MEMORIES, MachineState
from npusim.testing._hypothesis import hypothesis, st
from npusim.units import UNITS

DRAM_BYTES = 8192
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


def legal(state: MachineState, ins: Decoded) -> Case:
    broken = violations([ins], state.machine)
    assert not broken, broken
    return Case(ins, state)


ALIGNMENT = 1
"""Addresses and strides are drawn as multiples of this. Tests of kernels that take aligned operands only set it."""


def aligned(value: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-value // ALIGNMENT) * ALIGNMENT


def stride_of(draw: st.DrawFn, at_least: int, repeat: bool) -> int:
    """A stride that keeps rows apart, with a gap of any size, or 0 where a row may be repeated."""
    stride = aligned(at_least + draw(st.integers(0, 9)))
    return draw(st.sampled_from([0, stride])) if repeat else stride


def addresses(first: int, last: int) -> st.SearchStrategy[int]:
    """Addresses from ``first`` to ``last``."""
    return st.integers(-(-first // ALIGNMENT), last // ALIGNMENT).map(lambda number: number * ALIGNMENT)


def address(draw: st.DrawFn, size: int, capacity: int) -> int:
    """Any address at which ``size`` bytes fit; operands may overlap."""
    hypothesis.assume(size <= capacity)
    return draw(addresses(0, capacity - size))


def window(
    draw: st.DrawFn, state: MachineState, name: str, dtype: str, batch: int, rows: int, cols: int
) -> dict[str, int]:
    size, repeat = size_of(dtype, cols), name != "out"
    row = stride_of(draw, size, repeat)
    plane = stride_of(draw, rows * max(row, size), repeat)
    extent = (batch - 1) * plane + (rows - 1) * row + size
    return {f"{name}_addr": address(draw, extent, state.sram.size), f"{name}_row": row, f"{name}_batch": plane}


shifts = st.one_of(st.integers(1, 4), st.integers(1, 62))
"""Small ones more often: they make ties."""
dtypes = st.sampled_from(DTYPE_NAMES)
zero_points = st.one_of(st.just(0), st.integers(-(2**31), 2**31 - 1), st.integers(-200, 200))
powers = st.integers(0, 14).map(lambda n: 1 << n)


def randoms(draw: st.DrawFn, low: int, high: int, count: int) -> Any:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(low, high, count)


def put(memory: Any, address: int, dtype: np.dtype[Any], values: Any) -> None:
    np.ndarray((len(values),), dtype, memory, address)[...] = values
