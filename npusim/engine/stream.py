"""Runs of instructions without Python between them.

A compiled loop calls a handler for each: a function compiled for one kind of instruction, which reads its fields from a
table (`npusim.engine.context`) and its operands straight from the memories. A handler takes the common cases only.
Where it declines, which it does before it writes anything, the loop ends and the instruction goes to the executors of
`npusim.engine`, which take every case and say what is wrong.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim.engine import amx, stream_matmul, stream_move, stream_norm, stream_vector
from npusim.engine.cache import callback, kernel
from npusim.engine.context import (
    ARENA_BYTES,
    COLUMNS,
    KIND_OF,
    KINDS,
    LAYER,
    OPCODE,
    STOPPED,
    TALLY,
    Place,
    columns,
    table_of,
    table_of_words,
    words,
)  # fmt: skip
from npusim.engine.dot import VARIANT
from npusim.engine.meeting import MOST_LOOKS, Meeting
from npusim.engine.native import call
from npusim.engine.order import NOTES_WORDS
from npusim.engine.stream_matmul import HELD_MOST
from npusim.engine.stream_rows import SIGNATURE
from npusim.engine.threads import SETTINGS, pool
from npusim.isa import BY_MNEMONIC, BY_OPCODE
from npusim.isa.addressing import BASES
from npusim.isa.encoding import Decoded, decode_row
from npusim.memory import MachineState, Sums, aligned_zeros
from npusim.units import of_kind

Handler = Callable[[int, int], int]
HANDLERS: dict[str, Handler] = {
    "load": stream_move.load,
    "store": stream_move.store,
    "matmul": stream_matmul.matmul,
    "ewlin": stream_vector.ewlin,
    "ewmul": stream_vector.ewmul,
    "table": stream_vector.table,
    "lnstat": stream_norm.lnstat,
    "lnapply": stream_norm.lnapply,
    "smexp": stream_norm.smexp,
    "recip": stream_norm.recip,
    "token": stream_move.nothing,
    "barrier": stream_move.nothing,
    "halt": stream_move.nothing,
}
if not VARIANT.takes_bytes:  # the handler knows no other units of 8-bit operands
    del HANDLERS["matmul"]


@kernel
def _run(context: Any, table: Any, handlers: Any, first: int, last: int) -> int:
    """Execute instructions first..last - 1 of the table; return the number of the first that no handler took."""
    address, notes = context.ctypes.data, words(context[NOTES_PLACE], NOTES_WORDS)
    notes[0] = 0
    for index in range(first, last):
        notes[1] = 0
        handler = handlers[table[index, OPCODE]]
        if handler == 0 or call(handler, address, table.ctypes.data + index * 8 * COLUMNS) == 0:
            return index
        if context[STOPPED]:
            return index
    return last


NOTES_PLACE = int(Place.NOTES)


def _share(meeting: Meeting, *arguments: Any) -> int:
    """One thread's `_run`; where it fails, the others do not wait for it."""
    try:
        return int(_run(*arguments))
    except BaseException:
        meeting.stop()
        raise


class Code:
    """Instructions as a table for the handlers. The words are taken as legal code; one is decoded when it is asked for.

    ``source``: uint32 (count, 32), or decoded instructions.
    """

    def __init__(self, source: NDArray[np.uint32] | Sequence[Decoded]) -> None:
        self._source = source
        self.table = table_of_words(source) if isinstance(source, np.ndarray) else table_of(source)
        self.opcodes = tuple(np.unique(self.table[:, OPCODE]).tolist())
        self.layers = int(self.table[:, LAYER].max(initial=0)) + 1
        self.parts = parts_of(self)

    def __len__(self) -> int:
        return len(self.table)

    def decoded(self, index: int) -> Decoded:
        """Instruction number ``index``."""
        found = self._source[index]
        return decode_row(found.tolist(), BY_OPCODE) if isinstance(found, np.ndarray) else found


