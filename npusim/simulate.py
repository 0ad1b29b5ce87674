"""Runs a program for one video, the prologue once and then the steps, and compares the engine with the reference.

    simulation = Simulation(program, inputs)
    simulation.prologue()
    for step in range(program.steps):
        simulation.step(step)
        simulation.read("eps")

All values here are integers; `npusim.host` converts them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim import engine, reference
from npusim.errors import UserError
from npusim.isa.encoding import Decoded
from npusim.memory import ACCUMULATORS, MachineState, Tallies
from npusim.operands import accesses
from npusim.program import Program, input_buffers

PROLOGUE = "prologue"


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

    ``equal`` is None where nothing was compared. The comparison ends at the first difference.
    """

    steps_compared: tuple[int, ...]
    prologue_compared: bool
    equal: bool | None
    first_difference: Difference | None


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
    ) -> None:
        if not program.contents:
            raise UserError("a program without contents is for timing only; allowed: one compiled from weights")
        self.program = program
        outside = [step for step in verify if not 0 <= step < program.steps]
        if outside:
            raise UserError(f"verify: step {outside[0]} does not exist; allowed 0..{program.steps - 1}")
        self._verify, self._verify_prologue = frozenset(verify), verify_prologue
        self._code = program.decoded()
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
        return BitExact(
            tuple(self._steps_compared),
            self._prologue_compared,
            self._difference is None if compared else None,
            self._difference,
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
        other._verify, other._verify_prologue = frozenset(), False
        other._steps_compared, other._prologue_compared, other._difference, other.tallies = [], False, None, {}
        return other

    def prologue(self) -> None:
        """Run the code that depends on the prompt only."""
        self.state.bases = self.program.prologue_bases
        compare = self._verify_prologue and self._difference is None
        self._part(PROLOGUE, "prologue", compare)
        self._prologue_compared |= compare

    def step(self, step: int) -> None:
        """Run denoising step ``step``, 0 the noisiest, on the state that the memories hold.

        Raises UserError if there is no such step.
        """
        if not 0 <= step < self.program.steps:
            raise UserError(f"step {step} does not exist; allowed 0..{self.program.steps - 1}")
        self.state.bases = self.program.bases(step)
        compare = step in self._verify and self._difference is None
        self._part(f"step {step}", self.program.part_of_step(step), compare)
        if compare:
            self._steps_compared.append(step)

    def _window(self, name: str) -> NDArray[Any]:
        buffer = self.program.buffers.get(name)
        if buffer is None:
            raise UserError(f"program has no buffer {name!r}; it has {', '.join(self.program.buffers)}")
        return np.ndarray(buffer.shape, buffer.numpy_dtype, self.state.dram, buffer.address)

    def _part(self, part: str, name: str, compare: bool) -> None:
        start = self.state.copy() if compare else None
        self.state.tallies = self.tallies[part] = {}
        code = self._code[name]
        self._run(part, code, engine.progress(self.state, self._tables[name]))
        if start is None:
            return
        expected = start.copy()
        self._run(part, code, _one_by_one(expected, code))
        if self.state.difference(expected) is not None:
            self._difference = first_difference(start, part, code, self.program.layers)

    def _run(self, part: str, code: list[Decoded], progress: Iterator[int]) -> None:
        """Let an executor run; ``progress`` gives the number of an instruction before that can fail."""
        index = 0
        try:
            for index in progress:  # noqa: B007, for it is read where the next instruction fails
                pass
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            ins = code[index]
            layer = _layer(self.program.layers, ins)
            raise UserError(f"{part}, instruction {index} ({ins.op}, layer {layer}): {error}") from None


def _one_by_one(state: MachineState, code: list[Decoded]) -> Iterator[int]:
    """Run instructions on the reference; yield the number of each before it runs."""
    for index, ins in enumerate(code):
        yield index
        reference.execute(state, (ins,))


def first_difference(start: MachineState, part: str, code: list[Decoded], layers: tuple[str, ...]) -> Difference:
    """Run both executors from ``start`` instruction by instruction until the memories differ.

    ``start`` is altered. Raises AssertionError if they never do.
    """
    fast, slow = start, start.copy()
    for index, ins in enumerate(code):
        engine.execute(fast, (ins,))
        reference.execute(slow, (ins,))
        place = fast.difference(slow)
        if place is not None:
            part_of = part, index, ins.op, _layer(layers, ins)
            return Difference(*part_of, *_element(ins, fast, slow) or _number(fast, slow, *place))
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


def _layer(layers: tuple[str, ...], ins: Decoded) -> str:
    return layers[ins.layer] if ins.layer < len(layers) else str(ins.layer)
