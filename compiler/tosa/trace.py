"""The simulator's own tensors: the program is executed, and its tensors are read from the machine's memories.

A graph's outputs keep buffers of their own in DRAM. So the graph is compiled with every tensor of interest as an
output, the program runs on the engine, and the buffers are read after the step. What lies inside an operation (scores,
probabilities, row statistics) never leaves SRAM; it is read there, right behind the instruction that wrote it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import OUTPUT_BUFFERS, Graph, Op
from compiler.schedule.build import build_program
from compiler.tosa.emit import Simulated
from npusim import engine
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.isa.encoding import DTYPE_NAMES, ELEMENT_BITS, Decoded, row_bytes
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import ROW_RECORD
from npusim.isa.runtime_quantization import operands as rtquant_operands
from npusim.isa.softmax import exp_operands
from npusim.memory import MachineState
from npusim.program import Program
from npusim.simulate import Simulation

Array = NDArray[Any]


def with_outputs(graph: Graph, ops: Iterable[Op]) -> Graph:
    """The graph with every tensor that one of ``ops`` reads or writes as an output."""
    named = (graph.base(name) for op in ops for name in (*op.inputs.values(), op.output))
    return replace(graph, outputs=tuple(dict.fromkeys([*graph.outputs, *(v.name for v in named if v.kind == "value")])))


def execute(graph: Graph, machine: Machine, inputs: Mapping[str, Array], ops: tuple[Op, ...], step: int) -> Simulated:
    """Compile ``graph`` for ``machine``, run prologue and steps up to ``step`` on the engine; keep what ``ops`` touch.

    ``inputs``: contents of the program's input buffers. Tensors are those of ``step`` and of the prologue. Raises
    UserError as the compiler and the simulation do.
    """
    graph = with_outputs(graph, ops)
    program = build_program(graph, machine)
    # The host's buffers have whole bytes: those of packed elements are read here.
    whole = {name: buffer for name, buffer in program.buffers.items() if ELEMENT_BITS[buffer.dtype] >= 8}
    simulation = Simulation(replace(program, buffers=whole), inputs)
    tracer = Tracer(program)
    tracer.run(simulation.state, decode(program.prologue), [0] * len(program.bases(step)))
    for before in range(step):
        simulation.step(before)
    tensors = {name: simulation.read(name) for name in inputs}
    if "noise" in tensors:
        tensors["noise"] = tensors["noise"][step]
    tracer.run(simulation.state, decode(program.step), program.bases(step))
    for name in graph.outputs:
        tensors[name] = buffer_of(program, simulation.state, OUTPUT_BUFFERS.get(name, name))
    wide = {name: array.astype(np.int64) for name, array in tensors.items()}
    return Simulated(graph, step, wide, inner_tensors(graph, ops, tracer))


def buffer_of(program: Program, state: MachineState, name: str) -> Array:
    """A buffer's elements, int64; rows of packed ones begin at a byte."""
    buffer = program.buffers[name]
    dtype, (rows, columns) = DTYPE_NAMES.index(buffer.dtype), buffer.shape
    pitch = row_bytes(dtype, columns)
    return np.asarray(state.operand("dram", buffer.address, dtype, (rows, columns), (pitch,)).values())


def check_same_results(
    simulated: Simulated, program: Program, inputs: Mapping[str, Array], outputs: Iterable[str]
) -> None:
    """Raise UserError unless ``program`` itself leaves the same ``outputs`` after the step."""
    simulation = Simulation(program, inputs)
    simulation.prologue()
    for step in range(simulated.step + 1):
        simulation.step(step)
    for name in outputs:
        if not np.array_equal(simulation.read(OUTPUT_BUFFERS.get(name, name)), simulated.tensors[name]):
            raise UserError(
                f"the program and the one compiled to be looked into differ in {name} after step {simulated.step}"
            )