@cache
def _compiled(handler: Handler) -> Any:
    """The handler as a C function; it stays loaded as long as something holds it."""
    return callback(handler, SIGNATURE)


@cache
def handler_addresses(opcodes: tuple[int, ...], handlers: tuple[Handler | None, ...]) -> NDArray[np.int64]:
    """Addresses of compiled handlers by opcode; 0 where there is none."""
    addresses = np.zeros(256, np.int64)
    for opcode, handler in zip(opcodes, handlers, strict=True):
        if handler is not None:
            addresses[opcode] = _compiled(handler).address
    return addresses


class Arena:
    """A thread's memory: scratch, notes, and the sums that the handlers hold."""

    def __init__(self) -> None:
        self.scratch = aligned_zeros(ARENA_BYTES)
        self.notes = np.zeros(NOTES_WORDS, np.int64)
        arrays = len(of_kind("mac"))
        self.held, self.held_rows = np.empty((arrays, HELD_MOST), np.int32), np.empty((arrays, HELD_MOST), np.int64)


@cache
def _arena(process: int, thread: int, part: int) -> Arena:
    return Arena()


STAYS = -1
"""Instead of rows of held sums: they do not fit the arena."""


def held_places(c: NDArray[np.int64]) -> NDArray[np.int64]:
    """The words of a context about held sums, those from ``Place.HELD`` on of each MAC array: (arrays, words)."""
    return c[Place.HELD : Place.KEPT_LAST].reshape(len(of_kind("mac")), -1)


@cache
def _meeting(process: int, thread: int) -> Meeting:
    """A thread's meeting with its helpers."""
    meeting = Meeting()
    meeting.stop()  # compiled before threads wait for one another
    return meeting


@cache
def _sharing(process: int) -> threading.Lock:
    """Held by the one session whose threads may wait for one another: halves of two would wait for ever."""
    return threading.Lock()


