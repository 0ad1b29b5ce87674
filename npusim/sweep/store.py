"""The folder of a sweep: one JSON file for each point, written whole or not at all, and tables of all of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npusim.atomic_file import write_atomically
from npusim.errors import UserError
from npusim.folder import Layout, check_folder
from npusim.sweep.point import OK, Record
from npusim.sweep.space import DEFAULTS, FIDELITY, Space
from npusim.text_file import read_text

MARKER, POINTS, PARQUET = "sweep.json", "points", "results.parquet"
DATA_SET, RANGES = "data_set", "ranges"
"""Columns of a fidelity file."""
LAYOUT = Layout("sweep", (MARKER, POINTS, PARQUET))


class Store:
    """Records by key. Nothing is written before the first of them. Raises UserError for a folder not a sweep's."""

    def __init__(self, folder: Path, space: Space) -> None:
        check_folder(folder, LAYOUT)
        self.folder, self.records = folder, dict[str, Record]()
        axes = {name: list(values) for name, values in space.axes.items()}
        self._about = {"schema_version": 1, "workload": space.workload, "search": space.search, "seed": space.seed,
                       "machine": space.machine.model_dump(mode="json"), "axes": axes}  # fmt: skip
        self._begun = False
        for path in sorted((folder / POINTS).glob("*.json")):
            self.records[path.stem] = _read(path)

    def _begin(self) -> None:
        if not self._begun:
            write_atomically(self.folder / MARKER, (json.dumps(self._about, indent=2) + "\n").encode())
            self._begun = True

    def add(self, record: Record) -> None:
        """Keep a record, at once and for good; the same point twice is one file."""
        self._begin()
        path = self.folder / POINTS / f"{record['key']}.json"
        write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
        self.records[record["key"]] = record

    def write_parquet(self, rows: Sequence[dict[str, Any]]) -> None:
        """All points as one table; a column of several types becomes text."""
        self._begin()
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        temporary = self.folder / f".{PARQUET}.tmp"
        pq.write_table(pa.table(columns), temporary)
        temporary.replace(self.folder / PARQUET)


NO_RANGES = ("", "n/a", "null", "None")
"""What a file of measured figures may hold where a method has its own time ranges."""


def row_of(record: Record, fidelity: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """A record flat: key, status, message, settings, figures, and what `fidelity` knows of such settings.

    Time ranges that neither the sweep nor the file names are the method's own, which the other may name.
    """
    row = {name: record[name] for name in ("key", "workload", "status", "message")}
    row |= {name: _flat(value) for name, value in record["settings"].items()} | record["figures"]
    for given in fidelity if record["status"] == OK else ():
        own = {name: value for name, value in given.items() if name in DEFAULTS or name == "workload"}
        if all(str(_flat(row[name])) == value for name, value in own.items() if name != RANGES) and (
            RANGES not in own or _ranges(row, row[RANGES]) == _ranges(row, own[RANGES])
        ):
            return row | {f"{FIDELITY}{name}": _number(value) for name, value in given.items() if name not in own}
    return row


def _ranges(row: dict[str, Any], given: Any) -> str:
    """Ranges as text; for none given, how many ``row``'s method has on its workload by default."""
    if given is not None and given not in NO_RANGES:
        return str(given)
    from models.quantize.methods import get_method  # imports torch, which most sweeps' tables do without
    from models.quantize.ranges import check_ranges
    from models.workloads import get_workload

    return str(check_ranges(get_method(row["method"]), None, get_workload(row["workload"]).num_steps))


def read_fidelity(path: Path | None, data_set: str | None = None) -> list[dict[str, str]]:
    """Rows of a CSV file whose columns are settings (method, weight_bits, ...) and measured figures.

    Of a file with a column ``data_set``, as the tables of `npusim evaluate` have it, the rows of that one, without the
    column. Raises UserError where there are several and none is named, for one that is not there, and for a file that
    is no such table.
    """
    if path is None:
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, "CSV file"), newline="")))
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}: fidelity: row {number} has more or fewer values than the {len(rows[0])} columns")
    if not rows or not set(rows[0]) & set(DEFAULTS):
        raise UserError(f"{path}: fidelity: no column of {', '.join(DEFAULTS)}; allowed: a CSV file with at least one")
    return _of_data_set(path, rows, data_set)


def _of_data_set(path: Path, rows: list[dict[str, str]], wanted: str | None) -> list[dict[str, str]]:
    there = list(dict.fromkeys(row[DATA_SET] for row in rows if DATA_SET in row))
    if wanted is None and len(there) > 1:
        raise UserError(f"{path}: fidelity: of data sets {', '.join(there)}; allowed: one of them, fidelity_data_set")
    if wanted is not None and wanted not in there:
        found = f"allowed {', '.join(there)}" if there else f"the file has no column {DATA_SET}"
        raise UserError(f"{path}: fidelity: fidelity_data_set = {wanted!r}: {found}")
    chosen = [row for row in rows if wanted in (None, row.get(DATA_SET))]
    return [{name: value for name, value in row.items() if name != DATA_SET} for row in chosen]


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record["key"] != path.stem:
            raise ValueError("holds another point")
        row_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged point ({error}); remove the file to evaluate the point again") from None
    return record


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]
