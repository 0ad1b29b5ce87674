"""Tiling of the operations that work row by row: element-wise, table lookup, LayerNorm with modulation, and the linears."""

from __future__ import annotations

from compiler.graph import Op
from compiler.schedule.emitter import Emitter
from compiler.schedule.place import ALIGN
from npusim.errors import UserError
from npusim.isa.encoding import NO_ADDRESS
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import RECORD, RQ_MODES


def rows_per_tile(
    emitter: Emitter, names: list[str], rows: int, unit: int = 1, extra: int = 0, widths: dict[str, int] | None = None
) -> int:
    """Rows of a tile, a multiple of ``unit``, so that all operands that live in DRAM (and ``extra`` bytes a row) fit half the ring."""
    sizes = [(widths or {}).get(n) or emitter.row_bytes(n) for n in names if not emitter.in_sram(n)]
    room = emitter.tiles.half - ALIGN * (len(sizes) + 1)
    fit = min(rows, room // max(1, sum(sizes) + extra))
    if fit < min(unit, rows):
        raise UserError(
            f"{emitter.layer}: a tile of {unit} rows needs {unit * (sum(sizes) + extra)} bytes, half the SRAM tile zone has {max(room, 0)}; "
            "the machine is too small: allowed is a larger sram.capacity_bytes"
        )
    return max(1, fit // unit * unit)


def elementwise(emitter: Emitter, op: Op) -> None:
    """EWLIN over row tiles; a table operand (by position or by frame) is walked with strides."""
    attrs, graph = op.attrs, emitter.graph
    rows, cols = graph.values[op.output].shape
    pattern = attrs.get("b_rows", "")
    matrices = {role: op.inputs[role] for role in ("a", "b") if role in op.inputs}
    fixed = {"b": emitter.whole(matrices["b"])} if pattern else {}
    fields = {"b_addr": NO_ADDRESS, "a_mul_addr": NO_ADDRESS, "b_mul_addr": NO_ADDRESS, "bias_addr": NO_ADDRESS}
    for role in ("a_mul", "b_mul", "bias"):
        if role in op.inputs:
            fields[f"{role}_addr"] = emitter.parameter(op.inputs[role])
    fields |= {key: attrs[key] for key in ("a_mul", "b_mul", "shift", "out_zp") if key in attrs}
    fields |= {f"{role}_dtype": emitter.dtype(name) for role, name in matrices.items()} | {
        "out_dtype": emitter.dtype(op.output)
    }
    unit = graph.positions if pattern else 1
    moving = [name for role, name in matrices.items() if role not in fixed]
    step = rows_per_tile(emitter, [*moving, op.output], rows, unit)
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
            tile |= {
                f"{role}_addr": place.address,
                f"{role}_row": place.row,
                f"{role}_batch": place.row * unit if batch > 1 else 0,
            }
        if pattern == "position":
            tile["b_batch"] = 0
        elif pattern == "frame":
            tile["b_addr"] += row // unit % graph.frames * places["b"].row
            tile["b_batch"], tile["b_row"] = places["b"].row if batch > 1 else 0, 0
        emitter.emit(
            "ewlin" if op.kind == "elementwise" else "ewmul",
            **_known(op, tile),
            rows=count // batch,
            cols=cols,
            batch=batch,
        )
        emitter.commit(op.output, row, count, places["out"])


def _known(op: Op, fields: dict[str, int]) -> dict[str, int]:
    """EWMUL has no multipliers."""
    drop = ("a_mul", "b_mul", "a_mul_addr", "b_mul_addr", "bias_addr") if op.kind == "product" else ()
    return {key: value for key, value in fields.items() if key not in drop}


def table(emitter: Emitter, op: Op) -> None:
    """TABLE over row tiles; the table is loaded once."""
    rows, cols = emitter.graph.values[op.output].shape
    fields = {"table_addr": emitter.parameter(op.inputs["table"]), "out_dtype": emitter.dtype(op.output)}
    fields |= {key: op.attrs[key] for key in ("multiplier", "shift", "out_zp")}
    step = rows_per_tile(emitter, [op.inputs["x"], op.output], rows)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        x, out = emitter.source(op.inputs["x"], row, count), emitter.target(op.output, row, count)
        emitter.emit(
            "table",
            a_addr=x.address,
            a_row=x.row,
            out_addr=out.address,
            out_row=out.row,
            rows=count,
            cols=cols,
            **fields,
        )
        emitter.commit(op.output, row, count, out)


def layernorm_modulate(emitter: Emitter, op: Op) -> None:
    """LNSTAT and LNAPPLY over row tiles."""
    rows, cols = emitter.graph.values[op.output].shape
    g, b = emitter.parameter(op.inputs["g"]), emitter.parameter(op.inputs["b"])
    fields = {key: op.attrs[key] for key in ("fraction_bits", "shift", "out_zp")} | {
        "out_dtype": emitter.dtype(op.output)
    }
    step = rows_per_tile(emitter, [op.inputs["x"], op.output], rows, extra=STATISTICS.itemsize)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        x = emitter.source(op.inputs["x"], row, count)
        out = emitter.target(op.output, row, count)
        shared = {"a_addr": x.address, "a_row": x.row, "rows": count, "cols": cols}
        shared["stat_addr"] = emitter.tiles.take(count * STATISTICS.itemsize, emitter.layer)
        emitter.emit("lnstat", **shared, epsilon=op.attrs["epsilon"])
        emitter.emit("lnapply", **shared, **fields, out_addr=out.address, out_row=out.row, g_addr=g, b_addr=b)
        emitter.commit(op.output, row, count, out)


def linear(emitter: Emitter, op: Op) -> None:
    """MATMUL: weights stay for a block of output channels while row tiles stream."""
    graph, array = emitter.graph, emitter.machine.mac_array
    x, weight = graph.values[op.inputs["x"]], graph.values[op.inputs["weight"]]
    n, k = weight.shape
    block = min(n, emitter.weights.half // k, emitter.params.half // RECORD.itemsize)
    if block < min(n, array.cols):
        raise UserError(
            f"{op.layer}: weights of {min(n, array.cols)} output channels x {k} inputs ({min(n, array.cols) * k} bytes, with "
            f"{min(n, array.cols) * RECORD.itemsize} bytes of records) do not fit half of the SRAM weight zone ({emitter.weights.half} bytes) "
            f"and of parameter memory ({emitter.params.half} bytes); the machine is too small"
        )
    block = block if block == n else block // array.cols * array.cols
    size = graph.values[op.output]
    out_bytes = emitter.row_bytes(op.output) // size.shape[1]
    common = {
        "k": k,
        "batch0": 1,
        "batch1": 1,
        "b_k": 1,
        "b_n": k,
        "out_zp": op.attrs["out_zp"],
        "rq_mode": RQ_MODES.index("channel"),
    }
    types = {
        "a_dtype": emitter.dtype(x.name),
        "b_dtype": emitter.dtype(weight.name),
        "out_dtype": emitter.dtype(op.output),
    }
    for column in range(0, n, block):
        width = min(block, n - column)
        address = emitter.weights.take(width * k, emitter.layer)
        emitter.load(emitter.homes[weight.name], column * k, address, width * k)
        records = emitter.parameter(op.inputs["records"], column, width)
        step = rows_per_tile(emitter, [x.name, op.output], x.shape[0], widths={op.output: width * out_bytes})
        for row in range(0, x.shape[0], step):
            count = min(step, x.shape[0] - row)
            a = emitter.source(x.name, row, count)
            offset, pitch = emitter.offset(op.output, row, column)
            stays = emitter.in_sram(op.output)
            out = (
                emitter.home(op.output).address + offset
                if stays
                else emitter.tiles.take(count * width * out_bytes, emitter.layer)
            )
            local = pitch if stays else width * out_bytes
            place = {
                "a_addr": a.address,
                "a_row": a.row,
                "b_addr": address,
                "out_addr": out,
                "out_row": local,
                "rq_addr": records,
            }
            emitter.emit("matmul", **common, **types, **place, m=count, n=width)
            if not stays:
                loops = {"rows": count, "dram_row": pitch, "local_row": local}
                emitter.store(emitter.home(op.output), offset, out, local, **loops)
