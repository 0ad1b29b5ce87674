"""Evaluates one point: outline, compile, time. No clip is made, and no weights are read.

A point's record is plain data: {"key", "workload", "settings", "status": "ok" or "refused", "message", "figures"}.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from npusim.config import Machine
from npusim.cost import Range
from npusim.errors import UserError
from npusim.sweep.space import MACHINE, Point, with_field

Record = dict[str, Any]

OK, REFUSED = "ok", "refused"


def evaluate(point: Point) -> Record:
    """The record of a point. What a machine or a method cannot do is a result too: "refused", with the message."""
    from models.errors import ModelError

    record: Record = {"key": point.key, "workload": point.workload, "settings": point.settings()}
    try:
        return record | {"status": OK, "message": "", "figures": _figures(point)}
    except (UserError, ModelError) as error:
        return record | {"status": REFUSED, "message": str(error), "figures": {}}


def machine_of(point: Point) -> Machine:
    """The machine with the point's fields. Raises UserError for one that cannot be."""
    data = copy.deepcopy(dict(point.machine))
    for name, value in point.values.items():
        if name.startswith(MACHINE):
            with_field(data, name, value)
    try:
        return Machine.model_validate(data)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"machine: {' '.join(found.split())}") from None


def _figures(point: Point) -> dict[str, float | int | None]:
    """Figures by name, units in the names; None for what is not modelled."""
    from npusim.cost import area, energy
    from npusim.run_config import check_policy
    from npusim.swapped import compiled
    from npusim.timing import time_program

    machine, settings = machine_of(point), point.settings()
    ranges = settings["ranges"]
    quantized = _quantized(
        point.workload, settings["method"], settings["weight_bits"], settings["act_bits"], json.dumps(ranges)
    )
    check_policy(settings["policy"])
    program = compiled(quantized, machine, settings["policy"], settings["attention_bits"], settings["factored"])
    timing = time_program(program)
    joules, size = energy(program, timing).total_pj * 1e-12, area(machine).total_mm2
    return {
        "cycles": timing.cycles,
        "prologue_cycles": timing.prologue.total_cycles,
        "step_cycles": timing.step.total_cycles,
        "seconds": timing.seconds,
        "mac_utilisation": timing.mac_utilisation,
        "dram_bandwidth_share": timing.dram_bandwidth_share,
        "dram_read_bytes": timing.traffic.dram_read_bytes,
        "dram_write_bytes": timing.traffic.dram_write_bytes,
        "dram_capacity_bytes": program.dram_bytes,
        "range_set_bytes": program.range_sets.shape[1],
        "sram_capacity_bytes": machine.sram.capacity_bytes,
        "peak_tops": machine.peak_tops,
        "storage_read_bytes": timing.traffic.storage_read_bytes,
        **{f"energy_joules{name}": value for name, value in _bounds(joules).items()},
        **{f"area_mm2{name}": value for name, value in _bounds(size).items()},
    }


def _bounds(value: Range) -> dict[str, float]:
    return {"": value.nominal, "_low": value.low, "_high": value.high}


@lru_cache(maxsize=2)
def _quantized(workload: str, method: str, weight_bits: int, act_bits: int, ranges: str) -> Any:
    """An outline, or where the method chooses its ranges by calibration statistics, the whole model.

    Neighbouring points of a grid share it; ``ranges`` as JSON.
    """
    from models.quantize.methods import get_method
    from models.quantize.outline import outline
    from models.workloads import get_workload
    from npusim.run import quantize_workload

    make = quantize_workload if get_method(method).chosen_ranges else outline
    return make(get_workload(workload), method, weight_bits=weight_bits, act_bits=act_bits, ranges=json.loads(ranges))
