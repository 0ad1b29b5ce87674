"""Double rounding of MATMUL against a fully connected layer of TensorFlow Lite Micro, which has gemmlowp's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npusim.config import Machine
from tests.conformance.bench import Bench
from tests.conformance.directed import values_for
from tests.conformance.mapping import array_of
from tests.conformance.side_venv import work

Array = NDArray[Any]

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation, and for the generated cases."""
ROWS, DEPTH, CHANNELS = 24, 16, 512


def layer(seed: int, ties: bool) -> dict[str, Any]:
    """Scales of 24 bits; biases that put the first row's accumulators on ties, next to them and at the ends."""
    rng = np.random.default_rng(seed)
    exponent = rng.integers(-20, 1, CHANNELS)
    mantissa = np.full(CHANNELS, 0.5) if ties else rng.integers(1 << 23, 1 << 24, CHANNELS) / float(1 << 24)
    scales = np.ldexp(mantissa, exponent).astype(np.float32)
    multiplier, shift = (mantissa * (1 << 31)).astype(np.int64), 31 - exponent
    in_zp, out_zp = int(rng.integers(-128, 128)), int(rng.integers(-20, 20))
    a = rng.integers(-128, 128, (ROWS, DEPTH))
    a[0] = in_zp  # this row's accumulators are the biases
    b = rng.integers(-128, 128, (CHANNELS, DEPTH))
    bias = []
    for m, s in zip(multiplier.tolist(), shift.tolist(), strict=True):
        visible = (200 << s) // m  # beyond it the output saturates
        bias.append(rng.choice(values_for(m, s, min(visible, (1 << 31) - (1 << 20)), 64, rng)))
    return {
        "a": a.astype(np.int8), "b": b.astype(np.int8), "bias": np.array(bias, np.int32), "scales": scales,
        "multiplier": multiplier, "shift": shift, "in_zp": in_zp, "out_zp": out_zp,
    }  # fmt: skip


def run(machine: Machine, case: dict[str, Any], rounding: str) -> Array:
    b = case["b"].T
    bench = Bench(machine, **(array_of(True, True, 32) | {"requant_rounding": rounding}))
    bias = case["bias"] - case["in_zp"] * b.astype(np.int64).sum(axis=0)
    records = bench.records(bias, case["multiplier"], case["shift"])
    bench.matmul(case["a"], np.ascontiguousarray(b), records, "i8", case["out_zp"], "channel")
    return bench.run()[0]


@pytest.fixture(scope="module")
def layers(tflm: str) -> list[tuple[dict[str, Any], Array]]:
    """Cases with TensorFlow Lite Micro's results (ROWS, CHANNELS)."""
    cases = [layer(seed, ties=seed % 2 == 0) for seed in range(8)]
    roles = ("a", "b", "bias", "scales")
    arrays = {f"{role}{number}": case[role] for number, case in enumerate(cases) for role in roles}
    jobs = [
        {"arrays": [f"{role}{number}" for role in roles], "in_zp": case["in_zp"], "out_zp": case["out_zp"]}
        for number, case in enumerate(cases)
    ]
    results = work(tflm, "tflm_run.py", jobs, arrays)
    return [(case, results[str(number)]) for number, case in enumerate(cases)]


def test_double_rounding_is_tensorflow_lite_micros(
    layers: list[tuple[dict[str, Any], Array]], edge_machine: Machine
) -> None:
    for case, expected in layers:
        np.testing.assert_array_equal(run(edge_machine, case, "double"), expected)


def test_single_rounding_is_not(layers: list[tuple[dict[str, Any], Array]], edge_machine: Machine) -> None:
    """The cases above tell the two apart."""
    different = sum(int((run(edge_machine, case, "single") != expected).sum()) for case, expected in layers)
    assert different > 100
