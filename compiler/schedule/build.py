"""Graph to program: place tensors, tile operations, insert tokens, encode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.graph import BITS, OUTPUT_BUFFERS, Graph, Op
from compiler.schedule import tile_attention, tile_linear, tile_rows
from compiler.schedule.accumulators import prove_accumulators
from compiler.schedule.alone import alone_zones, cost_by_itself
from compiler.schedule.blocks import emit_group
from compiler.schedule.cost_model import Cost
from compiler.schedule.emitter import Emitter
from compiler.schedule.encode import encode_all
from compiler.schedule.layout import Layout
from compiler.schedule.place import (
    NOISE_BASE,
    FirstFit,
    Home,
    Turns,
    Zones,
    aligned,
    lifetimes,
    place,
    value_bytes,
)
from compiler.schedule.repeat import Repeats
from compiler.schedule.search import Choice, plan_phase
from compiler.schedule.segments import Group, held, segments
from compiler.schedule.spread import spread
from compiler.schedule.tokens import with_tokens
from npusim.config import Machine
from npusim.errors import UserError
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
    """Compile a graph whose passes have run; barriers cut long steps into segments.

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
    chosen = {phase: _chosen(graph, phase, machine, layout) for phase in ("prologue", "step")}
    parts: dict[str, list[list[Group]]] = {
        phase: [[(plan, ops) for _, plan, ops in choices]] for phase, (_, choices) in chosen.items()
    }
    if chosen["step"][0]:
        layout, parts["step"] = _cut(graph, machine, layout, chosen["step"][1])
    pinned, buffers, spill = _buffers(graph, machine, layout)
    layers: list[str] = []
    code = {}
    for phase, (fused, _) in chosen.items():
        # Uncut, tensors live no longer than their groups.
        units = parts[phase] if len(parts[phase]) > 1 else [[group] for group in parts[phase][0]]
        homes = _homes(graph, phase, machine, pinned, spill, units if fused else ())
        emitter = Emitter(graph, machine, layout, homes, layers)
        emitter.divide(alone_zones(emitter, 0) if fused else Zones.of(machine))
        code[phase] = _phase(phase, emitter, parts[phase])
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
        size = aligned(value_bytes(value) * (graph.steps if per_step else 1))
        address = layout.turns.start(address, size)
        pinned[name] = Home("dram", 0 if per_step else address, NOISE_BASE if per_step else 0)
        if name in inputs or name in graph.outputs:
            buffers[name] = Buffer(address, value.dtype, shape)
        address += layout.turns.whole(size)
    budget = machine.dram.npu_budget_bytes
    if address > budget:
        raise UserError(
            f"constants, parameter sets and buffers need {address} bytes of DRAM; the NPU's budget is {budget}"
        )
    return pinned, buffers, FirstFit(address, budget - address, layout.turns)


def _homes(
    graph: Graph, phase: str, machine: Machine, pinned: dict[str, Home], spill: FirstFit,
    parts: Sequence[Sequence[Group]] = (),
) -> dict[str, Home]:  # fmt: skip
    """Homes of tensors for groups that share blocks of rows, or for each operation by itself if there are none.

    What groups of one part touch lives during all of that part.
    """
    spill.live = []
    if not parts:
        return place(graph, phase, pinned, Zones.of(machine), spill)
    inner = frozenset(name for part in parts for plan, _ in part if plan for name in plan.group.inner)
    numbers = [number for number, part in enumerate(parts) for _, ops in part for _ in ops]
    return place(graph, phase, pinned, Zones(0, 0, 0), spill, inner, numbers)


def _chosen(graph: Graph, phase: str, machine: Machine, layout: Layout) -> tuple[bool, list[Choice]]:
    """Whether operations share blocks of rows, and the groups; where not, each operation by itself.

    They do not where every tensor finds a place in SRAM and no linear reads and writes DRAM, or where that is estimated
    to be faster.
    """
    pinned, _, spill = _buffers(graph, machine, layout)
    by_itself = _homes(graph, phase, machine, pinned, spill)
    emitter = Emitter(graph, machine, layout, by_itself, [])
    ops: tuple[Op, ...] = getattr(graph, phase)
    alone: list[Choice] = [(Cost(), None, (op,)) for op in ops]
    passes = any(pinned.keys() >= {graph.base(op.inputs["x"]).name, op.output} for op in ops if "weight" in op.inputs)
    if not passes and all(home.memory == "sram" or name in pinned for name, home in by_itself.items()):
        return False, alone
    try:
        before = cost_by_itself(emitter, ops)
        emitter.homes = {name: Home("dram", 0) for name in by_itself} | pinned
        choices = plan_phase(emitter, ops, 0)
        if before <= sum(cost.key[0] for cost, _, _ in choices):
            return False, alone
        _homes(graph, phase, machine, pinned, spill, [[(plan, group)] for _, plan, group in choices])
    except UserError:  # too little DRAM, or too little SRAM for an operation by itself: its tiler says so
        return False, alone
    return True, choices


def _cut(graph: Graph, machine: Machine, layout: Layout, choices: list[Choice]) -> tuple[Layout, list[list[Group]]]:
    """The segments of the step, and where constants lie for them; as before if there is one, or too little DRAM."""
    whole: list[Group] = [(plan, ops) for _, plan, ops in choices]
    cut = segments(machine, choices)
    if len(cut) == 1:
        return layout, [whole]
    try:
        roomy = Layout(graph, [[op for _, ops in segment for op in ops] for segment in cut], Turns.of(machine))
        pinned, _, spill = _buffers(graph, machine, roomy)
        _homes(graph, "step", machine, pinned, spill, cut)
    except UserError:
        return layout, [whole]
    return roomy, cut


def _phase(phase: str, emitter: Emitter, parts: list[list[Group]]) -> NDArray[np.uint32]:
    """Instruction words (count, 32) of one phase in segments; it ends with a barrier and halt."""
    words, repeats = list[NDArray[np.uint32]](), Repeats(emitter, phase)
    for segment in parts:
        if words:
            emitter.join(phase)
            words.append(_encoded(emitter))
        code = repeats.words(segment)
        if code is None:
            code = _segment(phase, emitter, segment, len(parts) > 1)
            repeats.keep(segment, code)
        words.append(code)
    emitter.layer = phase
    emitter.emit("barrier")
    emitter.emit("halt")
    words.append(_encoded(emitter))
    return with_tokens(spread(np.concatenate(words), emitter.machine))


def _encoded(emitter: Emitter) -> NDArray[np.uint32]:
    """The words of what was emitted since the last call."""
    words = encode_all(emitter.instructions, emitter.layers)
    emitter.instructions.clear()
    return words


def _segment(phase: str, emitter: Emitter, segment: list[Group], cut: bool) -> NDArray[np.uint32]:
    """The words of one segment, ``cut`` from others by barriers or all there is."""
    names = held(emitter, segment) if cut else {}
    try:
        emitter.hold(names, phase)
        _groups(emitter, segment)
    except UserError:
        if not names:
            raise
        emitter.instructions.clear()  # too little parameter memory is left: the vectors come where they are read
        emitter.release()
        _groups(emitter, segment)
    return _encoded(emitter)


def _groups(emitter: Emitter, groups: list[Group]) -> None:
    """The code of groups one after the other."""
    for plan, ops in groups:
        if plan:
            emit_group(emitter, plan)
            emitter.divide(alone_zones(emitter, 0))
            continue
        emitter.layer = ops[0].layer
        TILERS[ops[0].kind](emitter, ops[0])
