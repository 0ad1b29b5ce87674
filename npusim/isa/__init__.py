"""The instruction set: one file per family, one table for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa.control import BARRIER, HALT, TOKEN
from npusim.isa.dma import LOAD, STORE
from npusim.isa.elementwise import EWLIN, EWMUL
from npusim.isa.encoding import WORDS, Decoded, Instruction, decode_row
from npusim.isa.layernorm import LNAPPLY, LNSTAT
from npusim.isa.matmul import MATMUL
from npusim.isa.parameter_bank import PSWITCH
from npusim.isa.runtime_quantization import RTQUANT
from npusim.isa.softmax import RECIP, SMEXP
from npusim.isa.storage_dma import FETCH
from npusim.isa.table import TABLE, TABLE8
from npusim.isa.transpose import TRANSPOSE

ALL = (
    LOAD, STORE, FETCH, PSWITCH, MATMUL, EWLIN, EWMUL, TRANSPOSE, TABLE, TABLE8, LNSTAT, LNAPPLY, SMEXP, RECIP, RTQUANT,
    TOKEN, BARRIER, HALT,
)  # fmt: skip
BY_OPCODE: dict[int, Instruction] = {spec.opcode: spec for spec in ALL}
BY_MNEMONIC: dict[str, Instruction] = {spec.mnemonic: spec for spec in ALL}


def decode(code: NDArray[np.uint32], first: int = 0) -> list[Decoded]:
    """Decode (count, 32) instruction words. Raises UserError naming the index of a bad one, counted from ``first``."""
    if code.ndim != 2 or code.shape[1] != WORDS:
        raise UserError(f"code has shape {code.shape}; allowed: (count, {WORDS})")
    out = []
    for index, words in enumerate(code.tolist(), first):
        try:
            out.append(decode_row(words, BY_OPCODE))
        except UserError as error:
            raise UserError(f"instruction {index}: {error}") from None
    return out


def check_halt(code: NDArray[np.uint32]) -> None:
    """Raise UserError where an instruction stands behind HALT. Whoever runs, times or checks a part calls this."""
    halts = np.flatnonzero((code[:-1, 0] & 0xFF) == HALT.opcode)
    if halts.size:
        raise UserError(f"instruction {halts[0] + 1} stands behind halt, where nothing runs")


def broken_rules(instructions: Iterable[Decoded], machine: object) -> list[tuple[int, str]]:
    """Rules that make an instruction undefined, each with its instruction's index; empty for legal code."""
    found: list[tuple[int, str]] = []
    for index, ins in enumerate(instructions):
        spec = BY_MNEMONIC[ins.op]
        rules = spec.check(ins, machine)
        if misplaced := spec.misplaced(ins, machine):
            rules = [*rules, misplaced]
        found += [(index, rule) for rule in rules]
    return found


def violations(instructions: Sequence[Decoded], machine: object) -> list[str]:
    """`broken_rules` as text, each with its instruction's index and mnemonic."""
    return [f"instruction {i} ({instructions[i].op}): {rule}" for i, rule in broken_rules(instructions, machine)]
