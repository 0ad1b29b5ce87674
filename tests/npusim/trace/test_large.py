"""A step as long as a large network's: no objects for each instruction, and its figures are the short one's."""

import time
from dataclasses import replace

import numpy as np
import pytest

from npusim.errors import UserError
from npusim.html.roofline import points
from npusim.html.source import groups_by_time
from npusim.html.stacks import BARRIER, by_layer
from npusim.html.timeline import pieces
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import encode
from npusim.program import Code
from npusim.program_file import save_program
from npusim.timing import time_program
from npusim.trace import write
from npusim.trace.occupancy import occupancy
from npusim.trace.part import Part, parts_of
from npusim.trace.perfetto import perfetto_trace
from npusim.units import UNITS
from tests.npusim.conftest import Tiny


def part_of(tiny: Tiny, times: int) -> Part:
    """The step's code ``times`` times in a row, each of them up to a barrier."""
    step = tiny.program.step.copy()
    step[-1] = encode(BY_MNEMONIC["barrier"], {"unit": UNITS.index("vector")})
    program = replace(tiny.program, step=np.tile(step, (times, 1)))
    return parts_of(program, time_program(program))["step"]


def figures(part: Part) -> None:
    occupancy(part), by_layer(part), points(part), groups_by_time(part, 6)
    pieces(part, part.timing.total_cycles // 100, (0, part.timing.total_cycles))
    perfetto_trace(part, (0, 20_000))


def test_long_code_costs_as_much_as_its_words(tiny: Tiny) -> None:
    """150,000 instructions in seconds: decoding them takes 70 us each, 10 s."""
    short, times = part_of(tiny, 1), -(-150_000 // len(tiny.program.step))
    figures(short)  # compiles kernels
    part = part_of(tiny, times)
    assert len(part.instructions) > Code.LONG
    begun = time.process_time()
    figures(part)
    assert time.process_time() - begun < 5

    tables = by_layer(part)
    assert tables.keys() == by_layer(short).keys()
    for name, table in by_layer(short).items():
        if name != BARRIER:  # the wait for the others before a barrier is booked there
            assert (tables[name] == times * table).all()
    for one, many in zip(points(short), points(part), strict=True):
        sums = times * one.operations, times * one.dram_bytes, times * one.mac_queue_cycles
        assert many == replace(one, operations=sums[0], dram_bytes=sums[1], mac_queue_cycles=sums[2])
    assert groups_by_time(part, 6) == groups_by_time(short, 6)
    total = short.timing.total_cycles
    whole, shift = pieces(part, 0, (0, times * total)), (times - 1) * total
    last = [p._replace(start=p.start - shift, end=p.end - shift) for p in whole if p.start >= shift]
    assert last == pieces(short, 0, (0, total))
    held, once = occupancy(part), occupancy(short)
    # In the middle, what a step leaves in SRAM for the next one is held as at its end.
    assert held[1].max() == once[1].max()


def test_a_trace_too_large_to_look_at_names_the_window(tiny: Tiny, tmp_path, monkeypatch) -> None:
    save_program(tiny.program, tmp_path / "p.npu")
    count, total = len(tiny.program.step), time_program(tiny.program).step.total_cycles
    monkeypatch.setattr(write, "MOST_INSTRUCTIONS", count // 2)
    with pytest.raises(UserError, match=rf"{count:,} instructions .* --window A:B"):
        write.write_trace(tmp_path / "p.npu", tmp_path / "t")
    assert not (tmp_path / "t").exists()
    assert write.write_trace(tmp_path / "p.npu", tmp_path / "t", window=(0, total // 4))
