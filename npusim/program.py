"""The program container ``program.npu``: instruction words, constants, parameter sets and the map of DRAM, in one file.

DRAM as the program sees it: ``constants`` from address 0, then one set of constants per denoising step, one parameter
set per time range, and buffers. The prologue runs once per video, the step code once per denoising step with base
register 1 at the step's constants, base 2 at the step's noise and base 3 at the set of the step's time range. Sets may
begin in storage instead (`Swap`): then DRAM has places for some of them only, and the code fetches them, which takes
several step codes. The file is safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, broken_rules, check_halt, decode
from npusim.isa.addressing import BASES
from npusim.isa.encoding import DTYPES, Decoded, Region

FORMAT_VERSION = 6
MAX_STEPS, MAX_DRAM_BYTES, MAX_RANK = 10_000, 1 << 40, 8
CODE = {"prologue": np.uint32, "step": np.uint32}
TENSORS = {**CODE, "constants": np.uint8, "sets": np.uint8, "range_sets": np.uint8, "coded": np.uint8}
FLAT = ("constants", "coded")


@dataclass(frozen=True)
class Buffer:
    """A named DRAM buffer that the host reads or writes: byte address, element type, shape."""

    address: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size; a Python integer, so that an absurd shape cannot overflow it."""
        return prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """NumPy type of an element."""
        return np.dtype(DTYPES[self.dtype][0])


@dataclass(frozen=True)
class Swap:
    """Where sets come to lie in DRAM that begin in storage.

    ``set_places``: how many sets of steps' constants have room at ``Program.set_address``; 0 where all of them lie in
    DRAM from the start. ``range_places``: the same for the time ranges' sets at ``Program.range_address``.
    ``registers``: the base registers of the prologue, then of each step; (1 + steps, BASES).
    """

    set_places: int
    range_places: int
    registers: tuple[tuple[int, ...], ...]


class Code:
    """The decoded instructions of a part of a program, for going through in order.

    A decoded instruction takes 20 times as much memory as its words: of long parts, a piece at a time is held.
    """

    PIECE, LONG = 1 << 12, 1 << 17

    def __init__(self, part: str, words: NDArray[np.uint32]) -> None:
        """``words``: uint32 (count, 32). Raises UserError for what stands behind HALT, or a short part's bad words."""
        self._part, self._words = part, words
        with self._naming():
            check_halt(words)
        self._held = self._piece(0, len(words)) if len(words) <= self.LONG else None

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[Decoded]:
        return chain.from_iterable(piece for _, piece in self.pieces())

    def pieces(self) -> Iterator[tuple[int, list[Decoded]]]:
        """The instructions piece by piece, each with its first one's index."""
        if self._held is not None:
            yield 0, self._held
            return
        for start in range(0, len(self), self.PIECE):
            yield start, self._piece(start, self.PIECE)

    def _piece(self, start: int, count: int) -> list[Decoded]:
        with self._naming():
            return decode(self._words[start : start + count], start)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._part}: {error}") from None


