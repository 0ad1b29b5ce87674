"""SCALE-Sim's cycles of one GEMM, and those of the MATMUL instruction on an array whose folds do not overlap."""

from __future__ import annotations

import pytest

from tests.conformance.scalesim_rows import DATAFLOWS, last_cycle
from tests.conformance.side_venv import work

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""

SHAPES = ((1, 1, 1), (20, 9, 17), (8, 8, 8), (64, 16, 8), (65, 33, 24), (7, 50, 41))
ARRAYS = ((8, 8), (16, 8), (4, 32))


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_cycles_are_scale_sims(dataflow: str, scalesim: str) -> None:
    cases = [(*shape, *size) for shape in SHAPES for size in ARRAYS]
    jobs = [
        {"shape": [m, k, n], "rows": rows, "cols": cols, "dataflow": dataflow, "arrays": []}
        for m, k, n, rows, cols in cases
    ]
    reports = work(scalesim, "scalesim_run.py", jobs, {})
    for number, case in enumerate(cases):
        last, stalls, _ = reports[str(number)].tolist()
        assert (last_cycle(*case, dataflow), stalls) == (last, 0), case
