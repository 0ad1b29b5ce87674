"""What an operation costs by itself, as its own tiler does it; a linear with what its tiles move again."""

from __future__ import annotations

from math import inf

from compiler.graph import Op
from compiler.schedule.cost_model import Cost, matmul_cycles, transfer, vector_pass
from compiler.schedule.emitter import Emitter
from compiler.schedule.fuse import matrices
from compiler.schedule.place import ALIGN, Zones, row_bytes, value_bytes
from compiler.schedule.tile_attention import Shape, blocks_of, overlaps, p_type
from compiler.schedule.tile_linear import linear_tiles
from compiler.schedule.tile_rows import MNEMONICS
from npusim.config import Machine
from npusim.errors import UserError


def cost_by_itself(emitter: Emitter, ops: tuple[Op, ...]) -> float:
    """Cycles of all operations, each by itself, with tensors where they are now.

    Weights come while earlier operations compute, so they count for all together only.
    """
    zones, values = Zones.of(emitter.machine), emitter.graph.values
    weights = sum(value_bytes(values[op.inputs["weight"]]) for op in ops if "weight" in op.inputs)
    known = dict[object, Cost]()
    costs = [alone_once(known, emitter, op, zones, weights=False) for op in ops]
    dram = sum(cost.dram for cost in costs) + transfer(emitter.machine, weights, len(ops)).dram
    return max(sum(cost.key[0] for cost in costs), dram)


def alone_once(known: dict[object, Cost], emitter: Emitter, op: Op, zones: Zones, weights: bool = True) -> Cost:
    """As `alone`; equal operations are estimated once."""
    key = signature(emitter, (op,)), zones, weights
    if key not in known:
        known[key] = alone(emitter, op, zones, weights)
    return known[key]


def alone(emitter: Emitter, op: Op, zones: Zones, weights: bool = True) -> Cost:
    """An operation by itself, roughly: what it computes, and its operands and result as often as they move.

    Infinite where its smallest tiles do not fit. ``weights``: whether the first load of weights counts.
    """
    values, machine = emitter.graph.values, emitter.machine
    rows, cols = values[op.output].shape
    names = {*matrices(op), op.output, *(op.inputs[role] for role in "kv" if op.kind == "attention")}
    size = sum(value_bytes(values[n]) for n in names if not emitter.in_sram(n))
    emitter.divide(zones)
    try:
        if op.kind == "attention":
            cost = attention_cost(emitter, op, 1, None)
        elif "weight" in op.inputs:
            cost, again = _linear(emitter, op, weights)
            size += again
        else:
            cost = vector_cost(machine, op, rows, cols, 1)
    except UserError:
        return Cost(exposed=inf)
    # Little overlaps: a tile is loaded, computed and stored, and the next operation waits for the last of them; but for
    # no longer than all copies take. What lies in SRAM does not wait, and the vector unit follows the array.
    copied = transfer(machine, size, 8 if size else 0)
    waits = min(cost.vector + cost.mac, 8192, copied.dram) if size else cost.vector / 2 if cost.mac else 0
    return cost + copied + Cost(exposed=waits)


