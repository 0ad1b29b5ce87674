"""Runs a program for one video, the prologue once and then the steps, and compares the engine with the reference.

    simulation = Simulation(program, inputs)
    simulation.prologue()
    for step in range(program.steps):
        simulation.step(step)
        simulation.read("eps")

All values here are integers; `npusim.host` converts them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim import engine, reference
from npusim.errors import BitsDifferError, UserError
from npusim.isa.encoding import Decoded
from npusim.memory import ACCUMULATORS, MachineState, Sums, Tallies, Tally
from npusim.operands import accesses
from npusim.program import Code, Program, input_buffers
from npusim.sampled import Sample, execute_twice
from npusim.units import of_kind

PROLOGUE = "prologue"
HELD = "held/"
"""Before the number of a MAC array in the names of a snapshot's held sums."""


@dataclass(frozen=True)
class Difference:
    """The first instruction after which engine and reference differ, and the first element or byte where they do.

    part: "prologue" or "step <number>"; instruction: index in that part's code; byte: address in ``memory``, which may
    be the "accumulators" (`MachineState.contents`); dtype: the type of the element there ("u8" where the instruction
    has none); engine, reference: its value in each; element: its index, and the operand that it belongs to, or "".
    """

    part: str
    instruction: int
    mnemonic: str
    layer: str
    memory: str
    byte: int
    dtype: str
    engine: int
    reference: int
    element: str = ""

    def __str__(self) -> str:
        return (
            f"{self.part}, instruction {self.instruction} ({self.mnemonic}, layer {self.layer}): "
            f"{self.memory} byte {self.byte} ({self.dtype}) is {self.engine} in the engine, "
            f"{self.reference} in the reference{'; ' * bool(self.element)}{self.element}"
        )


@dataclass(frozen=True)
class BitExact:
    """What was compared: every byte of memory and every held sum, after the prologue and after each step listed.

    ``equal`` is None where nothing was compared. The comparison ends at the first difference. Beside whole steps,
    ``sampled_instructions`` were computed again one by one (`npusim.sampled`).
    """

    steps_compared: tuple[int, ...]
    prologue_compared: bool
    equal: bool | None
    first_difference: Difference | None
    sampled_instructions: int = 0


Tell = Callable[[int, int], None]
"""Called with how many instructions of a part are done, and how many it has."""
TOLD = 200
"""How often a part tells."""


