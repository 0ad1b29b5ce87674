"""Graph to program: place tensors, tile operations, insert tokens, encode."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, OUTPUT_BUFFERS, Graph, Op
from compiler.schedule import tile_attention, tile_linear, tile_rows
from compiler.schedule.accumulators import prove_accumulators
from compiler.schedule.emitter import Emitter
from compiler.schedule.place import NOISE_BASE, FirstFit, Home, Layout, Zones, aligned, lifetimes, place, value_bytes
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
    "linear": tile_linear.linear,
    "linear_dynamic": tile_linear.linear,
    "linear_factored": tile_linear.linear,
    "attention": tile_attention.attention,
}


def build_program(graph: Graph, machine: Machine) -> Program:
    """Compile a graph whose passes have run.

    Raises UserError when the machine is too small, with the numbers that clash, or lacks the row-sum column, or when an
    accumulator could overflow.
    """
    if not machine.mac_array.row_sum_column:
        raise UserError("mac_array.row_sum_column = false: asymmetric weights need that column; allowed: true")
    _check_overwritten(graph)
    _check_multipliers(graph, machine)
    _check_types(graph, machine)
    prove_accumulators(graph, machine)
    layout = Layout(graph)
    layers: list[str] = []
    pinned, buffers, spill = _buffers(graph, machine, layout)
    code = {}
    for phase in ("prologue", "step"):
        spill.live = []
        homes = place(graph, phase, pinned, Zones.of(machine), spill)
        code[phase] = _phase(graph, phase, Emitter(graph, machine, layout, homes, layers))
    return Program(
        machine=machine,
        prologue=code["prologue"],
        step=code["step"],
        constants=np.frombuffer(bytes(layout.constants), np.uint8),
        sets=np.array([np.frombuffer(part, np.uint8) for part in layout.step_sets]),
        range_sets=np.array([np.frombuffer(part, np.uint8) for part in layout.range_sets]),
        set_address=layout.set_address,
        range_address=layout.range_address,
        range_of_step=graph.range_of_step or (0,) * graph.steps,
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


def _check_multipliers(graph: Graph, machine: Machine) -> None:
    """Raise UserError naming layer and channel where a linear's multiplier is wider than the machine's."""
    bits = machine.mac_array.requant_multiplier_bits
    for op in (*graph.prologue, *graph.step):
        records = graph.values[op.inputs["records"]].data if op.kind == "linear" else None
        if records is not None and (wide := np.argwhere(records["multiplier"] >= 1 << (bits - 1))).size:
            raise UserError(
                f"{op.layer}: output channel {wide[0][-1]}: multiplier {records['multiplier'][tuple(wide[0])]}; "
                f"mac_array.requant_multiplier_bits = {bits}; allowed: 0..{(1 << (bits - 1)) - 1}"
            )


def _check_types(graph: Graph, machine: Machine) -> None:
    """Raise UserError naming the layer where a linear needs what this machine's array or vector unit has not."""
    array, run_time = machine.mac_array, machine.vector_unit.runtime_quantization
    for op in (op for op in (*graph.prologue, *graph.step) if op.kind.startswith("linear")):
        dynamic, shifts = op.kind == "linear_dynamic", "shifts" in op.inputs
        act_bits = op.attrs["bits"] if dynamic else BITS[graph.values[op.inputs["x"]].dtype]
        weight_bits = BITS[graph.values[op.inputs["weight"]].dtype]
        factored = dynamic or op.kind == "linear_factored"
        narrowest = array.narrowest_activation_bits, array.narrowest_weight_bits
        wrong = {
            f"quantizes its input at run time; vector_unit.runtime_quantization = {run_time}": dynamic and not run_time,
            f"is requantized in two factors; mac_array.factored_requant = {array.factored_requant}":
                factored and not array.factored_requant,
            f"shifts input channels; mac_array.input_shift = {array.input_shift}": shifts and not array.input_shift,
            f"shifts inputs of {act_bits} bits; the array shifts at most 8": shifts and act_bits > 8,
            f"has {act_bits}-bit inputs; mac_array.narrowest_activation_bits = {narrowest[0]}": act_bits < narrowest[0],
            f"has {weight_bits}-bit weights; mac_array.narrowest_weight_bits = {narrowest[1]}":
                weight_bits < narrowest[1],
        }  # fmt: skip
        for what in (what for what, holds in wrong.items() if holds):
            raise UserError(f"{op.layer} {what}; allowed: a machine that can do it, or another method or width")


def _buffers(graph: Graph, machine: Machine, layout: Layout) -> tuple[dict[str, Home], dict[str, Buffer], FirstFit]:
    """Pin inputs, outputs and what the prologue hands to the steps in DRAM, above constants and parameter sets."""
    address = layout.end
    pinned, buffers = dict(layout.homes), {}
    handed = lifetimes(graph, graph.prologue).keys() & lifetimes(graph, graph.step).keys()
    inputs = [v.name for v in graph.values.values() if v.kind == "input" and v.base is None]
    for name in dict.fromkeys([*inputs, *graph.outputs, *sorted(handed)]):
        value = graph.values[name]
        if name in OUTPUT_BUFFERS:
            pinned[name] = pinned[OUTPUT_BUFFERS[name]]
            continue
        per_step = name == "noise"
        shape = (graph.steps, *value.shape) if per_step else value.shape
        pinned[name] = Home("dram", 0 if per_step else address, NOISE_BASE if per_step else 0)
        if name in inputs or name in graph.outputs:
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
        if op.kind not in TILERS:
            raise UserError(f"{op.layer}: {op.kind} cannot be compiled; allowed: {', '.join(TILERS)}, after all passes")
        TILERS[op.kind](emitter, op)
    emitter.layer = phase
    emitter.emit("barrier")
    emitter.emit("halt")
    decoded = [_decoded(mnemonic, fields) for mnemonic, fields in emitter.instructions]
    words = np.zeros((len(decoded), WORDS), np.uint32)
    for index, tokens in enumerate(insert_tokens(decoded)):
        mnemonic, fields = emitter.instructions[index]
        try:
            words[index] = encode(BY_MNEMONIC[mnemonic], {**fields, **tokens})
        except UserError as error:  # a number that the instruction has no room for
            raise UserError(f"{emitter.layers[fields['layer']]}: {error}") from None
    return words


def _decoded(mnemonic: str, fields: dict[str, int]) -> Decoded:
    """The instruction as the decoder would give it (absent fields are 0), before it is encoded."""
    spec = BY_MNEMONIC[mnemonic]
    return SimpleNamespace(op=mnemonic, **{name: fields.get(name, 0) for name in spec.by_name})
