"""One instruction in words: what it does, its operands and where they come from, its parameters, tokens and cost.

Families are not known here: operands come from `npusim.operands`, the sentence from the instruction table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from npusim import callable_module
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.control import named_tokens
from npusim.isa.encoding import HEADER, NO_ADDRESS, Decoded, Region
from npusim.memory import MachineState
from npusim.operands import Access, accesses
from npusim.orders import tokens
from npusim.program import Buffer, Program
from npusim.timing.cost import DMA, TRAFFIC, cost_of
from npusim.units import UNITS

callable_module(__name__)

SHOWN = 4
"""Elements or records of a parameter that are printed."""


@dataclass(frozen=True)
class Writer:
    """An instruction that last wrote some bytes; ``before``: it does so in the step before."""

    part: str
    index: int
    before: bool = False


def explain(program: Program, index: int, part: str = "step", step: int = 0) -> str:
    """Text about instruction ``index`` of ``part`` ("prologue" or "step"); parameters are those of ``step``.

    Raises UserError if there is no such instruction or step, or the code cannot be decoded.
    """
    code = program.decoded()
    if part not in code:
        raise UserError(f"part = {part!r}: allowed {', '.join(code)}")
    if not 0 <= index < len(code[part]):
        raise UserError(f"{part} has no instruction {index}; allowed 0..{len(code[part]) - 1}")
    if not 0 <= step < program.steps:
        raise UserError(f"step = {step}: allowed 0..{program.steps - 1}")
    return "\n".join(_Explanation(program, code, part, index, step).lines()) + "\n"


class _Explanation:
    def __init__(self, program: Program, code: dict[str, list[Decoded]], part: str, index: int, step: int) -> None:
        self.program, self.code, self.part, self.index, self.step = program, code, part, index, step
        self.ins = code[part][index]

    def lines(self) -> Iterator[str]:
        yield from self._head()
        yield from ["", "operands"]
        for access in accesses(self.ins, self.program.machine):
            yield from self._operand(access)
        yield from ["", "tokens", *self._tokens(), "", "cost", *self._cost()]

    def _head(self) -> Iterator[str]:
        ins, layer = self.ins, self.ins.layer
        spec = BY_MNEMONIC[ins.op]
        same = [i for i, other in enumerate(self.code[self.part]) if other.layer == layer]
        kinds = Counter(self.code[self.part][i].op for i in same)
        like = [i for i in same if self.code[self.part][i].op == ins.op]
        name = f"{self.part} instruction {self.index} of {len(self.code[self.part])}"
        yield f"{name}: {ins.op} on unit {UNITS[ins.unit]}, layer {self._layer(ins)}"
        yield f"  {spec.summary}"
        yield f"  number {like.index(self.index) + 1} of {len(like)} {ins.op} in this layer, which has " + ", ".join(
            f"{count} {op}" for op, count in kinds.items()
        )
        header = {f.name for f in HEADER}
        fields = [f for f in spec.by_name.values() if f.name not in header and not f.name.endswith("addr")]
        shown = {f.name: getattr(ins, f.name) for f in fields}
        texts = [f"{f.name}={f.names[shown[f.name]] if f.names else shown[f.name]}" for f in fields]
        yield f"  {' '.join(texts) or 'no fields'}"
        absent = [f.name.removesuffix("_addr") for f in spec.fields if getattr(ins, f.name) == NO_ADDRESS]
        if absent:
            yield f"  absent operands: {', '.join(absent)}"

    def _operand(self, access: Access) -> Iterator[str]:
        verb = "writes" if access.written else "reads "
        place = f"{access.memory} 0x{access.start:x}..0x{access.end:x} ({access.end - access.start} bytes)"
        form = f"{access.type_name}{list(access.shape)}, strides {list(access.strides)} bytes" if access.shape else ""
        yield f"  {verb} {access.name or 'memory'}: {', '.join(filter(None, (place, form)))}"
        if access.memory == "dram":
            yield f"      {self._area(access)}"
        if access.written:
            return
        writers = self._writers(access)
        if access.memory != "dram" or (writers and access.base == 0):
            for writer in writers[:SHOWN]:
                yield f"      written by {self._name(writer)}{self._source(writer)}"
            if len(writers) > SHOWN:
                yield f"      and by {len(writers) - SHOWN} more"
        if access.memory != "dram":
            if not writers:
                yield "      no earlier instruction writes there"
            yield from (f"      {text}" for text in self._contents(access, writers))

    def _source(self, writer: Writer) -> str:
        """Where in DRAM a copy comes from."""
        reads = accesses(self.code[writer.part][writer.index], self.program.machine)
        return "".join(f", from {self._area(a)}" for a in reads if a.memory == "dram" and not a.written)

    def _area(self, access: Access) -> str:
        """Which part of the program's map of DRAM an operand lies in."""
        program, start, end = self.program, access.start, access.end
        if access.base == 1:
            return f"base 1: the step's constants, bytes {start}..{end} of {program.sets.shape[1]}"
        if access.base == 3:
            return f"base 3: the time range's parameter set, bytes {start}..{end} of {program.range_sets.shape[1]}"
        if access.base == 2:
            return f"base 2: the step's noise, bytes {start}..{end} of {program.noise_bytes}"
        if access.base:
            what = "the next step's constants" if access.base == 6 else "the next time range's parameter set"
            return f"base {access.base}: the place of {what}, bytes {start}..{end}"
        for name, (address, data) in program.areas.items():
            if address <= start and end <= address + data.size:
                return f"{name}, bytes {start - address}..{end - address} of {data.size}"
        for name, buffer in program.buffers.items():
            if buffer.address <= start and end <= buffer.address + buffer.bytes:
                return f"buffer {name} {buffer.dtype}{list(buffer.shape)}{_part_of(buffer, access)}"
        return (
            "outside the named areas: a tensor without a place in SRAM, or one that the prologue leaves for the steps"
        )

    def _writers(self, access: Access) -> list[Writer]:
        """Who wrote an operand's bytes last, the latest first; gaps between its rows count as its bytes."""
        wanted = [(access.start, access.end)]
        found = []
        earlier = [(self.part, i, False) for i in reversed(range(self.index))]
        if self.part != "prologue":
            if access.memory == "dram" and len(self.program.runs(self.part)) > 1:
                earlier += [(self.part, i, True) for i in reversed(range(self.index, len(self.code[self.part])))]
            earlier += [("prologue", i, False) for i in reversed(range(len(self.code["prologue"])))]
        for part, index, before in earlier:
            ins = self.code[part][index]
            for region in BY_MNEMONIC[ins.op].footprint(ins)[1]:
                if region.memory == access.memory and region.base == access.base:
                    left = [rest for span in wanted for rest in _without(span, region)]
                    if left != wanted:
                        found.append(Writer(part, index, before))
                        wanted = left
            if not wanted:
                break
        return found

    def _contents(self, access: Access, writers: list[Writer]) -> Iterator[str]:
        """The first elements of an operand that is copied from constants and parameter sets, whatever the input."""
        program = self.program
        sources = [self.code[w.part][w.index] for w in writers]
        if not access.shape or not sources or not all(self._fixed(ins) for ins in sources):
            return
        state = MachineState(program.machine, program.dram_bytes)
        for address, data in program.areas.values():
            state.dram[address : address + data.size] = data
        state.bases = program.bases(self.step)
        for ins in reversed(sources):
            BY_MNEMONIC[ins.op].execute(state, ins)
        values = access.values(state).ravel()
        varies = any(r.base for ins in sources for r in BY_MNEMONIC[ins.op].footprint(ins)[0])
        when = f" of step {self.step}" if varies else ""
        more = f" (the first {SHOWN} of {values.size})" if values.size > SHOWN else ""
        if values.dtype.names is None:
            yield f"values{when}{more}: {', '.join(map(str, values[:SHOWN].tolist()))}"
            return
        yield f"records{when}{more}:"
        for number, record in enumerate(values[:SHOWN]):
            yield f"  [{number}] {_record(record)}"

    def _fixed(self, ins: Decoded) -> bool:
        """Whether an instruction only copies constants or parameter sets."""
        program = self.program
        reads = BY_MNEMONIC[ins.op].footprint(ins)[0]
        return (
            bool(reads)
            and program.swap is None
            and all(
                r.memory == "dram" and (r.base in (1, 3) or (r.base == 0 and r.end <= program.constants.size))
                for r in reads
            )
        )

    def _tokens(self) -> Iterator[str]:
        code, found = self.code[self.part], tokens(self.code[self.part])
        sent = {(t.kind, code[t.sender].unit): t.sender for t in found if t.taker == self.index}
        taken = {(t.kind, code[t.taker].unit): t.taker for t in found if t.sender == self.index}

        def name(index: int | None) -> str:
            return "nobody" if index is None else self._name(Writer(self.part, index))

        waits, signals = named_tokens(self.ins, "wait"), named_tokens(self.ins, "signal")
        for kind, unit in waits:
            yield f"  waits for a {kind} token from {UNITS[unit]}, sent by {name(sent.get((kind, unit)))}"
        for kind, unit in signals:
            yield f"  sends a {kind} token to {UNITS[unit]}, taken by {name(taken.get((kind, unit)))}"
        if not waits and not signals:
            yield "  none"

    def _cost(self) -> Iterator[str]:
        base = self.program.bases(0)[self.ins.base] if self.ins.op in DMA else 0
        busy, transfer, counts = cost_of(self.ins, self.program.machine, base)
        yield f"  {busy} cycles busy (closed form)" + (f", then {transfer} or more of DRAM" if transfer else "")
        for name, count in zip(TRAFFIC, counts, strict=True):
            if count:
                yield f"  {name} {count}"

    def _layer(self, ins: Decoded) -> str:
        layers = self.program.layers
        return (layers[ins.layer] or "(no name)") if ins.layer < len(layers) else f"number {ins.layer} (no such layer)"

    def _name(self, writer: Writer) -> str:
        ins = self.code[writer.part][writer.index]
        before = " of the step before" if writer.before else ""
        return f"{writer.part} instruction {writer.index} ({ins.op}, layer {self._layer(ins)}){before}"