class Tracer:
    """Collects, by layer and in program order, what instructions leave inside an operation."""

    def __init__(self, program: Program) -> None:
        self.layers = program.layers
        self.found: dict[tuple[str, str], list[Array]] = defaultdict(list)
        self._blocks: dict[str, Decoded] = {}

    def run(self, state: MachineState, code: Iterable[Decoded], bases: list[int]) -> None:
        """Execute ``code`` on the engine and look behind each instruction."""
        state.bases = bases
        for ins in code:
            engine.execute(state, (ins,))
            self.note(state, ins)

    def note(self, state: MachineState, ins: Decoded) -> None:
        """Look at the memories right after ``ins``."""
        layer = self.layers[ins.layer]
        if ins.op == "matmul":
            self._blocks[layer] = ins
        elif ins.op == "lnstat":
            rows = state.vector("sram", ins.stat_addr, STATISTICS, ins.rows)
            for name in ("sum", "mantissa", "shift"):
                self._keep(layer, name, rows[name])
        elif ins.op == "smexp":
            scores, p, sums, _ = exp_operands(state, ins)
            for name, values in (("scores", scores.values()), ("p", p.values()), ("sums", sums)):
                self._keep(layer, name, self._by_batch(layer, values))
        elif ins.op == "recip":
            records = state.vector("sram", ins.out_addr, ROW_RECORD, ins.rows)
            for name in ("multiplier", "shift"):
                self._keep(layer, name, self._by_batch(layer, records[name]))
        elif ins.op == "rtquant":
            _, out, scalars = rtquant_operands(state, ins)
            self._keep(layer, "q", out.values())
            for name in ("zero_point", "multiplier", "shift"):
                self._keep(layer, name, scalars[name])

    def _keep(self, layer: str, name: str, values: Array) -> None:
        self.found[layer, name].append(np.array(values, np.int64))

    def _by_batch(self, layer: str, values: Array) -> Array:
        """Rows of a block of attention as (groups, heads, query rows, ...), by the MATMUL before it."""
        block = self._blocks[layer]
        return values.reshape(block.batch0, block.batch1, block.m, *values.shape[1:])


def inner_tensors(graph: Graph, ops: Iterable[Op], tracer: Tracer) -> dict[tuple[str, str], Array]:
    """What the tracer found, put together to whole tensors."""
    whole = {}
    for op in ops:
        if op.kind == "layernorm_modulate":
            for name in ("sum", "mantissa", "shift"):
                whole[op.output, name] = np.concatenate(tracer.found[op.layer, name])
        elif op.kind == "linear_dynamic":
            # Rows are quantized once more for each further block of output channels.
            for name in ("q", "zero_point", "multiplier", "shift"):
                found = np.concatenate(tracer.found[op.layer, name])
                whole[op.output, name] = found[: graph.values[op.output].shape[0]]
        elif op.kind == "attention":
            for name in ("scores", "p", "sums", "multiplier", "shift"):
                whole[op.output, name] = joined(tracer.found[op.layer, name], batches_of(graph, op))
    return whole


def batches_of(graph: Graph, op: Op) -> tuple[int, int, int, int]:
    """(branches, groups of a branch, heads, query tokens of a group)."""
    rows = graph.values[op.output].shape[0] // graph.branches
    queries = {"spatial": graph.positions, "temporal": graph.frames, "cross": rows}[op.attrs["over"]]
    return graph.branches, rows // queries, op.attrs["heads"], queries


def joined(blocks: list[Array], sizes: tuple[int, int, int, int]) -> Array:
    """Blocks (groups, heads, query rows, ...) in the compiler's order as (branches * groups * heads, tokens, ...)."""
    whole = np.zeros((*sizes, *blocks[0].shape[3:]), np.int64)
    places = _places(sizes, blocks[0].shape[:3])
    for (branch, *start), block in zip(places, blocks, strict=True):
        where = tuple(slice(first, first + size) for first, size in zip(start, block.shape[:3], strict=True))
        whole[branch][where] = block
    return whole.reshape(-1, *whole.shape[3:])


def _places(sizes: tuple[int, int, int, int], block: tuple[int, ...]) -> Iterator[tuple[int, int, int, int]]:
    """(branch, first group, first head, first query row) of each block, in the order in which they are computed."""
    groups, heads, rows = (range(0, size, step) for size, step in zip(sizes[1:], block, strict=True))
    for branch in range(sizes[0]):
        yield from ((branch, group, head, row) for group in groups for head in heads for row in rows)
