"""What changed between two runs: settings, totals, causes by unit, and layers by what they contribute.

Reads ``run.json`` and ``layers.csv`` of two run folders, of any two versions that write them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npusim import callable_module
from npusim.errors import UserError
from npusim.record import read_record, read_rows

callable_module(__name__)

UNKNOWN = ("n/a", None, "")
TOTALS = (
    "cycles", "prologue_cycles", "step_cycles", "mac_operations", "mac_utilisation", "bytes.dram_read_bytes",
    "bytes.dram_write_bytes", "dram.row_hits", "dram.row_misses", "energy_joules.nominal",
)  # fmt: skip
LAYER_COUNTS = ("span_cycles", "dram_read_bytes", "dram_write_bytes", "mac_operations")


@dataclass(frozen=True)
class Change:
    """One figure of both runs; None where a run has none."""

    name: str
    before: Any
    after: Any

    @property
    def difference(self) -> float | None:
        """``after - before`` of two numbers."""
        numbers = isinstance(self.before, int | float) and isinstance(self.after, int | float)
        return self.after - self.before if numbers else None


@dataclass(frozen=True)
class LayerChange:
    """A layer of one part of the program; each count is (before, after) of all its executions, 0 where it is absent."""

    part: str
    layer: str
    counts: Mapping[str, tuple[int, int]]

    def difference(self, count: str) -> int:
        before, after = self.counts[count]
        return after - before


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs.

    settings: what differs in ``config`` and ``versions``; totals: all of `TOTALS`; causes: cycles by unit and cause
    that differ, largest change first; layers: those of which a count differs, by cycles, then bytes.
    """

    settings: tuple[Change, ...]
    totals: tuple[Change, ...]
    causes: tuple[Change, ...]
    layers: tuple[LayerChange, ...]

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        changed = any(change.before != change.after for change in self.totals)
        return changed or bool(self.settings or self.causes or self.layers)


def compare(before: Path, after: Path) -> Comparison:
    """Compare two run folders. Raises UserError naming a file that is missing, damaged or of another schema."""
    old, new = read_record(before / "run.json"), read_record(after / "run.json")
    settings = [
        change
        for block in ("config", "versions")
        for change in _changes(_flat(old.get(block, {}), block), _flat(new.get(block, {}), block))
    ]
    totals = [Change(name, _flat(old["cost"]).get(name), _flat(new["cost"]).get(name)) for name in TOTALS]
    causes = _changes(_flat(old.get("ledger_cycles", {})), _flat(new.get("ledger_cycles", {})))
    causes.sort(key=lambda change: (-abs(change.difference or 0), change.name))
    return Comparison(tuple(settings), tuple(totals), tuple(causes), tuple(_layers(before, after)))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name; what is not modelled is None."""
    if not isinstance(tree, Mapping):
        return {prefix: None if tree in UNKNOWN else tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    names = dict.fromkeys((*old, *new))
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _layers(before: Path, after: Path) -> Iterator[LayerChange]:
    counts: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: {name: [0, 0] for name in LAYER_COUNTS})
    for side, folder in enumerate((before, after)):
        for part, layer, name, value in _layer_counts(folder / "layers.csv"):
            counts[part, layer][name][side] += value
    found = [
        LayerChange(part, layer, {name: (pair[0], pair[1]) for name, pair in each.items()})
        for (part, layer), each in counts.items()
        if any(pair[0] != pair[1] for pair in each.values())
    ]
    yield from sorted(
        found, key=lambda change: ([-abs(change.difference(name)) for name in LAYER_COUNTS], change.part, change.layer)
    )


def _layer_counts(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """(part, layer, count, value of all executions) of each row of a layers.csv."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; allowed: a run folder, as `npusim run` writes it")
    try:
        for row in read_rows(path):
            executions = int(row["executions"])
            for name in LAYER_COUNTS:
                yield row["part"], row["layer"], name, int(row[name]) * executions
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a table of layers ({error!r}); allowed: as `npusim run` writes it") from None
