"""Tiling of attention: scores, exponential, reciprocal and weighted sum stay in SRAM for a block of groups, heads and query rows.

Groups are frames (spatial), positions (temporal) or the whole branch (cross). One MATMUL covers a block through its two batch loops.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.graph import Op
from compiler.schedule.emitter import Emitter
from compiler.schedule.place import ALIGN, element_bytes, logit_record
from npusim.errors import UserError
from npusim.isa.encoding import DTYPE_NAMES, NO_ADDRESS
from npusim.isa.matmul import ROW_RECORD, RQ_MODES


@dataclass(frozen=True)
class Block:
    """Part of one branch: groups [group, group + groups), heads likewise, query rows likewise."""

    branch: int
    group: int
    groups: int
    head: int
    heads: int
    row: int
    rows: int


@dataclass(frozen=True)
class Walk:
    """How a tensor's rows are reached: rows of the branch, distance between groups and between tokens of a group, all in rows."""

    branch_rows: int
    group_step: int
    token_step: int
    tokens: int


def walks(emitter: Emitter, op: Op) -> tuple[Walk, Walk, int]:
    """Walk of the query side, walk of the key side, groups in a branch."""
    graph, over = emitter.graph, op.attrs["over"]
    frames, positions = graph.frames, graph.positions
    if over == "spatial":
        walk = Walk(frames * positions, positions, 1, positions)
        return walk, walk, frames
    if over == "temporal":
        walk = Walk(frames * positions, 1, positions, frames)
        return walk, walk, positions
    length = graph.values[op.inputs["k"]].shape[0] // graph.branches
    return Walk(frames * positions, 0, 1, frames * positions), Walk(length, 0, 1, length), 1


def attention(emitter: Emitter, op: Op) -> None:
    query, key, groups = walks(emitter, op)
    groups_at, heads_at, rows_at = choose_block(emitter, op, query, key, groups)
    record = emitter.constant_parameter(logit_record(op))
    valid = emitter.whole(op.inputs["valid"]).address if "valid" in op.inputs else NO_ADDRESS
    heads = op.attrs["heads"]
    for branch in range(emitter.graph.branches):
        for group in range(0, groups, groups_at):
            for head in range(0, heads, heads_at):
                for row in range(0, query.tokens, rows_at):
                    block = Block(
                        branch,
                        group,
                        min(groups_at, groups - group),
                        head,
                        min(heads_at, heads - head),
                        row,
                        min(rows_at, query.tokens - row),
                    )
                    _emit_block(emitter, op, block, query, key, record, valid)


