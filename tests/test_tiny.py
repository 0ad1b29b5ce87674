"""The smoke test: the whole chain on the smallest workload and machine, in well under a minute."""

import json

from npusim.cli import main


def test_from_caption_to_report(repository, tmp_path, capsys):
    machine = repository / "hwconfigs" / "tiny_8x8.yaml"
    assert (
        main(["run", "--workload", "tiny", "--hw", str(machine), "--method", "cw_tw", "--out", str(tmp_path / "run")])
        == 0
    )
    data = json.loads((tmp_path / "run" / "run.json").read_text())
    assert data["bit_exact"] == {
        "steps_compared": [0, 3],
        "sampled_instructions": 0,
        "prologue_compared": True,
        "equal": True,
        "first_difference": None,
    }
    assert data["cost"]["cycles"] > 0
    for unit, causes in data["ledger_cycles"].items():
        assert sum(causes.values()) == data["cost"]["cycles"], unit
    assert len(data["fidelity"]["eps_sqnr_db"]["integer_vs_fakequant"]) == 4
    assert "engine = reference in every byte of memory" in capsys.readouterr().out
