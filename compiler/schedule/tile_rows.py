"""Tiling of what works row by row on the vector unit: element-wise operations, table lookup, LayerNorm."""

from __future__ import annotations

from compiler.graph import Op
from compiler.schedule.emitter import Emitter
from compiler.schedule.place import ALIGN, value_bytes
from npusim.errors import UserError
from npusim.isa.encoding import NO_ADDRESS
from npusim.isa.layernorm import STATISTICS

MNEMONICS = {"elementwise": "ewlin", "product": "ewmul", "table": "table"}


def moved(emitter: Emitter, *names: str) -> list[int]:
    """Bytes of one row of each operand that lives in DRAM and so needs a buffer in the tile ring."""
    return [emitter.row_bytes(name) for name in names if not emitter.in_sram(name)]


def rows_per_tile(emitter: Emitter, sizes: list[int], rows: int, unit: int = 1) -> int:
    """Rows of a tile, a multiple of ``unit`` or all, so that buffers of ``sizes`` bytes a row fit half the ring."""
    if not sizes:
        return rows
    fit = min(rows, (emitter.tiles.half - ALIGN * len(sizes)) // sum(sizes))
    least = min(unit, rows)
    if fit < least:
        raise UserError(
            f"{emitter.layer}: a tile of {least} rows needs {least * sum(sizes) + ALIGN * len(sizes)} bytes, half the "
            f"SRAM tile zone has {emitter.tiles.half}; machine too small: allowed is a larger sram.capacity_bytes"
        )
    return rows if fit == rows else fit // unit * unit


def elementwise(emitter: Emitter, op: Op) -> None:
    """EWLIN over row tiles; a table operand (by position or by frame) is walked with strides."""
    attrs, graph = op.attrs, emitter.graph
    rows, cols = graph.values[op.output].shape
    pattern = attrs.get("b_rows", "")
    matrices: dict[str, str] = {role: op.inputs[role] for role in ("a", "b") if role in op.inputs}
    fields = elementwise_fields(emitter, op)
    unit = graph.positions if pattern else 1
    moving = moved(emitter, *(name for role, name in matrices.items() if role == "a" or not pattern), op.output)
    if pattern and (
        _too_large(emitter, moving, unit) or value_bytes(graph.values[matrices["b"]]) > emitter.weights.half
    ):
        _by_parts_of_frames(emitter, op, fields)
        return
    fixed = {"b": emitter.whole(matrices["b"])} if pattern else {}
    step = rows_per_tile(emitter, moving, rows, unit)
    if pattern == "frame":  # A tile ends with the branch, because the frame count starts again there.
        step = min(step, graph.frames * unit)
        while graph.frames * unit % step:
            step -= unit
    for row in range(0, rows, step):
        count = min(step, rows - row)
        batch = count // unit if pattern else 1
        places = {role: fixed.get(role) or emitter.source(name, row, count) for role, name in matrices.items()}
        places["out"] = emitter.target(op.output, row, count)
        tile = dict(fields)
        for role, place in places.items():
            tile |= {f"{role}_addr": place.address, f"{role}_row": place.row}
            tile[f"{role}_batch"] = place.row * unit if batch > 1 else 0
        if pattern == "position":
            tile["b_batch"] = 0
        elif pattern == "frame":
            tile["b_addr"] += row // unit % graph.frames * places["b"].row
            tile["b_batch"], tile["b_row"] = places["b"].row if batch > 1 else 0, 0
        emitter.emit(MNEMONICS[op.kind], **tile, rows=count // batch, cols=cols, batch=batch)
        emitter.commit(op.output, row, count, places["out"])


def elementwise_fields(emitter: Emitter, op: Op) -> dict[str, int]:
    """Fields of EWLIN or EWMUL that all tiles share; brings the vectors into parameter memory."""
    vectors = [role for role in ("a_mul", "b_mul", "bias") if role in op.inputs]
    addresses = emitter.parameters([op.inputs[role] for role in vectors])
    return elementwise_constants(emitter, op, dict(zip(vectors, addresses, strict=True)))


def elementwise_constants(emitter: Emitter, op: Op, vectors: dict[str, int]) -> dict[str, int]:
    """Fields of EWLIN or EWMUL that do not depend on the tile, with vectors at these addresses."""
    attrs, graph = op.attrs, emitter.graph
    matrices = {role: op.inputs[role] for role in ("a", "b") if role in op.inputs}
    fields = {"b_addr": NO_ADDRESS, "a_mul_addr": NO_ADDRESS, "b_mul_addr": NO_ADDRESS, "bias_addr": NO_ADDRESS}
    fields |= {f"{role}_addr": address for role, address in vectors.items()}
    fields |= {key: attrs[key] for key in ("a_mul", "b_mul", "shift", "out_zp") if key in attrs}
    fields |= {f"{role}_dtype": emitter.dtype(name) for role, name in matrices.items()}
    fields["out_dtype"] = emitter.dtype(op.output)
    multipliers = {role: graph.values[op.inputs[f"{role}_mul"]] for role in matrices if f"{role}_mul" in op.inputs}
    # A 32-bit operand's multipliers have 32 bits without being asked.
    narrow = [value for role, value in multipliers.items() if graph.values[matrices[role]].dtype != "i32"]
    fields["wide"] = int(any(value.dtype == "i32" for value in narrow))
    fields["shared_mul"] = int(any(value.shape == (1,) for value in multipliers.values()))
    fields["shared_bias"] = int("bias" in op.inputs and graph.values[op.inputs["bias"]].shape == (1,))
    return _known(op, fields)


def _too_large(emitter: Emitter, sizes: list[int], rows: int) -> bool:
    """Whether a tile of ``rows`` rows exceeds half the tile ring."""
    return rows * sum(sizes) + ALIGN * len(sizes) > emitter.tiles.half


def _by_parts_of_frames(emitter: Emitter, op: Op, fields: dict[str, int]) -> None:
    """EWLIN with a table of rows, where a whole frame does not fit: some positions of one frame at a time.

    The table's rows of these positions serve all frames before the next ones are loaded.
    """
    graph, a, table, pattern = emitter.graph, op.inputs["a"], op.inputs["b"], op.attrs["b_rows"]
    rows, cols = graph.values[op.output].shape
    by_position = pattern == "position"
    step = rows_per_tile(emitter, moved(emitter, a, op.output), graph.positions)
    if by_position:
        step = max(1, min(step, emitter.weights.half // emitter.row_bytes(table)))
    for position in range(0, graph.positions, step):
        count = min(step, graph.positions - position)
        b = emitter.whole(table, (position, count) if by_position else None)
        for frame in range(rows // graph.positions):
            row = frame * graph.positions + position
            x, out = emitter.source(a, row, count), emitter.target(op.output, row, count)
            tile = {"a_addr": x.address, "a_row": x.row, "out_addr": out.address, "out_row": out.row}
            tile["b_addr"] = b.address + (0 if by_position else frame % graph.frames * b.row)
            tile["b_row"] = b.row if by_position else 0
            emitter.emit(MNEMONICS[op.kind], **{**fields, **tile}, rows=count, cols=cols, batch=1)
            emitter.commit(op.output, row, count, out)


def _known(op: Op, fields: dict[str, int]) -> dict[str, int]:
    """EWMUL has no multipliers."""
    linear_only = ("a_mul", "b_mul", "a_mul_addr", "b_mul_addr", "bias_addr", "wide", "shared_mul", "shared_bias")
    drop = linear_only if op.kind == "product" else ()
    return {key: value for key, value in fields.items() if key not in drop}


def table(emitter: Emitter, op: Op) -> None:
    """TABLE over row tiles; the table is loaded once."""
    rows, cols = emitter.graph.values[op.output].shape
    fields = {"table_addr": emitter.parameters([op.inputs["table"]])[0], "out_dtype": emitter.dtype(op.output)}
    fields |= {key: op.attrs[key] for key in ("multiplier", "shift", "out_zp")}
    step = rows_per_tile(emitter, moved(emitter, op.inputs["x"], op.output), rows)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        x, out = emitter.source(op.inputs["x"], row, count), emitter.target(op.output, row, count)
        place = {"a_addr": x.address, "a_row": x.row, "out_addr": out.address, "out_row": out.row}
        emitter.emit("table", **fields, **place, rows=count, cols=cols)
        emitter.commit(op.output, row, count, out)


def layernorm_modulate(emitter: Emitter, op: Op, part: tuple[int, int] | None = None) -> None:
    """LNSTAT and LNAPPLY over row tiles, of all rows or of ``part`` (first, count)."""
    total, cols = emitter.graph.values[op.output].shape
    first, rows = part or (0, total)
    g, b = emitter.parameters([op.inputs["g"], op.inputs["b"]])
    fields = {key: op.attrs[key] for key in ("fraction_bits", "shift", "out_zp")}
    fields["out_dtype"] = emitter.dtype(op.output)
    step = rows_per_tile(emitter, [*moved(emitter, op.inputs["x"], op.output), STATISTICS.itemsize], rows)
    for row in range(first, first + rows, step):
        count = min(step, first + rows - row)
        x = emitter.source(op.inputs["x"], row, count)
        out = emitter.target(op.output, row, count)
        shared = {"a_addr": x.address, "a_row": x.row, "rows": count, "cols": cols}
        shared["stat_addr"] = emitter.tiles.take(count * STATISTICS.itemsize, emitter.layer)
        emitter.emit("lnstat", **shared, epsilon=op.attrs["epsilon"])
        emitter.emit("lnapply", **shared, **fields, out_addr=out.address, out_row=out.row, g_addr=g, b_addr=b)
        emitter.commit(op.output, row, count, out)
