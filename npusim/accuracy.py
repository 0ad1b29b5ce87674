"""Measures the instructions that only approximate a function against float64, over all of their inputs.

    python -m npusim.accuracy        # measures (about a minute on two cores) and rewrites npusim/isa/accuracy.json

The manual npusim/isa/ISA.md shows these figures. What is measured is the arithmetic that the engine's kernels inline;
the tests hold it equal to the reference. Inputs are taken exhaustively where that is said, else from a fixed seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from npusim import numerics
from npusim.atomic_file import write_atomically
from npusim.engine import scalar
from npusim.engine.cache import inlined, kernel

FILE = Path(__file__).parent / "isa" / "accuracy.json"
THREADS = 2

_rsqrt, _reciprocal, _rescale = scalar.rsqrt, scalar.reciprocal, scalar.rescale
_table, _normalised, _exp2 = scalar.table_lookup_16, scalar.normalised_multiplier, scalar.exp2_negative


@inlined
def _rsqrt_error(value: Any) -> Any:
    mantissa, shift = _rsqrt(np.int64(value))
    return abs(mantissa * 2.0**-shift * math.sqrt(float(value)) - 1.0)


@kernel
def rsqrt_errors(first: int, last: int) -> Any:
    """Greatest relative error of ``rsqrt`` for the values first..last - 1."""
    worst = 0.0
    for value in range(first, last):
        worst = max(worst, _rsqrt_error(value))
    return worst


@kernel
def wide_rsqrt_errors(values: Any) -> Any:
    """The same for an array of values."""
    worst = 0.0
    for value in values:
        worst = max(worst, _rsqrt_error(value))
    return worst


@kernel
def reciprocal_errors(first: int, last: int) -> Any:
    """Greatest relative error of ``reciprocal`` for the values first..last - 1."""
    worst = 0.0
    for value in range(first, last):
        mantissa, shift = _reciprocal(np.int64(value))
        worst = max(worst, abs(mantissa * 2.0**-shift * value - 1.0))
    return worst


@kernel
def record_errors(first: int, last: int) -> Any:
    """Greatest relative error of RECIP's 16-bit record, factor 2^30 / 2^30, for the row sums first..last - 1."""
    worst = 0.0
    for value in range(first, last):
        mantissa, shift = _reciprocal(np.int64(value))
        product = (mantissa * (1 << 30) + (1 << 29)) >> 30
        m, s = _normalised(product, shift, 16)
        worst = max(worst, abs(m * 2.0**-s * value - 1.0))
    return worst


@kernel
def exp2_errors(fraction_bits: int, result_bits: int, last: int) -> Any:
    """Greatest error of ``exp2_negative``, in units of the result, for the distances 0..last - 1."""
    worst = 0.0
    top = float((1 << result_bits) - 1)
    for distance in range(last):
        exact = top * 2.0 ** (-distance / float(1 << fraction_bits))
        worst = max(worst, abs(_exp2(np.int64(distance), fraction_bits, result_bits) - exact))
    return worst


@kernel
def grid_errors(first: int, last: int, top: int) -> Any:
    """Greatest error of RTQUANT's index, in steps, for ranges first..last - 1 and every 16-bit value inside each."""
    worst = 0.0
    for reach in range(first, last):
        mantissa, shift = _reciprocal(np.int64(reach))
        for value in range(reach + 1):
            q = _rescale(np.int64(value) * top, mantissa, shift)
            worst = max(worst, abs(q - value * top / reach))
    return worst


@kernel
def table_errors(table: Any, exact: Any) -> Any:
    """Greatest and mean error of TABLE over all int16 inputs, in units of the int16 result; ``exact`` float64."""
    worst, total = 0.0, 0.0
    for index in range(65536):
        value = _rescale(_table(np.int64(index - 32768), table), 1, 7)
        error = abs(value - exact[index])
        worst, total = max(worst, error), total + error
    return worst, total / 65536


def spread(measure: Callable[..., Any], first: int, last: int, *arguments: int) -> float:
    """The greatest result of ``measure`` over parts of first..last - 1, on all threads."""
    parts = 16
    edges = [first + (last - first) * i // parts for i in range(parts + 1)]
    measure(first, first + 1, *arguments)  # compile once, before the threads meet
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda i: float(measure(edges[i], edges[i + 1], *arguments)), range(parts))
    return max(found)


