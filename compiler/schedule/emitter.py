"""Collects instructions; brings operands into SRAM or parameter memory and results back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.graph import BITS, Graph, Op
from compiler.schedule.layout import Layout
from compiler.schedule.place import Home, Ring, Zones, row_bytes, value_bytes
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.dma import MEMORIES
from npusim.isa.encoding import DTYPE_NAMES
from npusim.isa.matmul import RECORD
from npusim.units import UNITS

_UNIT_OF = {mnemonic: UNITS.index(spec.units[0]) for mnemonic, spec in BY_MNEMONIC.items()}


@dataclass(frozen=True)
class Place:
    """Where a matrix stands in SRAM: byte address of its first element and distance between rows."""

    address: int
    row: int


class Emitter:
    """Instructions of one phase, in program order, as (mnemonic, fields); tokens come later."""

    def __init__(
        self, graph: Graph, machine: Machine, layout: Layout, homes: dict[str, Home], layers: list[str]
    ) -> None:
        self.graph, self.machine, self.layout, self.homes, self.layers = graph, machine, layout, homes, layers
        self.local: dict[str, Home] = {}  # tensors of which a block of rows stands in SRAM, as if all of it did
        self.divide(Zones.of(machine))
        self.release()
        self._numbers = {name: number for number, name in enumerate(layers)}
        self.instructions: list[tuple[str, dict[str, int]]] = []
        self.layer = ""

    def divide(self, zones: Zones) -> None:
        """Split SRAM anew."""
        self.weights = Ring("SRAM weight", "sram.capacity_bytes", zones.resident, zones.weights)
        self.tiles = Ring("SRAM tile", "sram.capacity_bytes", zones.resident + zones.weights, zones.tiles)

    def release(self) -> None:
        """Give all of parameter memory back."""
        self.held: dict[str, int] = {}  # vectors that stay in parameter memory, with their addresses
        size = self.machine.param_memory.addressable_bytes
        self.params = Ring("parameter memory", "param_memory.capacity_bytes", 0, size)

    def hold(self, names: Mapping[str, Op], phase: str) -> None:
        """Load vectors that stay in parameter memory, each for the layer of an operation; a barrier follows."""
        for name, op in names.items():
            self.layer = op.layer
            size = value_bytes(self.graph.values[name])
            self.held[name] = address = self.params.take(size, self.layer)
            self.load_parameters(self.homes[name], 0, address, size)
        if names:
            self.layer = phase
            self.emit("barrier")
            rest = self.params
            self.params = Ring(rest.name, rest.field, rest.next, rest.end - rest.next)

    def join(self, phase: str) -> None:
        """A barrier, behind which all of SRAM and parameter memory is free but for tensors that stay."""
        self.layer = phase
        self.emit("barrier")
        self.release()
        for ring in (self.weights, self.tiles):
            ring.next = ring.start

    def number(self, layer: str) -> int:
        """The number of a layer; those that nothing was emitted for yet get the next one."""
        number = self._numbers.get(layer)
        if number is None:
            number = self._numbers[layer] = len(self.layers)
            self.layers.append(layer)
        return number

    def emit(self, mnemonic: str, **fields: int) -> None:
        """Append an instruction on its unit, tagged with the current layer."""
        header = {"unit": _UNIT_OF[mnemonic], "layer": self.number(self.layer)}
        self.instructions.append((mnemonic, {**header, **fields}))

    def dtype(self, name: str) -> int:
        return DTYPE_NAMES.index(self.graph.values[name].dtype)

    def home(self, name: str) -> Home:
        """Home of a value, or of the owner of a view."""
        owner = self.graph.base(name).name
        return self.local.get(owner) or self.homes.get(name) or self.homes[owner]

    def in_sram(self, name: str) -> bool:
        return self.home(name).memory == "sram"

    def offset(self, name: str, row: int, col: int) -> tuple[int, int]:
        """Byte offset of element (row, col) of a value or view in its owner, and the owner's row size in bytes."""
        value, owner = self.graph.values[name], self.graph.base(name)
        pitch, bits = row_bytes(owner, owner.shape[-1]), BITS[owner.dtype] * (col + value.col)
        if bits % 8:
            raise UserError(f"{self.layer}: column {col + value.col} of %{name} ({owner.dtype}) begins inside a byte")
        return (row + value.row) * pitch + bits // 8, pitch

    def row_bytes(self, name: str) -> int:
        """Bytes of one row (of the view, if it is one)."""
        value = self.graph.values[name]
        return row_bytes(value, value.shape[-1])

    def columns_bytes(self, name: str, count: int) -> int:
        """Bytes of ``count`` elements of a row."""
        return row_bytes(self.graph.values[name], count)

    def load(self, home: Home, offset: int, local: int, row_bytes: int, **loops: int) -> None:
        """LOAD into SRAM; ``loops``: rows, planes, dram_row, dram_plane, local_row, local_plane (default: one run)."""
        self._copy("load", home, offset, local, row_bytes, loops)

    def load_parameters(self, home: Home, offset: int, local: int, size: int) -> None:
        """LOAD one run of bytes into parameter memory."""
        self._copy("load", home, offset, local, size, {"memory": MEMORIES.index("param")})

    def store(self, home: Home, offset: int, local: int, row_bytes: int, **loops: int) -> None:
        """STORE from SRAM; ``loops`` as for ``load``."""
        self._copy("store", home, offset, local, row_bytes, loops)

    def _copy(self, kind: str, home: Home, offset: int, local: int, row_bytes: int, loops: dict[str, int]) -> None:
        assert home.memory == "dram", f"{self.layer}: {kind} of a tensor that lives in SRAM"
        loops = {"rows": 1, "planes": 1, **loops}
        if loops["planes"] == 1 and loops.get("dram_row") == loops.get("local_row") == row_bytes:
            loops, row_bytes = {"rows": 1, "planes": 1}, row_bytes * loops["rows"]
        place = {"dram_addr": home.address + offset, "base": home.base, "local_addr": local}
        self.emit(kind, **place, row_bytes=row_bytes, **loops)

    def parameters(self, names: list[str]) -> list[int]:
        """Load constant vectors that are needed at the same time into parameter memory; return their addresses."""
        return self.vectors([(name, 0, 0) for name in names])

    def vectors(self, parts: list[tuple[str, int, int]]) -> list[int]:
        """Load parts of constant vectors, (name, first, count) each, into parameter memory; return their addresses.

        A vector of one number, or a count of 0, is loaded whole. What `hold` has loaded is there already.
        """
        loads, addresses = list[tuple[str, int, int]](), list[int | None]()
        for name, first, count in parts:
            value = self.graph.values[name]
            offset, size = 0, value_bytes(value)
            if count and value.shape != (1,):
                offset, size = row_bytes(value, first), row_bytes(value, count)
            addresses.append(self.held[name] + offset if name in self.held else None)
            if name not in self.held:
                loads.append((name, offset, size))
        taken = iter(self.params.take_together([size for _, _, size in loads], self.layer))
        found = [next(taken) if address is None else address for address in addresses]
        new = (address for address, known in zip(found, addresses, strict=True) if known is None)
        for (name, offset, size), address in zip(loads, new, strict=True):
            self.load_parameters(self.homes[name], offset, address, size)
        return found

    def logit_parameter(self, output: str) -> int:
        """Load the requantization record of an attention's scores into parameter memory; return the address."""
        address = self.params.take(RECORD.itemsize, self.layer)
        self.load_parameters(self.layout.logits[output], 0, address, RECORD.itemsize)
        return address

    def whole(self, name: str, rows: tuple[int, int] | None = None) -> Place:
        """A constant or small input matrix, or ``rows`` (first, count) of it, in the weight ring for an operation.

        Raises UserError for a tensor that lives in SRAM, or a view of some columns: one run of DRAM is loaded.
        """
        first, count = rows or (0, self.graph.values[name].shape[0])
        offset, pitch = self.offset(name, first, 0)
        if self.in_sram(name) or pitch != self.row_bytes(name):
            raise UserError(f"{self.layer}: %{name} is loaded whole; allowed: whole rows of a tensor in DRAM")
        address = self.weights.take(count * pitch, self.layer)
        self.load(self.home(name), offset, address, count * pitch)
        return Place(address, pitch)

    def source(self, name: str, row: int, rows: int, col: int = 0, cols: int | None = None) -> Place:
        """Rows of a matrix (all columns, or ``cols`` from ``col``) in SRAM: in place, or loaded into the tile ring."""
        offset, pitch = self.offset(name, row, col)
        home = self.home(name)
        if home.memory == "sram":
            return Place(home.address + offset, pitch)
        width = self.row_bytes(name) if cols is None else self.columns_bytes(name, cols)
        address = self.tiles.take(rows * width, self.layer)
        self.load(home, offset, address, width, rows=rows, dram_row=pitch, local_row=width)
        return Place(address, width)

    def target(self, name: str, row: int, rows: int, col: int = 0, cols: int | None = None) -> Place:
        """Where rows of a result (all columns, or ``cols`` from ``col``) go: in place, or a buffer until ``commit``."""
        if self.in_sram(name):
            offset, pitch = self.offset(name, row, col)
            return Place(self.home(name).address + offset, pitch)
        value = self.graph.values[name]
        width = row_bytes(value, value.shape[-1] if cols is None else cols)
        return Place(self.tiles.take(rows * width, self.layer), width)

    def commit(self, name: str, row: int, rows: int, place: Place, col: int = 0) -> None:
        """Store what ``target`` placed in the tile ring, if the result lives in DRAM."""
        if not self.in_sram(name):
            offset, pitch = self.offset(name, row, col)
            loops = {"rows": rows, "dram_row": pitch, "local_row": place.row}
            self.store(self.home(name), offset, place.address, place.row, **loops)
