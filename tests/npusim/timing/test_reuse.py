"""Pieces of code between barriers are timed once where they must take equal time, and the result is the same."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.config import Machine
from npusim.congruence import Int64, copies, digest, places, time_digest
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.storage_dma import FETCH
from npusim.timing import reuse, simulate
from npusim.timing.cost import Costs, costs
from tests.npusim.timing.programs import Words, equipped, random_code, random_machine

INTERVALS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=14)
LOW, HIGH = (BY_MNEMONIC["load"].by_name["dram_addr"].word + word for word in range(2))


def columns(intervals: list[tuple[int, int, int]]) -> tuple[Int64, Int64, Int64]:
    space, first, size = np.array(intervals, np.int64).T
    return space, first, first + size


def overlaps(space: Int64, first: Int64, end: Int64) -> list[list[bool]]:
    met = (space[:, None] == space) & (first[:, None] < end) & (first < end[:, None])
    return met.tolist()


@given(intervals=INTERVALS)
def test_clusters_are_the_connected_intervals(intervals: list[tuple[int, int, int]]) -> None:
    space, first, end = columns(intervals)
    number, begin = places(space, first, end)
    reach = np.array(overlaps(space, first, end))
    for _ in intervals:
        reach = reach @ reach
    for i, row in enumerate(reach):
        assert (number == number[i]).tolist() == row.tolist()
        assert begin[i] == first[row].min()
    assert list(dict.fromkeys(number.tolist())) == list(range(number.max() + 1))


@given(intervals=INTERVALS, moves=st.lists(st.integers(0, 20), min_size=14, max_size=14))
def test_equal_places_mean_equal_overlaps(intervals: list[tuple[int, int, int]], moves: list[int]) -> None:
    space, first, end = columns(intervals)
    number, begin = places(space, first, end)
    shift = np.array(moves)[number]
    other = places(space, first + shift, end + shift)
    if (other[0] == number).all() and (first + shift - other[1] == first - begin).all():
        assert overlaps(space, first, end) == overlaps(space, first + shift, end + shift)


def moved(code: Words, machine: Machine, rng: np.random.Generator, kind: int) -> Words:
    """The code elsewhere in DRAM and storage: all by whole turns (0), one copy by some bytes (1), by turns each (2)."""
    code = code.copy()
    found = copies(code)
    assert found is not None
    turn = machine.dram.turn_bytes
    shift = np.full(len(found.at), turn * int(rng.integers(0, 50)))
    if kind == 1 and len(shift):
        shift[rng.integers(len(shift))] += int(rng.integers(1, 3 * turn))
    if kind == 2:
        shift = turn * rng.integers(0, 4, len(shift))
    address = found.first + shift
    code[found.at, LOW], code[found.at, HIGH] = address & 0xFFFF_FFFF, address >> 32
    fetches = np.flatnonzero((code[:, 0] & 0xFF) == FETCH.opcode)
    coded = fetches[code[fetches, FETCH.by_name["coded_bytes"].word] > 0]
    for name, at in (("storage_addr", fetches), ("dram_addr", fetches), ("old_addr", coded)):
        by = turn * rng.integers(0, 4, len(at)) if kind == 2 else shift[0] if len(shift) else turn
        code[at, FETCH.by_name[name].word] += np.asarray(by).astype(np.uint32)
    return code


def assert_equal_timings(one: Any, other: Any) -> None:
    for f in fields(one):
        left, right = getattr(one, f.name), getattr(other, f.name)
        assert np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right, f.name


@pytest.mark.parametrize("block", range(3))
def test_random_code_takes_the_same_time(block: int, tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ran = reuse._run, list[bool]()

    def noted(cost: Costs, part: slice, known: reuse._Machine) -> reuse.Run:
        ran.append(True)
        return run(cost, part, known)

    monkeypatch.setattr(reuse, "_run", noted)
    for seed in range(block * 40, block * 40 + 40):
        rng = np.random.default_rng([11, seed])
        machine = random_machine(rng, tiny_machine)
        length, density = int(rng.integers(1, 25)), float(rng.random())
        ops = {"load", "store", "matmul", "ewlin"} | ({"fetch"} if seed % 2 else set())
        code = random_code(rng, length, density, True, ops=ops)
        whole = np.concatenate([code, *(moved(code, machine, rng, kind) for kind in (0, 0, 1, 2)), code[:-1]])
        before = len(ran)
        quick = simulate(whole, machine)
        # Of six pieces the second and third are the first; where background traffic may meet them, only if it stays.
        assert len(ran) - before <= (6 if machine.dram.background_bytes_per_second else 4)
        assert_equal_timings(quick, simulate(whole, machine, reuse=False))
        if not machine.dram.background_bytes_per_second:
            assert time_digest(moved(code, machine, rng, 0), (0,) * 10, machine) == time_digest(
                code, (0,) * 10, machine
            )
        by_turns = moved(code, machine, rng, 2)
        if time_digest(by_turns, (0,) * 10, machine) == time_digest(code, (0,) * 10, machine):
            assert simulate(by_turns, machine).total_cycles == simulate(code, machine).total_cycles
            # The digest of words is at least as fine as that of costs: they ask the same of addresses.
            one, other = (costs(words, machine) for words in (by_turns, code))
            assert reuse._key(one, slice(None), machine, b"") == reuse._key(other, slice(None), machine, b"")


def test_background_traffic_that_may_meet_a_row_is_told_apart(tiny_machine: Machine) -> None:
    dram = {"background_bytes_per_second": 200_000_000, "capacity_bytes": 1 << 27}
    fields_ = equipped(tiny_machine).model_dump(mode="json")
    fields_["dram"] |= dram
    machine = Machine.model_validate(fields_)
    rng = np.random.default_rng(3)
    code = random_code(rng, 20, 0.3, True, ops={"load", "store"})
    high = code.copy()
    found = copies(high)
    assert found is not None
    high[found.at, LOW] += np.uint32(1 << 26)  # where the background is
    for pieces in ([code, high], [high, high], [code, code, high]):
        whole = np.concatenate(pieces)
        assert_equal_timings(simulate(whole, machine), simulate(whole, machine, reuse=False))


def test_a_deadlock_and_left_over_tokens_are_told_as_without_reuse(tiny_machine: Machine) -> None:
    good = random_code(np.random.default_rng(4), 10, 0.3, True, ops={"load", "store"})
    for word, bit in ((1, 1 << 2), (1, 1 << 18)):  # waits for the array's token; sends it one
        bad = good.copy()
        bad[2, word] |= np.uint32(bit)
        messages = []
        for again in (True, False):
            with pytest.raises(UserError, match=r"deadlock|left over") as caught:
                simulate(np.concatenate([good, bad]), equipped(tiny_machine), reuse=again)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_copies_reach_what_their_footprints_say() -> None:
    rng = np.random.default_rng(5)
    code = random_code(rng, 200, 0.0, True)
    found = copies(code)
    assert found is not None
    expected = [
        (index, ins.op == "store", region.base, region.start, region.end)
        for index, ins in enumerate(decode(code))
        if ins.op in ("load", "store")
        for regions in BY_MNEMONIC[ins.op].footprint(ins)
        for region in regions
        if region.memory == "dram"
    ]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@pytest.mark.parametrize("fetch", [set(), {"fetch"}], ids=["copies", "fetches"])
def test_digest_knows_all_but_layers_storage_and_moves_of_everything(fetch: set[str]) -> None:
    rng = np.random.default_rng(6)
    code = random_code(rng, 30, 0.2, True, ops={"load", "store", "matmul"} | fetch)
    other = code.copy()
    other[:, 0] ^= np.uint32(5 << 16)
    found = copies(code)
    assert found is not None
    other[found.at, LOW] += np.uint32(64)
    fetches = np.flatnonzero((code[:, 0] & 0xFF) == FETCH.opcode)
    assert len(fetches) > 2 or not fetch
    other[fetches, FETCH.by_name["dram_addr"].word] += np.uint32(64)
    coded = fetches[code[fetches, FETCH.by_name["coded_bytes"].word] > 0]
    other[coded, FETCH.by_name["old_addr"].word] += np.uint32(64)
    other[fetches, FETCH.by_name["storage_addr"].word] += np.arange(len(fetches), dtype=np.uint32)
    assert digest(other) == digest(code)
    at = int(np.flatnonzero((code[:, 0] & 0xFF) == BY_MNEMONIC["load"].opcode)[0])
    for word in (1, 5):
        other = code.copy()
        other[at, word] ^= np.uint32(1)
        assert digest(other) != digest(code)