def _without(span: tuple[int, int], region: Region) -> list[tuple[int, int]]:
    """What a region leaves of a byte range."""
    pieces = (span[0], min(span[1], region.start)), (max(span[0], region.end), span[1])
    return [piece for piece in pieces if piece[0] < piece[1]]


def _part_of(buffer: Buffer, access: Access) -> str:
    """Rows and columns of a buffer that a copy reaches."""
    size = buffer.numpy_dtype.itemsize
    pitch = buffer.shape[-1] * size
    first, last = access.start - buffer.address, access.end - 1 - buffer.address
    rows = f", rows {first // pitch}..{last // pitch + 1}"
    run, column = access.shape[-1] if access.shape else 0, first % pitch
    if 0 < run < pitch and column + run <= pitch:
        return f"{rows}, columns {column // size}..{(column + run) // size}"
    return rows


def _record(record: Any) -> str:
    """Fields of a record; a number in two fields, ``x_low`` and ``x_high``, is put together."""
    fields = {name: int(record[name]) for name in record.dtype.names}
    for name in [n.removesuffix("_low") for n in fields if n.endswith("_low")]:
        bits = record.dtype[f"{name}_low"].itemsize * 8
        fields = {name: (fields[f"{name}_high"] << bits) | fields[f"{name}_low"], **fields}
        del fields[f"{name}_low"], fields[f"{name}_high"]
    return " ".join(f"{name}={value}" for name, value in fields.items())
