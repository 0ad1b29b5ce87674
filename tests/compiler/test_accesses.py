"""The index of byte ranges against a table with one entry for every byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compiler.accesses import NEVER, READ, WRITE, Accesses
from npusim.isa.encoding import Region
from npusim.units import UNITS

BYTES = 40
MEMORIES = [("sram", 0), ("dram", 0), ("dram", 1)]

ranges = st.tuples(st.integers(0, BYTES - 1), st.integers(1, BYTES)).map(lambda p: (p[0], min(p[0] + p[1], BYTES)))
accesses = st.tuples(st.sampled_from(MEMORIES), ranges, st.sampled_from([READ, WRITE]), st.integers(0, len(UNITS) - 1))


def region(memory: tuple[str, int], span: tuple[int, int]) -> Region:
    return Region(memory[0], *span, base=memory[1])


@given(st.lists(accesses, max_size=30), st.lists(st.tuples(st.sampled_from(MEMORIES), ranges), min_size=1))
def test_latest_access_of_any_range(
    history: list[tuple[tuple[str, int], tuple[int, int], int, int]],
    asked: list[tuple[tuple[str, int], tuple[int, int]]],
) -> None:
    touched = Accesses()
    by_byte = {memory: np.full((BYTES, 2, len(UNITS)), NEVER) for memory in MEMORIES}
    for number, (memory, span, access, unit) in enumerate(history):
        touched.add(region(memory, span), access, unit, number)
        by_byte[memory][slice(*span), access, unit] = number
    for memory, span in asked:
        expected = by_byte[memory][slice(*span)].max(axis=0)
        np.testing.assert_array_equal(touched.latest(region(memory, span)), expected)
