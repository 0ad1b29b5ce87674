"""Arm's generated TOSA cases, bit for bit through both executors. README.md lists what is left out, and why."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npusim.config import Machine
from tests.conformance import mapping
from tests.conformance.mapping import OutsideDomainError
from tests.conformance.side_venv import made_once

Array = NDArray[Any]

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation, and for the generated cases."""
DTYPE = {"INT8": "i8", "INT16": "i16", "INT32": "i32"}

RUN = {
    "RESCALE": 216, "MATMUL": 4, "TABLE": 4, "ADD": 2, "MUL": 16, "CLAMP": 4, "REDUCE_SUM": 6, "CAST": 12,
}  # fmt: skip
LEFT_OUT = {
    ("CAST", "no booleans"): 6,
}
RESCALE_ON_EWLIN = 48
"""RESCALE cases that EWLIN can do too, and does."""


@pytest.fixture(scope="session")
def cases(tosa: str) -> list[dict[str, Any]]:
    """Every generated case with its arrays: ``x`` (inputs in order), ``result``."""
    arrays = made_once(tosa, "tosa_generate.py")
    found = json.loads(arrays["manifest"].tobytes())
    for number, case in enumerate(found):
        case["x"] = [arrays[f"{number}/{name}"] for name, _ in case["inputs"]]
        case["types"] = [kind for _, kind in case["inputs"]]
        case["expected"] = arrays[f"{number}/result"]
    return found


def scalar(values: Array, unsigned: bool = False) -> int:
    """A one-element constant; TOSA keeps unsigned zero points in signed tensors."""
    return int(values.view(f"u{values.itemsize}")[0] if unsigned else values[0])


def rescale(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    attributes = case["attributes"]
    x, multiplier, shift, in_zp, out_zp = case["x"]
    unsigned, out_unsigned = attributes["input_unsigned"], attributes["output_unsigned"]
    x = x.view(f"u{x.itemsize}") if unsigned else x
    out = DTYPE[case["result"]]
    out = out.replace("i", "u") if out_unsigned else out
    zero = scalar(in_zp, unsigned), scalar(out_zp, out_unsigned)
    double = attributes["rounding_mode"] == "DOUBLE_ROUND"
    got = mapping.rescale_matmul(machine, x, multiplier, shift, *zero, out, attributes["scale32"], double)
    other = mapping.rescale_elementwise(machine, x, multiplier, shift, *zero, out, double)
    if other is not None:
        routes["ewlin"] += 1
        np.testing.assert_array_equal(other, got, f"{case['name']}: EWLIN and MATMUL")
    return got.view(f"i{got.itemsize}") if out_unsigned else got


def matmul(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    a, b, a_zp, b_zp = case["x"]
    if case["result"] == "INT48":
        assert scalar(a_zp) == scalar(b_zp) == 0
        return mapping.matmul_i48(machine, a, b)
    return mapping.matmul_i32(machine, a, b, scalar(a_zp), scalar(b_zp))


def table(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    look_up = mapping.table_of_bytes if case["types"][0] == "INT8" else mapping.table
    return look_up(machine, *case["x"])


def add(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    return mapping.add(machine, *case["x"])


def mul(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    a, b, shift = case["x"]
    return mapping.mul(machine, a, b, scalar(shift))


def clamp(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    (x,) = case["x"]
    ends = [np.array(case["attributes"][f"{end}_val"], np.uint8).view(f"<i{x.itemsize}")[0] for end in ("min", "max")]
    return mapping.clamp(machine, x, int(ends[0]), int(ends[1]))


def reduce_sum(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    return mapping.reduce_sum(machine, case["x"][0], case["attributes"]["axis"])


def cast(machine: Machine, case: dict[str, Any], routes: Counter[str]) -> Array:
    if "BOOL" in (case["result"], *case["types"]):
        raise OutsideDomainError("no booleans")
    return mapping.cast(machine, case["x"][0], DTYPE[case["result"]])


OPERATORS = {
    "RESCALE": rescale, "MATMUL": matmul, "TABLE": table, "ADD": add, "MUL": mul, "CLAMP": clamp,
    "REDUCE_SUM": reduce_sum, "CAST": cast,
}  # fmt: skip


def test_every_generated_case_is_run_or_left_out_for_a_stated_reason(cases: list[dict[str, Any]]) -> None:
    assert Counter(case["op"] for case in cases) == Counter(RUN) + sum(
        (Counter({op: count}) for (op, _), count in LEFT_OUT.items()), Counter()
    )


@pytest.mark.parametrize("op", list(OPERATORS))
def test_generated_cases_bit_for_bit(op: str, cases: list[dict[str, Any]], edge_machine: Machine) -> None:
    run, left_out, routes = 0, Counter[tuple[str, str]](), Counter[str]()
    for case in cases:
        if case["op"] != op:
            continue
        try:
            got = OPERATORS[op](edge_machine, case, routes)
        except OutsideDomainError as reason:
            left_out[op, str(reason)] += 1
            continue
        assert got.shape == case["expected"].shape
        np.testing.assert_array_equal(got, case["expected"], case["name"])
        run += 1
    assert run == RUN[op]
    assert left_out == {key: count for key, count in LEFT_OUT.items() if key[0] == op}
    if op == "RESCALE":
        assert routes["ewlin"] == RESCALE_ON_EWLIN
