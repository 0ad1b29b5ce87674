"""Sums of products wider than 32 bits, from TOSA's 32-bit operators.

TOSA's integers end at 32 bits, but the vector unit rounds ``a ma + b mb + bias`` once, with 64 bits behind it. A number
is cut into limbs to the base 2^15: ``value = sum of limb[k] 2^(15 k)``. The lowest limbs are 0 to 2^15 - 1, the highest
one carries the sign and has at most 16 bits. A product of two limbs has at most 31 bits. Everything is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.tosa.tosa_graph import Tensor, TosaGraph

Array = NDArray[Any]
BITS = 15
MASK = (1 << BITS) - 1


def limb_count(low: int, high: int) -> int:
    """Limbs of numbers in low..high."""
    count = 1
    while low >> BITS * (count - 1) < -(1 << BITS) or high >> BITS * (count - 1) >= 1 << BITS:
        count += 1
    return count


def limbs(graph: TosaGraph, tensor: Tensor, count: int) -> list[Tensor]:
    """An i32 tensor as ``count`` limbs, lowest first."""
    low = [graph.bits(_above(graph, tensor, k), MASK) for k in range(count - 1)]
    return [*low, _above(graph, tensor, count - 1)]


def _above(graph: TosaGraph, tensor: Tensor, k: int) -> Tensor:
    return graph.shift_right(tensor, BITS * k) if k else tensor


def constant_limbs(graph: TosaGraph, values: Array) -> list[Tensor]:
    """Constants as limbs, lowest first."""
    values = np.asarray(values, np.int64)
    count = limb_count(int(values.min()), int(values.max()))
    low = [values >> BITS * k & MASK for k in range(count - 1)]
    return [graph.const(limb, "i32") for limb in [*low, values >> BITS * (count - 1)]]


class WideSum:
    """Collects terms; ``rounded`` gives ``(sum + 2^(shift-1)) >> shift``, saturated to 32 bits."""

    def __init__(self, graph: TosaGraph) -> None:
        self.graph = graph
        self.columns: list[list[Tensor]] = []

    def _put(self, column: int, term: Tensor) -> None:
        self.columns += [[] for _ in range(column + 1 - len(self.columns))]
        self.columns[column].append(term)

    def add(self, terms: list[Tensor]) -> None:
        """Add a number given as limbs."""
        for k, limb in enumerate(terms):
            self._put(k, limb)

    def add_product(self, left: list[Tensor], right: list[Tensor]) -> None:
        """Add the product of two numbers given as limbs."""
        for i, a in enumerate(left):
            for j, b in enumerate(right):
                self._put(i + j, self.graph.mul(a, b))

    def rounded(self, shift: int) -> Tensor:
        """The sum, rounded to nearest, ties up, and saturated to 32 bits.

        MUL keeps the low 32 bits of what is larger, so every factor is clamped before.
        """
        graph, (column, bit) = self.graph, divmod(shift - 1, BITS)
        self._put(column, graph.scalar(1 << bit, self.columns[0][0]))
        digits = self._digits(shift // BITS + 2)
        first, drop = divmod(shift, BITS)
        high = digits[-1]
        for digit in reversed(digits[first + 1 : -1]):
            high = graph.add(graph.times(self._clamped(high, BITS), 1 << BITS), digit)
        low = graph.shift_right(digits[first], drop) if drop else digits[first]
        kept = self._clamped(high, BITS - drop)
        exact = graph.add(graph.times(kept, 1 << BITS - drop), low)
        most, least = (graph.scalar(limit, exact) for limit in ((1 << 31) - 1, -(1 << 31)))
        return graph.select(graph.greater(high, kept), most, graph.select(graph.greater(kept, high), least, exact))

    def _clamped(self, high: Tensor, bits: int) -> Tensor:
        """What is left of ``high`` if ``high 2^bits`` has to fit 32 bits."""
        limit = 1 << 31 - bits
        low = self.graph.maximum(high, self.graph.scalar(-limit, high))
        return self.graph.minimum(low, self.graph.scalar(limit - 1, high))

    def _digits(self, least: int) -> list[Tensor]:
        """At least ``least`` limbs of the sum: all but the last in 0..2^15 - 1, the last with the sign.

        Each term is cut before it is added, so that no partial sum comes near 2^31.
        """
        graph = self.graph
        digits: list[Tensor] = []
        carries: list[Tensor] = []
        for k in range(max(least - 1, len(self.columns))):
            terms = [*(self.columns[k] if k < len(self.columns) else ()), *carries]
            total = graph.bits(terms[0], MASK)
            for term in terms[1:]:
                total = graph.add(total, graph.bits(term, MASK))
            carries = [graph.shift_right(term, BITS) for term in (*terms, total)]
            digits.append(graph.bits(total, MASK))
        top = carries[0]
        for carry in carries[1:]:
            top = graph.add(top, carry)
        return [*digits, top]
