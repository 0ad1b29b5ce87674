"""Measures this computer: how fast engine and cycle model run. See README.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from npusim import callable_module
from npusim.errors import UserError

callable_module(__name__)

ROUNDS = 30


def bench(rounds: int = ROUNDS) -> dict[str, Any]:
    """Rates of the engine and of the cycle model on this computer; about two minutes, which count on a quiet one only.

    ``rounds``: of how many calls the best counts. Keys: "instructions", seconds of first and best call and products by
    kind; "gmac_per_s", int8 products by shape and contender, with the engine's ratios to the others ("vs_vnni_peak",
    "vs_int_mm", "vs_fp32"); "cycle_model", as `npusim.bench.timing.measure` returns it.

    Raises UserError for a number of rounds that is not 1..1000.
    """
    from npusim.bench import timing

    if not 1 <= rounds <= 1000:
        raise UserError(f"rounds = {rounds}: allowed 1..1000")
    with tempfile.TemporaryDirectory() as folder:  # the first call of a kernel, with an empty cache, is a figure too
        done = subprocess.run(
            [sys.executable, "-m", "npusim.bench.engine", str(rounds)], env=os.environ | {"NUMBA_CACHE_DIR": folder},
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
    return {**json.loads(done.stdout), "cycle_model": timing.measure()}
