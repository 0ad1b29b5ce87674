"""`npusim swap --fidelity` on a folder that `npusim evaluate --tables` wrote."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from models.workloads import Workload
from npusim.config import Machine
from npusim.errors import UserError
from npusim.swap import swap

METHODS, POLICIES = ("tsq", "tsq_pot"), ("blocking", "resident")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_points_have_the_sqnr_of_the_table(folder: Path, work: Workload, tiny_machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "swap"
    swap(work, tiny_machine, METHODS, (1, 2), POLICIES, out, fidelity=folder)
    written = table(folder / "table_IV.csv")
    measured = {(row["method"], row["ranges"]): float(row["eps_sqnr_db_mean"]) for row in written}
    measured["tsq", "1"] = measured["asq", "1"]  # one range is one set
    rows = table(out / "pareto.csv")
    assert {(row["method"], row["ranges"], row["policy"]) for row in rows} == {
        (method, ranges, policy) for method in METHODS for ranges in "12" for policy in POLICIES
    }
    for row in rows:
        assert row["clips"] == "2"
        assert float(row["noise_sqnr_db"]) == pytest.approx(measured[row["method"], row["ranges"]], abs=0.005)
    points = [(measured[row["method"], row["ranges"]], -float(row["seconds"]), -int(row["dram_bytes"])) for row in rows]
    for row, point in zip(rows, points, strict=True):
        beaten = any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points)
        assert row["on_front"] == str(int(not beaten))
    assert {row["on_front"] for row in rows} == {"0", "1"}
    with Image.open(out / "pareto.png") as image:
        image.load()
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    with pytest.raises(UserError, match=r"no cell emoji-METHOD-w4a8-rRANGES"):
        swap(work, tiny_machine, ("tsq",), (2,), POLICIES, tmp_path / "none", weight_bits=4, fidelity=folder)
    assert not (tmp_path / "none").exists()
