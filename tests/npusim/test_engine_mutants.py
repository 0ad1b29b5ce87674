"""Slips planted in the engine's sources, each of which the tests of the engine must notice (`make mutants`).

A mutant is a copy of the package with one place changed, so that the tests run on it as they stand. The RTL's
mutants are in tests/cosim/test_mutants.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCALAR, ROWS, TABLE, ELEMENTWISE = "scalar.py", "matmul_rows.py", "table.py", "elementwise.py"
LAYERNORM, RTQUANT = "layernorm.py", "runtime_quantization.py"
PRODUCT, HALF = "value * multiplier", "(ONE << (shift - 1))"
ROUND = f"return ({PRODUCT} + {HALF}) >> shift"
INT32 = "INT32_LOW, INT32_HIGH"
NEWTON = "for _ in range({}):\n        y = (y * ((2 << 30)"

Mutant = tuple[str, str, str, str]
"""File, text, what it becomes, and which tests must fail (pytest's -k)."""
ROUNDINGS: dict[str, Mutant] = {
    "rounding term less by one": (SCALAR, ROUND, f"return ({PRODUCT} + {HALF} - 1) >> shift", "ties and table"),
    "rounding term greater by one": (SCALAR, ROUND, f"return ({PRODUCT} + {HALF} + 1) >> shift", "ewlin"),
    "no rounding": (SCALAR, ROUND, f"return ({PRODUCT}) >> shift", "ties and ewmul"),
    "half away from zero": (SCALAR, ROUND, f"return ({PRODUCT} + {HALF} - (value < 0)) >> shift", "ties and ewlin"),
    "half to even": (
        SCALAR,
        ROUND,
        f"return ({PRODUCT} + {HALF} - (1 - (({PRODUCT}) >> shift & 1))) >> shift",
        "ties and ewlin",
    ),
    "one shift too many": (SCALAR, ROUND, f"return ({PRODUCT} + 2 * {HALF}) >> (shift + 1)", "ties and lnapply"),
    "double rounding from 31": (SCALAR, "if shift > 31:", "if shift >= 31:", "scalar_functions"),
    "double rounding upwards": (SCALAR, "value >= 0 else -(1 << 30)", "value >= 0 else 1 << 30", "scalar_functions"),
    "sums in registers not rounded": (
        "lanes.py",
        "builder.ashr(builder.add(product, rounding), shift)",
        "builder.ashr(product, shift)",
        "ties and matmul",
    ),
    "zero point of a row rounded down": (
        RTQUANT,
        "zero_point = rescale(-low * top, mantissa, down)",
        "zero_point = (-low * top * mantissa) >> down",
        "rtquant",
    ),
}
TABLES: dict[str, Mutant] = {
    "table index rounded": (SCALAR, "(value + 32768) >> 7", "(value + 32769) >> 7", "reference and table"),
    "table fraction of 6 bits": (SCALAR, "((value + 32768) & 127)", "((value + 32768) & 63)", "reference and table"),
    "table slope negated": (SCALAR, "(left << 7) + (table", "(left << 7) - (table", "reference and table"),
    "exponential shifted by one": (SCALAR, ">> (14 + whole)", ">> (15 + whole)", "scalar_functions"),
    "exponential in registers not rounded": (
        "exponential.py",
        "builder.lshr(builder.add(doubled, one), one)",
        "builder.lshr(doubled, one)",
        "reference and smexp",
    ),
    "entries in registers weighed the other way": (
        "interpolate.py",
        "builder.sub(lanes.repeated(WORDS, 128), behind)",
        "behind",
        "reference and table",
    ),
    "carry of a multiplier dropped": (SCALAR, "carry = rounded >> (bits - 1)", "carry = 0", "scalar_functions"),
    "one Newton step for 1 / x": (SCALAR, NEWTON.format(2), NEWTON.format(1), "scalar_functions"),
}
SATURATIONS: dict[str, Mutant] = {
    "wrap loses a bit": (SCALAR, "& (high - low)) + low", "& (high - low - 1)) + low", "ends_of_an_accumulator"),
    "sign of the weights' zero point": (ROWS, "- weight_zero[j] * row_sum", "+ weight_zero[j] * row_sum", "matmul"),
    "int32 not saturated between scales": (
        ROWS,
        f"rescale(clamp(values[r, j], {INT32}), scale, right)",
        "rescale(values[r, j], scale, right)",
        "first_scale",
    ),
    "late bias wraps past int32": (
        ROWS,
        f"value = clamp(clamp(value, {INT32}) + late_bias[j], {INT32})",
        f"value = clamp(value, {INT32}) + late_bias[j]",
        "late_bias",
    ),
    "accumulator saturates one late": (
        ROWS,
        "narrowed = clamp(value, acc.low, acc.high)",
        "narrowed = clamp(value, acc.low, acc.high + 1)",
        "ends_of_an_accumulator",
    ),
    "packed results lose a bit": (
        ROWS,
        "results[j] & ((1 << bits) - 1)",
        "results[j] & ((1 << bits - 1) - 1)",
        "matmul",
    ),
    "zero point before saturation": (
        TABLE,
        f"clamp(clamp(scaled, {INT32}) + zero_point",
        "clamp(scaled + zero_point",
        "saturates_before_its_zero_point",
    ),
    "result clamped one too high": (ELEMENTWISE, "clamp(exact, low, high)", "clamp(exact, low, high + 1)", "ewlin"),
    "normalised value clamped one too high": (LAYERNORM, "-32768, 32767)", "-32768, 32768)", "reference and lnapply"),
}
MUTANTS = ROUNDINGS | TABLES | SATURATIONS
COPIED = (
    "pyproject.toml",
    "hwconfigs",
    "tests/conftest.py",
    "tests/npusim/strategies.py",
    "tests/npusim/test_engine.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name: str, repository: Path, tmp_path: Path) -> None:
    file, old, new, tests = MUTANTS[name]
    shutil.copytree(repository / "npusim", tmp_path / "npusim", ignore=shutil.ignore_patterns("__pycache__", "images"))
    for path in COPIED:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        source = repository / path
        shutil.copytree(source, tmp_path / path) if source.is_dir() else shutil.copy(source, tmp_path / path)
    target = tmp_path / "npusim" / "engine" / file
    text = target.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{file} no longer holds {old!r}"
    target.write_text(text.replace(old, new, 1), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=mutant"]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kernels"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "tests/npusim/test_engine.py", "-k", tests], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 1, f"survived: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert " failed" in done.stdout
