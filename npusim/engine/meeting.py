"""Where threads wait for one another: for some microseconds awake, then asleep.

A sleeping thread takes some 50 us to come back, more than most instructions last. So who arrives first looks for a
while whether the others have come, and looks for a shorter time once that was in vain, because then others keep the
processors busy. All that threads wrote before they met is seen by each of them behind it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import get_process_triple  # type: ignore[import-untyped]
from numba import types

from npusim.engine.cache import helper, kernel
from npusim.engine.context import LOOKS, MEETING, PARTS, Words, words
from npusim.engine.dot import I64, get_or_insert_function
from npusim.engine.native import call, intrinsic
from npusim.memory import aligned_zeros

LINE = 8
"""Words between those that different threads write: a line of the caches."""
ARRIVED, ROUND, STOPPED, FUNCTIONS, MUTEX, CONDITION, MEETING_WORDS = (LINE * line for line in range(7))
"""Places in a meeting's words: threads that have come, number of the meeting, whether none shall wait any more,
addresses of functions, and what the C library keeps of a mutex and a condition: at most 64 bytes each."""
LOCK, UNLOCK, SLEEP, WAKE = range(4)
NAMES = ("pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "pthread_cond_broadcast")
MOST_LOOKS, LEAST_LOOKS, TRIED_AGAIN = 2000, 16, 8
"""How often a thread looks before it sleeps: 2000 times last 20 to 100 us. Each so many rounds it takes its time."""
PAUSES = get_process_triple().startswith("x86_64")


class Meeting:
    """Shared by ``parts`` threads; ``words``: int64, at the beginning of a cache line."""

    def __init__(self) -> None:
        self.words = aligned_zeros(8 * MEETING_WORDS).view(np.int64)
        library, address = ctypes.CDLL(None), self.words.ctypes.data
        for place, name in enumerate(NAMES, FUNCTIONS):
            self.words[place] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        library.pthread_mutex_init(ctypes.c_void_p(address + 8 * MUTEX), None)
        library.pthread_cond_init(ctypes.c_void_p(address + 8 * CONDITION), None)

    def open(self) -> None:
        """Make ready for threads; none may be here."""
        self.words[ARRIVED] = self.words[STOPPED] = 0

    def stop(self) -> None:
        """Let all who wait go, and none wait any more: one of them will not come."""
        _stop(self.words)


@intrinsic
def load(typing_context: Any, address: Any) -> Any:
    """The word at an address, read anew; what the thread that stored it wrote before is seen behind it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """Set the word at an address, behind all that was written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, value = arguments
        builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the word at an address, one thread after another; return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, value = arguments
        return builder.atomic_rmw("add", builder.inttoptr(address, I64.as_pointer()), value, "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the processor that this thread only looks."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if PAUSES:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@helper
def _release(at: int, functions: Any, number: int) -> None:
    """Begin round ``number``; whoever sleeps wakes."""
    call(functions[LOCK], at + 8 * MUTEX, 0)
    store(at + 8 * ROUND, number)
    call(functions[WAKE], at + 8 * CONDITION, 0)
    call(functions[UNLOCK], at + 8 * MUTEX, 0)


@helper
def meet(c: Words) -> Any:
    """Wait until all threads have come; False where one will not."""
    at = c[MEETING]
    functions, number = words(at + 8 * FUNCTIONS, LINE), load(at + 8 * ROUND)
    if add(at + 8 * ARRIVED, 1) == c[PARTS] - 1:
        store(at + 8 * ARRIVED, 0)
        _release(at, functions, number + 1)
        return load(at + 8 * STOPPED) == 0
    looks = MOST_LOOKS if number % TRIED_AGAIN == 0 else c[LOOKS]
    for _ in range(looks):
        if load(at + 8 * ROUND) != number:
            c[LOOKS] = MOST_LOOKS
            return load(at + 8 * STOPPED) == 0
        pause()
    c[LOOKS] = max(LEAST_LOOKS, looks >> 1)
    call(functions[LOCK], at + 8 * MUTEX, 0)
    while load(at + 8 * ROUND) == number and load(at + 8 * STOPPED) == 0:
        call(functions[SLEEP], at + 8 * CONDITION, at + 8 * MUTEX)
    call(functions[UNLOCK], at + 8 * MUTEX, 0)
    return load(at + 8 * STOPPED) == 0


@kernel
def _stop(meeting: Any) -> None:
    at = meeting.ctypes.data
    store(at + 8 * STOPPED, 1)
    _release(at, words(at + 8 * FUNCTIONS, LINE), load(at + 8 * ROUND) + 1)