@dataclass(frozen=True)
class Program:
    """A compiled denoiser.

    ``prologue`` and ``step``: uint32 (count, 32). ``constants``: uint8. ``sets``: uint8 (steps, set_bytes), placed at
    ``set_address``. ``range_sets``: uint8 (ranges, set_bytes), placed at ``range_address``; ``range_of_step`` says
    which of them a step uses. ``buffers`` by name; ``buffers["noise"]``, if there is one, holds one plane per step.
    ``layers`` are the names that instructions point to. ``host`` gives the fractional bits of the fixed-point buffers,
    for the host only; integers. With ``swap``, sets begin in storage, which holds ``sets``, ``range_sets`` and
    ``coded`` one behind the other; with ``coded``, the codes of all range sets but the first, only the first of these.
    ``more_steps`` are step codes beside ``step``, and ``code_of_step`` is the number of
    the one that each step runs, ``step`` being 0; empty where all run that. Without ``contents``,
    constants and sets have their sizes and hold nothing, and immediates mean nothing: the program can be timed, not run
    or saved.
    """

    machine: Machine
    prologue: NDArray[np.uint32]
    step: NDArray[np.uint32]
    constants: NDArray[np.uint8]
    sets: NDArray[np.uint8]
    range_sets: NDArray[np.uint8]
    set_address: int
    range_address: int
    range_of_step: tuple[int, ...]
    dram_bytes: int
    buffers: dict[str, Buffer]
    layers: tuple[str, ...]
    host: dict[str, Any]
    coded: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    more_steps: tuple[NDArray[np.uint32], ...] = ()
    code_of_step: tuple[int, ...] = ()
    swap: Swap | None = None
    contents: bool = True

    @property
    def steps(self) -> int:
        return int(self.sets.shape[0])

    @property
    def step_codes(self) -> tuple[NDArray[np.uint32], ...]:
        """All codes that steps run, by number."""
        return self.step, *self.more_steps

    def code_number(self, step: int) -> int:
        """Which of `step_codes` denoising step ``step`` runs."""
        return self.code_of_step[step] if self.code_of_step else 0

    def part_of_step(self, step: int) -> str:
        """The name in `code` of what denoising step ``step`` runs."""
        return _part_name(self.code_number(step))

    @property
    def prologue_bases(self) -> list[int]:
        """Base registers in the prologue."""
        return list(self.swap.registers[0]) if self.swap else [0] * BASES

    def bases(self, step: int) -> list[int]:
        """Base registers in denoising step ``step``."""
        if self.swap:
            return list(self.swap.registers[1 + step])
        noise = self.buffers.get("noise")
        plane = noise.address + step * self.noise_bytes if noise else 0
        range_set = self.range_address + self.range_of_step[step] * self.range_sets.shape[1]
        known = [0, self.set_address + step * self.sets.shape[1], plane, range_set]
        return known + [0] * (BASES - len(known))

    @property
    def areas(self) -> dict[str, tuple[int, NDArray[np.uint8]]]:
        """What lies in DRAM before the host writes its inputs: name to address and bytes."""
        areas = {"constants": (0, self.constants)}
        if not (self.swap and self.swap.set_places):
            areas["sets"] = self.set_address, self.sets.reshape(-1)
        if not (self.swap and self.swap.range_places):
            areas["range_sets"] = self.range_address, self.range_sets.reshape(-1)
        return areas

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Bytes [start, end) of DRAM that FETCH may fill: name to start and end."""
        if self.swap is None:
            return {}
        sizes = {
            "places of sets": (self.set_address, self.swap.set_places * self.sets.shape[1]),
            "places of range_sets": (self.range_address, self.swap.range_places * self.range_sets.shape[1]),
        }
        return {name: (start, start + size) for name, (start, size) in sizes.items() if size}

    @property
    def storage_areas(self) -> dict[str, tuple[int, NDArray[np.uint8]]]:
        """What lies in storage: name to address and bytes."""
        if self.swap is None:
            return {}
        found, address = {}, 0
        ranges = self.range_sets[:1] if self.coded.size else self.range_sets
        for name, data in (("sets", self.sets), ("range_sets", ranges), ("coded", self.coded)):
            found[name] = address, data.reshape(-1)
            address += data.size
        return found

    @property
    def storage_bytes(self) -> int:
        """Bytes of storage that the program occupies."""
        if self.swap is None:
            return 0
        ranges = int(self.range_sets.shape[1]) if self.coded.size else self.range_sets.size
        return self.sets.size + ranges + self.coded.size

    def storage(self) -> NDArray[np.uint8]:
        """Contents of storage, uint8 (storage_bytes,)."""
        areas = [data for _, data in self.storage_areas.values()]
        return np.concatenate(areas) if areas else np.zeros(0, np.uint8)

    @property
    def noise_bytes(self) -> int:
        """Bytes of one step's noise; 0 for a program without noise."""
        return self.buffers["noise"].bytes // self.steps if "noise" in self.buffers else 0

    @property
    def limits(self) -> dict[tuple[str, int], int]:
        """Bytes that an instruction may reach, by memory and base register; none where a pair is missing."""
        coded = self.coded.size // max(len(self.range_sets) - 1, 1)
        places = {("dram", 6): self.sets.shape[1], ("dram", 9): self.range_sets.shape[1]} if self.swap else {}
        stored = {
            ("storage", 0): self.storage_bytes,
            **{("storage", base): self.sets.shape[1] for base in (4, 5)},
            **{("storage", base): max(self.range_sets.shape[1], coded) for base in (7, 8)},
        }
        return (
            places
            | (stored if self.swap else {})
            | {
                ("sram", 0): self.machine.sram.capacity_bytes,
                ("param", 0): self.machine.param_memory.addressable_bytes,
                ("param_next", 0): self.machine.param_memory.bank_bytes,
                ("dram", 0): self.dram_bytes,
                ("dram", 1): self.sets.shape[1],
                ("dram", 2): self.noise_bytes,
                ("dram", 3): self.range_sets.shape[1],
            }
        )

    def named(self, index: int, ins: Decoded) -> str:
        """An instruction's number, mnemonic and layer, for messages."""
        layer = (self.layers[ins.layer] or "(no name)") if ins.layer < len(self.layers) else f"number {ins.layer}"
        return f"instruction {index} ({ins.op}) of layer {layer}"

    def decoded(self) -> dict[str, list[Decoded]]:
        """The instructions of each part of `code`.

        Raises UserError, naming the part, for what cannot be decoded or stands behind HALT.
        """
        return {part: list(instructions) for part, instructions in self.instructions().items()}

    def instructions(self) -> dict[str, Code]:
        """As `decoded`, but each part is decoded anew whenever it is gone through, unless it is short.

        Raises UserError as `decoded`, for what cannot be decoded maybe not before that instruction's turn.
        """
        return {part: Code(part, code) for part, code in self.code()}

    def code(self) -> Iterator[tuple[str, NDArray[np.uint32]]]:
        """Name and words of each part: "prologue", "step", and "step_1" onwards where there are more step codes."""
        yield "prologue", self.prologue
        for number, words in enumerate(self.step_codes):
            yield _part_name(number), words

    def runs(self, part: str) -> list[int]:
        """The steps that run ``part``; [-1] for the prologue."""
        if part == "prologue":
            return [-1]
        return [step for step in range(self.steps) if self.part_of_step(step) == part]


