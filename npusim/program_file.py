"""Writes and reads program files, ``program.npu``: safetensors, with everything but the tensors in one JSON header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from npusim.atomic_file import writing_atomically
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES
from npusim.program import MAX_DRAM_BYTES, Buffer, Program, Swap
from npusim.program_rules import validate

FORMAT_VERSION = 6
MAX_RANK = 8
CODE = {"prologue": np.uint32, "step": np.uint32}
TENSORS = {**CODE, "constants": np.uint8, "sets": np.uint8, "range_sets": np.uint8, "coded": np.uint8}
FLAT = ("constants", "coded")


def save_program(program: Program, path: Path) -> None:
    """Write ``program`` to ``path``; the same program gives the same bytes. Raises UserError if it has no contents."""
    if not program.contents:
        raise UserError(f"{path}: a program without contents is for timing only; allowed: one compiled from weights")
    tensors, header = _tensors(program), _header(program)
    metadata = {
        "format": "npusim-program",
        "version": str(FORMAT_VERSION),
        "header": header,
        "sha256": digest(tensors, header),
    }
    with writing_atomically(Path(path)) as file:
        # As safetensors writes it, but tensor by tensor, so that no second copy of them is in memory, and with the keys
        # of its header in order, which safetensors has in a random one. Wide types first keeps every tensor aligned.
        entries: dict[str, Any] = {"__metadata__": metadata}
        order, end = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)), 0
        for name in order:
            start, end = end, end + tensors[name].nbytes
            kind = {1: "U8", 4: "U32"}[tensors[name].dtype.itemsize]
            entries[name] = {"data_offsets": [start, end], "dtype": kind, "shape": list(tensors[name].shape)}
        text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name]))


def load_program(path: Path) -> Program:
    """Read a program file.

    Raises UserError for a missing, truncated, altered or foreign file, and for one whose instructions are undefined or
    reach outside a memory, or whose buffers overlap. Whether the tokens order all accesses is not checked here:
    `npusim verify` (compiler.verify) does.
    """
    path = Path(path)
    if not path.is_file():
        hint = f"is a folder; did you mean {path / 'program.npu'}?" if path.is_dir() else "no such program file"
        raise UserError(f"{path}: {hint}")
    try:
        with safe_open(str(path), "numpy") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            if metadata.get("format") != "npusim-program" or names != set(TENSORS):
                raise UserError(f"{path}: not an npusim program file")
            if metadata.get("version") != str(FORMAT_VERSION):
                raise UserError(
                    f"{path}: format version {metadata.get('version')!r}; this npusim reads version {FORMAT_VERSION}"
                )
            tensors = {name: file.get_tensor(name) for name in TENSORS}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: truncated or damaged program file ({error})") from None
    if any(
        tensors[name].dtype != kind or tensors[name].ndim != (1 if name in FLAT else 2)
        for name, kind in TENSORS.items()
    ):
        raise UserError(f"{path}: a tensor has the wrong type or rank")
    header = metadata.get("header", "")
    if digest(tensors, header) != metadata.get("sha256"):
        raise UserError(f"{path}: contents do not match their SHA-256; the file was altered")
    try:
        program = _program(json.loads(header), tensors)
        validate(program)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged header ({' '.join(str(error).split())})") from None
    return program


def program_sha256(program: Program) -> str:
    """SHA-256 (hex) of everything that a program file holds."""
    return digest(_tensors(program), _header(program))


def _tensors(program: Program) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {name: getattr(program, name) for name in TENSORS}
    return tensors | {"step": np.concatenate(program.step_codes)}


def _header(program: Program) -> str:
    swap = program.swap
    return json.dumps(
        {
            "step_counts": [len(code) for code in program.step_codes],
            "code_of_step": list(program.code_of_step),
            "swap": None if swap is None else [swap.set_places, swap.range_places, [list(r) for r in swap.registers]],
            "machine": program.machine.model_dump(mode="json"),
            "set_address": program.set_address,
            "range_address": program.range_address,
            "range_of_step": list(program.range_of_step),
            "dram_bytes": program.dram_bytes,
            "buffers": {n: [b.address, b.dtype, list(b.shape)] for n, b in program.buffers.items()},
            "layers": list(program.layers),
            "host": program.host,
        },
        sort_keys=True,
    )


def digest(tensors: dict[str, NDArray[Any]], header: str) -> str:
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        sha.update(_bytes(tensors[name]))
    return sha.hexdigest()


def _bytes(tensor: NDArray[Any]) -> memoryview:
    """A tensor's bytes, without a copy of them."""
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _program(fields: Any, tensors: dict[str, NDArray[Any]]) -> Program:
    """Build the program of a header's ``fields``. Numbers must be integers: nothing is converted or rounded here."""
    machine = Machine.model_validate(fields.pop("machine"))
    buffers = {}
    for name, (address, dtype, shape) in fields.pop("buffers").items():
        if dtype not in DTYPES:
            raise UserError(f"buffer {name}: element type {dtype!r}; allowed: {', '.join(DTYPES)}")
        if not 1 <= len(shape) <= MAX_RANK:
            raise UserError(f"buffer {name}: {len(shape)} sizes; allowed 1..{MAX_RANK}")
        sizes = tuple(_whole(f"buffer {name}: size", size) for size in shape)
        buffers[name] = Buffer(_whole(f"buffer {name}: address", address), dtype, sizes)
    host = {name: _whole(f"host.{name}", value, low=-MAX_DRAM_BYTES) for name, value in fields.pop("host").items()}
    set_address, range_address, dram_bytes = (
        _whole(name, fields.pop(name)) for name in ("set_address", "range_address", "dram_bytes")
    )
    range_of_step = tuple(_whole("range_of_step", value) for value in fields.pop("range_of_step"))
    layers = tuple(str(name) for name in fields.pop("layers"))
    code_of_step = tuple(_whole("code_of_step", value) for value in fields.pop("code_of_step"))
    swap, counts = _swap(fields.pop("swap")), [_whole("step_counts", value) for value in fields.pop("step_counts")]
    if not counts or sum(counts) != len(tensors["step"]):
        raise UserError(f"step_counts = {counts}: allowed numbers whose sum is {len(tensors['step'])}")
    step, *more = np.split(tensors.pop("step"), np.cumsum(counts[:-1]))
    if fields:
        raise UserError(f"unknown header field {next(iter(fields))!r}")
    return Program(
        machine=machine, set_address=set_address, range_address=range_address, range_of_step=range_of_step,
        dram_bytes=dram_bytes, buffers=buffers, layers=layers, host=host, step=step, more_steps=tuple(more),
        code_of_step=code_of_step, swap=swap, contents=True, **tensors,
    )  # fmt: skip


def _swap(fields: Any) -> Swap | None:
    if fields is None:
        return None
    set_places, range_places, registers = fields
    rows = tuple(tuple(_whole("register", value) for value in row) for row in registers)
    return Swap(_whole("set_places", set_places), _whole("range_places", range_places), rows)


def _whole(name: str, value: Any, low: int = 0) -> int:
    if type(value) is not int or not low <= value <= MAX_DRAM_BYTES:
        raise UserError(f"{name} is {value!r}; allowed: an integer {low}..{MAX_DRAM_BYTES}")
    return value
