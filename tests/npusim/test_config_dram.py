"""Tables of DRAM devices: where they are found, and how mistakes in one are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from npusim.config import load_machine
from npusim.errors import UserError
from tests.npusim.test_config import edited, line_of, message


def test_a_device_table_is_found_beside_the_machine_or_here(tmp_path: Path, edge_text: str, repository: Path) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text(edited(edge_text, "device: lpddr5_6400", "device: mine"), encoding="utf-8")
    tables = repository / "hwconfigs" / "dram"
    names = ", ".join(sorted(table.stem for table in tables.glob("*.yaml")))
    assert message(tmp_path, path.read_text(encoding="utf-8")) == (
        f"machine.yaml:{line_of(edge_text, 'device: lpddr5_6400')}: dram.device: there is no table 'mine'; "
        f"allowed: {names}, or the device's fields themselves"
    )
    (tmp_path / "dram").mkdir()
    mine = (tables / "lpddr5_6400.yaml").read_text(encoding="utf-8")
    (tmp_path / "dram" / "mine.yaml").write_text(edited(mine, "clock_mhz: 800 ", "clock_mhz: 700 "), encoding="utf-8")
    assert load_machine(path).dram.device.clock_mhz == 700


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "banks_per_group: 4",
            "banks_per_group: 0",
            "banks_per_group: 0 is not allowed; must be a whole number from 1",
        ),
        (
            "banks_per_group: 4",
            "banks_per_group: 3",
            "banks_per_group: 3 is not a power of two; device.banks_per_group",
        ),
        ("trcd_clocks: 15", "trdc_clocks: 15", "trdc_clocks: unknown field; did you mean `trcd_clocks`?"),
        ("tccd_s_clocks: 2", "tccd_s_clocks: 1", "tccd_s_clocks: 1 is less than burst_clocks 2: two bursts would meet"),
        ("tccd_l_clocks: 4", "tccd_l_clocks: 1", "tccd_l_clocks: 1 is less than tccd_s_clocks 2: the same bank group"),
        (
            "trtw_clocks: 9",
            "trtw_clocks: 7",
            "trtw_clocks: 7 lets write data (cwl_clocks 11) meet read data (cas_clocks",
        ),
        ("row_bytes: 2048", "row_bytes: 4", "row_bytes: 4 is not allowed; must be a whole number from 64 to 65536"),
        ("burst_beats: 16", "burst_beats: 64\n#", None),
        ("trefi_clocks: 3124", "trefi_clocks: 365", "trefi_clocks: 365 leaves no time beside trfc_clocks 224"),
    ],
)
def test_a_bad_device_table_is_refused_with_its_own_lines(
    tmp_path: Path, edge_text: str, repository: Path, old: str, new: str, says: str | None
) -> None:
    (tmp_path / "dram").mkdir()
    table = tmp_path / "dram" / "bad.yaml"
    good = (repository / "hwconfigs" / "dram" / "lpddr5_6400.yaml").read_text(encoding="utf-8")
    table.write_text(edited(good, old, new), encoding="utf-8")
    machine = tmp_path / "machine.yaml"
    machine.write_text(edited(edge_text, "device: lpddr5_6400", "device: bad"), encoding="utf-8")
    if says is None:  # longer bursts are no fault
        assert load_machine(machine).dram.device.burst_bytes == 128
        return
    with pytest.raises(UserError) as caught:
        load_machine(machine)
    assert str(caught.value).startswith(f"{table}:{line_of(table.read_text(encoding='utf-8'), new)}: {says}")


def test_every_device_table_loads_and_every_value_names_its_source(
    repository: Path, edge_text: str, tmp_path: Path
) -> None:
    tables = sorted((repository / "hwconfigs" / "dram").glob("*.yaml"))
    assert {t.stem for t in tables} >= {"ddr4_3200", "hbm2_2000", "lpddr4x_4266", "lpddr5_6400"}
    peaks = {"ddr4_3200": 25_600, "hbm2_2000": 16_000, "lpddr4x_4266": 8_532, "lpddr5_6400": 12_800}
    for table in tables:
        text = edited(
            edited(edge_text, "device: lpddr5_6400", f"device: {table.stem}"),
            "barrier_cycles: 400",
            "barrier_cycles: 900",
        )
        (tmp_path / "machine.yaml").write_text(text, encoding="utf-8")
        dram = load_machine(tmp_path / "machine.yaml").dram
        assert dram.bandwidth_bytes_per_second == 4 * peaks[table.stem] * 1_000_000
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith("t") and "_l_" not in line:
                assert "#" in line, f"{table.name}: {line}"


def test_tables_have_the_clocks_of_their_sources(repository: Path, edge_text: str, tmp_path: Path) -> None:
    """LPDDR4X: DRAMSys' memspec, clock by clock; HBM2: gem5's class, whose clock is 1 ns."""
    dramsys = {
        "RCD": 39, "RPpb": 39, "WL": 18, "RAS": 90, "RRD": 22, "FAW": 86, "CCD": 8, "WTR": 22, "WR": 39, "RTP": 17,
        "REFI": 8341, "RFCab": 812, "RL": 36, "DQSCK": 4, "WPRE": 2, "BL/2": 8,
    }  # fmt: skip
    gem5 = {"tRP": 14, "tRCD": 12, "tCL": 18, "tCWL": 7, "tRAS": 28, "tREFI": 3900, "tWR": 14, "tRTP": 5, "tRTW": 18}
    fields = {
        "lpddr4x_4266": {
            "trcd": "RCD", "trp": "RPpb", "cwl": "WL", "tras": "RAS", "trrd_s": "RRD", "tfaw": "FAW", "tccd_s": "CCD",
            "twtr_s": "WTR", "twr": "WR", "trtp": "RTP", "trefi": "REFI", "trfc": "RFCab", "burst": "BL/2",
        },
        "hbm2_2000": {
            "trp": "tRP", "trcd": "tRCD", "cas": "tCL", "cwl": "tCWL", "tras": "tRAS", "trefi": "tREFI", "twr": "tWR",
            "trtp": "tRTP", "trtw": "tRTW",
        },
    }  # fmt: skip
    for (table, names), source in zip(fields.items(), (dramsys, gem5), strict=True):
        text = edited(edge_text, "device: lpddr5_6400", f"device: {table}")
        text = edited(text, "barrier_cycles: 400", "barrier_cycles: 900")
        (tmp_path / "machine.yaml").write_text(text, encoding="utf-8")
        device = load_machine(tmp_path / "machine.yaml").dram.device
        for field, name in names.items():
            assert getattr(device, f"{field}_clocks") == source[name], f"{table}: {field}"
        if table == "lpddr4x_4266":
            s = dramsys
            assert device.cas_clocks == s["RL"] + s["DQSCK"]
            assert device.trtw_clocks == s["RL"] + s["DQSCK"] + s["BL/2"] + s["WPRE"] - s["WL"]
