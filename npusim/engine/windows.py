"""Between the bytes of the machine's memories and the contiguous arrays that kernels work on.

A kernel sees int32 or int64 arrays only, whatever the element type, the strides and the alignment in memory. That
keeps the number of compiled variants at one for each kernel; and an instruction reads all of its operands before it
writes, as the reference does, even where the windows overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.isa.encoding import DTYPE_NAMES, DTYPES


def gather(window: Any, dtype: Any = np.int32) -> NDArray[Any]:
    """Copy ``window`` (..., cols) to a contiguous (rows, cols) array of ``dtype``."""
    return np.asarray(window.astype(dtype, order="C").reshape(-1, window.shape[-1]))


def scratch(window: Any) -> NDArray[np.int32]:
    """Return an uninitialised int32 (rows, cols) array for the result that goes to ``window``."""
    return np.empty((window.size // window.shape[-1], window.shape[-1]), np.int32)


def scatter(result: NDArray[Any], window: Any) -> None:
    """Write (rows, cols) back to ``window``; the values fit its type."""
    window[...] = result.reshape(window.shape)


def limits(code: int) -> tuple[int, int]:
    """Least and greatest value of element type number ``code``."""
    _, low, high = DTYPES[DTYPE_NAMES[code]]
    return low, high
