"""No float in an executor's source, but for `npusim.exact_product`, nor in a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.npusim.integers import assert_no_floats, floats_in_source
from tests.npusim.strategies import small_program

SOURCES = ("numerics.py", "reference.py", "memory.py", "isa/*.py", "engine/*.py")


def test_executors_hold_no_float(repository: Path) -> None:
    files = [path for pattern in SOURCES for path in sorted((repository / "npusim").glob(pattern))]
    assert len(files) > 20
    found = [f"{path.name}: {what}" for path in files for what in floats_in_source(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "x = 0.5", "x = 1e3", "x = 2j", "x = a / b", "x /= 2", "x = a ** b", "x = a ** -1", "x = np.float32(1)",
        "x: float = 1", "x = y.astype('float64')", "x = np.dtype('<f4')", "from math import sqrt", "x = np.double(1)",
        "x = y.mean()", "x = np.trunc(y)",
        "x = builder.fadd(y, z)", "x = ir.DoubleType()", "x = 'llvm.floor.f64'",
        "def f(x: np.float64): pass", "x = round(y)", "x = np.true_divide(a, b)",
    ],
)  # fmt: skip
def test_the_scan_sees_a_float(line: str) -> None:
    assert floats_in_source(f"import numpy as np\n{line}\n")


@pytest.mark.parametrize(
    "line",
    ["x = a // b", "x = a >> 1", "x = 2**31", "mode = 'double'", "x = np.int64(1) << 3", "x = builder.trunc(y, z)"],
)
def test_the_scan_passes_integers(line: str) -> None:
    assert floats_in_source(line) == []


def test_a_program_holds_no_float(tmp_path: Path) -> None:
    assert_no_floats(small_program(), tmp_path)


@pytest.mark.parametrize("field", ["host", "dram_bytes"])
def test_a_float_in_a_program_is_seen(field: str, tmp_path: Path) -> None:
    values = {"host": {"state_fraction_bits": 24.0}, "dram_bytes": 512.0}
    with pytest.raises(AssertionError):
        assert_no_floats(small_program(lambda v: v.update({field: values[field]})), tmp_path)