class Simulation:
    """One video on the machine of ``program``.

    ``tallies``: by part ("prologue", "step <number>"), how often accumulators overflowed and results were clamped, by
    (layer number, mnemonic).

    Args:
        program: the compiled denoiser.
        inputs: contents of the buffers that the program reads before it writes them, for a denoiser "text", "text_len",
            "state" and "noise"; integers in the buffers' types and shapes.
        verify: steps to run on the reference too, from a copy of the memories at the step's start.
        verify_prologue: the same for the prologue.
        sample: single instructions that the reference computes again.

    Raises:
        UserError: an input is missing, unknown, misshapen or of another type; code cannot be decoded; an instruction
            reaches outside a memory; an accumulator overflows on a machine that traps.
    """

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, NDArray[Any]],
        verify: Collection[int] = (),
        verify_prologue: bool = False,
        sample: Sample | None = None,
    ) -> None:
        if not program.contents:
            raise UserError("a program without contents is for timing only; allowed: one compiled from weights")
        self.program = program
        outside = [step for step in verify if not 0 <= step < program.steps]
        if outside:
            raise UserError(f"verify: step {outside[0]} does not exist; allowed 0..{program.steps - 1}")
        self._verify, self._verify_prologue = frozenset(verify), verify_prologue
        self._code, self._sample = program.instructions(), sample
        self._tables = {part: engine.Code(words) for part, words in program.code()}
        self.state = MachineState(program.machine, program.dram_bytes, program.storage())
        for address, data in program.areas.values():
            self.state.dram[address : address + data.size] = data
        for name in input_buffers(program, chain(*self._code.values())):
            if name not in inputs:
                raise UserError(f"input {name!r} is missing")
        for name, values in inputs.items():
            self.write(name, values)
        self._steps_compared: list[int] = []
        self._prologue_compared = False
        self._difference: Difference | None = None
        self.tallies: dict[str, Tallies] = {}

    @property
    def bit_exact(self) -> BitExact:
        """The comparison so far."""
        compared = self._prologue_compared or bool(self._steps_compared)
        sampled = self._sample.instructions if self._sample else 0
        return BitExact(
            tuple(self._steps_compared),
            self._prologue_compared,
            self._difference is None if compared or sampled else None,
            self._difference,
            sampled,
        )

    def read(self, name: str) -> NDArray[Any]:
        """A copy of the buffer ``name``, in its type and shape. Raises UserError if there is none."""
        return self._window(name).copy()

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Fill the buffer ``name``. Raises UserError if there is none or the values have another type or shape."""
        window = self._window(name)
        if values.dtype != window.dtype or values.shape != window.shape:
            raise UserError(
                f"buffer {name!r}: given {values.dtype}{list(values.shape)}, allowed {window.dtype}{list(window.shape)}"
            )
        window[...] = values

    def twin(self) -> Simulation:
        """An independent simulation that goes on from the same memories and compares nothing."""
        other = Simulation.__new__(Simulation)
        other.__dict__.update(self.__dict__)
        other.state = self.state.copy()
        other._verify, other._verify_prologue, other._sample = frozenset(), False, None
        other._steps_compared, other._prologue_compared, other._difference, other.tallies = [], False, None, {}
        return other

    def prologue(self, tell: Tell = lambda done, count: None) -> None:
        """Run the code that depends on the prompt only.

        Raises BitsDifferError where a sampled instruction has other bits in the reference.
        """
        self.state.bases = self.program.prologue_bases
        compare = self._verify_prologue and self._difference is None
        self._part(PROLOGUE, 0, PROLOGUE, compare, tell)
        self._prologue_compared |= compare

    def step(self, step: int, tell: Tell = lambda done, count: None) -> None:
        """Run denoising step ``step``, 0 the noisiest, on the state that the memories hold.

        Raises UserError if there is no such step, BitsDifferError as `prologue`.
        """
        if not 0 <= step < self.program.steps:
            raise UserError(f"step {step} does not exist; allowed 0..{self.program.steps - 1}")
        self.state.bases = self.program.bases(step)
        compare = step in self._verify and self._difference is None
        self._part(f"step {step}", 1 + step, self.program.part_of_step(step), compare, tell)
        if compare:
            self._steps_compared.append(step)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """All that changes between two parts: views of memory by name, and facts as JSON has them; see `restore`."""
        arrays: dict[str, NDArray[Any]] = {
            f"dram/{start}": self.state.dram[start:end] for start, end in _changing(self.program)
        }
        arrays |= {name: getattr(self.state, name) for name in ("sram", "param", "param_next")}
        for unit, sums in self.state.held.items():
            arrays |= {f"{HELD}{unit}/products": sums.products, f"{HELD}{unit}/rows": sums.rows}
        facts = {
            "tallies": [
                [part, *key, *astuple(tally)] for part, found in self.tallies.items() for key, tally in found.items()
            ],
            "steps_compared": self._steps_compared,
            "prologue_compared": self._prologue_compared,
            "sampled_instructions": self._sample.instructions if self._sample else 0,
            "difference": asdict(self._difference) if self._difference else None,
        }
        return {name: array for name, array in arrays.items() if array.size}, facts

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Go on from a `snapshot` of a simulation of the same program and inputs. Raises UserError for another's."""
        own, _ = self.snapshot()
        held = {name: array.copy() for name, array in arrays.items() if name.startswith(HELD)}
        for name in sorted(name for name in own.keys() | arrays.keys() if not name.startswith(HELD)):
            given, place = arrays.get(name), own.get(name)
            if given is None or place is None or (given.shape, given.dtype) != (place.shape, place.dtype):
                raise UserError(f"memory {name!r} does not fit the program")
            place[...] = given
        self.state.held = {
            unit: Sums(held[f"{HELD}{unit}/products"], held[f"{HELD}{unit}/rows"])
            for unit in of_kind("mac")
            if f"{HELD}{unit}/products" in held
        }
        self.tallies = {}
        for part, layer, mnemonic, *counts in facts["tallies"]:
            self.tallies.setdefault(part, {})[layer, mnemonic] = Tally(*counts)
        self._steps_compared = list(facts["steps_compared"])
        self._prologue_compared = facts["prologue_compared"]
        self._difference = Difference(**facts["difference"]) if facts["difference"] else None
        if self._sample:
            self._sample.instructions = facts["sampled_instructions"]

    def _window(self, name: str) -> NDArray[Any]:
        buffer = self.program.buffers.get(name)
        if buffer is None:
            raise UserError(f"program has no buffer {name!r}; it has {', '.join(self.program.buffers)}")
        return np.ndarray(buffer.shape, buffer.numpy_dtype, self.state.dram, buffer.address)

    def _part(self, part: str, execution: int, name: str, compare: bool, tell: Tell) -> None:
        start = self.state.copy() if compare else None
        self.state.tallies = self.tallies[part] = {}
        self._run(part, name, self._on_engine(part, execution, self._tables[name], tell))
        if start is None:
            return
        expected, code = start.copy(), self._code[name]
        self._run(part, name, _on_reference(expected, code))
        if self.state.difference(expected) is not None:
            self._difference = first_difference(start, part, code, self.program.layers)

    def _on_engine(self, part: str, execution: int, code: engine.Code, tell: Tell) -> Iterator[int]:
        """Run a part on the engine; yield the number of each instruction that can fail before it runs."""
        count, first = len(code), 0
        sampled = np.flatnonzero(self._sample.chosen(execution, count)).tolist() if self._sample else []
        told = range(0, count, 1 + count // TOLD)
        for last in sorted({*told, *sampled, count}):
            yield from engine.progress(self.state, code, first, last)
            first = last
            if last in told:
                tell(last, count)
            if sampled and last == sampled[0]:
                yield last
                self._twice(part, code, sampled.pop(0))
                first = last + 1

    def _run(self, part: str, name: str, progress: Iterator[int]) -> None:
        """Let an executor run; ``progress`` gives the number of an instruction before that can fail."""
        index = 0
        try:
            for index in progress:  # noqa: B007, for it is read where the next instruction fails
                pass
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            ins = self._tables[name].decoded(index)
            layer = _layer(self.program.layers, ins)
            raise UserError(f"{part}, instruction {index} ({ins.op}, layer {layer}): {error}") from None

    def _twice(self, part: str, code: engine.Code, index: int) -> None:
        assert self._sample is not None
        expected = execute_twice(self.state, code, index)
        self._sample.instructions += 1
        if expected is not None:
            ins = code.decoded(index)
            self._difference = _difference(part, index, ins, self.program.layers, self.state, expected)
            raise BitsDifferError(f"engine and reference differ: {self._difference}")


def _on_reference(state: MachineState, code: Code) -> Iterator[int]:
    """Run instructions on the reference; yield the number of each before it runs."""
    for index, ins in enumerate(code):
        yield index
        reference.execute(state, (ins,))


def _difference(
    part: str, index: int, ins: Decoded, layers: tuple[str, ...], fast: MachineState, slow: MachineState
) -> Difference | None:
    """Where two states differ that were equal before ``ins``; None if they do not."""
    place = fast.difference(slow)
    if place is None:
        return None
    return Difference(
        part, index, ins.op, _layer(layers, ins), *_element(ins, fast, slow) or _number(fast, slow, *place)
    )


def first_difference(start: MachineState, part: str, code: Iterable[Decoded], layers: tuple[str, ...]) -> Difference:
    """Run both executors from ``start`` instruction by instruction until the memories differ.

    ``start`` is altered. Raises AssertionError if they never do.
    """
    fast, slow = start, start.copy()
    for index, ins in enumerate(code):
        engine.execute(fast, (ins,))
        reference.execute(slow, (ins,))
        if found := _difference(part, index, ins, layers, fast, slow):
            return found
    raise AssertionError(f"{part}: engine and reference differ when run at once, but not instruction by instruction")


def _element(ins: Decoded, fast: MachineState, slow: MachineState) -> tuple[str, int, str, int, int, str] | None:
    """The first element of a result of ``ins`` in which two states differ: the last fields of a `Difference`."""
    for access in accesses(ins, fast.machine):
        if not access.written or not access.shape:
            continue
        left, right = access.values(fast), access.values(slow)
        if not (differs := np.argwhere(left != right)).size:
            continue
        index, dtype = tuple(differs[0].tolist()), access.dtype
        byte, element = access.address(index), f"element {list(index)} of {access.name} {list(access.shape)}"
        if not isinstance(dtype, str):
            fields: Mapping[str, Any] = dtype.fields or {}
            field = next(name for name in fields if left[index][name] != right[index][name])
            byte, element, left, right = byte + fields[field][1], f"{field} of {element}", left[field], right[field]
            dtype = f"{left.dtype.kind}{left.dtype.itemsize * 8}"
        return access.memory, byte, dtype, int(left[index]), int(right[index]), element
    return None


def _number(fast: MachineState, slow: MachineState, memory: str, byte: int) -> tuple[str, int, str, int, int]:
    """The byte in which two states differ, of accumulators the sum, where no element of a result does."""
    kind, start, name = (np.int64, byte & ~7, "i64") if memory == ACCUMULATORS else (np.uint8, byte, "u8")
    left, right = (int(state.contents(memory)[start:].view(kind)[0]) for state in (fast, slow))
    return memory, start, name, left, right


def _changing(program: Program) -> list[tuple[int, int]]:
    """Bytes [start, end) of DRAM beside constants and sets, to which no code writes."""
    spans, address = [], 0
    for start, size in sorted((start, data.size) for start, data in program.areas.values()):
        spans.append((address, start))
        address = max(address, start + size)
    return [(start, end) for start, end in [*spans, (address, program.dram_bytes)] if start < end]


def _layer(layers: tuple[str, ...], ins: Decoded) -> str:
    return layers[ins.layer] if ins.layer < len(layers) else str(ins.layer)
