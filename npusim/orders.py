"""Tokens: who sends which to whom, and execution in a random order that they allow.

Units run freely against each other, so every order in which each unit keeps its own sequence, waits for its tokens and
stops at barriers may happen on some machine. If two such orders give different bits, a token is missing.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npusim import reference
from npusim.errors import UserError
from npusim.isa.control import JOINS, named_tokens
from npusim.isa.encoding import Decoded
from npusim.units import UNITS


class Token(NamedTuple):
    """One token: the instructions that send and take it, and its kind."""

    sender: int
    taker: int
    kind: str


def tokens(instructions: Sequence[Decoded]) -> list[Token]:
    """Every token that is sent and taken, by taker: of each semaphore the k-th one sent is the k-th one taken."""
    found = []
    sent: dict[tuple[str, int, int], deque[int]] = defaultdict(deque)
    for index, ins in enumerate(instructions):
        for token in _named(ins, "wait"):
            if sent[token]:
                found.append(Token(sent[token].popleft(), index, token[0]))
        for token in _named(ins, "signal"):
            sent[token].append(index)
    return found


def _named(ins: Decoded, what: str) -> list[tuple[str, int, int]]:
    """(kind, producer, consumer) of the tokens that ``ins`` takes ("wait") or sends ("signal")."""
    marked = named_tokens(ins, what)
    return [(kind, u, ins.unit) if what == "wait" else (kind, ins.unit, u) for kind, u in marked]


class _Semaphores:
    """All semaphores of a machine, empty at first."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, int, int]] = Counter()

    def can_start(self, ins: Decoded) -> bool:
        return all(self.count[token] for token in _named(ins, "wait"))

    def start(self, ins: Decoded) -> None:
        self.count.subtract(_named(ins, "wait"))

    def end(self, ins: Decoded) -> None:
        self.count.update(_named(ins, "signal"))


def token_legal_order(instructions: Sequence[Decoded], rng: np.random.Generator, stay: float = 0.8) -> list[int]:
    """A random order of instruction indices that queues, tokens and barriers allow.

    The unit that ran last goes on with probability ``stay`` while it can: then it runs far ahead of the others, which
    is where missing tokens show. Raises UserError where no unit can proceed, or tokens are left over at a barrier or at
    the end.
    """
    queues: list[list[int]] = [[] for _ in UNITS]
    barriers = [index for index, ins in enumerate(instructions) if ins.op in JOINS]
    for index in reversed(range(len(instructions))):
        if instructions[index].op not in JOINS:
            queues[instructions[index].unit].append(index)
    semaphores, order, unit = _Semaphores(), list[int](), 0
    for limit in [*barriers, len(instructions)]:
        while True:
            heads = {u: queue[-1] for u, queue in enumerate(queues) if queue and queue[-1] < limit}
            ready = [u for u, head in heads.items() if semaphores.can_start(instructions[head])]
            if not ready:
                break
            if unit not in ready or rng.random() >= stay:
                unit = int(rng.choice(ready))
            index = queues[unit].pop()
            semaphores.start(instructions[index])
            semaphores.end(instructions[index])
            order.append(index)
        if heads or +semaphores.count:
            left = ", ".join(f"{kind} from {UNITS[a]} to {UNITS[b]}" for kind, a, b in +semaphores.count)
            waiting = ", ".join(f"{index} ({instructions[index].op})" for index in sorted(heads.values()))
            raise UserError(
                f"before instruction {limit}: waiting for a token: {waiting or 'none'}; tokens never taken: "
                f"{left or 'none'}"
            )
        if limit < len(instructions):
            order.append(limit)
    return order


def execute_in_random_order(
    state: Any,
    instructions: Sequence[Decoded],
    rng: np.random.Generator,
    execute: Callable[[Any, list[Decoded]], None] = reference.execute,
) -> None:
    """Run ``instructions`` on ``state`` in a random token-legal order, by default with the reference executor.

    Each instruction runs as a whole: of two that the tokens leave unordered, either may come first, in some order.
    """
    execute(state, [instructions[index] for index in token_legal_order(instructions, rng)])
