"""Token insertion: an instruction waits for every earlier one, on another unit, whose bytes it reads or overwrites.

Units run their queues in order, so waiting for one instruction of a unit covers all before it, and a token pair is
needed only when no earlier wait of the same queue has covered it. Tokens between two units are therefore taken in the
order they are sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.accesses import READ, WRITE, Accesses, units_used
from npusim.congruence import digest, joins, pieces
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.encoding import TOKEN_WORDS, TOKENS, Decoded, Region


def with_tokens(code: NDArray[np.uint32], known: dict[bytes, NDArray[np.uint32]] | None = None) -> NDArray[np.uint32]:
    """The words (count, 32) with the tokens that program order needs, instead of those that they have.

    None crosses a barrier, which takes all. Pieces between barriers with the same overlaps have the same tokens;
    ``known`` keeps those of earlier code.
    """
    code = code.copy()
    code[:, TOKEN_WORDS] = 0
    known = {} if known is None else known
    for begin, end in pieces(joins(code)):
        piece = code[begin:end]
        key = digest(piece)
        if key not in known:
            known[key] = _token_words(decode(piece))
        piece[:, TOKEN_WORDS] = known[key]
    return code


def _token_words(instructions: list[Decoded]) -> NDArray[np.uint32]:
    """The words `TOKEN_WORDS` (count, 2)."""
    words = np.zeros((len(instructions), len(TOKEN_WORDS)), np.uint32)
    for row, found in zip(words, insert_tokens(instructions), strict=True):
        for f in TOKENS:
            row[TOKEN_WORDS.index(f.word)] |= np.uint32(found.get(f.name, 0) << f.lo)
    return words


def insert_tokens(instructions: list[Decoded]) -> list[dict[str, int]]:
    """Header fields (wait_raw, wait_war, signal_raw, signal_war) of each instruction of one piece."""
    units = units_used(instructions)
    touched = Accesses(units)
    waited = np.full((units, units), -1, np.int64)
    headers: list[dict[str, int]] = [{} for _ in instructions]
    for index, ins in enumerate(instructions):
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        for unit, (producer, kind) in _needs(touched, reads, writes).items():
            if unit != ins.unit and producer > waited[ins.unit, unit]:
                waited[ins.unit, unit] = producer
                _set(headers[index], f"wait_{kind}", unit)
                _set(headers[producer], f"signal_{kind}", ins.unit)
        for access, regions in ((READ, reads), (WRITE, writes)):
            for region in regions:
                touched.add(region, access, ins.unit, index)
    return headers


def _needs(touched: Accesses, reads: list[Region], writes: list[Region]) -> dict[int, tuple[int, str]]:
    """By unit: the latest instruction that must be complete, and the kind of its token."""
    needs: dict[int, tuple[int, str]] = {}
    written = [touched.latest(region).tolist() for region in writes]
    read = [touched.latest(region).tolist() for region in reads]
    for kind, found, access in (("war", written, READ), ("war", written, WRITE), ("raw", read, WRITE)):
        for latest in found:
            for unit, producer in enumerate(latest[access]):
                if producer >= max(0, needs.get(unit, (0, ""))[0]):
                    needs[unit] = (producer, kind)
    return needs


def _set(header: dict[str, int], name: str, unit: int) -> None:
    header[name] = header.get(name, 0) | 1 << unit
