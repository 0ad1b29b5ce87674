"""EWLIN and EWMUL: element-wise arithmetic of the vector unit with one rounding at the end.

``EWLIN: out = clamp(((a * ma + b * mb + bias) + 2^(shift-1) >> shift) + out_zp)``: residual and gated additions,
modulation, conversion between types, guidance and the sampler's update are all this instruction. ``ma`` and ``mb`` are
an immediate or one signed 16-bit value per channel in parameter memory (32-bit for a 32-bit operand, at most 2^30);
``bias`` is int32 per channel. Operand b and the per-channel vectors are optional.

``EWMUL: out = clamp((a * b + 2^(shift-1) >> shift) + out_zp)``.

Operands are (batch, rows, cols) windows of SRAM, cols contiguous; a stride of 0 repeats a row or a plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart, span
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, NO_ADDRESS, Decoded, Field, Instruction, Region, shift_rules

_WINDOWS = (
    Field("a_addr", 2), Field("a_row", 3), Field("a_batch", 4),
    Field("b_addr", 5), Field("b_row", 6), Field("b_batch", 7),
    Field("out_addr", 8), Field("out_row", 9), Field("out_batch", 10),
    Field("rows", 11), Field("cols", 12), Field("batch", 13),
    Field("a_dtype", 14, 0, 4, names=DTYPE_NAMES), Field("b_dtype", 14, 4, 4, names=DTYPE_NAMES),
    Field("out_dtype", 14, 8, 4, names=DTYPE_NAMES), Field("shift", 14, 16, 6),
    Field("out_zp", 15, signed=True),
)  # fmt: skip
_LINEAR = (
    Field("a_mul", 16, signed=True, doc="immediate multiplier of a, used when a_mul_addr is absent"),
    Field("b_mul", 17, signed=True),
    Field("a_mul_addr", 18, doc="int16 (int32 for i32 operands) per channel in parameter memory, or absent"),
    Field("b_mul_addr", 19),
    Field("bias_addr", 20, doc="int32 per channel in parameter memory, or absent"),
)

MAX_MULTIPLIER = 1 << 30
"""Greatest magnitude of a 32-bit operand's multiplier: two such products, the bias and the rounding term fit int64."""


def dtype_of(code: int) -> Any:
    return np.dtype(DTYPES[DTYPE_NAMES[code]][0])


def operand(state: Any, ins: Decoded, name: str) -> Any:
    """Window of operand ``a``, ``b`` or ``out``, shape (batch, rows, cols)."""
    kind = dtype_of(getattr(ins, f"{name}_dtype"))
    strides = (getattr(ins, f"{name}_batch"), getattr(ins, f"{name}_row"), kind.itemsize)
    return state.window("sram", getattr(ins, f"{name}_addr"), kind, (ins.batch, ins.rows, ins.cols), strides)


def multiplier(state: Any, ins: Decoded, name: str) -> Any:
    """Multiplier of operand ``a`` or ``b``: an int, or int64 per channel. Raises ValueError beyond 2^30 at 32 bits."""
    address = getattr(ins, f"{name}_mul_addr")
    if address == NO_ADDRESS:
        return getattr(ins, f"{name}_mul")
    values = state.vector("param", address, multiplier_type(ins, name), ins.cols).astype(np.int64)
    if (np.abs(values) > MAX_MULTIPLIER).any():
        raise ValueError(f"a multiplier of {name} at param byte {address} is outside -2^30..2^30")
    return values


def multiplier_type(ins: Decoded, name: str) -> Any:
    """Per-channel multipliers have 16 bits, those of a 32-bit operand 32."""
    return np.dtype(np.int32 if DTYPE_NAMES[getattr(ins, f"{name}_dtype")] == "i32" else np.int16)


def bias(state: Any, ins: Decoded) -> Any:
    if ins.bias_addr == NO_ADDRESS:
        return 0
    return state.vector("param", ins.bias_addr, np.int32, ins.cols).astype(np.int64)


def write(state: Any, ins: Decoded, total: Any) -> None:
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    operand(state, ins, "out")[...] = np.clip(numerics.rescale(total, 1, ins.shift) + ins.out_zp, low, high)


def execute_linear(state: Any, ins: Decoded) -> None:
    total = operand(state, ins, "a").astype(np.int64) * multiplier(state, ins, "a") + bias(state, ins)
    if ins.b_addr != NO_ADDRESS:
        total = total + operand(state, ins, "b").astype(np.int64) * multiplier(state, ins, "b")
    write(state, ins, total)


def execute_product(state: Any, ins: Decoded) -> None:
    write(state, ins, operand(state, ins, "a").astype(np.int64) * operand(state, ins, "b").astype(np.int64))


def check(ins: Decoded, machine: Any) -> list[str]:
    broken = [f"{name} is 0" for name in ("rows", "cols", "batch") if getattr(ins, name) == 0] + shift_rules(ins)
    if ins.op == "ewmul" and ins.b_addr == NO_ADDRESS:
        broken.append("b_addr is absent: a product needs both operands")
    for name in ("a", "b"):
        wide = DTYPE_NAMES[getattr(ins, f"{name}_dtype")] == "i32"
        if wide and abs(getattr(ins, f"{name}_mul", 0)) > MAX_MULTIPLIER:
            broken.append(f"{name}_mul of a 32-bit operand is above 2^30, so that int64 could overflow")
    size = dtype_of(ins.out_dtype).itemsize
    return broken + apart(size, (ins.batch, ins.out_batch), (ins.rows, ins.out_row), (ins.cols, size))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    def window(name: str) -> Region:
        size = dtype_of(getattr(ins, f"{name}_dtype")).itemsize
        loops = (ins.batch, getattr(ins, f"{name}_batch")), (ins.rows, getattr(ins, f"{name}_row")), (ins.cols, size)
        return Region("sram", *span(getattr(ins, f"{name}_addr"), size, *loops))

    reads = [window("a")] + ([window("b")] if ins.b_addr != NO_ADDRESS else [])
    sizes = {
        "a_mul_addr": multiplier_type(ins, "a").itemsize,
        "b_mul_addr": multiplier_type(ins, "b").itemsize,
        "bias_addr": 4,
    }
    for name, size in sizes.items():
        address = getattr(ins, name, NO_ADDRESS)
        if address != NO_ADDRESS:
            reads.append(Region("param", address, address + ins.cols * size))
    return reads, [window("out")]


def cycles(ins: Decoded, machine: Any) -> int:
    """One pass over the elements, two where an operand has 32 bits: each lane multiplies 16 by 32 bits in a cycle."""
    vector = machine.vector_unit
    wide = "i32" in {DTYPE_NAMES[d] for d in (ins.a_dtype, ins.b_dtype, ins.out_dtype)}
    passes = -(-ins.batch * ins.rows * ins.cols // vector.lanes) * (2 if wide else 1)
    return int(passes + vector.op_latency_cycles)


EWLIN = Instruction(
    "ewlin", 0x20, _WINDOWS + _LINEAR, ("vector",), execute_linear, check, footprint, cycles, doc=__doc__
)
EWMUL = Instruction("ewmul", 0x21, _WINDOWS, ("vector",), execute_product, check, footprint, cycles, doc=__doc__)