def choose_block(emitter: Emitter, op: Op, query: Walk, key: Walk, groups: int) -> tuple[int, int, int]:
    """(groups, heads, query rows) of a block: everything if it fits half the tile ring, else fewer groups, then heads, then rows."""
    graph, heads = emitter.graph, op.attrs["heads"]
    width = graph.values[op.inputs["q"]].shape[1] // heads
    sizes = {role: element_bytes(graph.values[op.inputs[role]]) for role in "qkv"} | {
        "out": element_bytes(graph.values[op.output])
    }
    p_bytes = 1 if op.attrs["p_bits"] == 8 else 2
    room = emitter.tiles.half - 8 * ALIGN

    def need(g: int, h: int, m: int) -> int:
        scratch = g * h * m * (key.tokens * (2 + p_bytes) + 4 + ROW_RECORD.itemsize)
        for role, tokens in (("q", m), ("k", key.tokens), ("v", key.tokens), ("out", m)):
            name = op.output if role == "out" else op.inputs[role]
            scratch += 0 if emitter.in_sram(name) else g * tokens * h * width * sizes[role]
        return scratch

    g, h, m = groups, heads, query.tokens
    while need(g, h, m) > room and g > 1:
        g = -(-g // 2)
    while need(g, h, m) > room and h > 1:
        h = -(-h // 2)
    while need(g, h, m) > room and m > 1:
        m = -(-m // 2)
    if need(g, h, m) > room:
        raise UserError(
            f"{op.layer}: attention of one query row over {key.tokens} keys needs {need(1, 1, 1)} bytes, half the SRAM tile zone has {room}; "
            "the machine is too small: allowed is a larger sram.capacity_bytes"
        )
    return g, h, m


def _reach(
    emitter: Emitter, op: Op, name: str, walk: Walk, block: Block, rows: tuple[int, int], load: bool
) -> tuple[int, int, int]:
    """(address, group stride, token stride) in SRAM of a block's tokens [rows) of one tensor; moves it there if it lives in DRAM."""
    heads = op.attrs["heads"]
    value = emitter.graph.values[name]
    size, width = element_bytes(value), value.shape[1] // heads
    start = block.branch * walk.branch_rows + block.group * walk.group_step + rows[0] * walk.token_step
    offset, pitch = emitter.offset(name, start, block.head * width)
    home = emitter.home(name)
    if home.memory == "sram":
        return home.address + offset, walk.group_step * pitch, walk.token_step * pitch
    run = block.heads * width * size
    address = emitter.tiles.take(block.groups * rows[1] * run, emitter.layer)
    if load:
        _transfer(emitter, "load", home, offset, address, run, pitch, walk, block.groups, rows[1])
    return address, rows[1] * run, run


def _transfer(
    emitter: Emitter,
    kind: str,
    home,
    offset: int,
    address: int,
    run: int,
    pitch: int,
    walk: Walk,
    groups: int,
    tokens: int,
) -> None:  # type: ignore[no-untyped-def]
    """Copy (groups, tokens) runs of ``run`` bytes between DRAM and a packed SRAM tile."""
    loops = {
        "planes": groups, "rows": tokens, "dram_plane": walk.group_step * pitch, "dram_row": walk.token_step * pitch,
        "local_plane": tokens * run, "local_row": run,
    }  # fmt: skip
    (emitter.load if kind == "load" else emitter.store)(home, offset, address, run, **loops)


def _emit_block(emitter: Emitter, op: Op, block: Block, query: Walk, key: Walk, record: int, valid: int) -> None:
    attrs, names = op.attrs, op.inputs
    graph = emitter.graph
    width = graph.values[names["q"]].shape[1] // attrs["heads"]
    m, n, batches = block.rows, key.tokens, block.groups * block.heads
    size = element_bytes(graph.values[names["q"]])
    p_type, p_bytes = ("u8", 1) if attrs["p_bits"] == 8 else ("i16", 2)
    q, q_group, q_token = _reach(emitter, op, names["q"], query, block, (block.row, m), True)
    k, k_group, k_token = _reach(emitter, op, names["k"], key, block, (0, n), True)
    v, v_group, v_token = _reach(emitter, op, names["v"], key, block, (0, n), True)
    take = emitter.tiles.take
    logits, p = take(batches * m * n * 2, emitter.layer), take(batches * m * n * p_bytes, emitter.layer)
    sums, factors = take(batches * m * 4, emitter.layer), take(batches * m * ROW_RECORD.itemsize, emitter.layer)
    i16 = DTYPE_NAMES.index("i16")
    shape = {"m": m, "batch0": block.groups, "batch1": block.heads}
    emitter.emit(
        "matmul", **shape, k=width, n=n, a_addr=q, a_row=q_token, a_b0=q_group, a_b1=width * size, b_addr=k, b_k=size, b_n=k_token,
        b_b0=k_group, b_b1=width * size, out_addr=logits, out_row=n * 2, out_b1=m * n * 2, out_b0=block.heads * m * n * 2,
        rq_addr=record, rq_mode=RQ_MODES.index("tensor"), a_dtype=emitter.dtype(names["q"]), b_dtype=emitter.dtype(names["k"]),
        out_dtype=i16,
    )  # fmt: skip
    emitter.emit(
        "smexp", a_addr=logits, a_row=n * 2, out_addr=p, out_row=n * p_bytes, sum_addr=sums, rows=batches * m, cols=n, valid_addr=valid,
        fraction_bits=attrs["fraction_bits"], p_bits=attrs["p_bits"], out_dtype=DTYPE_NAMES.index(p_type),
    )  # fmt: skip
    emitter.emit(
        "recip",
        sum_addr=sums,
        out_addr=factors,
        rows=batches * m,
        multiplier=attrs["out_multiplier"],
        shift=attrs["out_shift"],
    )
    out_size = element_bytes(graph.values[op.output])
    out, out_group, out_token = _reach(emitter, op, op.output, query, block, (block.row, m), False)
    emitter.emit(
        "matmul", **shape, k=n, n=width, a_addr=p, a_row=n * p_bytes, a_b1=m * n * p_bytes, a_b0=block.heads * m * n * p_bytes,
        b_addr=v, b_k=v_token, b_n=size, b_b0=v_group, b_b1=width * size, out_addr=out, out_row=out_token, out_b0=out_group,
        out_b1=width * out_size, rq_addr=factors, rq_mode=RQ_MODES.index("row"), a_dtype=DTYPE_NAMES.index(p_type),
        b_dtype=emitter.dtype(names["v"]), out_dtype=emitter.dtype(op.output), out_zp=attrs["out_zp"],
    )  # fmt: skip
    if not emitter.in_sram(op.output):
        start = block.branch * query.branch_rows + block.group * query.group_step + block.row * query.token_step
        offset, pitch = emitter.offset(op.output, start, block.head * width)
        _transfer(
            emitter,
            "store",
            emitter.home(op.output),
            offset,
            out,
            block.heads * width * out_size,
            pitch,
            query,
            block.groups,
            m,
        )
