"""Tiling of attention: scores, exponential, reciprocal and weighted sum stay in SRAM for a block of the work.

A block is some groups, heads and query rows, with all keys. Groups are frames (spatial), positions (temporal) or the
whole branch (cross). One MATMUL covers a block through its two batch loops. Where the query rows of a head are cut, its
keys and values stay in the weight ring for all of them, if they fit half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compiler.graph import Op
from compiler.schedule.emitter import Emitter
from compiler.schedule.place import ALIGN, Ring, aligned, row_bytes
from npusim.errors import UserError
from npusim.isa.encoding import DTYPE_NAMES, NO_ADDRESS
from npusim.isa.matmul import ROW_RECORD, RQ_MODES

BUFFERS = 8
"""Buffers that a block may take from the tile ring: q, k, v, scores, p, row sums, row factors, output."""


@dataclass(frozen=True)
class Walk:
    """How a tensor's rows are reached; all numbers are rows.

    A branch has ``branch_rows``, groups are ``group_step`` apart, the ``tokens`` tokens of a group ``token_step``.
    """

    branch_rows: int
    group_step: int
    token_step: int
    tokens: int


@dataclass(frozen=True)
class Block:
    """Part of one branch: groups [group, group + groups), heads likewise, query rows likewise.

    ``held``: keys and values stay in the weight ring from the head's first block to its last.
    """

    branch: int
    group: int
    groups: int
    head: int
    heads: int
    row: int
    rows: int
    held: bool

    @property
    def batches(self) -> int:
        return self.groups * self.heads


@dataclass(frozen=True)
class Tile:
    """A block's part of one tensor in SRAM: address, bytes between groups, between heads and between tokens."""

    address: int
    group: int
    head: int
    token: int


