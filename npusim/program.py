"""A program: instruction words, constants, parameter sets and the map of DRAM.

DRAM as the program sees it: ``constants`` from address 0, then one set of constants per denoising step, one parameter
set per time range, and buffers. The prologue runs once per video, the step code once per denoising step with base
register 1 at the step's constants, base 2 at the step's noise and base 3 at the set of the step's time range. Sets may
begin in storage instead (`Swap`): then DRAM has places for some of them only, and the code fetches them, which takes
several step codes. `npusim.program_file` writes and reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, check_halt, decode
from npusim.isa.addressing import BASES
from npusim.isa.encoding import DTYPES, Decoded, Region

MAX_DRAM_BYTES = 1 << 40


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

    def __getitem__(self, index: int) -> Decoded:
        """One instruction, from the front."""
        return self._piece(index, 1)[0] if self._held is None else self._held[index]

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
