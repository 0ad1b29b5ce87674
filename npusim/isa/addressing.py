"""Which bytes an instruction reaches: base registers, strided loops, strided operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npusim.isa.encoding import Decoded, Region, Rule, row_bytes

BASES = 10
"""Base registers of addresses in DRAM and storage. In DRAM: 0 absolute, 1 the step's set of constants, 2 the step's
noise, 3 the set of parameters of the step's time range. What FETCH needs besides, for the step's constants: 4 this
step's in storage, 5 the next step's in storage, 6 the place in DRAM of the next step's; and for the time range's set: 7
this range's in storage, 8 the next range's in storage, 9 the place in DRAM of the next range's."""

Loops = tuple[tuple[int, int], ...]
"""Nested loops as (count, byte stride)."""


def span(start: int, element_bytes: int, *loops: tuple[int, int]) -> tuple[int, int]:
    """Byte range [start, end) touched by nested loops of (count, byte stride) over elements of ``element_bytes``."""
    return start, start + sum((count - 1) * stride for count, stride in loops) + element_bytes


def apart(element_bytes: int, *loops: tuple[int, int]) -> bool:
    """Whether nested loops of (count, byte stride) certainly write no byte twice.

    From the smallest stride to the largest, each loop steps over all that the loops before it touch.
    """
    end = element_bytes
    for count, stride in sorted(((c, s) for c, s in loops if c > 1), key=lambda loop: loop[1]):
        if stride < end:
            return False
        end += (count - 1) * stride
    return True


def apart_rule(fields: tuple[str, ...], run: Callable[[Decoded], tuple[int, Loops]]) -> Rule:
    """The rule that a result's strides write no byte twice; ``run(ins)`` gives the bytes of a run and its loops."""

    def holds(ins: Decoded, machine: Any) -> bool:
        size, loops = run(ins)
        return apart(size, *loops)

    return Rule(fields, "strides that write no byte twice", holds)


def disjoint_rule(fields: tuple[str, ...], footprint: Callable[[Decoded], tuple[list[Region], list[Region]]]) -> Rule:
    """The rule that two results do not overlap: nothing says which of them would be written last."""

    def holds(ins: Decoded, machine: Any) -> bool:
        first, second = footprint(ins)[1]
        return first.end <= second.start or second.end <= first.start

    return Rule(fields, "two results of which one begins behind the other's last byte", holds)


def window(memory: str, address: int, dtype: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Region:
    """Where an operand of type number ``dtype`` lies: rows of ``shape[-1]`` elements, ``strides`` of the other axes."""
    loops = zip(shape[:-1], strides, strict=True)
    return Region(memory, *span(address, row_bytes(dtype, shape[-1]), *loops))


def vector(memory: str, address: int, size: int) -> Region:
    """``size`` bytes in a row."""
    return Region(memory, address, address + size)
