"""The integer graph: whole tensors and integer-only operations.

A graph stands between the quantized model and the instructions; `compiler.builder.Builder` makes one.

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

from npusim.isa.encoding import ELEMENT_BITS

OUTPUT_BUFFERS = {"state.next": "state"}
"""The step's new state overwrites the old one: the next step reads it there."""
BITS = {**ELEMENT_BITS, "i64": 64, "record": 96, "factored": 64, "scalars": 64}
RECORDS = ("record", "factored", "scalars")
"""Element types that are structures of several numbers, see `npusim.isa.matmul`."""
CONSTANTS = {"": "const", "step": "step_const", "range": "range_const"}
"""Kinds of constants, by what there is one of: the program, each denoising step, each time range."""


@dataclass(frozen=True)
class Value:
    """One tensor.

    ``kind``: "input" (the host writes it), "const", "step_const" and "range_const" (one constant per denoising step,
    or per time range), "value" (computed). ``data`` holds constants: (shape), or (steps, *shape), (ranges, *shape).
    Where a tensor's scale and zero point depend on the range, ``scale`` is the first range's, and ``zero_point`` that
    which its operation adds. A view shows rows [row, row + shape[0])
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


@dataclass(frozen=True, repr=False)
class Graph:
    """Values by name, and two lists of operations: ``prologue`` once per video, ``step`` once per denoising step.

    ``range_of_step`` is the time range of each step. Without ``contents``, constants have shapes and no data: such a
    graph is compiled for its time only.
    """

    values: dict[str, Value]
    prologue: tuple[Op, ...]
    step: tuple[Op, ...]
    steps: int
    branches: int
    frames: int
    positions: int
    outputs: tuple[str, ...] = ()
    host: dict[str, int] = field(default_factory=dict)
    range_of_step: tuple[int, ...] = ()
    contents: bool = True

    @property
    def ranges(self) -> int:
        """Number of time ranges."""
        return 1 + max(self.range_of_step, default=0)

    def constant(self, name: str, step: int) -> NDArray[Any]:
        """What a constant holds in a denoising step."""
        value = self.values[name]
        assert value.data is not None, f"%{name} is no constant"
        if value.kind == "range_const":
            return np.asarray(value.data[self.range_of_step[step]])
        return np.asarray(value.data[step] if value.kind == "step_const" else value.data)

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

    def __repr__(self) -> str:
        return self.text()

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
