"""Products of integer matrices for the reference, exact and with BLAS where that can be had.

The one place in an executor where floats occur. They hold whole numbers below 2^53, which float64 holds exactly, so
the order in which BLAS adds does not matter, and nothing is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def largest(values: Any) -> int:
    """The greatest magnitude."""
    return max(int(values.max()), -int(values.min()))


def exact_product(x: Any, weights: Any) -> Any:
    """``x @ weights`` of int64 matrices, int64; as integers, which is slow, where a sum could leave 2^53."""
    if largest(x) * largest(weights) * x.shape[-1] <= 1 << 53:
        return (x.astype(np.float64) @ weights.astype(np.float64)).astype(np.int64)
    return x @ weights
