"""Threads that meet see what the others wrote, and none waits for one that will not come."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from npusim.engine import stream
from npusim.engine.cache import kernel
from npusim.engine.context import SIZE, Place, words
from npusim.engine.meeting import LEAST_LOOKS, MOST_LOOKS, ROUND, Meeting, meet
from npusim.engine.order import NOTES_WORDS, begin, region
from npusim.engine.threads import SETTINGS
from npusim.isa.assembly import assemble
from npusim.isa.matmul import RECORD
from npusim.memory import MachineState
from tests.npusim.strategies import DRAM, machine
from tests.npusim.test_engine_stream import CHAIN

ROUNDS = 20_000


def contexts(shared: Meeting, parts: int, looks: int) -> list[Any]:
    shared.open()
    found = [np.zeros(SIZE, np.int64) for _ in range(parts)]
    for part, c in enumerate(found):
        c[Place.MEETING], c[Place.LOOKS], c[Place.PART], c[Place.PARTS] = shared.words.ctypes.data, looks, part, parts
    return found


@kernel
def relay(context: Any, values: Any, rounds: int) -> int:
    """Each thread writes its word, meets, and adds its neighbour's to it for the next round; errors seen on the way."""
    c = words(context.ctypes.data, SIZE)
    part, parts, wrong = c[Place.PART], c[Place.PARTS], 0
    for turn in range(rounds):
        values[turn & 1, part] = turn * 10 + part
        if not meet(c):
            return -1 - turn
        for other in range(parts):
            wrong += values[turn & 1, other] != turn * 10 + other
    return wrong


@pytest.mark.parametrize("looks", [MOST_LOOKS, LEAST_LOOKS])
@pytest.mark.parametrize("parts", [2, 3])
def test_what_was_written_before_is_seen_behind(parts: int, looks: int) -> None:
    """Awake and, with more threads than cores, asleep. Two sets of words: who is fast writes the other one."""
    shared, values, found = Meeting(), np.full((2, 8), -1), list[int]()
    cs = contexts(shared, parts, looks)
    relay(cs[0], values, 0)
    others = [threading.Thread(target=lambda c=c: found.append(relay(c, values, ROUNDS))) for c in cs[1:]]
    for thread in others:
        thread.start()
    found.append(relay(cs[0], values, ROUNDS))
    for thread in others:
        thread.join()
    assert found == [0] * parts
    assert shared.words[ROUND] == ROUNDS


def test_who_waits_in_vain_looks_for_a_shorter_time_and_is_let_go() -> None:
    """The other one never comes; `stop` wakes the sleeper, and nobody sleeps any more."""
    shared, found = Meeting(), list[int]()
    cs = contexts(shared, 2, MOST_LOOKS)
    values = np.zeros((2, 8), np.int64)
    relay(cs[0], values, 0)
    thread = threading.Thread(target=lambda: found.append(relay(cs[0], values, 5)))
    thread.start()
    while cs[0][Place.LOOKS] == MOST_LOOKS:
        time.sleep(0.001)
    thread.join(0.05)
    assert thread.is_alive()
    shared.stop()
    thread.join()
    assert found == [-1]
    assert cs[0][Place.LOOKS] == MOST_LOOKS // 2
    assert relay(cs[1], values, 5) == -1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", ["main", "helper"])
def test_a_run_that_one_thread_leaves_ends(
    place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thread fails, the others come back, the error is told, and the next run has its meeting again."""
    monkeypatch.setattr(SETTINGS, "NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(stream, "SHARED_MACS", 0)
    state = MachineState(machine(acc_bits=40), DRAM)
    record = state.vector("param", 0, RECORD, 1)
    record["multiplier"], record["shift"] = 20000, 27
    code = stream.Code(assemble(CHAIN * 3))
    whole, main = stream._run, threading.get_ident()

    def failing(context: Any, table: Any, handlers: Any, first: int, last: int) -> int:
        if last and (threading.get_ident() == main) == (place == "main"):
            raise error
        return int(whole(context, table, handlers, first, last))

    with monkeypatch.context() as patch:
        patch.setattr(stream, "_run", failing)
        with pytest.raises(error):
            stream.Session(state, code, stream.HANDLERS).run(0, len(code))
    assert stream.Session(state, code, stream.HANDLERS).run(0, len(code)) == len(code)


@kernel
def noted(context: Any, accesses: Any) -> int:
    """How often a thread meets that takes notes of these accesses: memory, first byte, size, written."""
    c = words(context.ctypes.data, SIZE)
    notes, meetings = words(c[Place.NOTES], NOTES_WORDS), 0
    for row in accesses:
        notes[1] = 0
        region(c, row[0], row[1], row[2], row[3])
        c[Place.STOPPED] = 0
        begin(c)
        meetings += c[Place.STOPPED]
    return meetings


@pytest.mark.parametrize(
    ("second", "meets"),
    [((1, 100, 8, 0), 1), ((1, 107, 1, 1), 1), ((1, 99, 1, 1), 0), ((1, 108, 8, 0), 0), ((0, 100, 8, 0), 0)],
)
def test_threads_meet_exactly_where_bytes_are_shared(second: tuple[int, ...], meets: int) -> None:
    """Behind a write of bytes 100..107 of memory 1. A meeting that is stopped is counted and waits for nobody."""
    shared, notes = Meeting(), np.zeros(NOTES_WORDS, np.int64)
    c = contexts(shared, 2, MOST_LOOKS)[0]
    shared.stop()
    c[Place.NOTES] = notes.ctypes.data
    c[Place.DRAM_BYTES : Place.DRAM_BYTES + 2] = 1000
    assert noted(c, np.array([(1, 100, 8, 1), second])) == meets
    notes[:2] = 0
    assert noted(c, np.array([(1, 100, 8, 0), (*second[:3], 0)])) == 0
