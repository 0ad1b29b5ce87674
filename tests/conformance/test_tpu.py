"""Matrix products on `tpuv3_like` beside measured cycles of a TPU v3."""

from __future__ import annotations

from tests.conformance.tpu_rows import MEASURED, OTHERS, SIZES, mean_error, ours

CYCLES = (2480, 8271, 42485, 285574)
"""Ours; a change of compiler or cycle model that moves them changes the table of npusim/VALIDATION.md."""


def test_cycles_are_those_of_the_table_and_nearer_than_others() -> None:
    cycles = tuple(ours(size)[0] for size in SIZES)
    assert cycles == CYCLES
    # Nothing was fitted. The TPU has costs that no term here stands for, such as launching a program.
    assert all(0.75 < own / known < 1 for own, known in zip(cycles, MEASURED, strict=True))
    assert mean_error(cycles) < min(map(mean_error, OTHERS.values()))
