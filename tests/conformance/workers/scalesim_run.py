"""Runs inside SCALE-Sim's environment: ``scalesim_run.py IN.npz OUT.npz``, a simulation of one GEMM for each job.

A job is ``{"shape": [m, k, n], "rows": R, "cols": C, "dataflow": "ws", "os" or "is", "arrays": []}``. The result is its
``Total Cycles`` without prefetch and ``Stall Cycles`` of its report, and the processor seconds that the simulation
took.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scalesim.scale_sim import scalesim

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {cols}
IfmapSramSzkB: 65536
FilterSramSzkB: 65536
OfmapSramSzkB: 65536
IfmapOffset: 0
FilterOffset: 1000000000
OfmapOffset: 2000000000
Dataflow: {dataflow}
Bandwidth: 10
ReadRequestBuffer: 64
WriteRequestBuffer: 64
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""


def simulate(job: dict[str, Any]) -> list[float]:
    m, k, n = job["shape"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("machine.cfg").write_text(CONFIG.format(**job))
        Path("gemm.csv").write_text(f"Layer, M, N, K,\nproduct, {m}, {n}, {k},\n")
        # A layout has to be there, though none is used.
        Path("layout.csv").write_text("Layer,\nproduct, " + "1, " * 20 + "\n")
        run = scalesim(True, False, "machine.cfg", "gemm.csv", "layout.csv", True)
        begin = time.process_time()
        run.run_scale(folder)
        seconds = time.process_time() - begin
        report = run.runner.single_layer_sim_object_list[0].get_compute_report_items()
        os.chdir("/")
    return [report[1], report[2], seconds]


with np.load(sys.argv[1]) as given:
    jobs = json.loads(given["jobs"].tobytes())
np.savez(sys.argv[2], **{str(number): np.array(simulate(job)) for number, job in enumerate(jobs)})
