"""EWLIN and EWMUL: element-wise arithmetic of the vector unit with one rounding at the end.

``EWLIN: out = clamp(((a * ma + b * mb + bias) + 2^(shift-1) >> shift) + out_zp)``: residual and gated additions,
modulation, conversion between types, guidance and the sampler's update are all this instruction. ``ma`` and ``mb`` are
an immediate or one signed value per channel in parameter memory: of 16 bits, or of 32 with ``wide`` or for a 32-bit
operand (at most 2^30 then); ``bias`` is int32 per channel. With ``shared_mul`` and ``shared_bias`` there is one for
all channels, so that a scale or zero point that changes with the time range is one number to load. Operand b and the
per-channel vectors are optional.

``EWMUL: out = clamp((a * b + 2^(shift-1) >> shift) + out_zp)``.

Operands are (batch, rows, cols) windows of SRAM, cols contiguous; a stride of 0 repeats a row or a plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npusim import numerics
from npusim.isa.addressing import apart_rule, vector, window
from npusim.isa.encoding import (
    DTYPE_NAMES,
    DTYPES,
    NO_ADDRESS,
    SHIFT_RULE,
    Decoded,
    Field,
    Instruction,
    Region,
    Rule,
    at_least_one,
    row_bytes,
)


def _fields(b: str) -> tuple[Field, ...]:
    return (
        Field("a_addr", 2, doc="SRAM: operand a"),
        Field("a_row", 3, doc="byte distance of a's rows; 0 repeats one"),
        Field("a_batch", 4, doc="byte distance of a's planes; 0 repeats one"),
        Field("b_addr", 5, doc=f"SRAM: operand b{b}"),
        Field("b_row", 6, doc="byte distance of b's rows; 0 repeats one"),
        Field("b_batch", 7, doc="byte distance of b's planes; 0 repeats one"),
        Field("out_addr", 8, doc="SRAM: the result"),
        Field("out_row", 9, doc="byte distance of the result's rows"),
        Field("out_batch", 10, doc="byte distance of the result's planes"),
        Field("rows", 11, doc="rows of a plane"),
        Field("cols", 12, doc="elements of a row, one per channel"),
        Field("batch", 13, doc="planes"),
        Field("a_dtype", 14, 0, 4, names=DTYPE_NAMES, doc="element type of a"),
        Field("b_dtype", 14, 4, 4, names=DTYPE_NAMES, doc="element type of b"),
        Field("out_dtype", 14, 8, 4, names=DTYPE_NAMES, doc="element type of the result"),
        Field("shift", 14, 16, 6, doc="right shift that ends in the rounding"),
        Field("out_zp", 15, signed=True, doc="zero point of the result, added after the rounding"),
    )


_MULTIPLIERS = (
    Field("a_mul", 16, signed=True, doc="multiplier of a where a_mul_addr is absent"),
    Field("b_mul", 17, signed=True, doc="multiplier of b where b_mul_addr is absent"),
    Field("a_mul_addr", 18, doc="parameter memory: int16 (int32 if wide, or for i32 operands) per channel; or absent"),
    Field("b_mul_addr", 19, doc="parameter memory: the same for b; or absent"),
    Field("bias_addr", 20, doc="parameter memory: int32 per channel; or absent"),
    Field("wide", 21, 0, 1, doc="1: multipliers in parameter memory have 32 bits"),
    Field("shared_mul", 21, 1, 1, doc="1: a multiplier in parameter memory is one for all channels"),
    Field("shared_bias", 21, 2, 1, doc="1: the bias is one for all channels"),
)

MAX_MULTIPLIER = 1 << 30
"""Greatest magnitude of a 32-bit operand's multiplier: two such products, the bias and the rounding term fit int64."""


def operand(state: Any, ins: Decoded, name: str) -> Any:
    """Operand ``a``, ``b`` or ``out`` (batch, rows, cols), an `npusim.memory.Operand`."""
    address, dtype = getattr(ins, f"{name}_addr"), getattr(ins, f"{name}_dtype")
    strides = getattr(ins, f"{name}_batch"), getattr(ins, f"{name}_row")
    return state.operand("sram", address, dtype, (ins.batch, ins.rows, ins.cols), strides)


def multiplier(state: Any, ins: Decoded, name: str) -> Any:
    """Multiplier of operand ``a`` or ``b``: an int, or int64 per channel.

    Raises ValueError where that of a 32-bit operand is beyond 2^30.
    """
    address = getattr(ins, f"{name}_mul_addr")
    if address == NO_ADDRESS:
        return getattr(ins, f"{name}_mul")
    count = 1 if ins.shared_mul else ins.cols
    values = state.vector("param", address, multiplier_type(ins, name), count).astype(np.int64)
    if is_wide(ins, name) and (np.abs(values) > MAX_MULTIPLIER).any():
        raise ValueError(f"a multiplier of {name} at param byte {address} is outside -2^30..2^30")
    return values


