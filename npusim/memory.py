"""The machine's memories as bytes, and typed strided windows into them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.errors import UserError

BASES = 3
"""Base registers of DRAM addresses: 0 absolute, 1 the step's parameter set, 2 the step's noise."""


def _too_large(dram_bytes: int, sram_bytes: int, param_bytes: int) -> UserError:
    return UserError(
        f"the program needs {dram_bytes} bytes of DRAM, {sram_bytes} of SRAM and {param_bytes} of parameter memory; "
        "this computer cannot allocate them"
    )


class MachineState:
    """Contents of DRAM, scratchpad (``sram``) and parameter memory (``param``), and the running step's base registers.

    ``dram_bytes`` is the size of the part of DRAM that the program uses. Memories start as zeros. Raises UserError
    where this computer cannot allocate them.
    """

    def __init__(self, machine: Machine, dram_bytes: int) -> None:
        self.machine = machine
        sizes = (dram_bytes, machine.sram.capacity_bytes, machine.param_memory.capacity_bytes)
        try:
            self.dram, self.sram, self.param = (np.zeros(size, np.uint8) for size in sizes)
        except MemoryError:
            raise _too_large(*sizes) from None
        self.bases = [0] * BASES

    def copy(self) -> MachineState:
        """Return an independent copy, to run another executor from the same point."""
        twin = MachineState.__new__(MachineState)
        twin.machine, twin.bases = self.machine, list(self.bases)
        try:
            twin.dram, twin.sram, twin.param = self.dram.copy(), self.sram.copy(), self.param.copy()
        except MemoryError:
            raise _too_large(self.dram.size, self.sram.size, self.param.size) from None
        return twin

    def window(
        self, memory: str, address: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> NDArray[Any]:
        """A view of ``shape`` elements of ``dtype`` at byte ``address`` with byte ``strides``.

        Raises ValueError if a byte of it lies outside the memory; the bounds are Python integers and cannot overflow.
        """
        contents = getattr(self, memory)
        start, end = span(address, np.dtype(dtype).itemsize, *zip(shape, strides, strict=True))
        if start < 0 or end > contents.size:
            raise ValueError(f"{memory} bytes {start}..{end} lie outside its {contents.size} bytes")
        kept = tuple(stride if count > 1 else 0 for count, stride in zip(shape, strides, strict=True))
        return np.ndarray(shape, dtype, contents, address, kept)

    def vector(self, memory: str, address: int, dtype: Any, count: int) -> NDArray[Any]:
        """``count`` consecutive elements."""
        return self.window(memory, address, dtype, (count,), (np.dtype(dtype).itemsize,))


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
