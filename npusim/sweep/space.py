"""What a sweep tries: the file ``sweep.yaml``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import npusim
from compiler.swap import IN_DRAM
from npusim.config import Machine, load_machine
from npusim.errors import UserError
from npusim.strict_yaml import read_yaml

Values = Mapping[str, Any]
Direction = Literal["min", "max"]

SCHEMA_VERSION = 1
SEARCHES = ("grid", "random", "nsga2")
MACHINE = "machine."
DEFAULTS: dict[str, Any] = {
    "method": "cw_tw", "weight_bits": 8, "act_bits": 8, "attention_bits": 16, "ranges": None, "factored": False,
    "policy": IN_DRAM,
}  # fmt: skip
"""Settings beside the machine's fields, with what holds where a sweep does not name them."""
FIGURES = (
    "cycles", "prologue_cycles", "step_cycles", "seconds", "mac_utilisation", "dram_bandwidth_share", "dram_read_bytes",
    "dram_write_bytes", "dram_capacity_bytes", "range_set_bytes", "storage_read_bytes", "sram_capacity_bytes",
    "peak_tops", "energy_joules", "energy_joules_low", "energy_joules_high", "area_mm2", "area_mm2_low",
    "area_mm2_high",
)  # fmt: skip
"""What a point has beside its settings; of energy and area the nominal figure, and between what sources leave it."""
FIDELITY = "fidelity_"
"""Before the names of figures that were measured elsewhere."""
OBJECTIVES: dict[str, Direction] = {
    "seconds": "min", "energy_joules": "min", "area_mm2": "min", "dram_capacity_bytes": "min",
}  # fmt: skip
MOST_POINTS = 1_000_000
_KEYS = {
    "schema_version", "workload", "hw", "search", "points", "population", "seed", "axes", "objectives", "fidelity",
    "fidelity_data_set",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One thing to evaluate: ``values`` of the axes; everything else is the sweep's. ``key`` identifies all of it."""

    workload: str
    machine: Mapping[str, Any]
    values: Values

    @property
    def key(self) -> str:
        """24 hex digits of the SHA-256 of everything that decides the result, this program's version included."""
        whole = [npusim.__version__, self.workload, self.machine, {**DEFAULTS, **self.values}]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:24]

    def settings(self) -> dict[str, Any]:
        """Every setting but the machine's unchanged fields."""
        return {**DEFAULTS, **self.values}


@dataclass(frozen=True)
class Space:
    """A sweep file as checked. ``axes``: allowed values by setting; ``objectives``: "min" or "max" by figure.

    ``fidelity``: a CSV file of measured figures, of which ``data_set`` names those that count.
    """

    workload: str
    machine: Machine
    search: str
    points: int
    population: int
    seed: int
    axes: Mapping[str, tuple[Any, ...]]
    objectives: Mapping[str, Direction]
    fidelity: Path | None
    data_set: str | None

    def point(self, values: Values) -> Point:
        return Point(self.workload, self.machine.model_dump(mode="json"), dict(values))

    @property
    def size(self) -> int:
        """Points of the whole grid."""
        return prod(len(values) for values in self.axes.values())


def load_space(path: str | Path) -> Space:
    """Read a sweep file; paths in it are relative to its folder.

    Raises UserError naming the file, the field, the value and what is allowed.
    """
    path = Path(path)
    data = read_yaml(path).data
    if unknown := sorted(set(data) - _KEYS):
        raise UserError(f"{path}: unknown field {unknown[0]!r}; allowed: {', '.join(sorted(_KEYS))}")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version = {data.get('schema_version')!r}: allowed {SCHEMA_VERSION}")
    search = _one_of(path, "search", data.get("search", "grid"), SEARCHES)
    hw = path.parent / _text(path, "hw", data.get("hw"))
    fidelity = None if data.get("fidelity") is None else path.parent / _text(path, "fidelity", data["fidelity"])
    named = data.get("fidelity_data_set")
    data_set = None if named is None else _text(path, "fidelity_data_set", named)
    if data_set is not None and fidelity is None:
        raise UserError(f"{path}: fidelity_data_set = {data_set!r}: allowed together with fidelity only")
    try:
        machine = load_machine(hw)
    except UserError as error:
        raise UserError(f"{path}: hw: {error}") from None
    space = Space(
        _text(path, "workload", data.get("workload")), machine, search,
        _whole(path, "points", data.get("points", 16), 1, MOST_POINTS),
        _whole(path, "population", data.get("population", 8), 2, 1000),
        _whole(path, "seed", data.get("seed", 0), 0, 2**31), _axes(path, data.get("axes"), machine),
        _objectives(path, data.get("objectives", OBJECTIVES)), fidelity, data_set,
    )  # fmt: skip
    if search == "grid" and space.size > MOST_POINTS:
        raise UserError(f"{path}: axes: a grid of {space.size} points; allowed {MOST_POINTS}, or search: random")
    return space


def _axes(path: Path, data: Any, machine: Machine) -> dict[str, tuple[Any, ...]]:
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}: axes: allowed a list of values for each setting, at least one")
    axes = {}
    for name, values in data.items():
        if name not in DEFAULTS and not name.startswith(MACHINE):
            allowed = ", ".join(DEFAULTS)
            raise UserError(f"{path}: axes.{name}: allowed {allowed}, or {MACHINE} and a field of the machine")
        if name.startswith(MACHINE):
            with_field(machine.model_dump(mode="json"), name, None, str(path))
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: axes.{name} = {values!r}: allowed a list of at least one value")
        shown = [json.dumps(value) for value in values]
        if len(set(shown)) < len(shown):
            raise UserError(f"{path}: axes.{name}: a value stands twice")
        axes[str(name)] = tuple(values)
    return axes


def with_field(machine: dict[str, Any], name: str, value: Any, where: str = "sweep") -> None:
    """Set a field of a machine's plain data, by its dotted name behind `MACHINE`. Raises UserError if there is none."""
    *above, last = name.removeprefix(MACHINE).split(".")
    section: Any = machine
    for key in above:
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict) or last not in section or isinstance(section[last], dict):
        fields = ", ".join(section) if isinstance(section, dict) else "none"
        raise UserError(f"{where}: axes.{name}: the machine has no such field; allowed there: {fields}")
    section[last] = value


def _objectives(path: Path, data: Any) -> dict[str, Direction]:
    if not isinstance(data, dict) or not data or not set(map(str, data.values())) <= {"min", "max"}:
        raise UserError(f"{path}: objectives = {data!r}: allowed min or max for each figure, at least one")
    for name in data:
        if name not in FIGURES and not name.startswith(FIDELITY):
            raise UserError(
                f"{path}: objectives.{name}: no such figure; allowed: {', '.join(FIGURES)}, or {FIDELITY} and a column "
                "of the file named by fidelity"
            )
    return {str(name): direction for name, direction in data.items()}


def _text(path: Path, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}: {name} = {value!r}: allowed a text")
    return value


def _one_of(path: Path, name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"{path}: {name} = {value!r}: allowed {', '.join(allowed)}")
    return str(value)


def _whole(path: Path, name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{path}: {name} = {value!r}: allowed an integer {low}..{high}")
    return value
