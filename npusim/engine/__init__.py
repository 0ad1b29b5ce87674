"""The fast executor: the same instructions as ``npusim.reference``, each by a compiled kernel, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine import elementwise, fetch, layernorm, matmul, runtime_quantization, softmax, table
from npusim.engine.stream import HANDLERS, Code, Session
from npusim.isa import ALL, check_halt, decode
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState

__all__ = ["EXECUTORS", "HANDLERS", "KERNELS", "Code", "execute", "progress", "run"]

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


ORIGINAL = dict(EXECUTORS)


def progress(state: MachineState, code: Code, first: int = 0, last: int | None = None) -> Iterator[int]:
    """Run instructions ``first`` to ``last`` - 1 (all) of ``code``; yield the number of each that no handler takes.

    Where one fails, its number was the last yielded. Raises as `execute`.
    """
    # Tests put other executors in the places of some.
    taken = [name for name in HANDLERS if EXECUTORS[name] is ORIGINAL[name]]
    session, index, end = Session(state, code, taken), first, len(code) if last is None else last
    while (index := session.run(index, end)) < end:
        yield index
        ins = code.decoded(index)
        EXECUTORS[ins.op](state, ins)
        index += 1


def execute(state: MachineState, instructions: Iterable[Decoded]) -> None:
    """Run decoded instructions on ``state``.

    Raises:
        ValueError: an instruction reaches outside a memory or finds an undefined record in it.
        OverflowError: an accumulator overflows on a machine whose accumulators trap.
    """
    for _ in progress(state, Code(list(instructions))):
        pass


def run(state: MachineState, code: NDArray[np.uint32]) -> None:
    """Run (count, 32) instruction words on ``state``; raises as `execute`, and UserError for words that are no code."""
    instructions = decode(code)
    check_halt(code)
    execute(state, instructions)
