"""A group of operations by blocks of rows: what passes between them stays in SRAM, weights stream by once a block.

The first stage of the next block comes before the last stage of this one, so that the vector unit has it ready when the
array is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.graph import BITS, Op
from compiler.schedule.emitter import Emitter, Place
from compiler.schedule.fuse import Group, Stage, matrices, quantized_input
from compiler.schedule.place import Home, Zones, row_bytes
from compiler.schedule.tile_attention import attention
from compiler.schedule.tile_linear import linear_fields, parameter_tables, quantized_bytes, rtquant, weight_piece
from compiler.schedule.tile_rows import (
    MNEMONICS,
    elementwise_constants,
    layernorm_modulate,
    moved,
    rows_per_tile,
)
from npusim.isa.encoding import row_bytes as dtype_bytes
from npusim.isa.matmul import SCALARS


@dataclass(frozen=True)
class Plan:
    """How a group is cut.

    ``rows``: of a block. ``columns``: output channels of a chunk of a linear. ``pieces``: of each linear (by output),
    the values of K whose weights are held at once. ``zones``: split of SRAM; behind the tile ring lie the tensors of a
    block and the rows that RTQUANT makes, ``local`` by name (`quantized_input`): the addresses of their one or two
    places. ``brought``: operands of linears that are copied from DRAM first.
    """

    group: Group
    rows: int
    columns: int
    pieces: dict[str, int]
    zones: Zones
    local: dict[str, tuple[int, ...]]
    brought: tuple[str, ...]


def emit_group(emitter: Emitter, plan: Plan) -> None:
    """All blocks of rows, stage by stage."""
    total = emitter.graph.values[plan.group.ops[0].output].shape[0]
    blocks = [(row, min(plan.rows, total - row)) for row in range(0, total, plan.rows)]
    count = len(plan.group.stages) + bool(plan.brought)
    emitter.divide(plan.zones)
    for stage, number in order(len(blocks), count, ahead=len(plan.group.stages) > 1):
        row, rows = blocks[number]
        emitter.local = {name: Home("dram", 0) for name in plan.group.inner}
        at = {name: addresses[number % len(addresses)] for name, addresses in plan.local.items()}
        for name in at.keys() & emitter.graph.values.keys():
            emitter.local[name] = Home("sram", at[name] - row * emitter.row_bytes(name))
        index = stage - bool(plan.brought)
        if index < 0:
            _bring(emitter, plan, row, rows)
        else:
            _emit_stage(emitter, plan, plan.group.stages[index], row, rows, at)
    emitter.local = {}


def order(blocks: int, stages: int, ahead: bool = True) -> Iterator[tuple[int, int]]:
    """(stage, block) in program order; ``ahead``: stage 0 of the next block before the last stage of this one.

    A copy alone in front of one stage is not emitted ahead: it would wait for the block before to leave its buffer, and
    this block's weights behind it.
    """
    for block in range(blocks):
        if block == 0 or stages == 1 or not ahead:
            yield 0, block
        yield from ((stage, block) for stage in range(1, stages - 1))
        if stages > 1:
            if ahead and block + 1 < blocks:
                yield 0, block + 1
            yield stages - 1, block


def _bring(emitter: Emitter, plan: Plan, row: int, rows: int) -> None:
    """Copy operands that a linear reads once for each chunk of channels."""
    for name in plan.brought:
        emitter.layer = plan.group.ops[0].layer
        owner = emitter.graph.base(name).name
        local = emitter.local.pop(owner)
        offset, pitch = emitter.offset(owner, row, 0)
        home, width = emitter.home(owner), emitter.row_bytes(owner)
        emitter.load(home, offset, local.address + row * pitch, width, rows=rows, dram_row=pitch, local_row=width)
        emitter.local[owner] = local


def _emit_stage(emitter: Emitter, plan: Plan, stage: Stage, row: int, rows: int, at: dict[str, int]) -> None:
    """``at``: addresses of the block's tensors, by name."""
    head = stage.head
    emitter.layer = head.layer
    if stage.quantizes:
        _quantize(emitter, head, row, rows, at[stage.output])
    elif stage.linear:
        _linear(emitter, plan, stage, row, rows, at.get(quantized_input(head), 0))
    elif head.kind == "attention":
        attention(emitter, head, (row, rows))
    elif head.kind == "layernorm_modulate":
        layernorm_modulate(emitter, head, (row, rows))
    else:
        _rowwise(emitter, head, row, rows)


