"""The fast executor: the same instructions as ``npusim.reference``, each by a compiled kernel, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine import elementwise, layernorm, matmul, softmax, table
from npusim.isa import control, decode, dma
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState

EXECUTORS: dict[str, Callable[[Any, Decoded], None]] = {
    "load": dma.execute_load,
    "store": dma.execute_store,
    "matmul": matmul.execute,
    "ewlin": elementwise.execute_linear,
    "ewmul": elementwise.execute_product,
    "table": table.execute,
    "lnstat": layernorm.execute_statistics,
    "lnapply": layernorm.execute_apply,
    "smexp": softmax.execute_exp,
    "recip": softmax.execute_recip,
    "barrier": control.execute,
}


def execute(state: MachineState, instructions: Iterable[Decoded]) -> None:
    """Run decoded instructions on ``state``.

    Raises:
        ValueError: an instruction reaches outside a memory or finds an undefined record in it.
        OverflowError: an accumulator overflows on a machine whose accumulators trap.
    """
    for ins in instructions:
        EXECUTORS[ins.op](state, ins)


def run(state: MachineState, code: NDArray[np.uint32]) -> None:
    """Run (count, 32) instruction words on ``state``."""
    execute(state, decode(code))