@dataclass(frozen=True)
class Shape:
    """What all blocks of one attention share: walks of the query and of the key side, ``width`` channels of a head."""

    query: Walk
    key: Walk
    groups: int
    heads: int
    width: int

    @classmethod
    def of(cls, emitter: Emitter, op: Op) -> Shape:
        graph, over, heads = emitter.graph, op.attrs["over"], op.attrs["heads"]
        frames, positions = graph.frames, graph.positions
        rows, width = frames * positions, graph.values[op.inputs["q"]].shape[1] // heads
        if over == "spatial":
            walk = Walk(rows, positions, 1, positions)
            return cls(walk, walk, frames, heads, width)
        if over == "temporal":
            walk = Walk(rows, 1, positions, frames)
            return cls(walk, walk, positions, heads, width)
        rows, length = (graph.values[op.inputs[role]].shape[0] // graph.branches for role in "qk")
        return cls(Walk(rows, 0, 1, rows), Walk(length, 0, 1, length), 1, heads, width)

    def need(self, emitter: Emitter, op: Op, groups: int, heads: int, rows: int, held: bool = False) -> int:
        """Bytes of the tile ring that a block of this size takes; ``held``: keys and values stand elsewhere."""
        per_row = self.key.tokens * (2 + p_type(op)[1]) + 4 + ROW_RECORD.itemsize
        size = groups * heads * rows * per_row
        sides = {
            op.inputs["q"]: rows,
            op.inputs["k"]: self.key.tokens,
            op.inputs["v"]: self.key.tokens,
            op.output: rows,
        }
        for name, tokens in sides.items():
            if not emitter.in_sram(name) and not (held and name in (op.inputs["k"], op.inputs["v"])):
                size += groups * heads * tokens * row_bytes(emitter.graph.values[name], self.width)
        return size + BUFFERS * ALIGN

    def keys_need(self, emitter: Emitter, op: Op) -> int:
        """Bytes of keys and values of one head; 0 where they need not, or cannot, stay in the weight ring.

        Only loaded ones need to, and ``valid`` lies there for longer than they do.
        """
        names = [op.inputs[role] for role in "kv"]
        if "valid" in op.inputs or any(emitter.in_sram(name) for name in names):
            return 0
        values = emitter.graph.values
        return sum(aligned(self.key.tokens * row_bytes(values[name], self.width)) for name in names)


def p_type(op: Op) -> tuple[str, int]:
    """Type and bytes of an unnormalised probability."""
    return ("u8", 1) if op.attrs["p_bits"] == 8 else ("i16", 2)


def attention(emitter: Emitter, op: Op, part: tuple[int, int] | None = None) -> None:
    """MATMUL, SMEXP, RECIP, MATMUL for each block, of all rows or of ``part`` (first, count) of one branch.

    The scores of the next block are made before the weighted sum of this one, so that the array has work during the
    exponentials.
    """
    shape = Shape.of(emitter, op)
    record = emitter.logit_parameter(op.output)
    valid = emitter.whole(op.inputs["valid"]).address if "valid" in op.inputs else NO_ADDRESS
    blocks = blocks_of(emitter, op, shape, part)
    overlap = overlaps(emitter, op, shape, blocks[0])
    finish: Callable[[], None] | None = None
    for block in blocks:
        if finish and not overlap:
            finish()
            finish = None
        q = _bring(emitter, op.inputs["q"], shape, shape.query, block, (block.row, block.rows), emitter.tiles)
        if not block.held or block.row == blocks[0].row:
            ring = emitter.weights if block.held else emitter.tiles
            k, v = (_bring(emitter, op.inputs[r], shape, shape.key, block, (0, shape.key.tokens), ring) for r in "kv")
        following = _scores(emitter, op, shape, block, (q, k, v), record, valid)
        if finish:
            finish()
        finish = following
    if finish:
        finish()


def overlaps(emitter: Emitter, op: Op, shape: Shape, block: Block) -> bool:
    """Whether two such blocks may be under way at a time."""
    return 2 * shape.need(emitter, op, block.groups, block.heads, block.rows, block.held) <= emitter.tiles.half


def blocks_of(emitter: Emitter, op: Op, shape: Shape, part: tuple[int, int] | None) -> list[Block]:
    """The blocks of all rows, or of ``part``: some rows of a branch, whole groups or (cross) any."""
    branches, first = range(emitter.graph.branches), (0, 0)
    counts = shape.groups, shape.query.tokens
    if part is not None:
        branch, row = divmod(part[0], shape.query.branch_rows)
        branches = range(branch, branch + 1)
        if shape.groups > 1:
            first, counts = (row // shape.query.tokens, 0), (part[1] // shape.query.tokens, shape.query.tokens)
        else:
            first, counts = (0, row), (1, part[1])
    sizes = counts[0], shape.heads, counts[1]
    groups_at, heads_at, rows_at, held = choose_block(emitter, op, shape, sizes)
    return [
        Block(
            branch, first[0] + group, min(groups_at, counts[0] - group), head, min(heads_at, shape.heads - head),
            first[1] + row, min(rows_at, counts[1] - row), held,
        )
        for branch in branches
        for group in range(0, counts[0], groups_at)
        for head in range(0, shape.heads, heads_at)
        for row in range(0, counts[1], rows_at)
    ]  # fmt: skip


def choose_block(
    emitter: Emitter, op: Op, shape: Shape, all_of: tuple[int, int, int]
) -> tuple[int, int, int, bool]:  # fmt: skip
    """(groups, heads, query rows, held) of a block, at most ``all_of``, reduced in this order until it fits.

    Two blocks are under way at a time, which together may take half the tile ring. One that is all, or the smallest
    there is, may take it alone.
    """
    half, (groups, heads, rows) = emitter.tiles.half, all_of
    if shape.need(emitter, op, *all_of) <= half:
        return *all_of, False
    for room in (half // 2, half):
        if shape.need(emitter, op, 1, 1, rows) <= room:
            while shape.need(emitter, op, groups, heads, rows) > room and groups > 1:
                groups = -(-groups // 2)
            while shape.need(emitter, op, groups, heads, rows) > room:
                heads = -(-heads // 2)
            return groups, heads, rows, False
        held = 0 < shape.keys_need(emitter, op) <= emitter.weights.half
        if shape.need(emitter, op, 1, 1, 1, held) <= room:
            while shape.need(emitter, op, 1, 1, rows, held) > room:
                rows = -(-rows // 2)
            return 1, 1, rows, held
    raise UserError(
        f"{op.layer}: attention of one query row over {shape.key.tokens} keys needs "
        f"{shape.need(emitter, op, 1, 1, 1)} bytes, half the SRAM tile zone has {half}; "
        "the machine is too small: allowed is a larger sram.capacity_bytes"
    )


def _scores(
    emitter: Emitter, op: Op, shape: Shape, block: Block, operands: tuple[Tile, Tile, Tile], record: int, valid: int
) -> Callable[[], None]:
    """The scores of a block and their exponentials; returns what makes the weighted sum. ``operands``: q, k, v."""
    attrs, names, dtype = op.attrs, op.inputs, DTYPE_NAMES.index
    m, n, batches = block.rows, shape.key.tokens, block.batches
    q, k, v = operands
    name, size = p_type(op)
    scores, p = _packed(emitter, block, n, 2), _packed(emitter, block, n, size)
    sums, factors = (emitter.tiles.take(batches * m * each, emitter.layer) for each in (4, ROW_RECORD.itemsize))
    element = {role: row_bytes(emitter.graph.values[names[role]], 1) for role in "kv"}
    common = {"m": m, "batch0": block.groups, "batch1": block.heads}
    emitter.emit(
        "matmul", **common, k=shape.width, n=n, **_operand("a", q), **_operand("out", scores),
        b_addr=k.address, b_b0=k.group, b_b1=k.head, b_k=element["k"], b_n=k.token,
        rq_addr=record, rq_mode=RQ_MODES.index("tensor"),
        a_dtype=emitter.dtype(names["q"]), b_dtype=emitter.dtype(names["k"]), out_dtype=dtype("i16"),
    )  # fmt: skip
    emitter.emit(
        "smexp", rows=batches * m, cols=n, a_addr=scores.address, a_row=scores.token, out_addr=p.address,
        out_row=p.token, out_dtype=dtype(name), sum_addr=sums, valid_addr=valid,
        fraction_bits=attrs["fraction_bits"], p_bits=attrs["p_bits"],
    )  # fmt: skip
    static = {"multiplier": attrs["out_multiplier"], "shift": attrs["out_shift"]}
    emitter.emit("recip", rows=batches * m, sum_addr=sums, out_addr=factors, **static)
    out = _place(emitter, op.output, shape, shape.query, block, (block.row, m), emitter.tiles)

    def weighted_sum() -> None:
        emitter.emit(
            "matmul", **common, k=n, n=shape.width, **_operand("a", p), **_operand("out", out),
            b_addr=v.address, b_b0=v.group, b_b1=v.head, b_k=v.token, b_n=element["v"],
            rq_addr=factors, rq_mode=RQ_MODES.index("row"), out_zp=attrs["out_zp"],
            a_dtype=dtype(name), b_dtype=emitter.dtype(names["v"]), out_dtype=emitter.dtype(op.output),
        )  # fmt: skip
        if not emitter.in_sram(op.output):
            _transfer(emitter, "store", op.output, shape, shape.query, block, (block.row, m), out)

    return weighted_sum


def _operand(role: str, tile: Tile) -> dict[str, int]:
    """Address fields of a MATMUL's operand ``a`` or ``out``."""
    return {
        f"{role}_addr": tile.address,
        f"{role}_b0": tile.group,
        f"{role}_b1": tile.head,
        f"{role}_row": tile.token,
    }


def _packed(emitter: Emitter, block: Block, columns: int, size: int) -> Tile:
    """A new buffer (groups, heads, query rows, columns) in the tile ring."""
    address = emitter.tiles.take(block.batches * block.rows * columns * size, emitter.layer)
    token = columns * size
    return Tile(address, block.heads * block.rows * token, block.rows * token, token)


def _start(shape: Shape, walk: Walk, block: Block, rows: tuple[int, int]) -> tuple[int, int]:
    """First row and first column of a block's tokens ``rows`` = (first, count) in the whole tensor."""
    row = block.branch * walk.branch_rows + block.group * walk.group_step + rows[0] * walk.token_step
    return row, block.head * shape.width


def _place(
    emitter: Emitter, name: str, shape: Shape, walk: Walk, block: Block, rows: tuple[int, int], ring: Ring
) -> Tile:
    """Where a block's tokens of one tensor stand in SRAM: in place, or a new buffer (groups, tokens, heads * width)."""
    head = row_bytes(emitter.graph.values[name], shape.width)
    if emitter.in_sram(name):
        offset, pitch = emitter.offset(name, *_start(shape, walk, block, rows))
        return Tile(emitter.home(name).address + offset, walk.group_step * pitch, head, walk.token_step * pitch)
    run = block.heads * head
    address = ring.take(block.groups * rows[1] * run, emitter.layer)
    return Tile(address, rows[1] * run, head, run)


def _bring(
    emitter: Emitter, name: str, shape: Shape, walk: Walk, block: Block, rows: tuple[int, int], ring: Ring
) -> Tile:
    """As ``_place``, and load the tokens if the tensor lives in DRAM."""
    tile = _place(emitter, name, shape, walk, block, rows, ring)
    if not emitter.in_sram(name):
        _transfer(emitter, "load", name, shape, walk, block, rows, tile)
    return tile


def _transfer(
    emitter: Emitter, kind: str, name: str, shape: Shape, walk: Walk, block: Block, rows: tuple[int, int], tile: Tile
) -> None:
    """Copy a block's tokens between DRAM and their buffer: one run of all its heads a token."""
    offset, pitch = emitter.offset(name, *_start(shape, walk, block, rows))
    loops = {
        "planes": block.groups, "dram_plane": walk.group_step * pitch, "local_plane": tile.group,
        "rows": rows[1], "dram_row": walk.token_step * pitch, "local_row": tile.token,
    }  # fmt: skip
    copy = emitter.load if kind == "load" else emitter.store
    copy(emitter.home(name), offset, tile.address, tile.token, **loops)
