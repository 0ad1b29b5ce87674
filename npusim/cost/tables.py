"""The tables of `hwconfigs/energy`: figures with source, node and range, and their scaling to another node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from npusim.config_base import Section
from npusim.errors import UserError
from npusim.strict_yaml import dotted, read_yaml

TABLES = Path(__file__).resolve().parents[2] / "hwconfigs" / "energy"
BITCELL, DENSITY = 2, 1


@dataclass(frozen=True)
class Range:
    """A figure as the sources leave it: low, nominal, high."""

    low: float = 0.0
    nominal: float = 0.0
    high: float = 0.0

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def __mul__(self, other: Range | float) -> Range:
        if isinstance(other, Range):
            return Range(self.low * other.low, self.nominal * other.nominal, self.high * other.high)
        return Range(self.low * other, self.nominal * other, self.high * other)


class Figure(Section):
    """One number of a table; ``node_nm`` 0: it holds for every node."""

    low: float = Field(ge=0)
    nominal: float = Field(ge=0)
    high: float = Field(ge=0)
    node_nm: int = Field(ge=0, le=1000)
    source: str = Field(min_length=3)

    @property
    def range(self) -> Range:
        return Range(self.low, self.nominal, self.high)


class Figures(Section):
    """Energies of actions, and shares."""

    multiply_8x8_pj: Figure
    add_32_pj: Figure
    register_bit_pj: Figure
    requantize_16_pj: Figure
    requantize_32_pj: Figure
    vector_lane_pj: Figure
    decoded_byte_pj: Figure
    idle_share: Figure
    logic_leakage_mw_per_mm2: Figure


def _of_kind(figures: dict[str, Figure], kind: str) -> Range:
    """The first figure whose name ``kind`` begins with, or that of ``any``."""
    return figures[next((name for name in figures if kind.startswith(name)), "any")].range


class AreaFigures(Section):
    """Areas, some in cells of the array."""

    cell_8x8_um2: Figure
    requantizer_16_cells: Figure
    requantizer_32_cells: Figure
    vector_lane_cells: Figure
    overhead: Figure


class Scaling(Section):
    """How energies go from node to node."""

    energy_45_to_7: Figure
    below_7_exponent: Figure
    uncertainty: Figure
    area_uncertainty: Figure


class Base(Section):
    """``base.yaml``."""

    figures: Figures
    dram_pj_per_bit: dict[str, Figure]
    storage_pj_per_bit: dict[str, Figure]
    area: AreaFigures
    scaling: Scaling
    density: list[list[float]]
    nodes: dict[str, int]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        groups = (dict(self.figures), dict(self.area), self.dram_pj_per_bit, self.storage_pj_per_bit)
        for name, figure in (item for group in groups for item in group.items()):
            if not figure.low <= figure.nominal <= figure.high:
                raise ValueError(
                    f"{name}: low {figure.low}, nominal {figure.nominal}, high {figure.high}: not in order"
                )
        if any("any" not in names for names in (self.dram_pj_per_bit, self.storage_pj_per_bit, self.nodes)):
            raise ValueError("dram_pj_per_bit, storage_pj_per_bit and nodes need an entry `any`")
        return self

    def node_of(self, machine: str) -> int:
        """The node in nm that the machine is taken to be made in."""
        return self.nodes.get(machine, self.nodes["any"])

    def dram(self, kind: str) -> Range:
        """Energy of a bit moved by a device of that kind, in pJ."""
        return _of_kind(self.dram_pj_per_bit, kind)

    def storage(self, kind: str) -> Range:
        """Energy of a bit read from a storage device of that kind, in pJ."""
        return _of_kind(self.storage_pj_per_bit, kind)

    def energy_factor(self, from_nm: int, to_nm: int) -> Range:
        """What an energy at one node is multiplied by for another: 1 where they are the same."""
        if from_nm in (0, to_nm):
            return Range(1, 1, 1)
        low, nominal, high = (self._relative(to_nm, k) / self._relative(from_nm, k) for k in ("low", "nominal", "high"))
        low, high = min(low, nominal, high), max(low, nominal, high)
        return Range(low, nominal, high) * self.scaling.uncertainty.range

    def _relative(self, node_nm: int, which: str) -> float:
        """Energy relative to 45 nm."""
        at_7 = float(getattr(self.scaling.energy_45_to_7, which))
        inside = math.exp(math.log(at_7) * math.log(45 / max(node_nm, 7)) / math.log(45 / 7))
        exponent = float(getattr(self.scaling.below_7_exponent, which))
        return float(inside * (min(node_nm, 7) / 7) ** exponent)

    def area_factor(self, from_nm: int, to_nm: int, column: int = DENSITY) -> Range:
        """What an area at one node is multiplied by for another, by density of logic or of SRAM cells.

        1 where they are the same. Raises UserError for a node that the table lacks.
        """
        rows = {int(row[0]): row for row in self.density}
        for node in (from_nm, to_nm):
            if node not in rows:
                raise UserError(f"{TABLES / 'base.yaml'}: density: no node {node} nm; there: {sorted(rows)}")
        if from_nm == to_nm:
            return Range(1, 1, 1)
        ratio = rows[to_nm][column] / rows[from_nm][column]
        return self.scaling.area_uncertainty.range * (ratio if column == BITCELL else 1 / ratio)


T = TypeVar("T", bound=Section)
Triple = list[float]


class Bank(Section):
    """One SRAM bank: [low, nominal, high] of one word's access, of leakage, of area."""

    kib: int
    word_bits: int
    read_pj: Triple = Field(min_length=3, max_length=3)
    write_pj: Triple = Field(min_length=3, max_length=3)
    leakage_mw: Triple = Field(min_length=3, max_length=3)
    area_mm2: Triple = Field(min_length=3, max_length=3)


class SramTable(Section):
    """``sram_22nm.yaml``."""

    node_nm: int
    source: str
    banks: list[Bank]

    def bank(self, size_bytes: float, word_bits: int) -> Bank:
        """The smallest bank of the table that holds as much, or its largest, with that word width."""
        fitting = sorted((b for b in self.banks if b.word_bits == word_bits), key=lambda b: b.kib)
        return next((b for b in fitting if b.kib * 1024 >= size_bytes), fitting[-1])


@dataclass(frozen=True)
class Macros:
    """The SRAM macros that a bank is made of: how many side by side, bytes and word of each."""

    count: int
    bytes: float
    word_bits: int


def macros_of(bank_bytes: float, port_bytes: int) -> Macros:
    """The macros of a bank of ``bank_bytes`` whose port moves ``port_bytes`` a cycle.

    A port wider than the table's widest word is several macros side by side, which are read together.
    """
    words = sorted({bank.word_bits for bank in sram_table().banks})
    word = next((bits for bits in words if bits >= 8 * port_bytes), words[-1])
    count = -(-8 * port_bytes // word)
    return Macros(count, bank_bytes / count, word)


@cache
def base_table(path: Path = TABLES / "base.yaml") -> Base:
    """Read and check the table. Raises UserError naming file, line and field."""
    return _read(path, Base)


@cache
def sram_table(path: Path = TABLES / "sram_22nm.yaml") -> SramTable:
    """Read and check the table. Raises UserError naming file, line and field."""
    return _read(path, SramTable)


def _read(path: Path, model: type[T]) -> T:
    document = read_yaml(path)
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        faults = [
            f"{document.where(f['loc'])}: {dotted(f['loc'])}: {f['msg']}" for f in error.errors(include_url=False)
        ]
        raise UserError("\n".join(faults)) from error
