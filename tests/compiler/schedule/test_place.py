"""Buffers that are needed at the same time never share a byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.graph import Graph
from compiler.schedule.layout import Layout
from compiler.schedule.place import ALIGN, FirstFit, Ring, Zones, aligned, lifetimes, place, value_bytes
from npusim.config import Machine
from npusim.errors import UserError
from tests.compiler.runs import machine_like


@given(st.integers(0, 7), st.integers(2, 40), st.lists(st.lists(st.integers(1, 300), min_size=1), min_size=1))
def test_ring_keeps_simultaneous_buffers_apart(start: int, units: int, groups: list[list[int]]) -> None:
    first, size = start * 33, units * 50
    ring = Ring("test", "field", first, size)
    for sizes in groups:
        if sum(map(aligned, sizes)) > ring.half:
            with pytest.raises(UserError, match=r"layer: \d+ bytes do not fit half of the test zone .* larger field"):
                ring.take_together(sizes, "layer")
            continue
        # Taken at once or one by one, as the tilers do: the sum is what counts.
        taken = ring.take_together(sizes, "layer") if len(sizes) % 2 else [ring.take(s, "layer") for s in sizes]
        spans = sorted(zip(taken, sizes, strict=True))
        assert first <= spans[0][0]
        assert sum(spans[-1]) <= first + size
        for (address, length), (following, _) in itertools.pairwise(spans):
            assert address + length <= following


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 20), st.integers(0, 6)), max_size=30))
def test_first_fit_keeps_living_tensors_apart(requests: list[tuple[int, int, int]]) -> None:
    allocator, placed = FirstFit(100, 1000), []
    for size, first, duration in sorted(requests, key=lambda r: r[1]):
        address = allocator.take(size, first, first + duration)
        living = [(a, b) for a, b, last in placed if last >= first]
        if address is None:
            # Then no gap is large enough.
            bounds = [100, *(edge for span in sorted(living) for edge in span), 1100]
            assert all(bounds[i + 1] - bounds[i] < size for i in range(0, len(bounds), 2))
            continue
        assert 100 <= address <= address + size <= 1100
        assert all(address + size <= a or b <= address for a, b in living)
        placed.append((address, address + size, first + duration))
    assert allocator.peak == max((end - 100 for _, end, _ in placed), default=0)


@pytest.mark.parametrize("sram_bytes", [1 << 20, 65536, 32768])
@pytest.mark.parametrize("phase", ["prologue", "step"])
def test_tensors_alive_together_have_their_own_bytes(
    graph_of: Callable[[int, int], Graph], tiny_machine: Machine, sram_bytes: int, phase: str
) -> None:
    graph, zones = graph_of(8, 16), Zones.of(machine_like(tiny_machine, sram={"capacity_bytes": sram_bytes}))
    homes = place(graph, phase, {}, zones, FirstFit(0, 1 << 30))
    spans = {}
    for name, (first, last) in lifetimes(graph, getattr(graph, phase)).items():
        home, size = homes[name], value_bytes(graph.values[name])
        assert home.address % ALIGN == 0
        if home.memory == "sram":
            assert home.address + size <= zones.resident
        spans[name] = home.memory, home.address, home.address + size, first, last
    for a, (memory, start, end, first, last) in spans.items():
        for b, other in spans.items():
            if a < b and memory == other[0] and first <= other[4] and other[3] <= last:
                assert end <= other[1] or other[2] <= start, (a, b)


def test_zones_share_sram_without_overlap(tiny_machine: Machine) -> None:
    for size in range(1024, 9000, 64):
        zones = Zones.of(machine_like(tiny_machine, sram={"capacity_bytes": size}))
        assert zones.resident + zones.weights + zones.tiles == size
        assert min(zones.resident, zones.weights, zones.tiles) > size // 4 - ALIGN


def test_constants_and_sets_hold_each_value_at_its_home(graph_of: Callable[[int, int], Graph]) -> None:
    graph = graph_of(8, 16)
    layout = Layout(graph)
    constants, step_sets = layout.constants(), layout.step_sets()
    seen = set()
    for value in graph.values.values():
        if value.kind in ("const", "step_const") and value.data is not None:
            home = layout.homes[value.name]
            assert home.base == (value.kind == "step_const")
            for part, data in zip(*(([constants], [value.data]), (step_sets, value.data))[home.base], strict=True):
                assert part[home.address : home.address + data.nbytes].tobytes() == data.tobytes()
                seen.add((home.base, home.address))
    assert len(seen) == len(layout.homes)  # no two share a place, even where their bytes are equal
    assert layout.end == constants.size + step_sets.size + layout.range_sets().size


def test_a_layout_depends_on_no_content(graph_of: Callable[[int, int], Graph]) -> None:
    graph = graph_of(8, 16)
    bare = {name: replace(value, data=None) for name, value in graph.values.items()}
    real, empty = Layout(graph), Layout(replace(graph, values=bare, contents=False))
    assert (real.homes, real.logits, real.end) == (empty.homes, empty.logits, empty.end)
    for part in ("constants", "step_sets", "range_sets"):
        filled, blank = getattr(real, part)(), getattr(empty, part)()
        assert filled.shape == blank.shape
        assert not any(blank.strides)
