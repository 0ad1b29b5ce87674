"""The fast executor: the same instructions as ``npusim.reference``, each by a compiled kernel, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine import elementwise, fetch, layernorm, matmul, runtime_quantization, softmax, table
from npusim.isa import ALL, check_halt, decode
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState

KERNELS: dict[str, Callable[[Any, Decoded], None]] = {
    "fetch": fetch.execute,
    "matmul": matmul.execute,
    "ewlin": elementwise.execute_linear,
    "ewmul": elementwise.execute_product,
    "table": table.execute,
    "lnstat": layernorm.execute_statistics,
    "lnapply": layernorm.execute_apply,
    "smexp": softmax.execute_exp,
    "recip": softmax.execute_recip,
    "rtquant": runtime_quantization.execute,
}
EXECUTORS = {spec.mnemonic: spec.execute for spec in ALL} | KERNELS
"""The rest moves bytes or looks them up, which NumPy does for the reference already: there is nothing to compile."""


def execute(state: MachineState, instructions: Iterable[Decoded]) -> None:
    """Run decoded instructions on ``state``.

    Raises:
        ValueError: an instruction reaches outside a memory or finds an undefined record in it.
        OverflowError: an accumulator overflows on a machine whose accumulators trap.
    """
    for ins in instructions:
        EXECUTORS[ins.op](state, ins)


def run(state: MachineState, code: NDArray[np.uint32]) -> None:
    """Run (count, 32) instruction words on ``state``; raises as `execute`, and UserError for words that are no code."""
    instructions = decode(code)
    check_halt(code)
    execute(state, instructions)