def _quantize(emitter: Emitter, op: Op, row: int, rows: int, address: int) -> None:
    """RTQUANT of a block's rows; behind them at ``address`` stand their SCALARS."""
    x = op.inputs["x"]
    pitch, scalars = quantized_bytes(emitter, op, rows)
    step = rows_per_tile(emitter, moved(emitter, x), rows)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        out = Place(address + first * pitch, pitch)
        a = emitter.source(x, row + first, count)
        rtquant(emitter, op, a, out, address + scalars + first * SCALARS.itemsize, count)


def _linear(emitter: Emitter, plan: Plan, stage: Stage, row: int, rows: int, quantized: int) -> None:
    """A linear by chunks of output channels, each followed by the stage's other operations.

    ``quantized``: address of its rows where RTQUANT made them.
    """
    op, graph = stage.head, emitter.graph
    x, weight = op.inputs["x"], op.inputs["weight"]
    (n, k), tables, fields = graph.values[weight].shape, parameter_tables(op), linear_fields(emitter, op)
    piece = plan.pieces[op.output]
    for column in range(0, n, plan.columns):
        width = min(plan.columns, n - column)
        emitter.layer = op.layer
        names = [(op.inputs["records"], column, width), *((name, 0, 0) for name in tables)]
        vectors = [(number, role) for number, o in enumerate(stage.tail, 1) for role in vector_roles(o)]
        names += [(stage.ops[i].inputs[role], column, 0 if role == "table" else width) for i, role in vectors]
        addresses = emitter.vectors(names)
        known = dict(zip(tables, addresses[1:], strict=False))
        fields |= {"rq_addr": addresses[0], "shift_addr": known.get(op.inputs.get("shifts", ""), 0)}
        fields["scalars_addr"] = known.get(op.inputs.get("scalars", ""), 0)
        if op.kind == "linear_dynamic":
            pitch, scalars = quantized_bytes(emitter, op, rows)
            fields["scalars_addr"] = quantized + scalars
        shift_addr = fields["shift_addr"]
        place = _result(emitter, stage, 0, row, rows, column, width, {})
        for first in range(0, k, piece):
            depth = min(piece, k - first)
            if op.kind == "linear_dynamic":
                a = Place(quantized + dtype_bytes(fields["a_dtype"], first), pitch)
            else:
                a = emitter.source(x, row, rows, first, depth)
            address, b_n = weight_piece(emitter, weight, column, width, first, depth)
            fields |= {"acc_continue": int(first > 0), "acc_hold": int(first + depth < k)}
            fields["shift_addr"] = shift_addr + first // 4 if shift_addr or first else shift_addr
            where = {"a_addr": a.address, "a_row": a.row, "out_addr": place.address, "out_row": place.row}
            emitter.emit("matmul", **fields, **where, k=depth, b_n=b_n, b_addr=address, m=rows, n=width)
        at = dict(zip(vectors, addresses[1 + len(tables) :], strict=True))
        for number in range(1, len(stage.ops)):
            of = {role: address for (which, role), address in at.items() if which == number}
            place = _columnwise(emitter, stage, number, (row, rows, column, width), place, of)
        emitter.commit(stage.output, row, rows, place, column)


def vector_roles(op: Op) -> list[str]:
    """The operands of an operation that lie in parameter memory."""
    return [role for role in ("a_mul", "b_mul", "bias", "table") if role in op.inputs]


