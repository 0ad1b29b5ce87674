"""The random order executor finds a missing token, and only that."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from npusim import reference
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.isa.assembly import assemble
from npusim.isa.control import JOINS
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState
from npusim.orders import execute_in_random_order, token_legal_order
from npusim.units import UNITS
from tests.npusim.timing.programs import random_code

TILES, TILE_BYTES, OUT = 4, 16, 1024
LOAD, STORE, VECTOR = 1, 2, 8


def tile_program() -> str:
    """Four tiles go through one input and one output buffer: out = 3 * in, in 8 bits. Every hazard has its token."""
    lines = []
    for tile in range(TILES):
        not_first, not_last = int(tile > 0), int(tile < TILES - 1)
        shape = f"row_bytes={TILE_BYTES} rows=1 planes=1"
        lines += [
            f"load unit=load {shape} dram_addr={tile * TILE_BYTES} local_addr=0 "
            f"wait_war={VECTOR * not_first} signal_raw={VECTOR}",
            f"ewlin unit=vector rows=1 cols={TILE_BYTES} batch=1 a_addr=0 b_addr=0xffffffff out_addr=512 "
            f"a_mul=6 shift=1 "
            f"a_mul_addr=0xffffffff b_mul_addr=0xffffffff bias_addr=0xffffffff "
            f"wait_raw={LOAD} wait_war={STORE * not_first} signal_raw={STORE} signal_war={LOAD * not_last}",
            f"store unit=store {shape} dram_addr={OUT + tile * TILE_BYTES} local_addr=512 "
            f"wait_raw={VECTOR} signal_war={VECTOR * not_last}",
        ]
    return "\n".join([*lines, "barrier unit=vector"])


def result(machine: Machine, instructions: Sequence[Decoded], rng: np.random.Generator | None) -> list[int]:
    state = MachineState(machine, 4096)
    state.dram[: TILES * TILE_BYTES] = np.arange(TILES * TILE_BYTES)
    if rng is None:
        reference.execute(state, instructions)
    else:
        execute_in_random_order(state, instructions, rng)
    return state.dram[OUT : OUT + TILES * TILE_BYTES].tolist()


def edges(instructions: Sequence[Decoded]) -> list[tuple[int, int, str]]:
    """(sender, taker, kind) of every token: the n-th sent of a semaphore is the n-th taken."""
    found = []
    for kind in ("raw", "war"):
        for a in range(len(UNITS)):
            for b in range(len(UNITS)):
                sent = [i for i, s in enumerate(instructions) if s.unit == a and getattr(s, f"signal_{kind}") >> b & 1]
                taken = [i for i, s in enumerate(instructions) if s.unit == b and getattr(s, f"wait_{kind}") >> a & 1]
                found += [(i, j, kind) for i, j in zip(sent, taken, strict=True)]
    return found


def test_complete_tokens_give_equal_bits_in_every_order(tiny_machine: Machine) -> None:
    instructions = decode(assemble(tile_program()))
    expected = [min(3 * value, 255) for value in range(TILES * TILE_BYTES)]
    assert result(tiny_machine, instructions, None) == expected
    for seed in range(100):
        assert result(tiny_machine, instructions, np.random.default_rng(seed)) == expected


def test_each_removed_token_shows(tiny_machine: Machine) -> None:
    expected = result(tiny_machine, decode(assemble(tile_program())), None)
    tokens = edges(decode(assemble(tile_program())))
    assert len(tokens) == 2 * TILES + 2 * (TILES - 1)
    for sender, taker, kind in tokens:
        instructions = decode(assemble(tile_program()))
        out, back = f"signal_{kind}", f"wait_{kind}"
        setattr(instructions[sender], out, getattr(instructions[sender], out) & ~(1 << instructions[taker].unit))
        setattr(instructions[taker], back, getattr(instructions[taker], back) & ~(1 << instructions[sender].unit))
        assert result(tiny_machine, instructions, None) == expected  # program order hides it
        runs = [result(tiny_machine, instructions, np.random.default_rng(seed)) for seed in range(100)]
        assert any(run != expected for run in runs), (sender, taker, kind)


def test_orders_keep_queues_tokens_and_barriers() -> None:
    differing = 0
    for seed in range(50):
        rng = np.random.default_rng([8, seed])
        instructions = decode(random_code(rng, 40, 0.3, True))
        order = token_legal_order(instructions, rng)
        differing += order != sorted(order)
        place = {index: position for position, index in enumerate(order)}
        assert sorted(order) == list(range(len(instructions)))
        for unit in range(len(UNITS)):
            assert all(
                place[i] < place[j] for i, j in pairwise(i for i, s in enumerate(instructions) if s.unit == unit)
            )
        assert all(place[sender] < place[taker] for sender, taker, _ in edges(instructions))
        for barrier in (i for i, ins in enumerate(instructions) if ins.op in JOINS):
            assert place[barrier] == barrier
    assert differing > 25


def test_a_deadlock_and_a_leftover_token_are_refused() -> None:
    rng = np.random.default_rng(0)
    stuck = decode(assemble(f"recip unit=vector wait_raw={LOAD}"))
    with pytest.raises(
        UserError, match=r"before instruction 1: waiting for a token: 0 \(recip\); .* never taken: none"
    ):
        token_legal_order(stuck, rng)
    left = decode(assemble(f"recip unit=vector signal_raw={LOAD}\nbarrier unit=vector"))
    with pytest.raises(UserError, match=r"before instruction 1: .* none; tokens never taken: raw from vector to load"):
        token_legal_order(left, rng)
