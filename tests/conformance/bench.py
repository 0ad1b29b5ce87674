"""A bench for small programs: operands in a machine's memories, encoded instructions, both executors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npusim import engine, reference
from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, decode, violations
from npusim.isa.encoding import DTYPES, NO_ADDRESS, encode
from npusim.isa.matmul import RECORD
from npusim.memory import MachineState
from npusim.units import UNITS

Array = NDArray[Any]
ALIGNMENT = 64
LEAST_BYTES = {"sram": 1 << 16, "param": 1 << 13, "dram": 1 << 13}
"""Sizes of the memories; a program that needs more gets the next power of two."""


def dtype_of(array: Array) -> str:
    """The ISA's name of a NumPy element type."""
    return next(name for name, (kind, _, _) in DTYPES.items() if np.dtype(kind) == array.dtype)


class Bench:
    """One program on a machine like ``base`` with other ``mac_array`` fields and roomy memories."""

    def __init__(self, base: Machine, **mac_array: Any) -> None:
        self.fields = base.model_dump()
        self.fields["mac_array"] |= mac_array
        self.code: list[Array] = []
        self._free = dict.fromkeys(LEAST_BYTES, 0)
        self._contents: list[tuple[str, int, bytes]] = []
        self._results: list[tuple[str, int, Any, tuple[int, ...]]] = []

    def room(self, nbytes: int, memory: str = "sram") -> int:
        """Reserve bytes; return their address."""
        address = self._free[memory]
        self._free[memory] = address + -(-nbytes // ALIGNMENT) * ALIGNMENT
        return address

    def put(self, values: Array, memory: str = "sram") -> int:
        """Place an array in memory before the program runs."""
        address = self.room(values.nbytes, memory)
        self._contents.append((memory, address, np.ascontiguousarray(values).tobytes()))
        return address

    def result(self, dtype: str, shape: tuple[int, ...], memory: str = "sram") -> int:
        """Reserve room for an array that ``run`` returns."""
        kind = np.dtype(DTYPES[dtype][0])
        address = self.room(int(np.prod(shape)) * kind.itemsize, memory)
        self._results.append((memory, address, kind, shape))
        return address

    def emit(self, op: str, **fields: int | str) -> None:
        """Append an instruction; enumerations by name."""
        spec = BY_MNEMONIC[op]
        numbers = {n: spec.by_name[n].names.index(v) if isinstance(v, str) else int(v) for n, v in fields.items()}
        self.code.append(encode(spec, {"unit": UNITS.index(spec.units[0]), **numbers}))

    def state(self) -> MachineState:
        """A machine with memories that hold all operands, before the program runs."""
        sizes = {m: max(least, 1 << (self._free[m] - 1).bit_length()) for m, least in LEAST_BYTES.items()}
        self.fields["sram"]["capacity_bytes"] = sizes["sram"]
        self.fields["param_memory"]["capacity_bytes"] = sizes["param"]
        state = MachineState(Machine.model_validate(self.fields), sizes["dram"])
        for memory, address, data in self._contents:
            getattr(state, memory)[address : address + len(data)] = np.frombuffer(data, np.uint8)
        return state

    def run(self) -> list[Array]:
        """Run the words on both executors, whose memories must be equal afterwards. Returns the results in order."""
        code, state = np.stack(self.code), self.state()
        broken = violations(decode(code), state.machine)
        assert not broken, broken
        twin = state.copy()
        reference.run(state, code)
        engine.run(twin, code)
        for memory in LEAST_BYTES:
            expected, got = getattr(state, memory), getattr(twin, memory)
            np.testing.assert_array_equal(got, expected, f"{memory} after the engine and after the reference")
        return [
            np.ndarray(shape, kind, getattr(state, memory), address).copy()
            for memory, address, kind, shape in self._results
        ]

    def matmul(self, a: Array, b: Array, records: int, out_dtype: str, out_zp: int = 0, mode: str = "tensor") -> None:
        """One MATMUL of a (m, k) by b (k, n), requantized by the records at parameter address ``records``."""
        (m, k), n = a.shape, b.shape[1]
        size = np.dtype(DTYPES[out_dtype][0]).itemsize
        self.emit(
            "matmul", a_addr=self.put(a), a_row=k * a.itemsize, b_addr=self.put(b), b_k=n * b.itemsize, b_n=b.itemsize,
            out_addr=self.result(out_dtype, (m, n)), out_row=n * size, m=m, k=k, n=n, batch0=1, batch1=1,
            rq_addr=records, a_dtype=dtype_of(a), b_dtype=dtype_of(b), out_dtype=out_dtype, rq_mode=mode, out_zp=out_zp,
        )  # fmt: skip

    def records(self, bias: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, zero_point: ArrayLike = 0) -> int:
        """Place requantization records, one for each element of the broadcast arguments."""
        values = [np.atleast_1d(np.asarray(v, np.int64)) for v in (bias, multiplier, shift, zero_point)]
        wide, scale, down, zero = np.broadcast_arrays(*values)
        out = np.zeros(wide.shape, RECORD)
        out["bias_low"], out["bias_high"] = wide & 0xFFFF_FFFF, wide >> 32
        out["multiplier"], out["shift"], out["zero_point"] = scale, down, zero
        return self.put(out, "param")

    def elementwise(self, op: str, a: Placed, b: Placed | None, out: Placed, shift: int, **fields: int) -> None:
        """EWLIN or EWMUL over equally shaped strided views, one instruction for each index of the leading axes.

        An axis along which every element stands alone goes to the rows, because columns are contiguous.
        """
        operands = {"a": a, "out": out} | ({"b": b} if b else {})
        sizes = {name: placed.itemsize for name, placed in operands.items()}
        split = any(placed.strides[-1] != sizes[name] for name, placed in operands.items())
        shape = (1, 1, 1, *out.shape, *([1] if split else []))
        lead, inner = shape[:-3], shape[-3:]
        linear = {"a_mul_addr": NO_ADDRESS, "b_mul_addr": NO_ADDRESS, "bias_addr": NO_ADDRESS} if op == "ewlin" else {}
        for index in np.ndindex(lead):
            values: dict[str, int | str] = {"batch": inner[0], "rows": inner[1], "cols": inner[2], "shift": shift}
            values |= {**linear, **fields, **({} if b else {"b_addr": NO_ADDRESS})}
            for name, placed in operands.items():
                strides = (0, 0, 0, *placed.strides, *([sizes[name]] if split else []))
                start = placed.address + sum(i * s for i, s in zip(index, strides, strict=False))
                values |= {f"{name}_addr": start, f"{name}_batch": strides[-3], f"{name}_row": strides[-2]}
                values[f"{name}_dtype"] = placed.dtype
            self.emit(op, **values)

    def place(self, values: Array, shape: tuple[int, ...] | None = None) -> Placed:
        """Place an operand; broadcast to ``shape`` by strides of 0, so that memory holds it once."""
        view = np.broadcast_to(np.ascontiguousarray(values), shape or values.shape)
        return Placed(self.put(values), dtype_of(values), view.shape, view.strides)

    def target(self, dtype: str, shape: tuple[int, ...], keep: bool = True) -> Placed:
        """Room for an element-wise result; ``run`` returns those with ``keep``."""
        empty = np.empty(shape, DTYPES[dtype][0])
        address = self.result(dtype, shape) if keep else self.room(empty.nbytes)
        return Placed(address, dtype, shape, empty.strides)


class Placed:
    """A strided array in SRAM: byte address, element type, shape, byte strides."""

    def __init__(self, address: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.address, self.dtype, self.shape, self.strides = address, dtype, shape, strides
        self.itemsize = np.dtype(DTYPES[dtype][0]).itemsize

    def at(self, axis: int, index: int) -> Placed:
        """The slice at ``index`` of ``axis``, that axis kept with length 1."""
        shape = (*self.shape[:axis], 1, *self.shape[axis + 1 :])
        return Placed(self.address + index * self.strides[axis], self.dtype, shape, self.strides)
