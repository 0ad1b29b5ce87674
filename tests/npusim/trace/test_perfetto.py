from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

from npusim.cli import main
from npusim.orders import tokens
from npusim.program_file import save_program
from npusim.run import RunResult
from npusim.timing.cost import TRAFFIC
from npusim.trace.part import parts_of
from npusim.trace.perfetto import BARRIERS, SRAM_HELD, perfetto_trace
from npusim.trace.protobuf import number, varint
from npusim.trace.viewer import viewer
from npusim.units import UNITS


class Read:
    """A trace as Perfetto's own classes read it: slices (track, name, begin, end, event) and counters by track."""

    def __init__(self, data: bytes) -> None:
        trace = proto.Trace.FromString(data)
        self.names = {
            p.track_descriptor.uuid: p.track_descriptor.name for p in trace.packet if p.HasField("track_descriptor")
        }
        self.slices, self.counters = [], {}
        running: dict[int, tuple[int, proto.TrackEvent]] = {}
        times = [p.timestamp for p in trace.packet if p.HasField("track_event")]
        assert times == sorted(times)
        for packet in trace.packet:
            event = packet.track_event
            if not packet.HasField("track_event"):
                continue
            if event.type == proto.TrackEvent.TYPE_SLICE_BEGIN:
                assert event.track_uuid not in running
                running[event.track_uuid] = packet.timestamp, event
            elif event.type == proto.TrackEvent.TYPE_SLICE_END:
                begin, opened = running.pop(event.track_uuid)
                self.slices.append((self.names[event.track_uuid], opened.name, begin, packet.timestamp, opened))
            else:
                assert event.type == proto.TrackEvent.TYPE_COUNTER
                curve = self.counters.setdefault(self.names[event.track_uuid], [])
                curve.append((packet.timestamp, event.double_counter_value))
        assert not running


def annotations(event) -> dict[str, int | str]:
    return {a.name: a.string_value if a.HasField("string_value") else a.uint_value for a in event.debug_annotations}


@pytest.fixture(scope="module")
def parts(tiny_result: RunResult):
    return parts_of(tiny_result.program, tiny_result.timing)


@pytest.mark.parametrize("name", ["step", "prologue"])
def test_slices_are_the_timings(parts, tiny_result, name):
    part, timing = parts[name], getattr(tiny_result.timing, name)
    read = Read(perfetto_trace(part))
    found = {
        annotations(event)["instruction"]: (track, text, begin, end) for track, text, begin, end, event in read.slices
    }
    layers = tiny_result.program.layers
    assert len(read.slices) == len(found) == len(part.instructions)
    for index, ins in enumerate(part.instructions):
        barrier = ins.op in ("barrier", "halt")
        track, text = (BARRIERS, ins.op) if barrier else (UNITS[ins.unit], f"{layers[ins.layer]} {ins.op}")
        assert found[index] == (track, text, timing.start_cycle[index], timing.end_cycle[index])


def test_flows_are_the_tokens(parts):
    part = parts["step"]
    ends: dict[str, dict[int, int]] = {"flow_ids": {}, "terminating_flow_ids": {}}
    for *_, event in Read(perfetto_trace(part)).slices:
        for kind, found in ends.items():
            for flow in getattr(event, kind):
                assert flow not in found
                found[flow] = annotations(event)["instruction"]
    sent, taken = ends.values()
    assert sent.keys() == taken.keys()
    assert Counter((sent[f], taken[f]) for f in sent) == Counter((t.sender, t.taker) for t in tokens(part.instructions))


def test_counters_hold_every_byte(parts, tiny_result):
    part = parts["step"]
    read = Read(perfetto_trace(part))
    assert sorted(read.counters) == sorted(["DRAM read", "DRAM write", "SRAM read", "SRAM write", SRAM_HELD])
    for name in ("DRAM read", "DRAM write", "SRAM read", "SRAM write"):
        cycles, values = np.array(read.counters[name]).T
        column = f"{name.replace(' ', '_').lower()}_bytes"
        assert (values[:-1] * np.diff(cycles)).sum() == pytest.approx(part.cost.traffic[:, TRAFFIC.index(column)].sum())
        assert values[-1] == 0
    assert max(v for _, v in read.counters[SRAM_HELD]) <= tiny_result.config.machine.sram.capacity_bytes


def test_a_window_holds_what_overlaps_it(parts):
    part = parts["step"]
    first, last = 40_000, 60_000
    whole, near = Read(perfetto_trace(part)), Read(perfetto_trace(part, (first, last)))
    assert [s[:4] for s in near.slices] == [s[:4] for s in whole.slices if s[2] < last and s[3] > first]
    assert 0 < len(near.slices) < len(whole.slices)
    for name, curve in near.counters.items():
        assert curve[1:] == [point for point in whole.counters[name] if first < point[0] <= last]
        assert curve[0] == (first, [value for cycle, value in whole.counters[name] if cycle <= first][-1])


def test_command(tiny_result, tmp_path, capsys, monkeypatch):
    save_program(tiny_result.program, tmp_path / "run" / "program.npu")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    out = tmp_path / "t.pftrace"
    assert main(["trace", str(tmp_path / "run"), "--out", str(out), "--window", "0:9000", "--open"]) == 0
    assert len(Read(out.read_bytes()).slices) > 1
    assert opened == [(tmp_path / "t.html").resolve().as_uri()]
    page = Path(tmp_path / "t.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert capsys.readouterr().out.count("written to") == 2
    for options, message in (
        (["--window", "9:9"], "0 <= A < B"), (["--window", "999999999:9999999999"], "cycles"),
        (["--window", "x"], "A:B"),
        (["--part", "stop"], "allowed step, prologue"),
    ):  # fmt: skip
        other = tmp_path / "none.pftrace"
        assert main(["trace", str(tmp_path / "run"), "--out", str(other), *options]) == 2
        assert message in capsys.readouterr().err
        assert not other.exists()


def test_text_of_the_viewer_is_no_markup(parts):
    page = viewer(parts["prologue"], "<b>@DATA@</b>")
    assert "<b>" not in page
    assert page.count("const D={") == 1


def test_numbers_on_the_wire():
    assert varint(300) == b"\xac\x02"  # the example of protobuf's own documentation
    assert number(1, 150) == b"\x08\x96\x01"
