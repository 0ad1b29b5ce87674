"""Tiling of what works row by row: element-wise operations, table lookup, LayerNorm with modulation, linears."""

from __future__ import annotations

from compiler.graph import BITS, Op
from compiler.schedule.emitter import Emitter, Place
from compiler.schedule.place import ALIGN, aligned, value_bytes
from npusim.errors import UserError
from npusim.isa.encoding import DTYPE_NAMES, NO_ADDRESS, row_bytes
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import RQ_MODES, SCALARS

MNEMONICS = {"elementwise": "ewlin", "product": "ewmul"}


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
    fixed = {"b": emitter.whole(matrices["b"])} if pattern else {}
    fields = {"b_addr": NO_ADDRESS, "a_mul_addr": NO_ADDRESS, "b_mul_addr": NO_ADDRESS, "bias_addr": NO_ADDRESS}
    vectors = [role for role in ("a_mul", "b_mul", "bias") if role in op.inputs]
    addresses = emitter.parameters([op.inputs[role] for role in vectors])
    fields |= {f"{role}_addr": address for role, address in zip(vectors, addresses, strict=True)}
    fields |= {key: attrs[key] for key in ("a_mul", "b_mul", "shift", "out_zp") if key in attrs}
    fields |= {f"{role}_dtype": emitter.dtype(name) for role, name in matrices.items()}
    fields["out_dtype"] = emitter.dtype(op.output)
    multipliers = {role: graph.values[op.inputs[f"{role}_mul"]] for role in matrices if f"{role}_mul" in op.inputs}
    # A 32-bit operand's multipliers have 32 bits without being asked.
    narrow = [value for role, value in multipliers.items() if graph.values[matrices[role]].dtype != "i32"]
    fields["wide"] = int(any(value.dtype == "i32" for value in narrow))
    fields["shared_mul"] = int(any(value.shape == (1,) for value in multipliers.values()))
    fields["shared_bias"] = int("bias" in op.inputs and graph.values[op.inputs["bias"]].shape == (1,))
    unit = graph.positions if pattern else 1
    moving = [name for role, name in matrices.items() if role not in fixed]
    step = rows_per_tile(emitter, moved(emitter, *moving, op.output), rows, unit)
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
        emitter.emit(MNEMONICS[op.kind], **_known(op, tile), rows=count // batch, cols=cols, batch=batch)
        emitter.commit(op.output, row, count, places["out"])


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


def layernorm_modulate(emitter: Emitter, op: Op) -> None:
    """LNSTAT and LNAPPLY over row tiles."""
    rows, cols = emitter.graph.values[op.output].shape
    g, b = emitter.parameters([op.inputs["g"], op.inputs["b"]])
    fields = {key: op.attrs[key] for key in ("fraction_bits", "shift", "out_zp")}
    fields["out_dtype"] = emitter.dtype(op.output)
    step = rows_per_tile(emitter, [*moved(emitter, op.inputs["x"], op.output), STATISTICS.itemsize], rows)
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
    """MATMUL: weights stay for a block of output channels while row tiles stream.

    With run-time quantization each tile goes through RTQUANT first, once for each block of output channels.
    """
    graph, x, weight = emitter.graph, op.inputs["x"], op.inputs["weight"]
    (n, k), rows = graph.values[weight].shape, graph.values[x].shape[0]
    dynamic, k_bytes, shifts = op.kind == "linear_dynamic", emitter.row_bytes(weight), op.inputs.get("shifts", "")
    packed = BITS[graph.values[weight].dtype] < 8
    mode = {"linear_dynamic": "factored_row", "linear_factored": "factored"}.get(op.kind, "channel")
    tables = [op.inputs[role] for role in ("shifts", "scalars") if role in op.inputs]
    fields = {
        "k": k, "batch0": 1, "batch1": 1, "b_k": 0 if packed else 1, "b_n": k_bytes, "out_zp": op.attrs["out_zp"],
        "rq_mode": RQ_MODES.index(mode), "a_dtype": emitter.dtype(x), "b_dtype": emitter.dtype(weight),
        "out_dtype": emitter.dtype(op.output), "shifted": int(bool(shifts)),
    }  # fmt: skip
    inner = []
    if mode != "channel":
        fields["fraction_bits"] = op.attrs["fraction_bits"]
    if dynamic:
        fields["a_dtype"] = run_time_type(op)
        inner = [row_bytes(run_time_type(op), k), SCALARS.itemsize]
    block = channels_per_block(emitter, op, tables)
    for column in range(0, n, block):
        width = min(block, n - column)
        address = emitter.weights.take(width * k_bytes, emitter.layer)
        emitter.load(emitter.homes[weight], column * k_bytes, address, width * k_bytes)
        records, *places = emitter.records(op.inputs["records"], column, width, tables)
        known = dict(zip(tables, places, strict=True))
        fields["shift_addr"] = known.get(shifts, 0)
        if "scalars" in op.inputs:
            fields["scalars_addr"] = known[op.inputs["scalars"]]
        out_bytes = [] if emitter.in_sram(op.output) else [row_bytes(emitter.dtype(op.output), width)]
        sizes = [*moved(emitter, x), *inner, *out_bytes]
        step = rows_per_tile(emitter, sizes, rows)
        for row in range(0, rows, step):
            count = min(step, rows - row)
            a = emitter.source(x, row, count)
            if dynamic:
                a, fields["scalars_addr"] = quantized_rows(emitter, op, a, count, k)
            out = emitter.target(op.output, row, count, column, width)
            place = {"a_addr": a.address, "a_row": a.row, "out_addr": out.address, "out_row": out.row}
            emitter.emit("matmul", **fields, **place, b_addr=address, rq_addr=records, m=count, n=width)
            emitter.commit(op.output, row, count, out, column)


def run_time_type(op: Op) -> int:
    """Number of the element type that RTQUANT makes."""
    return DTYPE_NAMES.index(f"u{op.attrs['bits']}")


def quantized_rows(emitter: Emitter, op: Op, a: Place, rows: int, cols: int) -> tuple[Place, int]:
    """RTQUANT of a tile; where the rows and their SCALARS stand."""
    dtype = run_time_type(op)
    out = Place(emitter.tiles.take(rows * row_bytes(dtype, cols), emitter.layer), row_bytes(dtype, cols))
    scalars = emitter.tiles.take(rows * SCALARS.itemsize, emitter.layer)
    emitter.emit(
        "rtquant", a_addr=a.address, a_row=a.row, out_addr=out.address, out_row=out.row, rows=rows, cols=cols,
        scalars_addr=scalars, multiplier=op.attrs["row_multiplier"], shift=op.attrs["row_shift"], out_dtype=dtype,
    )  # fmt: skip
    return out, scalars


def channels_per_block(emitter: Emitter, op: Op, tables: list[str]) -> int:
    """Output channels whose weights and records are held at once, beside ``tables`` that all blocks need.

    All channels, or a multiple of the array's columns.
    """
    graph, columns = emitter.graph, emitter.machine.mac_array.cols
    n, k_bytes = graph.values[op.inputs["weight"]].shape[0], emitter.row_bytes(op.inputs["weight"])
    record = BITS[graph.values[op.inputs["records"]].dtype] // 8
    table = sum(aligned(value_bytes(graph.values[name])) for name in tables)
    least = min(n, columns)
    block = min(n, emitter.weights.half // k_bytes, (emitter.params.half - table) // ALIGN * ALIGN // record)
    if block < least:
        raise UserError(
            f"{emitter.layer}: {least} output channels need {least * k_bytes} bytes of weights and "
            f"{least * record + table} bytes of parameters; half the SRAM weight zone has {emitter.weights.half}, half "
            f"of parameter memory {emitter.params.half}; the machine is too small: allowed is a larger "
            "sram.capacity_bytes or param_memory.capacity_bytes"
        )
    return n if block == n else block // columns * columns
