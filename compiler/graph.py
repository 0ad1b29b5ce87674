"""The integer graph: whole tensors and integer-only operations, between the quantized model and the instructions.

A value is a matrix of (rows, cols), or a vector for per-channel constants. Activation rows are ordered (branch, frame,
position). ``scale`` and ``zero_point`` say what an integer means (real = (q - zero_point) * scale); they are for people
and tests, no operation reads them. Operations carry every number they need as integer attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError

BITS = {"u8": 8, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "record": 96}


@dataclass(frozen=True)
class Value:
    """One tensor.

    ``kind``: "input" (the host writes it), "const", "step_const" (one constant per denoising step), "value" (computed).
    ``data`` holds constants: (shape), or (steps, *shape) for ``step_const``. A view shows rows [row, row + shape[0])
    and columns [col, col + shape[1]) of ``base`` and has no storage of its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str = "value"
    scale: float = 1.0
    zero_point: int = 0
    data: NDArray[Any] | None = None
    base: str | None = None
    row: int = 0
    col: int = 0


@dataclass(frozen=True)
class Op:
    """One operation: ``kind`` names its function in ``compiler/semantics.py``, ``layer`` the model's layer.

    ``inputs`` gives a value's name for each role, ``attrs`` the integers that the function needs beside them.
    """

    kind: str
    layer: str
    inputs: dict[str, str]
    output: str
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Values by name, and two lists of operations: ``prologue`` once per video, ``step`` once per denoising step."""

    values: dict[str, Value]
    prologue: tuple[Op, ...]
    step: tuple[Op, ...]
    steps: int
    branches: int
    frames: int
    positions: int
    outputs: tuple[str, ...] = ()
    host: dict[str, int] = field(default_factory=dict)

    def base(self, name: str) -> Value:
        """The value that owns the storage of ``name``."""
        value = self.values[name]
        return self.values[value.base] if value.base else value

    def rewritten(self, values: dict[str, Value], prologue: Iterable[Op], step: Iterable[Op]) -> Graph:
        """The graph with other operations; values that none of them needs are dropped, inputs and outputs stay."""
        prologue, step = tuple(prologue), tuple(step)
        used = {*self.outputs, *(name for name, value in values.items() if value.kind == "input")}
        for op in (*prologue, *step):
            used |= {*op.inputs.values(), op.output}
        used |= {base for name in used if (base := values[name].base)}
        kept = {name: value for name, value in values.items() if name in used}
        return replace(self, values=kept, prologue=prologue, step=step)

    def text(self) -> str:
        """The graph as text, one value or operation a line."""
        lines = [f"graph steps={self.steps} branches={self.branches} frames={self.frames} positions={self.positions}"]
        for v in self.values.values():
            where = f" view of {v.base}[{v.row}:, {v.col}:]" if v.base else ""
            lines.append(f"  {v.kind} %{v.name}: {v.dtype}{list(v.shape)} zp={v.zero_point}{where}")
        for phase in ("prologue", "step"):
            lines.append(f"{phase}:")
            for op in getattr(self, phase):
                inputs = ", ".join(f"{role}=%{name}" for role, name in op.inputs.items())
                attrs = " ".join(f"{key}={value}" for key, value in op.attrs.items())
                lines.append(f"  %{op.output} = {op.kind}({inputs}) {attrs}  # {op.layer}")
        return "\n".join(lines) + "\n"


class Builder:
    """Collects values and operations; names must be new."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.ops: dict[str, list[Op]] = {"prologue": [], "step": []}
        self.phase = "prologue"

    def add(self, value: Value) -> str:
        if value.name in self.values:
            raise ValueError(f"value {value.name!r} is defined twice")
        self.values[value.name] = value
        return value.name

    def const(
        self, name: str, data: Any, dtype: str, scale: float = 1.0, zero_point: int = 0, per_step: bool = False
    ) -> str:
        """Add a constant; ``per_step`` data carry the steps in front. Raises UserError if a number does not fit."""
        array = np.asarray(data)
        if dtype != "record":
            limit = 1 << (BITS[dtype] - (0 if dtype[0] == "u" else 1))
            low = 0 if dtype[0] == "u" else -limit
            if array.size and not (low <= array.min() and array.max() < limit):
                raise UserError(f"constant {name}: values {array.min()}..{array.max()} do not fit {dtype}")
            array = array.astype({"u": np.uint64, "i": np.int64}[dtype[0]]).astype(f"{dtype[0]}{BITS[dtype] // 8}")
        shape = array.shape[1:] if per_step else array.shape
        return self.add(Value(name, shape, dtype, "step_const" if per_step else "const", scale, zero_point, array))

    def view(
        self, name: str, base: str, rows: tuple[int, int], cols: tuple[int, int], scale: float | None = None
    ) -> str:
        """Add a view of rows and columns [start, end) of ``base``."""
        owner = self.values[base]
        shape = rows[1] - rows[0], cols[1] - cols[0]
        scale = owner.scale if scale is None else scale
        return self.add(
            Value(name, shape, owner.dtype, owner.kind, scale, owner.zero_point, None, base, rows[0], cols[0])
        )

    def op(self, kind: str, layer: str, inputs: dict[str, str], output: str | Value, **attrs: Any) -> str:
        name = output if isinstance(output, str) else self.add(output)
        self.ops[self.phase].append(Op(kind, layer, inputs, name, attrs))
        return name
