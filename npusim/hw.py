"""Machine files: which there are, what follows from them, a new one from a known one, and their JSON schema.

`npusim hw` prints what is here. `npusim.config.load_machine` reads and checks a file.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from npusim.atomic_file import write_atomically
from npusim.config import MACHINES as MACHINES
from npusim.config import Machine, load_machine
from npusim.config import find_machine as find_machine
from npusim.config_messages import NAME_PATTERN, PATTERN_WORDS, leaf_fields, problems
from npusim.errors import UserError
from npusim.folder import check_above
from npusim.strict_yaml import FieldPath, YamlDocument, dotted, printable

SCHEMA = "schema.json"
"""Name of the JSON schema beside them."""


@dataclass(frozen=True)
class Derived:
    """What follows from a machine's fields.

    Attributes:
        peak_tops: 8-bit operations per second, in 1e12; a multiply-accumulate counts as two.
        peak_macs_per_cycle: multiply-accumulates per cycle, 8 x 8 bits.
        dram_gb_per_second: peak of all channels, 1e9 bytes.
        dram_bytes_per_cycle: the same per NPU cycle.
        dram_latency_cycles: NPU cycles from a request to its first byte, closed row, idle controller.
        sram_gb_per_second: what all ports of the SRAM move, 1e9 bytes.
        storage_gb_per_second: sequential reads of the devices of all storage DMA units, 1e9 bytes.
        ridge_macs_per_dram_byte: products per byte of DRAM from which the array, not the DRAM, is the limit.
        ridge_macs_per_sram_byte: the same for the SRAM's ports.
        vector_gops: elements per second of all vector units, in 1e9.
    """

    peak_tops: float
    peak_macs_per_cycle: float
    dram_gb_per_second: float
    dram_bytes_per_cycle: float
    dram_latency_cycles: int
    sram_gb_per_second: float
    storage_gb_per_second: float
    ridge_macs_per_dram_byte: float
    ridge_macs_per_sram_byte: float
    vector_gops: float


def derive(machine: Machine) -> Derived:
    """Compute the derived figures of ``machine``."""
    sram_bytes_per_cycle = machine.sram.peak_bytes_per_cycle
    return Derived(
        peak_tops=machine.peak_tops,
        peak_macs_per_cycle=machine.peak_macs_per_cycle,
        dram_gb_per_second=machine.dram.bandwidth_bytes_per_second / 1e9,
        dram_bytes_per_cycle=machine.dram_bytes_per_cycle,
        dram_latency_cycles=machine.dram_latency_cycles,
        sram_gb_per_second=sram_bytes_per_cycle * machine.clock_hz / 1e9,
        storage_gb_per_second=machine.dma.storage_units * machine.storage.device.bandwidth_bytes_per_second / 1e9,
        ridge_macs_per_dram_byte=machine.peak_macs_per_cycle / machine.dram_bytes_per_cycle,
        ridge_macs_per_sram_byte=machine.peak_macs_per_cycle / sram_bytes_per_cycle,
        vector_gops=machine.vector_unit.count * machine.vector_unit.lanes * machine.clock_hz / 1e9,
    )


def machine_files(folder: Path = MACHINES) -> list[Path]:
    """The machine files in ``folder``, by name. Raises UserError where it is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; allowed: one with machine files")
    return sorted(folder.glob("[!.]*.yaml"))


def list_machines(folder: Path = MACHINES) -> dict[Path, Machine]:
    """Every machine in ``folder``. Raises UserError for a faulty one, as `load_machine`."""
    return {path: load_machine(path) for path in machine_files(folder)}


def field_rows(machine: Machine) -> list[tuple[str, Any, str]]:
    """(field, value, meaning) of every field, in the order of the file."""

    def value(path: FieldPath) -> Any:
        found: Any = machine
        for part in path:
            found = getattr(found, str(part))
        return found

    return [(dotted(path), value(path), _meaning(field)) for path, field in leaf_fields(Machine).items()]


def changed(machine: Machine, fields: Mapping[str, Any]) -> Machine:
    """The machine with other values in some fields, by dotted name: ``{"mac_array.cols": 256, "name": "wide"}``.

    Raises UserError, as `load_machine` with the machine's name in place of the file's, for a field that does not exist,
    a value that it may not have, and values that do not fit together.
    """
    data = machine.model_dump(mode="json")
    for name, value in fields.items():
        *above, last = name.split(".")
        section = data
        for key in above:
            below = section.setdefault(key, {})
            if not isinstance(below, dict):
                raise UserError(f"{machine.name}: {name}: `{key}` is a field, not a section")
            section = below
        section[last] = value
    document = YamlDocument(f"{machine.name}", data, {(): 1})
    try:
        return Machine.model_validate(data)
    except ValidationError as error:
        lines = problems(error, Machine, document)
        raise UserError("\n".join(line.replace(":1:", ":", 1) for line in lines)) from None


def _meaning(field: FieldInfo) -> str:
    return field.description or ""


def new_machine(name: str, template: str | Path = "edge_8k", folder: Path = Path()) -> Path:
    """Write ``folder/name.yaml``: the text of ``template`` with its comments, under the new name; return its path.

    Raises UserError, and writes nothing, for a name that machines may not have, a template that is missing or faulty,
    and a file that exists.
    """
    out = folder / f"{name}.yaml"
    if not re.match(NAME_PATTERN, name):
        raise UserError(f"{printable(name)}: not a machine's name; allowed: {PATTERN_WORDS[NAME_PATTERN]}")
    source = find_machine(str(template))
    origin = load_machine(source).name
    if out.exists():
        raise UserError(f"{out}: exists; allowed: a new file")
    check_above(out)
    lines = source.read_text(encoding="utf-8").splitlines()
    fields = [line for line in lines if not re.match(r"#( yaml-language-server:|$| )", line)]
    schema = os.path.relpath(MACHINES / SCHEMA, folder.resolve())
    head = [
        f"# yaml-language-server: $schema={schema}",
        f"# {name}: begun from {origin} by `npusim hw new`. Change the values; behind each, cite a source or write",
        f'# "assumption": what stands there is the word of {origin}\'s file. hwconfigs/README.md says what each field',
        "# means; `npusim hw check` says what is wrong.",
    ]
    text = "\n".join([*head, *fields]) + "\n"
    text, count = re.subn(rf"^name:\s*{origin}\b", f"name: {name}", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise UserError(f"{source}: cannot serve as a template: no line begins with `name: {origin}`")
    try:
        _write_new(out, text)
    except FileExistsError:
        raise UserError(f"{out}: exists; allowed: a new file") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return out


def _write_new(path: Path, text: str) -> None:
    """Make the file complete under a temporary name, then link it: a file that has come meanwhile is not replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        os.link(temporary, path)
    finally:
        Path(temporary).unlink()


def schema() -> dict[str, Any]:
    """JSON schema of a machine file, for editors: types, ranges and meanings; not what must fit together."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Machine.model_json_schema()}
    for section, folder in (("Dram", "dram"), ("Storage", "storage")):
        device = made["$defs"][section]["properties"]["device"]
        reference = device.pop("$ref")
        words = f"name of a table in the folder {folder}, beside the machine file or here"
        device["anyOf"] = [{"type": "string", "description": words}, {"$ref": reference}]
    return made


def schema_text() -> str:
    """Contents of ``hwconfigs/schema.json``."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    write_atomically(MACHINES / SCHEMA, schema_text().encode())