def parts_of(code: Code) -> int:
    """How many threads share each instruction: those that there are, if the instructions are long enough."""
    at = columns("matmul")
    rows = code.table[code.table[:, OPCODE] == BY_MNEMONIC["matmul"].opcode]
    # No factor beyond 2^12, so that products of all five fit int64.
    factors = np.minimum(rows[:, [at.m, at.k, at.n, at.batch0, at.batch1]], 1 << 12)
    macs = int((factors.prod(axis=1) // max(len(rows), 1)).sum())
    worth = sys.platform == "linux" and len(rows) > 0 and macs >= SHARED_MACS
    return int(SETTINGS.NUMBA_NUM_THREADS) if worth else 1


SHARED_MACS = 1 << 23
"""Mean multiply-accumulates of a MATMUL from which on threads share instructions: some 50 us, against 5 to meet."""


class Session:
    """One state while handlers run on it.

    Between `enter` and `leave`, tallies and held sums are the session's.
    """

    def __init__(self, state: MachineState, code: Code, taken: Collection[str]) -> None:
        self.state, self.code = state, code
        names = [BY_OPCODE[opcode].mnemonic for opcode in code.opcodes]
        self.handlers = handler_addresses(
            code.opcodes, tuple(HANDLERS.get(name) if name in taken else None for name in names)
        )
        self.parts = code.parts
        whose = os.getpid(), threading.get_ident()
        arenas = [_arena(*whose, part) for part in range(self.parts)]
        self.arena = arenas[0]
        self.counts = np.zeros((self.parts, code.layers, KINDS, TALLY), np.int64)
        self.contexts = [self._context(part, arena) for part, arena in enumerate(arenas)]
        if self.parts > 1:
            self.meeting = _meeting(*whose)
            for c in self.contexts:
                c[Place.MEETING], c[Place.LOOKS] = self.meeting.words.ctypes.data, MOST_LOOKS

    def _context(self, part: int, arena: Arena) -> NDArray[np.int64]:
        state, array = self.state, self.state.machine.mac_array
        c = np.zeros(Place.SIZE, np.int64)
        for place, name in enumerate(("dram", "sram", "param", "param_next")):
            memory = getattr(state, name)
            c[place], c[Place.DRAM_BYTES + place] = memory.ctypes.data, memory.size
        c[Place.BASE : Place.BASE + BASES] = state.bases
        c[Place.ACC_BITS], c[Place.MULTIPLIER_BITS] = array.acc_bits, array.requant_multiplier_bits
        c[Place.ROW_SUMS], c[Place.ROUNDS_TWICE] = array.row_sum_column, array.requant_rounding == "double"
        c[Place.TILES] = amx.SHAPE.ctypes.data if amx.available() else 0
        c[Place.PART], c[Place.PARTS] = part, self.parts
        for where, memory in (
            (Place.ARENA, arena.scratch), (Place.NOTES, arena.notes), (Place.TALLIES, self.counts[part]),
        ):  # fmt: skip
            c[where] = memory.ctypes.data
        for place, held, rows in zip(held_places(c), self.arena.held, self.arena.held_rows, strict=True):
            place[:2] = held.ctypes.data, rows.ctypes.data
        return c

    def run(self, first: int, last: int) -> int:
        """Execute instructions ``first`` to ``last`` - 1; return the number of the first that no handler takes."""
        self._take()
        rest: tuple[Any, ...] = self.code.table, self.handlers, first, last
        if self.parts == 1:
            reached = int(_run(self.contexts[0], *rest))
        else:
            reached = self._run_shared(rest)
        self._give()
        return reached

    def _run_shared(self, rest: tuple[Any, ...]) -> int:
        _run(self.contexts[0], *rest[:2], 0, 0)  # compiled before threads wait for one another
        others: list[Future[int]] = []
        with _sharing(os.getpid()):
            self.meeting.open()
            try:
                for context in self.contexts[1:]:
                    others.append(pool(os.getpid()).submit(_share, self.meeting, context, *rest))
                reached = int(_run(self.contexts[0], *rest))
            except BaseException:  # Ctrl-C, or no more threads: those that run would wait for ever
                self.meeting.stop()
                raise
            finally:
                wait(others)
        for other in others:
            other.result()
        return reached

    def _take(self) -> None:
        """Held sums that fit go to the arena; others stay, and a MATMUL that goes on from them is not taken.

        What MATMULs kept is dropped: others may have written to SRAM since.
        """
        nothing = Sums(np.zeros((0, 0), np.int64), np.zeros((0, 1), np.int64))
        for array, unit in enumerate(of_kind("mac")):
            held = self.state.held.get(unit, nothing)
            bound, row_bound = (int(np.abs(values).max(initial=0)) for values in (held.products, held.rows))
            fits = held.products.size <= HELD_MOST and bound < 1 << 31
            if fits:
                self.arena.held[array, : held.products.size] = held.products.reshape(-1)
                self.arena.held_rows[array, : held.rows.size] = held.rows.reshape(-1)
            for c in self.contexts:
                c[Place.KEPT :] = 0
                held_places(c)[array, 2:] = (*held.products.shape, bound, row_bound) if fits else (STAYS, 0, 0, 0)

    def _give(self) -> None:
        """Held sums and tallies go back to the state."""
        state, counts = self.state, self.counts.sum(axis=0)
        number = {kind: name for name, kind in KIND_OF.items()}
        if counts[:, KIND_OF["matmul"], 2].any():
            for array, unit in enumerate(of_kind("mac")):
                m, n = held_places(self.contexts[0])[array, 2:4].tolist()
                if m != STAYS:
                    state.held.pop(unit, None)
                if m > 0:
                    products, rows = self.arena.held[array, : m * n], self.arena.held_rows[array, :m]
                    state.held[unit] = Sums(products.reshape(m, n).astype(np.int64), rows.reshape(m, 1).copy())
        for layer, kind in np.argwhere(counts[:, :, 2]).tolist():
            saturated, outputs, _ = counts[layer, kind].tolist()
            state.count_of(layer, number[kind], saturated, outputs)
        self.counts[:] = 0
