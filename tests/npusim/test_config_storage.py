"""Tables of storage devices, what must fit together, and that each value says where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from npusim.config import load_machine
from npusim.errors import UserError
from tests.npusim.test_config import edited, line_of, message

DEVICE = "device: ufs4_0"


def test_a_storage_table_is_found_beside_the_machine_or_here(tmp_path: Path, edge_text: str, repository: Path) -> None:
    text = edited(edge_text, DEVICE, "device: mine")
    assert message(tmp_path, text) == (
        f"machine.yaml:{line_of(edge_text, DEVICE)}: storage.device: there is no table 'mine'; "
        "allowed: emmc5_1, nvme_pcie4_x4, ufs4_0, or the device's fields themselves"
    )
    (tmp_path / "storage").mkdir()
    table = (repository / "hwconfigs" / "storage" / "ufs4_0.yaml").read_text(encoding="utf-8")
    (tmp_path / "storage" / "mine.yaml").write_text(edited(table, "latency_us: 80 ", "latency_us: 90 "), "utf-8")
    assert load_machine(tmp_path / "machine.yaml").storage.device.latency_us == 90


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "bandwidth_bytes_per_second: 4200000000",
            "bandwidth_bytes_per_second: 0",
            "bandwidth_bytes_per_second: 0 is not allowed; must be a whole number from 1000000",
        ),
        ("queue_depth: 32", "queue_depth: 0", "queue_depth: 0 is not allowed; must be a whole number from 1 to 256"),
        ("request_bytes: 524288", "request_bytes: 64", "request_bytes: 64 is not allowed; must be a whole number from"),
        ("queue_depth: 32", "queue_deph: 32", "queue_deph: unknown field; did you mean `queue_depth`?"),
    ],
)
def test_a_bad_storage_table_is_refused_with_its_own_lines(
    tmp_path: Path, edge_text: str, repository: Path, old: str, new: str, says: str
) -> None:
    (tmp_path / "storage").mkdir()
    table = tmp_path / "storage" / "bad.yaml"
    good = (repository / "hwconfigs" / "storage" / "ufs4_0.yaml").read_text(encoding="utf-8")
    table.write_text(edited(good, old, new), encoding="utf-8")
    (tmp_path / "machine.yaml").write_text(edited(edge_text, DEVICE, "device: bad"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_machine(tmp_path / "machine.yaml")
    assert str(caught.value).startswith(f"{table}:{line_of(table.read_text(encoding='utf-8'), new)}: {says}")


def test_every_storage_table_loads_and_every_value_names_its_source(
    repository: Path, edge_text: str, tmp_path: Path
) -> None:
    rates = {"ufs4_0": 4.2e9, "nvme_pcie4_x4": 7e9, "emmc5_1": 0.25e9}
    tables = sorted((repository / "hwconfigs" / "storage").glob("*.yaml"))
    assert {table.stem for table in tables} == set(rates)
    for table in tables:
        (tmp_path / "machine.yaml").write_text(edited(edge_text, DEVICE, f"device: {table.stem}"), encoding="utf-8")
        assert load_machine(tmp_path / "machine.yaml").storage.device.bandwidth_bytes_per_second == rates[table.stem]
        for line in table.read_text(encoding="utf-8").splitlines():
            assert line.startswith(("#", "kind")) or "  # " in line, f"{table.name}: {line}"
