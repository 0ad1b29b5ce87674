"""SCALE-Sim's cycles of one GEMM, and those of the MATMUL instruction on an array whose folds do not overlap.

SCALE-Sim reports the number of its last cycle, counted from 0, where we report how many there are. What it does not
count is what lies behind the array: the requantizer's latency, and on an output-stationary array the rows of the last
tile, which leave one after the other (it lets them leave in no time).
"""

from __future__ import annotations

import pytest

from npusim.config import Machine
from npusim.isa.assembly import assemble
from npusim.timing import simulate
from tests.conformance.side_venv import work

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""

DATAFLOWS = {"ws": "weight_stationary", "os": "output_stationary", "is": "input_stationary"}
SHAPES = ((1, 1, 1), (20, 9, 17), (8, 8, 8), (64, 16, 8), (65, 33, 24), (7, 50, 41))
ARRAYS = ((8, 8), (16, 8), (4, 32))


def cycles(machine: Machine, m: int, k: int, n: int) -> int:
    """Of one MATMUL, without requantizer and last rows of outputs."""
    line = f"matmul unit=mac batch0=1 batch1=1 b_dtype=i8 m={m} k={k} n={n} out_row={n}"
    array = machine.mac_array
    last_rows = (m - 1) % array.rows + 1 if array.dataflow == "output_stationary" else 0
    return simulate(assemble(line), machine).total_cycles - array.requant_latency_cycles - last_rows


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_cycles_are_one_more_than_scale_sims_last(dataflow: str, scalesim: str, tiny_machine: Machine) -> None:
    cases = [(shape, size) for shape in SHAPES for size in ARRAYS]
    jobs = [
        {"shape": list(shape), "rows": rows, "cols": cols, "dataflow": dataflow, "arrays": []}
        for shape, (rows, cols) in cases
    ]
    reports = work(scalesim, "scalesim_run.py", jobs, {})
    for number, (shape, (rows, cols)) in enumerate(cases):
        fields = {"dataflow": DATAFLOWS[dataflow], "rows": rows, "cols": cols, "fold_overlap": False, "acc_rows": 4096}
        array = tiny_machine.mac_array.model_copy(update=fields)
        last_cycle, stalls, _ = reports[str(number)].tolist()
        assert stalls == 0
        assert cycles(tiny_machine.model_copy(update={"mac_array": array}), *shape) == last_cycle + 1, (shape, rows)
