"""A part of a program as a Perfetto trace: units as tracks, instructions as slices, tokens as flows, memory counters.

One cycle is one nanosecond. Field numbers are those of Perfetto's `perfetto_trace.proto`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import count

import numpy as np

from npusim.timing import CAUSES
from npusim.timing.cost import TRAFFIC
from npusim.trace.counters import RATES, Curve, rate
from npusim.trace.occupancy import occupancy
from npusim.trace.part import Part
from npusim.trace.protobuf import block, double, fixed64, number, text
from npusim.units import UNITS

Window = tuple[int, int]

_PACKET = 1
_TIMESTAMP, _SEQUENCE_ID, _TRACK_EVENT, _SEQUENCE_FLAGS, _TRACK_DESCRIPTOR = 8, 10, 11, 13, 60
_UUID, _NAME, _PARENT, _COUNTER, _CHILD_ORDERING, _RANK = 1, 2, 5, 8, 11, 12
_UNIT_NAME, _EXPLICIT, _STATE_CLEARED = 6, 3, 1
_ANNOTATION, _TYPE, _TRACK, _CATEGORY, _EVENT_NAME, _VALUE, _FLOW, _LAST_FLOW = 4, 9, 11, 22, 23, 44, 47, 48
_BEGIN, _END, _COUNTER_EVENT = 1, 2, 4
_UINT_VALUE, _STRING_VALUE, _ANNOTATION_NAME = 3, 6, 10

ROOT = 1
BARRIERS = "barrier"
SRAM_HELD = "SRAM held"


def perfetto_trace(part: Part, window: Window | None = None) -> bytes:
    """The trace file of one part; of ``window`` [first cycle, last cycle), everything that overlaps it."""
    first, last = window or (0, part.timing.total_cycles)
    names = [*part.program.machine.units, BARRIERS, SRAM_HELD, *RATES]
    tracks = {name: ROOT + 1 + rank for rank, name in enumerate(names)}
    packets = [_descriptor(ROOT, f"{part.name}, 1 cycle = 1 ns", None, 0, None)]
    for rank, (name, uuid) in enumerate(tracks.items()):
        unit_name = "bytes" if name == SRAM_HELD else "bytes per cycle" if name in RATES else None
        packets.append(_descriptor(uuid, name, ROOT, rank, unit_name))
    events = [*_slices(part, tracks, first, last), *_counter_events(part, tracks, first, last)]
    events.sort(key=lambda event: event[:2])
    packets += [_packet(number(_TIMESTAMP, cycle) + block(_TRACK_EVENT, data)) for cycle, _, data in events]
    return b"".join(packets)


def counters(part: Part) -> dict[str, Curve]:
    """Curves by name: what SRAM holds, and bytes per cycle of both memories."""
    return {SRAM_HELD: occupancy(part)} | {name: rate(part, column) for name, column in RATES.items()}


def within(part: Part, first: int, last: int) -> list[int]:
    """Instructions that overlap a window."""
    found: list[int] = np.flatnonzero((part.start < last) & (part.end > first)).tolist()
    return found


def arguments(part: Part, index: int) -> dict[str, int | str]:
    """What a slice says about its instruction: its number, cycles by cause, bytes and products."""
    found: dict[str, int | str] = {"instruction": index, "layer": part.layer(index)}
    found |= {f"{c}_cycles": v for c, v in zip(CAUSES, part.causes[index].tolist(), strict=True) if v}
    return found | {n: v for n, v in zip(TRAFFIC, part.cost.traffic[index].tolist(), strict=True) if v}


def slice_name(part: Part, index: int) -> str:
    """Layer and mnemonic."""
    return f"{part.layer(index)} {part.instructions[index].op}".strip()


def flows(part: Part, shown: list[int]) -> list[tuple[int, int, str]]:
    """(sender, taker, kind) of the tokens whose ends are both shown."""
    seen = np.zeros(len(part.instructions), bool)
    seen[shown] = True
    found = []
    for pairs in part.tokens:
        both = seen[pairs.sender] & seen[pairs.taker]
        ends = zip(pairs.sender[both].tolist(), pairs.taker[both].tolist(), strict=True)
        found += [(sender, taker, pairs.kind) for sender, taker in ends]
    return found


def _slices(part: Part, tracks: dict[str, int], first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
    """(cycle, rank, event): ends stand before beginnings of the same cycle."""
    shown = within(part, first, last)
    sent, taken, numbers = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list), count(1)
    for sender, taker, _ in flows(part, shown):
        flow = next(numbers)
        sent[sender].append(flow)
        taken[taker].append(flow)
    for index in shown:
        ins = part.instructions[index]
        track = tracks[BARRIERS if part.cost.barrier[index] else UNITS[ins.unit]]
        data = number(_TYPE, _BEGIN) + number(_TRACK, track) + text(_EVENT_NAME, slice_name(part, index))
        data += text(_CATEGORY, ins.op) + b"".join(_annotation(*item) for item in arguments(part, index).items())
        data += b"".join(fixed64(_FLOW, flow) for flow in sent[index])
        data += b"".join(fixed64(_LAST_FLOW, flow) for flow in taken[index])
        yield int(part.start[index]), 1, data
        yield int(part.end[index]), 0, number(_TYPE, _END) + number(_TRACK, track)


def _counter_events(part: Part, tracks: dict[str, int], first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
    for name, (cycles, values) in counters(part).items():
        for cycle, value in within_curve((cycles, values), first, last):
            yield cycle, 2, number(_TYPE, _COUNTER_EVENT) + number(_TRACK, tracks[name]) + double(_VALUE, value)


def within_curve(curve: Curve, first: int, last: int) -> list[tuple[int, float]]:
    """A curve's value at the window's begin, and every later change in it."""
    cycles, values = curve
    before = int(np.searchsorted(cycles, first, side="right")) - 1
    held = float(values[before]) if before >= 0 else 0.0
    inside = (cycles > first) & (cycles <= last)
    return [(first, held), *zip(cycles[inside].tolist(), values[inside].tolist(), strict=True)]


def _annotation(name: str, value: int | str) -> bytes:
    data = text(_STRING_VALUE, value) if isinstance(value, str) else number(_UINT_VALUE, value)
    return block(_ANNOTATION, text(_ANNOTATION_NAME, name) + data)


def _descriptor(uuid: int, name: str, parent: int | None, rank: int, unit_name: str | None) -> bytes:
    data = number(_UUID, uuid) + text(_NAME, name)
    if parent is None:
        data += number(_CHILD_ORDERING, _EXPLICIT)
        return _packet(block(_TRACK_DESCRIPTOR, data), first=True)
    data += number(_PARENT, parent) + number(_RANK, rank)
    if unit_name is not None:
        data += block(_COUNTER, text(_UNIT_NAME, unit_name))
    return _packet(block(_TRACK_DESCRIPTOR, data))


def _packet(data: bytes, first: bool = False) -> bytes:
    flags = number(_SEQUENCE_FLAGS, _STATE_CLEARED) if first else b""
    return block(_PACKET, number(_SEQUENCE_ID, 1) + flags + data)
