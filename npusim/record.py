"""Reading a run folder's files back, with messages that name what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npusim.errors import UserError
from npusim.text_file import read_text

SCHEMA_VERSION = 1
"""Of run.json."""

OTHERS = {
    "boundaries.csv": "a comparison of swap policies, which `npusim swap` wrote (its tables: swap.md; "
    "`npusim run --policy` makes a run that fetches)",
    "sweep.json": "a sweep, which `npusim sweep` wrote",
    "evaluation.json": "an evaluation, which `npusim evaluate` wrote",
}
"""Folders that are taken for a run's, by a file that only they have."""
Rows = list[dict[str, str]]


def read_record(path: Path) -> dict[str, Any]:
    """Read a run.json. Raises UserError if it is missing, damaged, of another schema, or without settings or costs."""
    if not path.is_file():
        for name, words in OTHERS.items():
            if (path.parent / name).is_file():
                raise UserError(f"{path.parent}: holds {words}, not a run; allowed: a run folder")
        raise UserError(f"{path}: no such file; allowed: a run folder, as `npusim run` writes it")
    try:
        record = json.loads(read_text(path, "JSON file"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({' '.join(str(error).split())})") from None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version") if isinstance(record, dict) else None
        raise UserError(f"{path}: schema_version = {found!r}: allowed {SCHEMA_VERSION}")
    for name in ("config", "cost"):
        section(record, name, path)
    return record


def section(record: Mapping[str, Any], name: str, path: Path | str = "run.json") -> Mapping[str, Any]:
    """A block of a record. Raises UserError if it is not there."""
    value = record.get(name)
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} is not there, or not an object; allowed: a file that `npusim run` wrote")
    return value


def read_rows(path: Path) -> Rows:
    """Rows of a CSV file; none without the file. Raises UserError if it cannot be read."""
    if not path.is_file():
        return []
    try:
        return list(csv.DictReader(io.StringIO(read_text(path, "CSV file"), newline="")))
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None