def gelu(x: Any) -> Any:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "GELU (tanh) on [-8, 8)": (gelu, 8.0),
    "SiLU on [-8, 8)": (lambda x: x / (1.0 + np.exp(-x)), 8.0),
    "exp(x) on [-8, 0]": (lambda x: np.exp(x / 2.0 - 4.0), 8.0),
    "tanh on [-8, 8)": (np.tanh, 8.0),
}
"""Functions for TABLE, each over an input of 2^16 steps; exp's input is shifted to end at 0."""


def tables() -> dict[str, str]:
    """TABLE with entries that are the rounded function, at the scale that fills int16."""
    found = {}
    x = np.arange(-32768, 32769) / 32768.0
    for name, (function, half) in FUNCTIONS.items():
        y = function(x * half)
        y = y * (32767 / np.abs(y).max())
        worst, mean = table_errors(np.rint(y[::128]).astype(np.int64), y[:-1])
        found[name] = f"greatest {worst:.2f}, mean {mean:.2f} units of the 16-bit result (all 65,536 inputs)"
    return found


def layernorm(cols: int, bits: int) -> str:
    """LNSTAT and LNAPPLY (g = 2^12, b = 0, shift 12, so that the output is n) on random rows of ``bits``-bit values."""
    rng = np.random.default_rng([cols, bits])
    x = np.clip(np.rint(rng.normal(0, (1 << bits - 1) / 4, (400, cols))), -(1 << bits - 1), (1 << bits - 1) - 1)
    x = x.astype(np.int64)
    total = x.sum(axis=1, keepdims=True)
    mantissa, shift = numerics.rsqrt(cols * (x * x).sum(axis=1, keepdims=True) - total * total + 1)
    n = np.clip(numerics.rescale(cols * x - total, mantissa, shift - 12), -32768, 32767)
    exact = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) * 4096
    sqnr = 10 * math.log10((exact**2).sum() / ((n - exact) ** 2).sum())
    worst = np.abs(n - exact)[np.abs(exact) < 32767].max()
    return f"{sqnr:.1f} dB, greatest error {worst:.2f} units of 2^-12"


def measure() -> dict[str, dict[str, str]]:
    """Every figure, by mnemonic and what was measured."""
    rng = np.random.default_rng(0)
    wide = np.maximum(rng.integers(0, 1 << 62, 10_000_000) >> rng.integers(0, 31, 10_000_000), 1)
    exp2 = {
        f"p_bits = {bits}, every fraction_bits": (
            f"greatest {max(exp2_errors(f, bits, 65536) for f in range(17)):.3f} units of p (all 65,536 distances)"
        )
        for bits in (8, 12, 15, 16)
    }
    rsqrt, wide_rsqrt = spread(rsqrt_errors, 1 << 30, 1 << 32), float(wide_rsqrt_errors(wide))
    return {
        "table": tables(),
        "table8": {"any function": "none: an entry is the result (0.5 units by its own rounding)"},
        "lnstat": {
            "1 / sqrt(v), normalised v in [2^30, 2^32)": f"{_power(rsqrt)} relative (all 3 2^30 values)",
            "1 / sqrt(v), v up to 2^62": f"{_power(wide_rsqrt)} relative (10,000,000 values)",
        },
        "lnapply": {
            f"D = {cols}, inputs of {bits} bits": layernorm(cols, bits) for cols in (256, 1152) for bits in (8, 16)
        },
        "smexp": exp2,
        "recip": {
            "1 / s before its rounding to a record": (
                f"{_power(spread(reciprocal_errors, 1 << 31, 1 << 32))} relative (all 2^31 normalised values)"
            ),
            "the record's 15-bit multiplier": f"{_power(spread(record_errors, 1, 1 << 26))} relative (sums below 2^26)",
        },
        "rtquant": {
            f"index before its clamp, {bits} bits": (
                f"greatest {spread(grid_errors, 1, 1 << 14, (1 << bits) - 1):.6f} steps "
                "(ranges 1..16,383, every value inside); 0.5 is exact rounding"
            )
            for bits in (4, 6, 8)
        },
    }


def _power(value: float) -> str:
    return f"2^{math.log2(value):.1f}"


def main() -> None:
    """Measure and write the file."""
    write_atomically(FILE, (json.dumps(measure(), indent=2) + "\n").encode())
    print(f"{FILE}: written")


if __name__ == "__main__":
    main()
