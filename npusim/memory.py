"""The machine's memories as bytes, and typed strided windows into them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.addressing import BASES, span
from npusim.isa.encoding import DTYPE_NAMES, DTYPES, ELEMENT_BITS, Decoded, is_packed, row_bytes
from npusim.units import of_kind

MEMORIES = ("dram", "sram", "param", "param_next")
ACCUMULATORS = "accumulators"
"""Name of the held sums where two states are compared."""


def _too_large(dram_bytes: int, sram_bytes: int, param_bytes: int) -> UserError:
    return UserError(
        f"the program needs {dram_bytes} bytes of DRAM, {sram_bytes} of SRAM and {param_bytes} of parameter memory; "
        "this computer cannot allocate them"
    )


@dataclass
class Sums:
    """What a MATMUL with ``acc_hold`` leaves in the accumulators: int64 sums (m, n), and (m, 1) of the rows of a."""

    products: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass
class Tally:
    """Events of one kind of instruction in one layer.

    ``overflows``: sums beyond the accumulator's width, once for each narrowing. ``saturated``: outputs that the clamp
    to the output type (or to 32 bits before it) changed, of ``outputs`` in all.
    """

    overflows: int = 0
    saturated: int = 0
    outputs: int = 0


Tallies = dict[tuple[int, str], Tally]
"""By layer number and mnemonic."""


class MachineState:
    """Contents of the memories, the accumulators that are held, and the running step's base registers.

    ``dram``: the part of DRAM that the program uses, ``dram_bytes`` of it; ``sram``: the scratchpad; ``param``: the
    parameter memory as instructions address it, its last ``bank_bytes`` the active bank; ``param_next``: the other
    bank. Memories start as zeros. ``storage``: the program's part of storage, which no instruction writes; copies share
    it. ``held``: the sums that MAC arrays hold, by number of the unit. ``tallies`` counts saturation by (layer,
    mnemonic). Raises UserError where this computer cannot allocate the memories.
    """

    def __init__(self, machine: Machine, dram_bytes: int, storage: NDArray[np.uint8] | None = None) -> None:
        self.machine = machine
        self.storage = np.zeros(0, np.uint8) if storage is None else storage
        param = machine.param_memory
        sizes = (dram_bytes, machine.sram.capacity_bytes, param.addressable_bytes, param.bank_bytes)
        try:
            self.dram, self.sram, self.param, self.param_next = (np.zeros(size, np.uint8) for size in sizes)
        except MemoryError:
            raise _too_large(*sizes[:2], param.capacity_bytes) from None
        self.bases = [0] * BASES
        self.held: dict[int, Sums] = {}
        self.tallies: Tallies = {}

    def count(self, ins: Decoded, saturated: int, outputs: int, overflows: int = 0) -> None:
        """Add what one instruction met to its layer's tally."""
        self.count_of(ins.layer, ins.op, saturated, outputs, overflows)

    def count_of(self, layer: int, op: str, saturated: int, outputs: int, overflows: int = 0) -> None:
        """The same by number of the layer and mnemonic."""
        tally = self.tallies.setdefault((layer, op), Tally())
        tally.overflows += int(overflows)
        tally.saturated += int(saturated)
        tally.outputs += int(outputs)

    def write(self, ins: Decoded, out: Operand, values: NDArray[Any], exact: NDArray[Any], overflows: int = 0) -> None:
        """Write an instruction's result and count where it differs from ``exact``, the result before any clamp."""
        out.assign(values)
        self.count(ins, int(np.count_nonzero(values != exact)), values.size, overflows)

    def copy(self) -> MachineState:
        """Return an independent copy, to run another executor from the same point."""
        twin = MachineState.__new__(MachineState)
        twin.machine, twin.bases, twin.storage = self.machine, list(self.bases), self.storage
        twin.held = {unit: replace(sums) for unit, sums in self.held.items()}
        twin.tallies = {key: replace(tally) for key, tally in self.tallies.items()}
        try:
            for name in MEMORIES:
                setattr(twin, name, getattr(self, name).copy())
        except MemoryError:
            raise _too_large(self.dram.size, self.sram.size, self.param.size + self.param_next.size) from None
        return twin

    def contents(self, memory: str) -> NDArray[np.uint8]:
        """The bytes of a memory.

        Of ``ACCUMULATORS``, for each MAC array: int64 m, n, the held sums (m, n), those of the rows of a (m,).
        """
        if memory != ACCUMULATORS:
            return np.asarray(getattr(self, memory))
        none = Sums(np.zeros((0, 0), np.int64), np.zeros((0, 1), np.int64))
        found = [self.held.get(unit, none) for unit in of_kind("mac")]
        parts = [part for sums in found for part in (sums.products.shape, sums.products.ravel(), sums.rows.ravel())]
        return np.concatenate(parts).view(np.uint8)

    def difference(self, other: MachineState) -> tuple[str, int] | None:
        """Memory (held sums are one) and address of the first byte in which two states of a machine differ."""
        for memory in (*MEMORIES, ACCUMULATORS):
            left, right = self.contents(memory), other.contents(memory)
            if not np.array_equal(left, right):
                size = min(left.size, right.size)  # sums of other shapes differ in their first two numbers
                return memory, int(np.flatnonzero(left[:size] != right[:size])[0])
        return None

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

    def operand(
        self, memory: str, address: int, dtype: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Operand:
        """An operand of element type number ``dtype``: rows of ``shape[-1]`` consecutive elements.

        ``strides`` are the byte distances along the other axes. Raises ValueError as `window` does.
        """
        if is_packed(dtype):
            width = row_bytes(dtype, shape[-1])
            return Operand(self.window(memory, address, np.uint8, (*shape[:-1], width), (*strides, 1)), dtype, shape)
        kind = np.dtype(DTYPES[DTYPE_NAMES[dtype]][0])
        return Operand(self.window(memory, address, kind, shape, (*strides, kind.itemsize)), dtype, shape)


def packed(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Elements (..., n) of ``bits`` bits each, packed row by row as `npusim.isa.encoding.ELEMENT_BITS` says."""
    planes = (values[..., None] >> np.arange(bits) & 1).astype(np.uint8)
    return np.packbits(planes.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little")


@dataclass(frozen=True)
class Operand:
    """A strided operand in a memory: ``shape`` elements of type number ``dtype``; ``view`` are its bytes if packed."""

    view: NDArray[Any]
    dtype: int
    shape: tuple[int, ...]

    def values(self, dtype: Any = np.int64) -> NDArray[Any]:
        """A copy of the elements in C order, as ``dtype``."""
        if not is_packed(self.dtype):
            return self.view.astype(dtype, order="C")
        name = DTYPE_NAMES[self.dtype]
        bits = np.unpackbits(self.view, axis=-1, bitorder="little", count=self.shape[-1] * ELEMENT_BITS[name])
        weights = 1 << np.arange(ELEMENT_BITS[name])
        weights[-1] *= -1 if name[0] == "i" else 1
        return np.asarray((bits.reshape(*self.shape, -1) @ weights).astype(dtype))

    def assign(self, values: NDArray[Any]) -> None:
        """Write ``values`` of the operand's shape, all of which fit its type."""
        if not is_packed(self.dtype):
            self.view[...] = values
            return
        self.view[...] = packed(values, ELEMENT_BITS[DTYPE_NAMES[self.dtype]])
