"""A graph under construction: its inputs, constants, views and outputs, and the checks of an operation's operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.arguments import checked
from compiler.graph import BITS, CONSTANTS, RECORDS, Graph, Op, Value
from compiler.operations import HOST_TYPES
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES

Factor = ArrayLike | str
"""One integer, one for each column, or the name of a constant that holds them."""


@checked()
class Values:
    """The part of `compiler.builder.Builder` that knows no operations; see there."""

    def __init__(
        self, steps: int = 1, branches: int = 1, frames: int = 1, positions: int = 1, range_of_step: Sequence[int] = (),
        contents: bool = True,
    ) -> None:  # fmt: skip
        self.contents = contents
        self.values: dict[str, Value] = {}
        self.ops: dict[str, list[Op]] = {"prologue": [], "step": []}
        self.phase = "step"
        self.outputs: list[str] = []
        self.sizes = {"steps": steps, "branches": branches, "frames": frames, "positions": positions}
        for name, size in self.sizes.items():
            if size < 1:
                raise UserError(f"{name} = {size}; allowed: at least 1")
        self.range_of_step = tuple(map(int, range_of_step)) or (0,) * steps
        self.ranges = 1 + max(self.range_of_step)
        if len(self.range_of_step) != steps or set(self.range_of_step) != set(range(self.ranges)):
            raise UserError(
                f"range_of_step = {list(range_of_step)}; allowed: ranges 0, 1, .. for each of {steps} steps"
            )

    def graph(self, host: dict[str, int] | None = None) -> Graph:
        """The graph so far; ``host`` gives fractional bits for the host (see `npusim.host`)."""
        if not self.outputs:
            raise UserError("the graph has no output; name one with output()")
        return replace(self._so_far(), outputs=tuple(self.outputs), host=dict(host or {}))

    def _so_far(self) -> Graph:
        s = self.sizes
        sizes = s["steps"], s["branches"], s["frames"], s["positions"]
        ops = tuple(self.ops["prologue"]), tuple(self.ops["step"])
        return Graph(self.values, *ops, *sizes, range_of_step=self.range_of_step, contents=self.contents)

    def add(self, value: Value) -> str:
        """Add a value as it is; return its name. Names must be new."""
        if value.name in self.values:
            raise UserError(f"value {value.name!r} is defined twice")
        if value.name in BITS or not value.name:
            raise UserError(f"value {value.name!r}: allowed is a name that is no element type and not empty")
        if value.dtype not in BITS:
            raise UserError(f"value {value.name!r}: type {value.dtype!r}; allowed: {', '.join(BITS)}")
        if not value.shape or min(value.shape) < 1:
            raise UserError(f"value {value.name!r}: shape {value.shape}; allowed: positive sizes")
        self.values[value.name] = value
        return value.name

    def input(self, name: str, shape: tuple[int, int], dtype: str, scale: float = 1.0, zero_point: int = 0) -> str:
        """Add a matrix (rows, columns) of u8, i8, i16 or i32 that the host writes."""
        if dtype not in HOST_TYPES or len(shape) != 2:
            raise UserError(f"input {name!r}: {dtype}{list(shape)}; allowed: a matrix of {', '.join(HOST_TYPES)}")
        return self.add(Value(name, tuple(shape), dtype, "input", scale, zero_point))

    def const(
        self, name: str, data: ArrayLike, dtype: str, scale: float = 1.0, zero_point: int = 0, per: str = ""
    ) -> str:
        """Add a constant; ``per`` "step" or "range": ``data`` carry steps or ranges in front.

        With one time range, its constants are those of the whole program. Raises UserError if a number does not fit.
        """
        if dtype not in BITS or per not in CONSTANTS:
            raise UserError(f"constant {name}: {dtype!r} per {per!r}; allowed: {', '.join(BITS)} per '', step or range")
        array = np.asarray(data)
        if self.contents and dtype not in RECORDS:
            array = _fitting(name, array, dtype)
        if per == "range" and self.ranges == 1 and array.shape[:1] == (1,):
            array, per = array[0], ""
        count = {"step": self.sizes["steps"], "range": self.ranges}.get(per)
        if count is not None and array.shape[:1] != (count,):
            raise UserError(f"constant {name}: data {list(array.shape)}; allowed: one array for each {per}, of {count}")
        shape = array.shape[1:] if per else array.shape
        kept = array if self.contents else None
        return self.add(Value(name, shape, dtype, CONSTANTS[per], scale, zero_point, kept))

    def view(
        self, name: str, base: str, rows: tuple[int, int], cols: tuple[int, int], scale: float | None = None
    ) -> str:
        """Add a view of rows and columns [start, end) of ``base``."""
        owner = self._value(name, "base", base)
        if owner.base is not None or len(owner.shape) != 2:
            raise UserError(f"view {name!r}: %{base} is a view or no matrix; allowed: a matrix of its own")
        for what, (start, end), size in (("rows", rows, owner.shape[0]), ("cols", cols, owner.shape[1])):
            if not 0 <= start < end <= size:
                raise UserError(f"view {name!r}: {what} {start}..{end} of %{base}; allowed: within 0..{size}")
        shape = rows[1] - rows[0], cols[1] - cols[0]
        scale = owner.scale if scale is None else scale
        return self.add(
            Value(name, shape, owner.dtype, owner.kind, scale, owner.zero_point, None, base, rows[0], cols[0])
        )

    def output(self, name: str) -> str:
        """Mark a computed tensor as one that the host reads; return its name."""
        value = self._value("output", "value", name)
        if value.kind != "value" or value.base is not None:
            raise UserError(f"output %{name}: is a view or of kind {value.kind}; allowed: a tensor that is computed")
        if value.dtype not in HOST_TYPES:
            raise UserError(f"output %{name}: type {value.dtype}; allowed: {', '.join(HOST_TYPES)}")
        if name not in self.outputs:
            self.outputs.append(name)
        return name

    def _value(self, layer: str, role: str, name: str) -> Value:
        if name not in self.values:
            raise UserError(f"{layer}: {role}: no value %{name}; defined: {', '.join(self.values) or 'none'}")
        return self.values[name]

    def _symmetric(self, layer: str, kind: str, role: str, name: str) -> None:
        value = self._value(layer, role, name)
        if value.zero_point:
            raise UserError(f"{layer}: {kind}: {role} %{name} has zero point {value.zero_point}; allowed: 0")

    def _vector(self, layer: str, role: str, numbers: Factor, dtype: str, columns: int | None, owner: str = "") -> str:
        """The name of a constant vector, added under the name of its ``owner`` (or layer) if it is given as numbers."""
        if isinstance(numbers, str):
            self._value(layer, role, numbers)
            return numbers
        vector, per = self._integers(layer, role, numbers, columns)
        return self.const(f"{owner or layer}.{role}", vector, dtype, per=per)

    def _integers(self, layer: str, role: str, numbers: ArrayLike, count: int | None) -> tuple[NDArray[np.int64], str]:
        """Numbers as int64 (count,), or (ranges, count) with "range" beside it; one number stands for all."""
        array = np.asarray(numbers)
        if array.dtype.kind not in "iu" or array.ndim > 2 or (array.ndim == 2 and len(array) != self.ranges):
            given = f"{array.dtype}{list(array.shape)}"
            raise UserError(f"{layer}: {role} is {given}; allowed: integers, a vector or one number")
        if array.ndim and count is not None and array.shape[-1] != count and (array.ndim == 1 or array.shape[-1] > 1):
            raise UserError(f"{layer}: {role} has {array.shape[-1]} numbers; allowed: 1 or {count}")
        wide = array.astype(np.int64)
        return wide if array.ndim else np.full(count or 1, wide, np.int64), "range" if array.ndim == 2 else ""

    @staticmethod
    def _demand(layer: str, kind: str, role: str, vector: NDArray[np.int64], low: int, high: int) -> None:
        if vector.min() < low or vector.max() > high:
            raise UserError(f"{layer}: {kind}: {role} {vector.min()}..{vector.max()}; allowed: {low}..{high}")


def _fitting(name: str, array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Numbers in the NumPy type of an element type. Raises UserError if one does not fit."""
    if array.dtype.kind not in "iu":
        raise UserError(f"constant {name}: numbers of type {array.dtype}; allowed: integers")
    limit = 1 << (BITS[dtype] - (0 if dtype[0] == "u" else 1))
    low = 0 if dtype[0] == "u" else -limit
    if array.size and not (low <= array.min() and array.max() < limit):
        raise UserError(f"constant {name}: values {array.min()}..{array.max()} do not fit {dtype}")
    return array.astype(DTYPES[dtype][0] if dtype in DTYPES else np.int64, copy=False)