def multiplier_type(ins: Decoded, name: str) -> Any:
    """Per-channel multipliers have 16 bits; 32 where the instruction says so, or for a 32-bit operand."""
    return np.dtype(np.int32 if ins.wide or is_wide(ins, name) else np.int16)


def is_wide(ins: Decoded, name: str) -> bool:
    """Whether operand ``a`` or ``b`` has 32 bits."""
    return bool(DTYPE_NAMES[getattr(ins, f"{name}_dtype")] == "i32")


def bias(state: Any, ins: Decoded) -> Any:
    if ins.bias_addr == NO_ADDRESS:
        return 0
    return state.vector("param", ins.bias_addr, np.int32, 1 if ins.shared_bias else ins.cols).astype(np.int64)


def _write(state: Any, ins: Decoded, total: Any) -> None:
    exact = numerics.rescale(total, 1, ins.shift) + ins.out_zp
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    state.write(ins, operand(state, ins, "out"), np.clip(exact, low, high), exact)


def execute_linear(state: Any, ins: Decoded) -> None:
    total = operand(state, ins, "a").values() * multiplier(state, ins, "a") + bias(state, ins)
    if ins.b_addr != NO_ADDRESS:
        total = total + operand(state, ins, "b").values() * multiplier(state, ins, "b")
    _write(state, ins, total)


def execute_product(state: Any, ins: Decoded) -> None:
    _write(state, ins, operand(state, ins, "a").values() * operand(state, ins, "b").values())


def _immediate_rule(name: str) -> Rule:
    def holds(ins: Decoded, machine: Any) -> bool:
        return not is_wide(ins, name) or bool(abs(getattr(ins, f"{name}_mul")) <= MAX_MULTIPLIER)

    return Rule((f"{name}_dtype", f"{name}_mul"), "at most 2^30 for a 32-bit operand, so that int64 suffices", holds)


_RULES = (
    *at_least_one("rows", "cols", "batch"),
    SHIFT_RULE,
    apart_rule(
        ("out_row", "out_batch"),
        lambda ins: (row_bytes(ins.out_dtype, ins.cols), ((ins.batch, ins.out_batch), (ins.rows, ins.out_row))),
    ),
)
_BOTH = Rule(("b_addr",), "an address: a product has two operands", lambda ins, machine: bool(ins.b_addr != NO_ADDRESS))


def footprint(ins: Decoded) -> tuple[list[Region], list[Region]]:
    def region(name: str) -> Region:
        address, dtype = getattr(ins, f"{name}_addr"), getattr(ins, f"{name}_dtype")
        strides = getattr(ins, f"{name}_batch"), getattr(ins, f"{name}_row")
        return window("sram", address, dtype, (ins.batch, ins.rows, ins.cols), strides)

    reads = [region("a")] + ([region("b")] if ins.b_addr != NO_ADDRESS else [])
    for name in ("a_mul", "b_mul", "bias"):
        address = getattr(ins, f"{name}_addr", NO_ADDRESS)  # a product has none
        if address != NO_ADDRESS:
            size = 4 if name == "bias" else multiplier_type(ins, name[0]).itemsize
            shared = ins.shared_bias if name == "bias" else ins.shared_mul
            reads.append(vector("param", address, size * (1 if shared else ins.cols)))
    return reads, [region("out")]


def cycles(ins: Decoded, machine: Any) -> int:
    """One pass over the elements, ceil(batch rows cols / lanes), two where an operand has 32 bits, and the pipeline.

    Each lane multiplies 16 by 32 bits in a cycle.
    """
    vector_unit = machine.vector_unit
    wide = "i32" in {DTYPE_NAMES[d] for d in (ins.a_dtype, ins.b_dtype, ins.out_dtype)}
    passes = -(-ins.batch * ins.rows * ins.cols // vector_unit.lanes) * (2 if wide else 1)
    return int(passes + vector_unit.latency_cycles(ins.op))


EWLIN = Instruction(
    "ewlin", 0x20, "add two scaled operands and a bias, round, clamp", _fields("; or absent") + _MULTIPLIERS,
    ("vector",), execute_linear, (*_RULES, _immediate_rule("a"), _immediate_rule("b")), footprint, cycles, __doc__,
    ("a per-channel multiplier of a 32-bit operand beyond 2^30",),
)  # fmt: skip
EWMUL = Instruction(
    "ewmul", 0x21, "multiply two operands, round, clamp", _fields(""), ("vector",),
    execute_product, (*_RULES, _BOTH), footprint, cycles, __doc__,
)  # fmt: skip
