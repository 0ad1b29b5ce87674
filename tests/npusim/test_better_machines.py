"""More bandwidth, SRAM or lanes, with the program compiled anew, costs no cycles beyond the bound that is stated.

The bound is in npusim/timing/README.md. The compiler chooses by closed forms, so its choice for the better machine can
be the worse one in the event-driven model; and more channels split the same copies into shorter runs.
"""

import pytest

from compiler import compile_model
from models.quantize.outline import outline
from models.workloads import get_workload
from npusim.config import Machine
from npusim.timing import time_program

BOUND = 1.03

BETTER = {
    "channels": lambda f: f["dram"].update(channels=2 * f["dram"]["channels"]),
    "lanes": lambda f: f["vector_unit"].update(lanes=2 * f["vector_unit"]["lanes"]),
    "lanes, four times": lambda f: f["vector_unit"].update(lanes=4 * f["vector_unit"]["lanes"]),
    "SRAM": lambda f: f["sram"].update(capacity_bytes=2 * f["sram"]["capacity_bytes"]),
    "SRAM, four times": lambda f: f["sram"].update(capacity_bytes=4 * f["sram"]["capacity_bytes"]),
    "parameter memory": lambda f: f["param_memory"].update(capacity_bytes=2 * f["param_memory"]["capacity_bytes"]),
    "accumulators": lambda f: f["mac_array"].update(acc_rows=2 * f["mac_array"]["acc_rows"]),
    "interconnect": lambda f: f["dram"].update(interconnect_ns=f["dram"]["interconnect_ns"] // 2),
}


def cycles(machine: Machine, method: str) -> int:
    return time_program(compile_model(outline(get_workload("tiny"), method), machine)).cycles


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cw_tw", "asq"])
def test_a_better_machine_costs_no_cycles_beyond_the_bound(tiny_machine: Machine, method: str) -> None:
    plain, found = cycles(tiny_machine, method), dict[str, float]()
    for name, change in BETTER.items():
        fields = tiny_machine.model_dump(mode="json")
        change(fields)
        found[name] = cycles(Machine.model_validate(fields), method) / plain
    assert {name: share for name, share in found.items() if share > BOUND} == {}
    assert found["lanes"] < 1  # the changes reach the model
    assert found["interconnect"] < 1
