"""What SCALE-Sim says of a GEMM, and what we do: `python tests/conformance/scalesim_rows.py ROWS.csv` checks a whole
table.

The file has columns ``M,N,K,array_rows,array_cols,dataflow,cycles`` (dataflow ws, os or is), lines with ``#`` left out.

SCALE-Sim reports the number of its last cycle, counted from 0, where we report how many there are. What it does not
count is what lies behind the array: the requantizer's latency, and on an output-stationary array the rows of the last
tile, which leave one after the other (it lets them leave in no time).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from npusim.config import Machine, load_machine  # noqa: E402
from npusim.isa.assembly import assemble  # noqa: E402
from npusim.timing import simulate  # noqa: E402

DATAFLOWS = {"ws": "weight_stationary", "os": "output_stationary", "is": "input_stationary"}


@cache
def machine(rows: int, cols: int, dataflow: str) -> Machine:
    """`tiny_8x8` with another array, whose folds do not overlap; any product fits its accumulators, no port is busy."""
    tiny = load_machine(ROOT / "hwconfigs" / "tiny_8x8.yaml")
    fields = {"dataflow": DATAFLOWS[dataflow], "rows": rows, "cols": cols, "fold_overlap": False, "acc_rows": 65536}
    return tiny.model_copy(
        update={
            "mac_array": tiny.mac_array.model_copy(update=fields),
            "sram": tiny.sram.model_copy(update={"ports": "unlimited"}),
        }
    )


def last_cycle(m: int, k: int, n: int, rows: int, cols: int, dataflow: str) -> int:
    """Our cycles of one MATMUL as SCALE-Sim would report them."""
    hw = machine(rows, cols, dataflow)
    line = f"matmul unit=mac batch0=1 batch1=1 b_dtype=i8 m={m} k={k} n={n} out_row={n}"
    last_rows = (m - 1) % rows + 1 if dataflow == "os" else 0
    return simulate(assemble(line), hw).total_cycles - hw.mac_array.requant_latency_cycles - last_rows - 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a table of SCALE-Sim's results with ours.")
    parser.add_argument("rows", type=Path, help="the table, as CSV")
    with parser.parse_args().rows.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    equal: Counter[tuple[str, bool]] = Counter()
    for row in rows:
        sizes = (int(row[name]) for name in ("M", "K", "N", "array_rows", "array_cols"))
        equal[row["dataflow"], last_cycle(*sizes, row["dataflow"]) == int(row["cycles"])] += 1
    for dataflow in DATAFLOWS:
        same, other = equal[dataflow, True], equal[dataflow, False]
        print(f"{dataflow}: {same} of {same + other} rows equal")


if __name__ == "__main__":
    main()