def _part_name(number: int) -> str:
    return f"step_{number}" if number else "step"


def _digest(tensors: dict[str, NDArray[Any]], header: str) -> str:
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        sha.update(_bytes(tensors[name]))
    return sha.hexdigest()


def _bytes(tensor: NDArray[Any]) -> memoryview:
    """A tensor's bytes, without a copy of them."""
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file of a temporary name in the same folder, renamed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then rename."""
    with writing_atomically(path) as file:
        file.write(data)


def save_program(program: Program, path: Path) -> None:
    """Write ``program`` to ``path``; the same program gives the same bytes. Raises UserError if it has no contents."""
    if not program.contents:
        raise UserError(f"{path}: a program without contents is for timing only; allowed: one compiled from weights")
    tensors, header = _tensors(program), _header(program)
    metadata = {
        "format": "npusim-program",
        "version": str(FORMAT_VERSION),
        "header": header,
        "sha256": _digest(tensors, header),
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


def program_sha256(program: Program) -> str:
    """SHA-256 (hex) of everything that a program file holds."""
    return _digest(_tensors(program), _header(program))


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
    if _digest(tensors, header) != metadata.get("sha256"):
        raise UserError(f"{path}: contents do not match their SHA-256; the file was altered")
    try:
        program = _program(json.loads(header), tensors)
        _validate(program)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged header ({' '.join(str(error).split())})") from None
    return program


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


def _validate(program: Program) -> None:
    """Sizes, addresses and every instruction, before anything is allocated or run."""
    if not 0 < program.dram_bytes <= min(program.machine.dram.npu_budget_bytes, MAX_DRAM_BYTES):
        raise UserError(
            f"needs {program.dram_bytes} bytes of DRAM; the machine's budget is {program.machine.dram.npu_budget_bytes}"
        )
    if program.storage_bytes > program.machine.storage.device.capacity_bytes:
        raise UserError(
            f"needs {program.storage_bytes} bytes of storage; the machine has "
            f"{program.machine.storage.device.capacity_bytes}"
        )
    if not 0 < program.steps <= MAX_STEPS:
        raise UserError(f"{program.steps} denoising steps; allowed 1..{MAX_STEPS}")
    ranges = len(program.range_sets)
    if len(program.range_of_step) != program.steps or any(r >= ranges for r in program.range_of_step):
        raise UserError(
            f"range_of_step = {list(program.range_of_step)}: allowed one of 0..{ranges - 1} for each of "
            f"{program.steps} steps"
        )
    _check_codes(program)
    spans = {name: (b.address, b.address + b.bytes) for name, b in program.buffers.items()}
    spans |= {name: (address, address + data.size) for name, (address, data) in program.areas.items()}
    spans |= program.places
    for name, (start, end) in spans.items():
        if start < 0 or end > program.dram_bytes:
            raise UserError(
                f"{name} at bytes {start}..{end} lies outside the program's {program.dram_bytes} bytes of DRAM"
            )
    if "noise" in program.buffers and program.buffers["noise"].bytes % program.steps:
        raise UserError(f"buffer noise does not hold one plane for each of {program.steps} steps")
    _check_overlaps(program, spans)
    for part, instructions in program.instructions().items():
        for start, piece in instructions.pieces():
            for index, rule in broken_rules(piece, program.machine) or outside(program, piece):
                raise UserError(f"{part}: {program.named(start + index, piece[index])}: {rule}")


def _check_codes(program: Program) -> None:
    """Which code each step runs, and the base registers of programs that swap."""
    codes, swap = len(program.step_codes), program.swap
    numbers = program.code_of_step
    if numbers and (len(numbers) != program.steps or any(number >= codes for number in numbers)):
        raise UserError(
            f"code_of_step = {list(numbers)}: allowed one of 0..{codes - 1} for each of {program.steps} steps"
        )
    if swap is None:
        if program.coded.size:
            raise UserError(f"coded holds {program.coded.size} bytes, but nothing begins in storage; allowed: none")
        return
    if len(swap.registers) != 1 + program.steps or any(len(row) != BASES or row[0] for row in swap.registers):
        raise UserError(f"registers: allowed {BASES} numbers, the first 0, for the prologue and {program.steps} steps")
    if swap.set_places > program.steps or swap.range_places > len(program.range_sets):
        raise UserError(
            f"{swap.set_places} places of sets and {swap.range_places} of range_sets: allowed at most one for each of "
            f"{program.steps} and {len(program.range_sets)}"
        )


def _check_overlaps(program: Program, spans: dict[str, tuple[int, int]]) -> None:
    """Refuse areas that share bytes, and empty buffers. Two buffers at the very same bytes are two names for one."""
    owners: dict[tuple[int, int], str] = {}
    for name in sorted(spans, key=lambda name: (spans[name], name)):
        start, end = spans[name]
        if start == end:
            if name in program.buffers:
                raise UserError(f"buffer {name} holds no element")
            continue
        if name in program.buffers and owners.get((start, end)) in program.buffers:
            continue
        if owners:
            (before, limit), other = next(reversed(owners.items()))
            if start < limit:
                raise UserError(f"{name} at bytes {start}..{end} overlaps {other} at bytes {before}..{limit}")
        owners[start, end] = name


def bare_program(code: NDArray[np.uint32], machine: Machine) -> Program:
    """A program of one step that runs ``code`` (count, 32), without prologue, constants and parameter sets.

    The DRAM that the code reaches is one buffer of bytes, "dram". Raises UserError for code that is not legal.
    """
    instructions = decode(code)
    regions = [r for ins in instructions for rs in BY_MNEMONIC[ins.op].footprint(ins) for r in rs if r.memory == "dram"]
    reach = max((region.end for region in regions if region.base == 0), default=0)
    buffers = {"dram": Buffer(0, "u8", (reach,))} if reach else {}
    layers = ("",) * (1 + max((ins.layer for ins in instructions), default=0))
    none, sets = np.zeros(0, np.uint8), np.zeros((1, 0), np.uint8)
    program = Program(machine, code[:0], code, none, sets, sets, 0, 0, (0,), max(reach, 1), buffers, layers, {})
    _validate(program)
    return program


def input_buffers(program: Program, code: Iterable[Decoded]) -> list[str]:
    """Names of the buffers that ``code``, the prologue's then the step's, reads before it writes to them."""
    found: list[str] = []
    unknown = dict(program.buffers)  # buffers that nothing has touched yet
    for ins in code:
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        for kind, regions in (("read", reads), ("write", writes)):
            for region in (r for r in regions if r.memory == "dram"):
                touched = [name for name, buffer in unknown.items() if _touches(region, name, buffer)]
                found += touched if kind == "read" else []
                for name in touched:
                    del unknown[name]
        if not unknown:
            break
    return [name for name in program.buffers if name in found]


def _touches(region: Region, name: str, buffer: Buffer) -> bool:
    """Whether a region of DRAM has a byte in common with a buffer; noise is reached through base 2."""
    if region.base:
        return region.base == 2 and name == "noise"
    return region.start < buffer.address + buffer.bytes and region.end > buffer.address


def outside(program: Program, instructions: list[Decoded]) -> list[tuple[int, str]]:
    """Accesses beyond the end of a memory, of a parameter set or of a step's noise, and layers without a name.

    Each with its instruction's index.
    """
    limits, found = program.limits, []
    for index, ins in enumerate(instructions):
        if ins.layer >= len(program.layers):
            found.append((index, f"layer = {ins.layer}: allowed 0..{len(program.layers) - 1}"))
        for region in (r for regions in BY_MNEMONIC[ins.op].footprint(ins) for r in regions):
            limit = limits.get((region.memory, region.base), 0)
            if region.end > limit:
                found.append((index, f"{region} lie outside its {limit} bytes"))
    return found
