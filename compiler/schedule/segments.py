"""Cuts the code of a step into segments by barriers, where these cost next to nothing.

Behind a barrier nothing of what came before is left, so equal parts of a network behind barriers take equal time: the
cycle model times one of them (`npusim.timing.reuse`), and the compiler orders and checks one of them. For that they
must also lie alike in DRAM (`compiler.schedule.layout`), and must not read what cannot lie alike while they run: what
changes with the step or the time range may be too small for gaps, and is brought to parameter memory in front of them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from compiler.graph import Graph, Op
from compiler.schedule.blocks import Plan
from compiler.schedule.emitter import Emitter
from compiler.schedule.layout import BASES
from compiler.schedule.place import aligned, value_bytes
from compiler.schedule.search import Choice
from npusim.config import Machine

SHARE = 200
"""A segment takes at least this many times the cycles that the barriers behind it may cost: 0.5 %."""

Group = tuple[Plan | None, tuple[Op, ...]]


def segments(machine: Machine, choices: Sequence[Choice]) -> list[list[Group]]:
    """The groups of a step, cut wherever the cycles since the last cut are worth it; one segment: no cut."""
    found, cycles = [list[Group]()], 0.0
    for cost, plan, ops in choices:
        if cycles >= SHARE * _barrier_cycles(machine, plan):
            found.append([])
            cycles = 0.0
        found[-1].append((plan, ops))
        cycles += cost.key[0]
    return found


def _barrier_cycles(machine: Machine, plan: Plan | None) -> float:
    """What barriers in front of a group cost at most.

    One, a second behind `held`, and that nothing is loaded beforehand: the rings have room for that by halves.
    """
    loaded = plan.zones.weights + plan.zones.tiles if plan else machine.sram.capacity_bytes
    return 2 * machine.barrier_cycles + loaded / 2 / machine.dram_bytes_per_cycle


def held(emitter: Emitter, segment: Sequence[Group]) -> dict[str, Op]:
    """Vectors of steps or time ranges that a segment reads, with their first readers, if half the memory holds them.

    Those that lie alike for equal segments are left out.
    """
    graph, alike = emitter.graph, emitter.layout.aligned
    found = {name: op for _, ops in reversed(segment) for op in reversed(ops) for name in _changing(graph, op, alike)}
    size = sum(aligned(value_bytes(graph.values[name])) for name in found)
    return dict(reversed(found.items())) if size <= emitter.params.half else {}


def _changing(graph: Graph, op: Op, alike: Set[str]) -> list[str]:
    values = ((name, graph.values[name]) for name in reversed(op.inputs.values()))
    kinds = {kind for kind, base in BASES.items() if base} - alike
    return [name for name, value in values if value.kind in kinds and value.base is None and len(value.shape) == 1]
