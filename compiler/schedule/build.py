"""Graph to program: place tensors, tile operations, insert tokens, encode."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph, Op
from compiler.schedule import tile_attention, tile_rows
from compiler.schedule.accumulators import prove_accumulators
from compiler.schedule.emitter import Emitter
from compiler.schedule.place import FirstFit, Home, Layout, Zones, aligned, lifetimes, place, value_bytes
from compiler.schedule.tokens import insert_tokens
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import WORDS, Decoded, encode
from npusim.program import Buffer, Program

TILERS = {
    "elementwise": tile_rows.elementwise,
    "product": tile_rows.elementwise,
    "table": tile_rows.table,
    "layernorm_modulate": tile_rows.layernorm_modulate,
    "linear": tile_rows.linear,
    "attention": tile_attention.attention,
}
OUTPUT_BUFFERS = {"state.next": "state"}
"""The step's new state overwrites the old one: the next step reads it there."""


def build_program(graph: Graph, machine: Machine) -> Program:
    """Compile a graph whose passes have run.

    Raises UserError when the machine is too small, with the numbers that clash, or lacks the row-sum column, or when an
    accumulator could overflow.
    """
    if not machine.mac_array.row_sum_column:
        raise UserError("mac_array.row_sum_column = false: asymmetric weights need that column; allowed: true")
    _check_overwritten(graph)
    prove_accumulators(graph, machine)
    layout = Layout(graph)
    layers: list[str] = []
    pinned, buffers, spill = _buffers(graph, machine, layout)
    code = {}
    for phase in ("prologue", "step"):
        spill.live = []
        homes = place(graph, phase, pinned, Zones.of(machine), spill)
        code[phase] = _phase(graph, phase, Emitter(graph, machine, layout, homes, layers))
    sets = np.frombuffer(b"".join(bytes(part) for part in layout.set_parts), np.uint8)
    return Program(
        machine=machine,
        prologue=code["prologue"],
        step=code["step"],
        constants=np.frombuffer(bytes(layout.constants), np.uint8),
        sets=sets.reshape(graph.steps, -1),
        set_address=layout.set_address,
        dram_bytes=spill.start + spill.peak,
        buffers=buffers,
        layers=tuple(layers),
        host=dict(graph.host),
    )


def _check_overwritten(graph: Graph) -> None:
    """Raise UserError if an operation reads an input whose bytes an output already overwrites, or may meanwhile."""
    for output, name in OUTPUT_BUFFERS.items():
        overwritten = False
        for op in (*graph.prologue, *graph.step) if output in graph.values else ():
            overwritten = overwritten or graph.base(op.output).name == output
            if overwritten and name in (graph.base(read).name for read in op.inputs.values()):
                raise UserError(
                    f"{op.layer}: {op.kind} reads %{name}, which %{output} overwrites; allowed: earlier only"
                )


def _buffers(graph: Graph, machine: Machine, layout: Layout) -> tuple[dict[str, Home], dict[str, Buffer], FirstFit]:
    """Pin inputs, outputs and what the prologue hands to the steps in DRAM, above constants and parameter sets."""
    address = layout.set_address + graph.steps * len(layout.set_parts[0])
    pinned, buffers = dict(layout.homes), {}
    handed = lifetimes(graph, graph.prologue).keys() & lifetimes(graph, graph.step).keys()
    inputs = [v.name for v in graph.values.values() if v.kind == "input" and v.base is None]
    for name in [*inputs, *graph.outputs, *sorted(handed)]:
        value = graph.values[name]
        if name in OUTPUT_BUFFERS:
            pinned[name] = pinned[OUTPUT_BUFFERS[name]]
            continue
        per_step = name == "noise"
        shape = (graph.steps, *value.shape) if per_step else value.shape
        pinned[name] = Home("dram", 0 if per_step else address, 2 if per_step else 0)
        if name not in handed:
            buffers[name] = Buffer(address, value.dtype, shape)
        address += aligned(value_bytes(value) * (graph.steps if per_step else 1))
    budget = machine.dram.npu_budget_bytes
    if address > budget:
        raise UserError(
            f"constants, parameter sets and buffers need {address} bytes of DRAM; the NPU's budget is {budget}"
        )
    return pinned, buffers, FirstFit(address, budget - address)


def _phase(graph: Graph, phase: str, emitter: Emitter) -> NDArray[np.uint32]:
    """Instruction words (count, 32) of one phase; it ends with a barrier and halt."""
    ops: tuple[Op, ...] = getattr(graph, phase)
    for op in ops:
        emitter.layer = op.layer
        TILERS[op.kind](emitter, op)
    emitter.layer = phase
    emitter.emit("barrier")
    emitter.emit("halt")
    decoded = [_decoded(mnemonic, fields) for mnemonic, fields in emitter.instructions]
    words = np.zeros((len(decoded), WORDS), np.uint32)
    for index, tokens in enumerate(insert_tokens(decoded)):
        mnemonic, fields = emitter.instructions[index]
        words[index] = encode(BY_MNEMONIC[mnemonic], {**fields, **tokens})
    return words


def _decoded(mnemonic: str, fields: dict[str, int]) -> Decoded:
    """The instruction as the decoder would give it (absent fields are 0), before it is encoded."""
    spec = BY_MNEMONIC[mnemonic]
    return SimpleNamespace(op=mnemonic, **{name: fields.get(name, 0) for name in spec.by_name})
