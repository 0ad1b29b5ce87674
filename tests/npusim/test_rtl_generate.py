"""What `write_rtl` writes; tests/cosim checks that it computes the right thing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from npusim import rtl
from npusim.config import Machine
from npusim.errors import UserError
from npusim.rtl import SOURCES, TOP, write_rtl


def parameters(folder: Path) -> dict[str, int]:
    text = (folder / "npu_machine.sv").read_text()
    return {name: int(value) for name, value in re.findall(r"localparam \w+ (\w+) = (-?\d+);", text)}


def test_the_package_holds_the_machine(edge_machine: Machine, tmp_path: Path) -> None:
    write_rtl(edge_machine, tmp_path)
    assert parameters(tmp_path) == {
        "OUTPUT_STATIONARY": 0, "ROWS": 64, "COLS": 128, "ACC_BITS": 40, "OVERFLOW": 0, "ACC_ROWS": 512,
        "SHADOW_WEIGHTS": 1, "NARROWEST_ACTIVATION_BITS": 4, "NARROWEST_WEIGHT_BITS": 4, "A4W4_PER_CELL": 2,
        "INPUT_SHIFT": 1, "PASS_CYCLES_A8W8": 1, "PASS_CYCLES_A16W8": 2, "PASS_CYCLES_A16W16": 4, "ROW_SUM_COLUMN": 1,
        "MULTIPLIER_BITS": 16, "DOUBLE_ROUNDING": 0, "FACTORED": 1, "REQUANT_LATENCY": 4, "SRAM_BYTES": 2 << 20,
    }  # fmt: skip


@pytest.mark.parametrize(("overflow", "number"), [("saturate", 0), ("wrap", 1), ("trap", 2)])
def test_modes_are_numbered(tiny_machine: Machine, tmp_path: Path, overflow: str, number: int) -> None:
    fields = {"overflow": overflow, "requant_multiplier_bits": 32, "requant_rounding": "double", "acc_bits": 32}
    machine = tiny_machine.model_copy(update={"mac_array": tiny_machine.mac_array.model_copy(update=fields)})
    write_rtl(machine, tmp_path)
    found = parameters(tmp_path)
    assert (found["OVERFLOW"], found["MULTIPLIER_BITS"], found["DOUBLE_ROUNDING"]) == (number, 32, 1)


def test_all_sources_are_written_and_every_parameter_is_used(tiny_machine: Machine, tmp_path: Path) -> None:
    paths = write_rtl(tiny_machine, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths}
    assert (folder / "npu.f").read_text().split() == ["npu_machine.sv", *SOURCES] == [p.name for p in paths[:-1]]
    assert set(SOURCES) == {path.name for path in Path(rtl.__file__).parent.glob("*.sv")}
    text = "".join(path.read_text() for path in paths if path.name not in ("npu_machine.sv", "npu.f"))
    assert f"module {TOP}" in text
    assert [name for name in parameters(folder) if not re.search(rf"\b{name}\b", text)] == []


def test_writing_again_replaces(tiny_machine: Machine, edge_machine: Machine, tmp_path: Path) -> None:
    write_rtl(edge_machine, tmp_path)
    (tmp_path / "mine.sv").write_text("// kept\n")
    write_rtl(tiny_machine, tmp_path)
    assert parameters(tmp_path)["ROWS"] == 8
    assert (tmp_path / "mine.sv").read_text() == "// kept\n"


@pytest.mark.parametrize("fields", [{"dataflow": "input_stationary"}, {"fold_overlap": False}])
def test_an_array_without_rtl_is_refused(tiny_machine: Machine, tmp_path: Path, fields: dict[str, Any]) -> None:
    machine = tiny_machine.model_copy(update={"mac_array": tiny_machine.mac_array.model_copy(update=fields)})
    with pytest.raises(UserError, match=r"machine tiny_8x8: mac_array.dataflow \w+ with fold_overlap \w+ has no RTL"):
        write_rtl(machine, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_named(tiny_machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"taken: exists and is not a folder; allowed: a new folder"):
        write_rtl(tiny_machine, tmp_path / "taken")


def test_a_folder_of_something_else_is_left_alone(tiny_machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "npu_matmul.sv").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no npu.f; allowed: .* an earlier RTL"):
        write_rtl(tiny_machine, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["npu_matmul.sv"]
    assert (tmp_path / "npu_matmul.sv").read_text() == "mine"
