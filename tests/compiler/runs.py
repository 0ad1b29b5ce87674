"""The same run in two ways: a graph in its interpreter, and a compiled program on the reference executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import interpret
from compiler.graph import Graph
from npusim import reference
from npusim.config import Machine
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.encoding import DTYPES, Decoded, encode
from npusim.memory import MachineState
from npusim.program import Program

Array = NDArray[Any]
Inputs = dict[str, Array]
Outputs = dict[str, Array]
Execute = Callable[[MachineState, list[Decoded]], None]

STEPS = (0, 2)
"""Two steps with different parameter sets; the second starts from the state that the first leaves."""


def run_graph(graph: Graph, inputs: Inputs, steps: Sequence[int] = STEPS) -> list[Outputs]:
    return interpret.run_graph(graph, inputs, steps)


def window(program: Program, state: MachineState, name: str) -> Array:
    """A buffer of the program, in its type and shape; writing to it writes to DRAM."""
    buffer = program.buffers[name]
    kind = np.dtype(DTYPES[buffer.dtype][0])
    return np.ndarray(buffer.shape, kind, state.dram, buffer.address)


def loaded(program: Program, inputs: Inputs) -> MachineState:
    """Memories as the host leaves them; what nobody writes is noise, so that reading it shows."""
    state = MachineState(program.machine, program.dram_bytes)
    rng = np.random.default_rng(99)
    for memory in (state.dram, state.sram, state.param):
        memory[...] = rng.integers(0, 256, memory.size, np.uint8)
    for address, data in program.areas.values():
        state.dram[address : address + data.size] = data
    for name, values in inputs.items():
        window(program, state, name)[...] = values
    return state


def run_program(
    program: Program, inputs: Inputs, steps: Sequence[int] = STEPS, execute: Execute = reference.execute
) -> list[Outputs]:
    """The output buffers after each of ``steps``, named as the graph names them."""
    state, results = loaded(program, inputs), []
    execute(state, decode(program.prologue))
    for step in steps:
        state.bases = program.bases(step)
        execute(state, decode(program.step))
        names = {"eps": "eps", "raw": "raw", "state.next": "state"}
        results.append({name: window(program, state, buffer).copy() for name, buffer in names.items()})
    return results


def assert_same_bits(left: Iterable[Outputs], right: Iterable[Outputs]) -> None:
    for step, (one, other) in enumerate(zip(left, right, strict=True)):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], f"output {name} of run step {step}")


def encoded(ins: Decoded, **changes: int) -> NDArray[np.uint32]:
    """The words of a decoded instruction, with some fields changed."""
    spec = BY_MNEMONIC[ins.op]
    fields = {name: getattr(ins, name) for name in spec.by_name if name != "opcode"}
    return encode(spec, {**fields, **changes})


def altered(program: Program, part: str, index: int, **changes: int) -> Program:
    """The program with some fields of one instruction changed."""
    code = getattr(program, part).copy()
    code[index] = encoded(decode(code)[index], **changes)
    return replace(program, **{part: code})


def machine_like(machine: Machine, **sections: Mapping[str, int]) -> Machine:
    """The machine with some fields of some sections changed, and checked as a machine file is."""
    fields = machine.model_dump()
    for section, changes in sections.items():
        fields[section] |= changes
    return Machine.model_validate(fields)
