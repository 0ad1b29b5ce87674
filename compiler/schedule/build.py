"""Graph to program: place tensors, tile operations, insert tokens, encode."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, OUTPUT_BUFFERS, Graph, Op
from compiler.schedule import tile_attention, tile_linear, tile_rows
from compiler.schedule.accumulators import prove_accumulators
from compiler.schedule.alone import alone_zones, cost_by_itself
from compiler.schedule.blocks import Plan, emit_group
from compiler.schedule.emitter import Emitter
from compiler.schedule.encode import encode_all
from compiler.schedule.place import NOISE_BASE, FirstFit, Home, Layout, Zones, aligned, lifetimes, place, value_bytes
from compiler.schedule.search import plan_phase
from compiler.schedule.tokens import insert_tokens
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import Decoded
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
    _check_kinds(graph)
    prove_accumulators(graph, machine)
    layout = Layout(graph)
    layers: list[str] = []
    pinned, buffers, spill = _buffers(graph, machine, layout)
    code = {}
    for phase in ("prologue", "step"):
        spill.live = []
        emitter = Emitter(graph, machine, layout, place(graph, phase, pinned, Zones.of(machine), spill), layers)
        groups = _groups(graph, phase, emitter, pinned, spill)
        code[phase] = _phase(graph, phase, emitter, groups)
    return Program(
        machine=machine,
        prologue=code["prologue"],
        step=code["step"],
        constants=layout.constants(),
        sets=layout.step_sets(),
        range_sets=layout.range_sets(),
        set_address=layout.set_address,
        range_address=layout.range_address,
        range_of_step=graph.range_of_step or (0,) * graph.steps,
        dram_bytes=spill.start + spill.peak,
        buffers=buffers,
        layers=tuple(layers),
        host=dict(graph.host),
        contents=graph.contents,
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


def _check_kinds(graph: Graph) -> None:
    """Raise UserError naming the layer of an operation that only passes know."""
    for op in (*graph.prologue, *graph.step):
        if op.kind not in TILERS:
            raise UserError(f"{op.layer}: {op.kind} cannot be compiled; allowed: {', '.join(TILERS)}, after all passes")


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


def _groups(
    graph: Graph, phase: str, emitter: Emitter, pinned: dict[str, Home], spill: FirstFit
) -> list[tuple[Plan | None, tuple[Op, ...]]]:
    """The operations in groups, with the plans of those that share blocks of rows.

    Where every tensor finds a place in SRAM and no linear reads and writes DRAM, or that is estimated to be faster,
    each operation stands by itself.
    """
    ops: tuple[Op, ...] = getattr(graph, phase)
    passes = any(pinned.keys() >= {graph.base(op.inputs["x"]).name, op.output} for op in ops if "weight" in op.inputs)
    if not passes and all(home.memory == "sram" or name in pinned for name, home in emitter.homes.items()):
        return [(None, (op,)) for op in ops]
    by_itself = emitter.homes

    def alone() -> list[tuple[Plan | None, tuple[Op, ...]]]:
        emitter.homes, emitter.local = by_itself, {}
        emitter.divide(Zones.of(emitter.machine))
        return [(None, (op,)) for op in ops]

    try:
        before = cost_by_itself(emitter, ops)
        emitter.homes = {name: Home("dram", 0) for name in by_itself} | pinned
        choices = plan_phase(emitter, ops, 0)
        if before <= sum(cost.key[0] for cost, _, _ in choices):
            return alone()
        inner = frozenset(name for _, plan, _ in choices if plan for name in plan.group.inner)
        spill.live = []
        numbers = [number for number, (_, _, group) in enumerate(choices) for _ in group]
        emitter.homes = place(graph, phase, pinned, Zones(0, 0, 0), spill, inner, numbers)
    except UserError:  # too little DRAM, or too little SRAM for an operation by itself: its tiler says so
        return alone()
    emitter.divide(alone_zones(emitter, 0))
    return [(plan, group) for _, plan, group in choices]


def _phase(
    graph: Graph, phase: str, emitter: Emitter, groups: list[tuple[Plan | None, tuple[Op, ...]]]
) -> NDArray[np.uint32]:
    """Instruction words (count, 32) of one phase; it ends with a barrier and halt."""
    for plan, ops in groups:
        if plan:
            emit_group(emitter, plan)
            emitter.divide(alone_zones(emitter, 0))
            continue
        emitter.layer = ops[0].layer
        TILERS[ops[0].kind](emitter, ops[0])
    emitter.layer = phase
    emitter.emit("barrier")
    emitter.emit("halt")
    headers = insert_tokens([_decoded(mnemonic, fields) for mnemonic, fields in emitter.instructions])
    for (_, fields), tokens in zip(emitter.instructions, headers, strict=True):
        fields |= tokens
    return encode_all(emitter.instructions, emitter.layers)


def _decoded(mnemonic: str, fields: dict[str, int]) -> Decoded:
    """The instruction as the decoder would give it (absent fields are 0), before it is encoded."""
    spec = BY_MNEMONIC[mnemonic]
    return SimpleNamespace(op=mnemonic, **{name: fields.get(name, 0) for name in spec.by_name})