def _linear(emitter: Emitter, op: Op, weights: bool) -> tuple[Cost, int]:
    """Cycles of a linear's tiles, and the bytes that they move beyond the first copy of input and result."""
    values, machine = emitter.graph.values, emitter.machine
    weight, x = values[op.inputs["weight"]], op.inputs["x"]
    tiles = linear_tiles(emitter, op)
    (n, k), rows = weight.shape, values[x].shape[0]
    columns, passes = -(-n // tiles.columns), -(-rows // tiles.rows)
    cycles = 0
    for width, of_width in _counts(n, tiles.columns):
        for depth, of_depth in _counts(k, tiles.depth):
            for count, of_rows in _counts(rows, tiles.rows):
                times = of_width * of_depth * of_rows
                cycles += times * matmul_cycles(machine, count, depth, width, tiles.x_dtype, weight.dtype)
    again = (passes if tiles.depth < k else 1) - (not weights)
    size = again * value_bytes(weight) + (0 if emitter.in_sram(x) else (columns - 1) * value_bytes(values[x]))
    cost = quantize_cost(machine, rows, k, columns) if op.kind == "linear_dynamic" else Cost()
    return cost + Cost(mac=cycles), size


def _counts(whole: int, part: int) -> list[tuple[int, int]]:
    """(size, how many) of the parts of ``whole``."""
    full, rest = divmod(whole, part)
    return [(size, count) for size, count in ((part, full), (rest, 1)) if size and count]


def quantize_cost(machine: Machine, rows: int, cols: int, times: int) -> Cost:
    """RTQUANT, ``times`` times."""
    cycles = vector_pass(machine, "rtquant", rows, cols, 2) + rows + machine.vector_unit.latency_cycles("rtquant")
    return Cost(vector=times * cycles)


def vector_cost(machine: Machine, op: Op, rows: int, cols: int, times: int) -> Cost:
    """LayerNorm, or an operation of one pass, ``times`` times."""
    if op.kind == "layernorm_modulate":
        return Cost(vector=times * (vector_pass(machine, "lnapply", rows, cols, 3) + rows))
    return Cost(vector=times * vector_pass(machine, MNEMONICS[op.kind], rows, cols))


def alone_zones(emitter: Emitter, resident: int) -> Zones:
    """The split of SRAM for an operation by itself."""
    arena = emitter.machine.sram.capacity_bytes - resident
    weights = arena // (4 if not resident else 2) // ALIGN * ALIGN
    return Zones(resident, weights, (arena - weights) // ALIGN * ALIGN)


def attention_cost(emitter: Emitter, op: Op, blocks: int, rows: int | None) -> Cost:
    """An attention in ``blocks`` parts of ``rows`` rows, or whole; raises UserError where it does not fit."""
    machine, values, shape = emitter.machine, emitter.graph.values, Shape.of(emitter, op)
    parts = blocks_of(emitter, op, shape, None if rows is None else (0, rows))
    cost, times = Cost(), blocks
    types = [values[op.inputs[role]].dtype for role in "qkv"]
    alone = not overlaps(emitter, op, shape, parts[0])
    for block in parts:
        m, n, count = block.rows, shape.key.tokens, block.batches
        mac = matmul_cycles(machine, m, shape.width, n, types[0], types[1], count)
        mac += matmul_cycles(machine, m, n, shape.width, "i16" if p_type(op)[1] == 2 else "u8", types[2], count)
        vector = vector_pass(machine, "smexp", count * m, n, 2)
        vector += count * m + machine.vector_unit.latency_cycles("recip")
        stand = block.held and block.row != parts[0].row
        loaded = [(op.inputs[role], n) for role in "kv" if not stand] + [(op.inputs["q"], m)]
        size = sum(
            count * tokens * row_bytes(values[name], shape.width)
            for name, tokens in loaded
            if not emitter.in_sram(name)
        )
        cost += Cost(mac=mac, vector=vector, exposed=vector if alone else 0) + transfer(machine, size, len(loaded))
    return Cost(cost.mac * times, cost.vector * times, cost.dram * times, cost.exposed * times, cost.dram_bytes * times)


def signature(emitter: Emitter, ops: tuple[Op, ...]) -> object:
    """What a plan depends on: kinds, shapes, types, memories, and which operation reads what."""
    number: dict[str, int] = {}
    parts: list[object] = []
    for op in ops:
        operands = [*op.inputs.items(), ("output", op.output)]
        for role, name in operands:
            value, owner = emitter.graph.values[name], emitter.graph.base(name).name
            memory = value.kind in ("value", "input") and emitter.home(name).memory
            which = number.setdefault(owner, len(number))
            parts.append((op.kind, role, value.shape, value.dtype, value.kind, memory, which))
        parts.append(
            tuple(sorted((k, v) for k, v in op.attrs.items() if k in ("over", "heads", "b_rows", "p_bits", "bits")))
        )
    return tuple(parts)
