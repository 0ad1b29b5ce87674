"""`npusim hw`, the derived figures and the JSON schema of machine files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npusim import hw
from npusim.cli import main
from npusim.config import Machine, load_machine
from npusim.config_messages import leaf_fields
from npusim.cost import area
from npusim.errors import UserError
from npusim.strict_yaml import read_yaml


def test_derived_figures_of_the_edge_machine(edge_machine: Machine) -> None:
    """By hand: 64 x 128 MACs at 1 GHz; 4 channels of 12.8 GB/s; 16 banks of 64 bytes."""
    figures = hw.derive(edge_machine)
    assert figures.peak_tops == pytest.approx(16.384)
    assert figures.dram_gb_per_second == pytest.approx(51.2)
    assert figures.ridge_macs_per_dram_byte == pytest.approx(160)
    assert figures.sram_gb_per_second == pytest.approx(1024)
    assert figures.ridge_macs_per_sram_byte == pytest.approx(8)
    assert figures.storage_gb_per_second == pytest.approx(4.2)
    assert figures.vector_gops == 128


def test_changed_fields_of_a_machine(edge_machine: Machine, edge_text: str, tmp_path: Path) -> None:
    """The same as the edited file, which is read another way; the machine itself stays as it is."""
    path = tmp_path / "edge_8k.yaml"
    path.write_text(edge_text.replace("  cols: 128\n", "  cols: 256\n").replace("  channels: 4 ", "  channels: 8 "))
    made = hw.changed(edge_machine, {"mac_array.cols": 256, "dram.channels": 8})
    assert made == load_machine(path) != edge_machine
    assert edge_machine.mac_array.cols == 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mac_array.colls": 1}, "edge_8k: mac_array.colls: unknown field"),
        ({"mac_array.cols": 0}, "edge_8k: mac_array.cols: 0 is not allowed; must be a whole number from 1 to 4096"),
        ({"sram.banks": 3}, "edge_8k: sram.banks: "),
        ({"clock_mhz.x": 1}, "edge_8k: clock_mhz.x: `clock_mhz` is a field, not a section"),
        ({"cache.lines": 1}, "edge_8k: cache: unknown field"),
        ({"sram": 4}, "edge_8k: sram: 4 is not allowed; must be a section with the fields"),
    ],
)
def test_changed_fields_that_a_machine_may_not_have(edge_machine: Machine, fields: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        hw.changed(edge_machine, fields)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value).splitlines()) == 1


def test_schema_file_is_current(repository: Path) -> None:
    text = (repository / "hwconfigs" / "schema.json").read_text(encoding="utf-8")
    assert text == hw.schema_text(), "run: python -m npusim.hw"


def faults(schema: dict[str, Any], part: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """A small validator of what the schema uses, independent of pydantic."""
    if "$ref" in part:
        return faults(schema, schema["$defs"][part["$ref"].rsplit("/", 1)[1]], value, path)
    if "anyOf" in part:
        each = [faults(schema, choice, value, path) for choice in part["anyOf"]]
        return [] if [] in each else each[-1]
    kinds = {"object": dict, "string": str, "integer": int, "boolean": bool}
    if "type" in part and type(value) is not kinds[part["type"]]:
        return [f"{path}: {value!r} is no {part['type']}"]
    found = []
    if "enum" in part and value not in part["enum"]:
        found.append(f"{path}: {value!r} not in {part['enum']}")
    if "const" in part and value != part["const"]:
        found.append(f"{path}: {value!r}")
    if not part.get("minimum", 0) <= (value if isinstance(value, int) else 0) <= part.get("maximum", 1 << 60):
        found.append(f"{path}: {value!r} out of range") if isinstance(value, int) else None
    if part.get("type") == "object":
        found += [f"{path}.{name}: missing" for name in part.get("required", []) if name not in value]
        for name, item in value.items():
            if name in part["properties"]:
                found += faults(schema, part["properties"][name], item, f"{path}.{name}")
            elif part["additionalProperties"] is False:
                found.append(f"{path}.{name}: unknown")
    return found


def test_schema_takes_every_machine_and_refuses_slips(repository: Path) -> None:
    schema = json.loads((repository / "hwconfigs" / "schema.json").read_text(encoding="utf-8"))
    for path in hw.machine_files():
        assert faults(schema, schema, read_yaml(path).data) == [], path
    data = load_machine(repository / "hwconfigs" / "tiny_8x8.yaml").model_dump(mode="json")
    for field, info in leaf_fields(Machine).items():
        broken = json.loads(json.dumps(data))
        section = broken
        for part in field[:-1]:
            section = section[part]
        del section[field[-1]]
        assert len(faults(schema, schema, broken)) == info.is_required(), field
        section[field[-1]] = [-1]
        assert len(faults(schema, schema, broken)) == 1, field


def test_list_and_show(capsys: pytest.CaptureFixture[str], repository: Path, edge_machine: Machine) -> None:
    assert main(["hw", "list"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    names = [path.stem for path in (repository / "hwconfigs").glob("*.yaml")]
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in names)
    assert main(["hw", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listed} == set(names)
    assert main(["hw", "show", "edge_8k", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Machine.model_validate(shown["machine"]) == edge_machine
    assert shown["derived"]["peak_tops"] == pytest.approx(16.384)
    assert main(["hw", "show", str(repository / "hwconfigs" / "edge_8k.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["sram.capacity_bytes", "2097152"] for line in lines)
    assert any(line.split()[:3] == ["=", "ridge_macs_per_dram_byte", "160"] for line in lines)
    # 2 * 8192 operations in each of 1e9 cycles over the area; two operations over the energy of a multiply-accumulate.
    size, cost = area(edge_machine).total_mm2, shown["cost"]
    assert cost["tops_per_mm2"]["low"] == pytest.approx(16.384 / size.high)
    assert cost["cells_tops_per_watt"]["high"] == pytest.approx(2 / cost["mac_pj"]["low"])
    text = f"{cost['area_mm2']['nominal']:.3g} ({size.low:.3g} to {size.high:.3g})"
    assert any(line.startswith("= area_mm2") and text in line for line in lines)


def test_check_says_what_loading_says(capsys: pytest.CaptureFixture[str], tmp_path: Path, edge_text: str) -> None:
    path = tmp_path / "edge_8k.yaml"
    path.write_text(edge_text, encoding="utf-8")
    assert main(["hw", "check", str(path)]) == 0
    assert "edge_8k, 16.4 TOPS" in capsys.readouterr().out
    path.write_text(edge_text.replace("lanes: 128", "lanes: 0"), encoding="utf-8")
    assert main(["hw", "check", str(path)]) == 2
    message = capsys.readouterr().err
    with pytest.raises(UserError) as error:
        load_machine(path)
    assert message == f"error: {error.value}\n"
    assert main(["hw", "check", "edge_9k"]) == 2
    assert "allowed: edge_2x4k, edge_8k, " in capsys.readouterr().err


def test_new_machine_is_its_template_under_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for template in hw.machine_files():
        path = hw.new_machine("my_npu", template, tmp_path / template.stem)
        made = load_machine(path)
        assert made == load_machine(template).model_copy(update={"name": "my_npu"})
        text = path.read_text(encoding="utf-8")
        hint = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / hint).resolve() == hw.MACHINES / "schema.json"
        assert "assumption" in text
    assert main(["hw", "new", "other", "--template", "tiny_8x8", "--folder", str(tmp_path)]) == 0
    assert load_machine(tmp_path / "other.yaml").name == "other"
    assert "other.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "template", "message"),
    [
        ("taken", "edge_8k", "taken.yaml: exists"),
        ("Bad Name", "edge_8k", "Bad Name: not a machine's name; allowed: 1 to 64 lower-case"),
        ("../up", "edge_8k", "not a machine's name"),
        ("mine", "edge_9k", "edge_9k: no such machine; allowed: edge_2x4k"),
        ("mine", "none.yaml", "none.yaml: no such file"),
    ],
)
def test_new_machine_is_refused(tmp_path: Path, name: str, template: str, message: str) -> None:
    (tmp_path / "taken.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError) as error:
        hw.new_machine(name, template, tmp_path)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.yaml"]
    assert (tmp_path / "taken.yaml").read_text(encoding="utf-8") == "mine"
