import json

import pytest

from npusim.bench import bench, timing
from npusim.cli import main
from npusim.errors import UserError


def test_the_cycle_models_programs_need_their_products(monkeypatch):
    """On an array that no product waits for, the GEMM takes at least its products over the array's size."""
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "STREAM_BYTES", 1 << 20)
    found = timing.measure()
    least = timing.M * timing.K * timing.N // timing.SIZE**2
    assert least <= found["sram"]["cycles"] < 1.3 * least
    assert found["sram"]["cycles"] < found["dram"]["cycles"]
    assert found["dram_bursts_per_second"] > 0


def test_rounds_are_checked():
    for rounds in (0, 1001):
        with pytest.raises(UserError, match=f"rounds = {rounds}: allowed 1..1000"):
            bench(rounds)


@pytest.mark.slow
def test_bench_measures_everything(capsys):
    assert main(["bench", "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(line["first_s"] > 0 and line["best_s"] > 0 for line in found["instructions"].values())
    for rates in found["gmac_per_s"].values():
        assert all(rate > 0 for rate in rates.values())
        assert rates["engine"] / rates["int_mm"] in found["vs_int_mm"].values()
    assert found["cycle_model"]["sram"]["cycles_per_second"] > 0
