"""Tiling of linears: weights of a block of output channels stay while row tiles stream.

Where the weights of not even one round of the array's columns fit, the reduction is cut: pieces of K follow each other
in the accumulators (``acc_hold``, ``acc_continue``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from compiler.graph import BITS, Op
from compiler.schedule.emitter import Emitter, Place
from compiler.schedule.place import ALIGN, aligned, value_bytes
from compiler.schedule.tile_rows import moved, rows_per_tile
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.encoding import DTYPE_NAMES, row_bytes
from npusim.isa.matmul import RQ_MODES, SCALARS


@dataclass(frozen=True)
class Tiles:
    """How a linear is cut: ``columns`` output channels, ``depth`` of K and ``rows`` of a MATMUL.

    ``x_dtype``: of the input as the array gets it.
    """

    columns: int
    depth: int
    rows: int
    x_dtype: str


def linear_tiles(emitter: Emitter, op: Op) -> Tiles:
    """The cut of a linear by itself. Raises UserError where the smallest tile does not fit."""
    x, weight = op.inputs["x"], op.inputs["weight"]
    (n, k), rows = emitter.graph.values[weight].shape, emitter.graph.values[x].shape[0]
    dynamic = op.kind == "linear_dynamic"
    dtype = DTYPE_NAMES[run_time_type(op)] if dynamic else emitter.graph.values[x].dtype
    columns = channels_per_block(emitter, op, parameter_tables(op))
    if columns:
        return Tiles(columns, k, _rows(emitter, op, columns), dtype)
    most = Accumulators.of(emitter.machine)
    columns = min(n, most.columns)
    piece = piece_of_k(emitter, op, columns)
    inner = [] if dynamic or emitter.in_sram(x) else [emitter.columns_bytes(x, piece)]
    whole_rows = moved(emitter, x) if dynamic else []
    step = min(most.rows, rows_per_tile(emitter, [*whole_rows, *inner, *_buffers(emitter, op, k, columns)], rows))
    return Tiles(columns, piece, step, dtype)


def _rows(emitter: Emitter, op: Op, width: int) -> int:
    """Rows of a tile of ``width`` channels and all of K."""
    x = op.inputs["x"]
    rows, k = emitter.graph.values[x].shape
    return rows_per_tile(emitter, [*moved(emitter, x), *_buffers(emitter, op, k, width)], rows)


def linear(emitter: Emitter, op: Op) -> None:
    """MATMUL over row tiles.

    With run-time quantization each tile goes through RTQUANT first, once for each block of output channels.
    """
    x, weight = op.inputs["x"], op.inputs["weight"]
    (n, k), rows = emitter.graph.values[weight].shape, emitter.graph.values[x].shape[0]
    k_bytes, tables, fields = emitter.row_bytes(weight), parameter_tables(op), linear_fields(emitter, op)
    tiles = linear_tiles(emitter, op)
    if tiles.depth < k:
        _in_pieces_of_k(emitter, op, tiles, fields)
        return
    for column in range(0, n, tiles.columns):
        width = min(tiles.columns, n - column)
        address = emitter.weights.take(width * k_bytes, emitter.layer)
        emitter.load(emitter.homes[weight], column * k_bytes, address, width * k_bytes)
        fields |= _records(emitter, op, column, width, tables)
        step = _rows(emitter, op, width)
        for row in range(0, rows, step):
            count = min(step, rows - row)
            a = emitter.source(x, row, count)
            if op.kind == "linear_dynamic":
                a, fields["scalars_addr"] = quantized_rows(emitter, op, a, count, k)
            out = emitter.target(op.output, row, count, column, width)
            place = {"a_addr": a.address, "a_row": a.row, "out_addr": out.address, "out_row": out.row}
            emitter.emit("matmul", **fields, **place, k=k, b_n=k_bytes, b_addr=address, m=count, n=width)
            emitter.commit(op.output, row, count, out, column)


def _in_pieces_of_k(emitter: Emitter, op: Op, tiles: Tiles, fields: dict[str, int]) -> None:
    """As ``linear``, with sums that stay in the accumulators while pieces of K come and go.

    A tile is what the accumulators hold, and the weights pass by once for each row tile.
    """
    x, weight = op.inputs["x"], op.inputs["weight"]
    (n, k), rows = emitter.graph.values[weight].shape, emitter.graph.values[x].shape[0]
    dynamic = op.kind == "linear_dynamic"
    for column in range(0, n, tiles.columns):
        width = min(tiles.columns, n - column)
        fields |= _records(emitter, op, column, width, parameter_tables(op))
        shift_addr = fields["shift_addr"]
        for row in range(0, rows, tiles.rows):
            count = min(tiles.rows, rows - row)
            if dynamic:
                whole, fields["scalars_addr"] = quantized_rows(emitter, op, emitter.source(x, row, count), count, k)
            out = emitter.target(op.output, row, count, column, width)
            for first in range(0, k, tiles.depth):
                depth = min(tiles.depth, k - first)
                if dynamic:
                    a = Place(whole.address + row_bytes(fields["a_dtype"], first), whole.row)
                else:
                    a = emitter.source(x, row, count, first, depth)
                address, b_n = weight_piece(emitter, weight, column, width, first, depth)
                fields |= {"acc_continue": int(first > 0), "acc_hold": int(first + depth < k)}
                fields["shift_addr"] = shift_addr + first // 4  # two bits each
                place = {"a_addr": a.address, "a_row": a.row, "out_addr": out.address, "out_row": out.row}
                emitter.emit("matmul", **fields, **place, k=depth, b_n=b_n, b_addr=address, m=count, n=width)
            emitter.commit(op.output, row, count, out, column)


@dataclass(frozen=True)
class Accumulators:
    """The largest result of one MATMUL whose sums are held."""

    rows: int
    columns: int

    @classmethod
    def of(cls, machine: Machine) -> Accumulators:
        array = machine.mac_array
        return {
            "weight_stationary": cls(array.acc_rows, array.cols),
            "input_stationary": cls(array.cols, array.acc_rows),
            "output_stationary": cls(array.rows, array.cols),
        }[array.dataflow]


def weight_piece(emitter: Emitter, weight: str, column: int, width: int, first: int, depth: int) -> tuple[int, int]:
    """Load weights of some channels and some of K into the weight ring; their address, and bytes between channels."""
    offset, pitch = emitter.offset(weight, column, first)
    run = emitter.columns_bytes(weight, depth)
    address = emitter.weights.take(width * run, emitter.layer)
    emitter.load(emitter.homes[weight], offset, address, run, rows=width, dram_row=pitch, local_row=run)
    return address, run


def piece_of_k(emitter: Emitter, op: Op, block: int) -> int:
    """Values of K whose weights for ``block`` channels fit half the weight ring: whole rounds of the array's rows.

    Raises UserError if not even one round fits.
    """
    array, bits = emitter.machine.mac_array, BITS[emitter.graph.values[op.inputs["weight"]].dtype]
    unit = lcm(array.rows * array.a4w4_per_cell, 8)  # a piece begins at a byte, in the table of shifts too
    pieces = emitter.weights.half * 8 // (block * bits) // unit
    if not pieces:
        raise UserError(
            f"{emitter.layer}: {block} output channels and {unit} inputs need {block * unit * bits // 8} bytes of "
            f"weights; half the SRAM weight zone has {emitter.weights.half}; the machine is too small: allowed is a "
            "larger sram.capacity_bytes"
        )
    return pieces * unit


def parameter_tables(op: Op) -> list[str]:
    """What a linear needs in parameter memory beside the records of its channels."""
    return [op.inputs[role] for role in ("shifts", "scalars") if role in op.inputs]


def linear_fields(emitter: Emitter, op: Op) -> dict[str, int]:
    """Fields of MATMUL that all tiles of a linear share."""
    weight = emitter.graph.values[op.inputs["weight"]]
    mode = {"linear_dynamic": "factored_row", "linear_factored": "factored"}.get(op.kind, "channel")
    fields = {
        "batch0": 1, "batch1": 1, "b_k": BITS[weight.dtype] // 8, "out_zp": op.attrs["out_zp"],
        "rq_mode": RQ_MODES.index(mode), "a_dtype": emitter.dtype(op.inputs["x"]),
        "b_dtype": emitter.dtype(weight.name), "out_dtype": emitter.dtype(op.output),
        "shifted": int("shifts" in op.inputs),
    }  # fmt: skip
    if mode != "channel":
        fields["fraction_bits"] = op.attrs["fraction_bits"]
    if op.kind == "linear_dynamic":
        fields["a_dtype"] = run_time_type(op)
    return fields


def _records(emitter: Emitter, op: Op, column: int, width: int, tables: list[str]) -> dict[str, int]:
    """Bring what a block of channels needs into parameter memory; the fields that say where."""
    records, *places = emitter.vectors([(op.inputs["records"], column, width), *((name, 0, 0) for name in tables)])
    known = dict(zip(tables, places, strict=True))
    fields = {"rq_addr": records, "shift_addr": known.get(op.inputs.get("shifts", ""), 0)}
    if "scalars" in op.inputs:
        fields["scalars_addr"] = known[op.inputs["scalars"]]
    return fields


def _buffers(emitter: Emitter, op: Op, k: int, width: int) -> list[int]:
    """Bytes a row in the tile ring beside the input: what RTQUANT writes, and ``width`` channels of the result."""
    inner = [row_bytes(run_time_type(op), k), SCALARS.itemsize] if op.kind == "linear_dynamic" else []
    return inner if emitter.in_sram(op.output) else [*inner, row_bytes(emitter.dtype(op.output), width)]


def run_time_type(op: Op) -> int:
    """Number of the element type that RTQUANT makes."""
    return DTYPE_NAMES.index(f"u{op.attrs['bits']}")


def quantized_rows(emitter: Emitter, op: Op, a: Place, rows: int, cols: int) -> tuple[Place, int]:
    """RTQUANT of a tile; where the rows and their SCALARS stand."""
    dtype = run_time_type(op)
    out = Place(emitter.tiles.take(rows * row_bytes(dtype, cols), emitter.layer), row_bytes(dtype, cols))
    scalars = emitter.tiles.take(rows * SCALARS.itemsize, emitter.layer)
    rtquant(emitter, op, a, out, scalars, rows)
    return out, scalars


def rtquant(emitter: Emitter, op: Op, a: Place, out: Place, scalars: int, rows: int) -> None:
    """RTQUANT of ``rows`` rows of a linear's input at ``a``."""
    emitter.emit(
        "rtquant", a_addr=a.address, a_row=a.row, out_addr=out.address, out_row=out.row, rows=rows,
        cols=emitter.graph.values[op.inputs["x"]].shape[1], scalars_addr=scalars,
        multiplier=op.attrs["row_multiplier"], shift=op.attrs["row_shift"], out_dtype=run_time_type(op),
    )  # fmt: skip


