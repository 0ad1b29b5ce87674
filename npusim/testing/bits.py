"""``assert_same_bits``: reference, engine and, for a graph, its interpreter compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import OUTPUT_BUFFERS, Graph, Op
from compiler.interpret import run_graph
from compiler.pipeline import run_passes
from compiler.schedule.build import build_program
from compiler.verify import verify
from npusim import reference
from npusim.config import Machine
from npusim.crosscheck import crosscheck, random_inputs
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, decode
from npusim.program import Program
from npusim.simulate import Simulation

Inputs = Mapping[str, NDArray[Any]]


def assert_same_bits(
    tested: Program | Graph,
    machine: Machine | None = None,
    inputs: Inputs | None = None,
    *,
    steps: int = 1,
    orders: int = 0,
    seed: int = 0,
) -> None:
    """Raise AssertionError if two ways to compute ``tested`` differ in a bit.

    A program is checked for legality and runs on reference and engine; every byte of memory must be equal after the
    prologue and each step. A graph is compiled for ``machine`` first, and its outputs must equal its interpreter's.

    Args:
        tested: a program; or a graph as `compiler.Builder` makes it.
        machine: for a graph; a program has its own.
        inputs: by name, integers of the right shapes; random ones of ``seed`` if absent.
        steps: how many steps run.
        orders: how many random orders that the tokens allow are tried beside program order.
        seed: of inputs and orders.

    Raises:
        AssertionError: names the first instruction that differs, its layer, the element and both values.
        UserError: the graph or program is not legal, does not fit the machine, or an input does not fit.
    """
    graph = None
    if isinstance(tested, Graph):
        if machine is None:
            raise UserError("assert_same_bits: a graph needs a machine to be compiled for")
        graph = run_passes(tested)
        program = build_program(graph, machine)
    else:
        if machine not in (None, tested.machine):
            raise UserError("assert_same_bits: a program has a machine of its own; allowed: machine=None")
        program = tested
    verify(program)
    values = random_inputs(program, seed) if inputs is None else _typed(program, inputs)
    result = crosscheck(program, steps, orders, seed, values)
    for difference in (result.executors, result.order):
        if difference is not None:
            raise AssertionError(difference)
    if graph is not None:
        _compare_with_graph(program, graph, values, steps)


def _typed(program: Program, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Integers of any width in the types of the program's buffers. Raises UserError for numbers that do not fit."""
    typed = {}
    for name, values in inputs.items():
        buffer = program.buffers.get(name)
        kind = np.asarray(values).dtype if buffer is None else buffer.numpy_dtype
        typed[name] = np.asarray(values).astype(kind)
        if not np.array_equal(typed[name], values):
            raise UserError(f"input {name!r}: values {np.min(values)}..{np.max(values)} do not fit {kind}")
    return typed


def _compare_with_graph(program: Program, graph: Graph, inputs: Inputs, steps: int) -> None:
    """Compare the outputs of interpreter and reference after each step."""
    # An input that no operation reads is a buffer, but none that the program needs.
    unread = {v.name: np.zeros(program.buffers[v.name].shape, np.int64) for v in graph.values.values()
              if v.kind == "input" and v.base is None and v.name not in inputs}  # fmt: skip
    expected = run_graph(graph, {**unread, **inputs}, range(steps))
    for step, outputs in enumerate(_run(program, inputs, steps)):
        for name in graph.outputs:
            left, right = expected[step][name], outputs[OUTPUT_BUFFERS.get(name, name)]
            if not np.array_equal(left, right):
                raise AssertionError(
                    f"step {step}: output {name}{_first(left, right)}, {_writer(program, graph, name, left != right)}"
                    f"{_first_operation(graph, program.machine, inputs, step)}"
                )


def _run(program: Program, inputs: Inputs, steps: int) -> list[dict[str, NDArray[Any]]]:
    """All buffers after each step on the reference."""
    simulation, results = Simulation(program, inputs), []
    code = program.decoded()
    simulation.state.bases = program.prologue_bases
    reference.execute(simulation.state, code["prologue"])
    for step in range(steps):
        simulation.state.bases = program.bases(step)
        reference.execute(simulation.state, code[program.part_of_step(step)])
        results.append({name: simulation.read(name) for name in program.buffers})
    return results


def _first(left: NDArray[Any], right: NDArray[Any]) -> str:
    index = tuple(int(i) for i in np.argwhere(left != right)[0])
    return f"{list(index)} is {left[index]} in the interpreter, {right[index]} in the program"


def _writer(program: Program, graph: Graph, name: str, differing: NDArray[np.bool_]) -> str:
    """The instruction that writes the first differing element of an output to DRAM."""
    buffer = program.buffers[OUTPUT_BUFFERS.get(name, name)]
    byte = buffer.address + int(np.flatnonzero(differing)[0]) * buffer.numpy_dtype.itemsize
    for part, code in reversed(list(program.code())):
        for index, ins in reversed(list(enumerate(decode(code)))):
            writes = BY_MNEMONIC[ins.op].footprint(ins)[1]
            if any(r.memory == "dram" and r.start <= byte < r.end for r in writes):
                return f"stored by {part} instruction {index} ({ins.op}, layer {program.layers[ins.layer]})"
    return "which no instruction writes"


def _first_operation(graph: Graph, machine: Machine, inputs: Inputs, step: int) -> str:
    """The first operation whose result differs when every tensor is kept, if that program shows a difference too."""
    ops = (*graph.prologue, *graph.step)
    names = dict.fromkeys(graph.base(op.output).name for op in ops)
    kept = replace(graph, outputs=tuple(names))
    try:
        program = build_program(kept, machine)
    except UserError:
        return ""
    expected, outputs = run_graph(kept, inputs, range(step + 1))[step], _run(program, inputs, step + 1)[step]
    last = {graph.base(op.output).name: op for op in ops}
    for name, op in last.items():
        left, right = expected[name], outputs[OUTPUT_BUFFERS.get(name, name)]
        if not np.array_equal(left, right):
            return f". With every tensor kept: {_operation(op)} differs first, %{name}{_first(left, right)}"
    return ". With every tensor kept, all are equal"


def _operation(op: Op) -> str:
    return f"{op.kind} of layer {op.layer}"
