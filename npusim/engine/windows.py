"""Between operands in the machine's memories and the contiguous arrays that kernels work on.

A kernel sees int32 or int64 arrays only, whatever the element type, the strides and the alignment in memory. That
keeps the number of compiled variants at one for each kernel; and an instruction reads all of its operands before it
writes, as the reference does, even where the windows overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.isa.encoding import DTYPE_NAMES, DTYPES, Decoded


def contiguous(values: Any, dtype: Any) -> NDArray[Any]:
    """Return ``values`` (..., cols) as a contiguous (rows, cols) array of ``dtype``."""
    return np.ascontiguousarray(values, dtype).reshape(-1, values.shape[-1])


def gather(operand: Any, dtype: Any = np.int32) -> NDArray[Any]:
    """Copy an operand (..., cols) to a contiguous (rows, cols) array of ``dtype``."""
    return np.asarray(operand.values(dtype).reshape(-1, operand.shape[-1]))


def scratch(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return an uninitialised int32 (rows, cols) array for the result that goes to an operand of ``shape``."""
    return np.empty((int(np.prod(shape[:-1])), shape[-1]), np.int32)


def put(state: Any, ins: Decoded, target: Any, values: NDArray[Any], clamped: int) -> None:
    """Write a kernel's result (rows, cols) to the operand ``target``; ``clamped`` of the values met the clamp."""
    target.assign(values.reshape(target.shape))
    state.count(ins, clamped, values.size)


def limits(code: int) -> tuple[int, int]:
    """Least and greatest value of element type number ``code``."""
    _, low, high = DTYPES[DTYPE_NAMES[code]]
    return low, high
