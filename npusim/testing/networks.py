"""Random small networks for hypothesis, as graphs and as programs for a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compiler import Builder, Graph, compile_graph
from compiler.graph import Value
from compiler.operations import ELEMENTS, HOST_TYPES, LINEAR_INPUTS
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES, ELEMENT_BITS
from npusim.program import Program
from npusim.testing._hypothesis import hypothesis, st


@st.composite
def graphs(draw: st.DrawFn, most_operations: int = 6) -> Graph:
    """A legal graph of 1 to ``most_operations`` operations of every kind, some in the prologue, with 1 to 3 steps.

    Scales keep results within their types for the most part. Every graph compiles for a machine that is large enough.
    """
    ranges = draw(st.sampled_from([(0,), (0, 0), (0, 1), (0, 1, 0)]))
    net = _Network(draw, Builder(len(ranges), range_of_step=ranges))
    for phase in ("prologue", "step"):
        net.build.phase = phase
        for _ in range(draw(st.integers(phase == "step", most_operations // 2))):
            net.add()
    # The last result, and any others: a result that nobody reads is computed all the same.
    values = net.build.values
    computed = [name for name in net.names if values[name].kind == "value" and values[name].dtype in HOST_TYPES]
    hypothesis.assume(computed)
    for name in {*draw(st.sets(st.sampled_from(computed))), computed[-1]}:
        net.build.output(name)
    return net.build.graph()


@st.composite
def programs(draw: st.DrawFn, machine: Machine, most_operations: int = 6) -> Program:
    """A legal program: a random graph compiled for ``machine``; graphs that do not fit it are passed over."""
    try:
        return compile_graph(draw(graphs(most_operations)), machine)
    except UserError:
        hypothesis.assume(False)
        raise


class _Network:
    """A graph under construction: inputs and results so far are in ``names``."""

    def __init__(self, draw: st.DrawFn, build: Builder) -> None:
        self.draw, self.build = draw, build
        self.names: list[str] = []
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def add(self) -> None:
        """One more operation of any kind; its operands are results so far, or new inputs."""
        kinds: list[Callable[[str], str]] = [
            self._linear, self._sum, self._product, self._table, self._layernorm, self._attention,
        ]  # fmt: skip
        kind = kinds[self.draw(st.integers(0, len(kinds) - 1))]
        self.names.append(kind(f"op{len(self.build.values)}"))

    def _operand(self, types: tuple[str, ...], like: str = "", columns: int = 0, symmetric: bool = True) -> str:
        """A value of one of ``types``, of the shape of ``like`` or with some columns; an input where none exists."""
        values = self.build.values
        shape = values[like].shape if like else (0, columns)
        fitting = [
            name
            for name in self.names
            if values[name].dtype in types
            and not (symmetric and values[name].zero_point)
            and (not like or values[name].shape == shape)
            and columns in (0, values[name].shape[1])
        ]
        known = self.draw(st.booleans())
        if known and fitting:
            return self.draw(st.sampled_from(fitting))
        rows = shape[0] or self.draw(st.integers(1, 20))
        dtype = self.draw(st.sampled_from([t for t in types if t in HOST_TYPES]))
        zero_point = 0 if symmetric else self.draw(st.integers(*DTYPES[dtype][1:]))
        width = shape[1] or self.draw(st.integers(1, 24))
        name = self.build.input(f"in{len(values)}", (rows, width), dtype, zero_point=zero_point)
        self.names.append(name)
        return name

    def _out(self, name: str, shape: tuple[int, ...], types: tuple[str, ...] = ELEMENTS) -> Value:
        dtype = self.draw(st.sampled_from(types))
        return Value(name, shape, dtype, zero_point=self.draw(st.sampled_from([0, 0, 0, 5, -3])))

    def _vector(self, count: int, low: int, high: int) -> Any:
        return self.rng.integers(low, high, count, endpoint=True)

    def _linear(self, name: str) -> str:
        x = self._operand(LINEAR_INPUTS, symmetric=False)
        source = self.build.values[x]
        rows, k = source.shape
        n, weight_bits = self.draw(st.integers(1, 40)), self.draw(st.sampled_from([4, 6, 8, 8]))
        low = -(1 << (weight_bits - 1)) if self.draw(st.booleans()) else 0
        high, kind = low + (1 << weight_bits) - 1, np.int8 if low else np.uint8
        out = self._out(name, (rows, n))
        bits = ELEMENT_BITS[source.dtype] + weight_bits + k.bit_length() // 2
        shift = max(1, 15 + bits - min(ELEMENT_BITS[out.dtype], 16) - self.draw(st.integers(0, 3)))
        shifts = ELEMENT_BITS[source.dtype] <= 8 and self.draw(st.booleans())
        _, x_low, x_high = DTYPES[source.dtype]
        return self.build.linear(
            name, x, self._ranged((n, k), low, high).astype(kind), out, weight_bits=weight_bits,
            multiplier=self._ranged((n,), 1 << 14, (1 << 15) - 1), shift=shift,
            bias=self._ranged((n,), -(1 << bits), 1 << bits), weight_zp=self._ranged((n,), low, high),
            x_zp=self._ranged((1,), x_low, x_high), x_shift=self._ranged((k,), 0, 3) if shifts else 0,
        )  # fmt: skip

    def _ranged(self, shape: tuple[int, ...], low: int, high: int) -> Any:
        """Numbers of ``shape``, or as many for each time range."""
        if self.build.phase == "step" and self.build.ranges > 1 and self.draw(st.booleans()):
            shape = (self.build.ranges, *shape)
        return self.rng.integers(low, high, shape, endpoint=True)

    def _sum(self, name: str) -> str:
        a = self._operand(ELEMENTS)
        b = self._operand(ELEMENTS, like=a) if self.draw(st.booleans()) else ""
        shape = self.build.values[a].shape
        factors = {role: self._factor(name, role, shape[1]) for role in ("a_mul", "b_mul", "bias")}
        return self.build.sum(name, a, b, self._out(name, shape), **factors, shift=self.draw(st.integers(1, 9)))

    def _factor(self, name: str, role: str, columns: int) -> Any:
        """One number, one for each column, or one for each step and column."""
        form = self.draw(st.sampled_from(["number", "vector", "step"]))
        if form == "number":
            return self.draw(st.integers(-300, 300))
        if form == "vector" or self.build.phase == "prologue" or role != "bias":
            return self._ranged((columns,), *self.draw(st.sampled_from([(-300, 300), (-(1 << 20), 1 << 20)])))
        data = self._vector(self.build.sizes["steps"] * columns, -300, 300).reshape(-1, columns)
        return self.build.const(f"{name}.{role}", data, "i32", per="step")

    def _product(self, name: str) -> str:
        a = self._operand(ELEMENTS)
        b = self._operand(ELEMENTS, like=a)
        out = self._out(name, self.build.values[a].shape)
        return self.build.product(name, a, b, out, shift=self.draw(st.integers(1, 16)))

    def _table(self, name: str) -> str:
        x = self._operand(("i16",), symmetric=False)
        out = self._out(name, self.build.values[x].shape)
        shift = 22 - min(ELEMENT_BITS[out.dtype], 16) + 15
        entries = np.sort(self._vector(513, -32768, 32767))
        return self.build.table(name, x, entries, out, multiplier=1 << 14, shift=shift)

    def _layernorm(self, name: str) -> str:
        x = self._operand(("i16",), symmetric=False)
        shape = self.build.values[x].shape
        g, b = self._vector(shape[1], -(1 << 14), 1 << 14), self._vector(shape[1], -(1 << 20), 1 << 20)
        bits, shift = self.draw(st.integers(8, 12)), self.draw(st.integers(12, 20))
        out = self._out(name, shape)
        return self.build.layernorm(name, x, g, b, out, epsilon=5, fraction_bits=bits, shift=shift)

    def _attention(self, name: str) -> str:
        heads = self.draw(st.integers(1, 3))
        q = self._operand(("i8", "i16"), columns=heads * self.draw(st.integers(1, 6)))
        types = ("i8",) if self.build.values[q].dtype == "i8" else ("i8", "i16")
        k = self._operand(types, columns=self.build.values[q].shape[1])
        v = self._operand(("i8", "i16"), like=k)
        p_bits = 8 if self.build.values[v].dtype == "i8" and self.draw(st.booleans()) else 15
        bits = sum(ELEMENT_BITS[self.build.values[operand].dtype] for operand in (q, k))
        valid = ""
        if self.draw(st.booleans()):
            valid = self.build.input(f"{name}.valid", (1, 1), "i32")
        return self.build.attention(
            name, q, k, v, self._out(name, self.build.values[q].shape, HOST_TYPES), heads=heads, fraction_bits=9,
            p_bits=p_bits, logit=(20000, bits), output=(3 << 29, 31), valid=valid,
        )  # fmt: skip
