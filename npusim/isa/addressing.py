"""Which bytes an instruction reaches: base registers, strided loops."""

from __future__ import annotations

BASES = 3
"""Base registers of DRAM addresses: 0 absolute, 1 the step's parameter set, 2 the step's noise."""


def span(start: int, element_bytes: int, *loops: tuple[int, int]) -> tuple[int, int]:
    """Byte range [start, end) touched by nested loops of (count, byte stride) over elements of ``element_bytes``."""
    return start, start + sum((count - 1) * stride for count, stride in loops) + element_bytes


def apart(element_bytes: int, *loops: tuple[int, int]) -> list[str]:
    """The rule that nested loops of (count, byte stride) write no byte twice: empty where they certainly do not.

    From the smallest stride to the largest, each loop steps over all that the loops before it touch.
    """
    end = element_bytes
    for count, stride in sorted(((c, s) for c, s in loops if c > 1), key=lambda loop: loop[1]):
        if stride < end:
            return [f"the output overlaps itself: a stride of {stride} within {end} bytes"]
        end += (count - 1) * stride
    return []