def _result(
    emitter: Emitter, stage: Stage, number: int, row: int, rows: int, column: int, width: int,
    operands: dict[str, Place],
) -> Place:  # fmt: skip
    """Where the result of a stage's operation ``number`` goes: in place of an operand of its type, else new."""
    op = stage.ops[number]
    if number == len(stage.tail) and emitter.in_sram(op.output):
        return emitter.target(op.output, row, rows, column, width)
    for name, place in operands.items():
        if replaceable(emitter, name, op):
            return place
    size = row_bytes(emitter.graph.values[op.output], width)
    return Place(emitter.tiles.take(rows * size, emitter.layer), size)


def replaceable(emitter: Emitter, name: str, op: Op) -> bool:
    """Whether a result may overwrite an operand's chunk: one of the tile ring, whose elements are as wide."""
    values = emitter.graph.values
    return not emitter.in_sram(name) and BITS[values[name].dtype] == BITS[values[op.output].dtype]


def _columnwise(
    emitter: Emitter, stage: Stage, number: int, part: tuple[int, int, int, int], before: Place, of: dict[str, int]
) -> Place:
    """An operation behind a linear on one chunk; ``before``: the result of the operation in front of it."""
    op, (row, rows, column, width) = stage.ops[number], part
    emitter.layer = op.layer
    last = stage.ops[number - 1].output
    places: dict[str, Place] = {}
    for role in ("x", "a", "b"):
        if role in op.inputs:
            name = op.inputs[role]
            places[role] = before if name == last else emitter.source(name, row, rows, column, width)
    by_name = {op.inputs[role]: place for role, place in places.items() if op.inputs[role] != last}
    out = _result(emitter, stage, number, row, rows, column, width, {last: before, **by_name})
    emit_vector_operation(emitter, op, places, out, of, rows, width)
    return out


def emit_vector_operation(
    emitter: Emitter, op: Op, places: dict[str, Place], out: Place, of: dict[str, int], rows: int, cols: int
) -> None:
    """EWLIN, EWMUL or TABLE on operands at ``places``, with vectors in parameter memory at ``of``."""
    where = {"out_addr": out.address, "out_row": out.row, "rows": rows, "cols": cols}
    if op.kind == "table":
        x = places["x"]
        fields = {key: op.attrs[key] for key in ("multiplier", "shift", "out_zp")}
        fields |= {"table_addr": of["table"], "out_dtype": emitter.dtype(op.output)}
        emitter.emit("table", **fields, **where, a_addr=x.address, a_row=x.row)
        return
    fields = elementwise_constants(emitter, op, of)
    for role, place in places.items():
        where |= {f"{role}_addr": place.address, f"{role}_row": place.row}
    emitter.emit(MNEMONICS[op.kind], **{**fields, **where}, batch=1)


def _rowwise(emitter: Emitter, op: Op, row: int, rows: int) -> None:
    """An element-wise operation or a table by itself; a table of rows is walked within frames."""
    graph, pattern = emitter.graph, op.attrs.get("b_rows", "")
    cols, roles = graph.values[op.output].shape[1], vector_roles(op)
    of = dict(zip(roles, emitter.parameters([op.inputs[role] for role in roles]), strict=True))
    names = [*matrices(op), *([op.inputs["b"]] if pattern == "position" else []), op.output]
    sizes = moved(emitter, *names)
    if pattern == "frame":
        table = emitter.whole(op.inputs["b"])
    end, at = row + rows, row
    step = rows_per_tile(emitter, sizes, rows)
    while at < end:
        left = graph.positions - at % graph.positions if pattern else rows
        count = min(step, end - at, left)
        streamed = [role for role in ("x", "a") if role in op.inputs]
        places: dict[str, Place] = {role: emitter.source(op.inputs[role], at, count) for role in streamed}
        if pattern == "frame":
            places["b"] = Place(table.address + at // graph.positions % graph.frames * table.row, 0)
        elif "b" in op.inputs:
            first = at % graph.positions if pattern else at
            places["b"] = emitter.source(op.inputs["b"], first, count)
        out = emitter.target(op.output, at, count)
        emit_vector_operation(emitter, op, places, out, of, count, cols)
        emitter.commit(op.output, at, count, out)
        at += count