def quantized_bytes(emitter: Emitter, op: Op, rows: int) -> tuple[int, int]:
    """Bytes of one quantized row of a linear's input, and where behind ``rows`` of them their SCALARS begin."""
    pitch = row_bytes(run_time_type(op), emitter.graph.values[op.inputs["x"]].shape[1])
    return pitch, aligned(rows * pitch)


def channels_per_block(emitter: Emitter, op: Op, tables: list[str]) -> int:
    """Output channels whose weights and records are held at once, beside ``tables`` that all blocks need.

    All channels, or a multiple of the array's columns; 0 where the weights of one round of columns do not fit. Raises
    UserError where parameter memory does not hold the records of as many.
    """
    graph, columns = emitter.graph, emitter.machine.mac_array.cols
    n, k_bytes = graph.values[op.inputs["weight"]].shape[0], emitter.row_bytes(op.inputs["weight"])
    record = BITS[graph.values[op.inputs["records"]].dtype] // 8
    table = sum(aligned(value_bytes(graph.values[name])) for name in tables)
    least = min(n, columns)
    channels = min(n, (emitter.params.half - table) // ALIGN * ALIGN // record)
    if channels < least:
        raise UserError(
            f"{emitter.layer}: {least} output channels need {least * record + table} bytes of parameters; half of "
            f"parameter memory has {emitter.params.half}; the machine is too small: allowed is a larger "
            "param_memory.capacity_bytes"
        )
    block = min(channels, emitter.weights.half // k_bytes)
    if block < least:
        return 0
    return n if block == n else block // columns * columns
