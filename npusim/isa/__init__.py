"""The instruction set: one file per family, one table for all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa.control import BARRIER
from npusim.isa.dma import LOAD, STORE
from npusim.isa.elementwise import EWLIN, EWMUL
from npusim.isa.encoding import UNITS, WORDS, Decoded, Instruction, decode_row
from npusim.isa.layernorm import LNAPPLY, LNSTAT
from npusim.isa.matmul import MATMUL
from npusim.isa.softmax import RECIP, SMEXP
from npusim.isa.table import TABLE

ALL = (LOAD, STORE, MATMUL, EWLIN, EWMUL, TABLE, LNSTAT, LNAPPLY, SMEXP, RECIP, BARRIER)
BY_OPCODE: dict[int, Instruction] = {spec.opcode: spec for spec in ALL}
BY_MNEMONIC: dict[str, Instruction] = {spec.mnemonic: spec for spec in ALL}


def decode(code: NDArray[np.uint32]) -> list[Decoded]:
    """Decode (count, 32) instruction words. Raises UserError naming the index of a bad instruction."""
    if code.ndim != 2 or code.shape[1] != WORDS:
        raise UserError(f"code has shape {code.shape}; allowed: (count, {WORDS})")
    out = []
    for index, words in enumerate(code.tolist()):
        try:
            out.append(decode_row(words, BY_OPCODE))
        except UserError as error:
            raise UserError(f"instruction {index}: {error}") from None
    return out


def violations(instructions: Iterable[Decoded], machine: object) -> list[str]:
    """Rules that make an instruction undefined, each with its index; empty for legal code."""
    found = []
    for index, ins in enumerate(instructions):
        spec = BY_MNEMONIC[ins.op]
        rules = spec.check(ins, machine)
        if UNITS[ins.unit] not in spec.units:
            rules = [*rules, f"unit = {UNITS[ins.unit]}: allowed {', '.join(spec.units)}"]
        found += [f"instruction {index} ({ins.op}): {rule}" for rule in rules]
    return found
