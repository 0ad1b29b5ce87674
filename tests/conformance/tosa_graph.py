"""A list of small TOSA graphs, run together by the reference model in its own environment."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from compiler.tosa.tosa_graph import Rejected, Tensor, TosaGraph, run_graphs
from tests.conformance.side_venv import python_of

Array = NDArray[Any]


class TosaGraphs:
    """Each method adds one graph; ``run`` returns the results in that order. Types are the ISA's, and ``i48``."""

    def __init__(self) -> None:
        self.graphs: list[TosaGraph] = []

    def _new(self) -> TosaGraph:
        self.graphs.append(TosaGraph())
        return self.graphs[-1]

    def rescale(
        self, x: Array, in_dtype: str, multiplier: Array, shift: Array, out_dtype: str, out_zp: int = 0,
        scale32: bool = False, double: bool = False, in_zp: int = 0,
    ) -> None:  # fmt: skip
        """RESCALE of ``x``, per channel of the last axis where there is more than one multiplier."""
        graph = self._new()
        source = graph.input(x, in_dtype)
        graph.output(graph.rescale(source, multiplier, shift, out_dtype, out_zp, scale32, double, in_zp))

    def matmul(self, a: Array, b: Array, a_zp: int, b_zp: int) -> None:
        """MATMUL of int8 (batch, m, k) by (batch, k, n) to int32."""
        graph = self._new()
        graph.output(graph.matmul(graph.input(a, "i8"), graph.input(b, "i8"), a_zp, b_zp))

    def matmul_rescale(self, a: Array, b: Array, multiplier: Array, shift: Array, out_dtype: str, out_zp: int) -> None:
        """MATMUL of int16 (batch, m, k) by (batch, k, n) to int48, then RESCALE with 16-bit multipliers."""
        graph = self._new()
        product = graph.matmul(graph.input(a, "i16"), graph.input(b, "i16"))
        graph.output(graph.rescale(product, multiplier, shift, out_dtype, out_zp))

    def table_of_bytes(self, x: Array, entries: Array) -> None:
        """TABLE of int8 to int8 with 256 entries."""
        graph = self._new()
        graph.output(graph.table(graph.input(x, "i8"), entries))

    def table(self, x: Array, entries: Array) -> None:
        """TABLE of int16 to int32."""
        graph, looked_up = self._table(x, entries)
        graph.output(looked_up)

    def table_rescale(self, x: Array, entries: Array, multiplier: int, shift: int, out_dtype: str, out_zp: int) -> None:
        """TABLE of int16, then RESCALE with a 16-bit multiplier."""
        graph, looked_up = self._table(x, entries)
        graph.output(graph.rescale(looked_up, multiplier, shift, out_dtype, out_zp))

    def _table(self, x: Array, entries: Array) -> tuple[TosaGraph, Tensor]:
        graph = self._new()
        return graph, graph.table(graph.input(x, "i16"), entries)

    def mul(self, a: Array, b: Array, shift: int) -> None:
        """MUL of int32 with a rounding shift."""
        graph = self._new()
        graph.output(graph.mul(graph.input(a, "i32"), graph.input(b, "i32"), shift))

    def run(self) -> list[Array]:
        """Results of all graphs, none of which may lie outside TOSA's domain."""
        results = run_graphs(self.graphs, python_of("tosa"))
        rejected = [found for found in results if isinstance(found, Rejected)]
        assert not rejected, rejected
        return [found[0] for found in results]
