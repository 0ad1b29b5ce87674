"""Encodes many instructions at a time: all of a kind, field by field, as arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import HEADER, WORDS, encode


def encode_all(instructions: Sequence[tuple[str, dict[str, int]]], layers: Sequence[str]) -> NDArray[np.uint32]:
    """Words (count, 32) of instructions as (mnemonic, fields), each as `npusim.isa.encoding.encode` gives it.

    Raises UserError, naming the layer, for a number that a field has no room for.
    """
    words = np.zeros((len(instructions), WORDS), np.uint32)
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for index, (mnemonic, _) in enumerate(instructions):
        rows[mnemonic].append(index)
    for mnemonic, indices in rows.items():
        spec, fields = BY_MNEMONIC[mnemonic], [instructions[index][1] for index in indices]
        block = np.zeros((len(indices), WORDS), np.uint64)
        wrong = np.zeros(len(indices), bool)
        if any(not given.keys() <= spec.by_name.keys() for given in fields):
            wrong[:] = True
        for f in HEADER + spec.fields:
            if f.name == "opcode":
                block[:, f.word] |= np.uint64(spec.opcode << f.lo)
                continue
            values = np.array([given.get(f.name, 0) for given in fields], object if f.bits == 64 else np.int64)
            top = len(f.names) - 1 if f.names else f.high
            wrong |= np.asarray((values < f.low) | (values > top), bool)
            raw = (values & ((1 << f.bits) - 1)).astype(np.uint64)
            block[:, f.word] |= (raw << np.uint64(f.lo)) & np.uint64(0xFFFF_FFFF)
            if f.bits == 64:
                block[:, f.word + 1] |= raw >> np.uint64(32)
        for at in np.flatnonzero(wrong):
            try:
                encode(spec, fields[at])
            except UserError as error:
                raise UserError(f"{layers[fields[at]['layer']]}: {error}") from None
        words[indices] = block.astype(np.uint32)
    return words
