"""The DRAM by itself: latency and throughput against formulas, every distance between commands, and the scheduler.

`dram_stepper.broken` replays the commands that were issued and knows nothing of how they were chosen.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npusim.config import Machine, load_machine
from npusim.config_dram import DramDevice
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.assembly import assemble
from npusim.timing import CodeTiming, core, dram, simulate
from tests.npusim.timing.dram_stepper import Command, broken, distance
from tests.npusim.timing.programs import Words, random_code, random_machine
from tests.npusim.timing.stepper import step

LOAD = "load unit=load planes=1 rows=1 row_bytes="
STORE = "store unit=store planes=1 rows=1 row_bytes="
TABLES = ("ddr4_3200", "hbm2_2000", "lpddr4x_4266", "lpddr5_6400")
COPIES = set(BY_MNEMONIC) - {"barrier", "halt"}


def changed(machine: Machine, **fields: Any) -> Machine:
    """``machine`` with other fields of its DRAM; those of the device begin with ``device_``."""
    data = machine.model_dump(mode="json")
    for name, value in fields.items():
        part = data["dram"]["device"] if name.startswith("device_") else data["dram"]
        part[name.removeprefix("device_")] = value
    data["barrier_cycles"] = 100_000
    return Machine.model_validate(data)


@pytest.fixture(params=TABLES)
def table_machine(request: pytest.FixtureRequest, edge_machine: Machine, repository: Path, tmp_path: Path) -> Machine:
    """One channel of a table's device, clocked as the NPU, no interconnect, no refresh: cycles are clocks."""
    text = (repository / "hwconfigs" / "edge_8k.yaml").read_text(encoding="utf-8")
    text = text.replace("device: lpddr5_6400", f"device: {request.param}").replace(
        "barrier_cycles: 400", "barrier_cycles: 900"
    )
    (tmp_path / "machine.yaml").write_text(text, encoding="utf-8")
    machine = load_machine(tmp_path / "machine.yaml")
    mhz = machine.dram.device.clock_mhz
    machine = changed(machine, channels=1, interconnect_ns=0, device_trefi_clocks=1_000_000)
    return machine.model_copy(update={"clock_mhz": mhz})


def traced(monkeypatch: pytest.MonkeyPatch, code: Words, machine: Machine) -> tuple[CodeTiming, list[list[Command]]]:
    """Timing of ``code`` without barriers, and the commands of each channel."""
    memory, run, given = dram.new_state(machine, 1 << 16), core.run, []

    def noted(*arguments: Any) -> Any:
        given.append(arguments[-1])
        return run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dram, "new_state", lambda machine: memory)
        patch.setattr(core, "run", noted)
        timing = simulate(code, machine, reuse=False)
    (memory,) = given
    channels: list[list[Command]] = [[] for _ in range(machine.dram.channels)]
    assert memory[dram.ISSUED] <= memory[dram.TRACE_MOST]
    for clock, channel, command, bank, row in dram.trace_of(memory).tolist():
        channels[channel].append((clock, dram.COMMANDS[command], bank, row))
    return timing, channels


def names(commands: list[Command]) -> list[tuple[int, str, int]]:
    return [command[:3] for command in commands]


# ---------------------------------------------------------------------------------------------- latency, throughput


def test_a_single_access_takes_what_the_formula_says(table_machine: Machine) -> None:
    """Closed row: tRCD + CAS + burst. Open row: CAS + burst. Another row of the bank: tRP more than a closed one."""
    d = table_machine.dram.device
    setup = table_machine.dma.setup_cycles
    closed = d.trcd_clocks + d.cas_clocks + d.burst_clocks
    assert simulate(assemble(LOAD + "8"), table_machine).total_cycles == setup + closed
    twice = simulate(assemble(f"{LOAD}8\n{LOAD}8 dram_addr=8"), table_machine)
    assert twice.total_cycles == 2 * setup + closed + d.cas_clocks + d.burst_clocks
    beyond = d.row_bytes * d.banks  # the same bank, the next row
    pause = "\n".join(["token unit=load"] * 200)  # until nothing of the first access holds the second one up
    conflict = simulate(assemble(f"{LOAD}8\n{pause}\n{LOAD}8 dram_addr={beyond}"), table_machine)
    assert conflict.total_cycles == 2 * (setup + closed) + 200 + d.trp_clocks
    assert (conflict.dram.row_hits, conflict.dram.row_misses) == (0, 2)
    written = simulate(assemble(STORE + "8"), table_machine)
    assert written.total_cycles == setup + d.trcd_clocks + d.cwl_clocks + d.burst_clocks


@pytest.mark.parametrize("copy", [LOAD, STORE])
def test_streaming_reaches_the_theoretical_share_of_the_peak(table_machine: Machine, copy: str) -> None:
    """Rows open behind the data; only refresh costs: from its time on tRP, tRFC, tRCD, the end of the row before
    (tRTP, or write recovery) and of the burst after, in each tREFI."""
    device = table_machine.dram.device
    refresh = {"ddr4_3200": 12480, "hbm2_2000": 3900, "lpddr4x_4266": 8341, "lpddr5_6400": 3124}
    trefi = next(v for k, v in refresh.items() if k.split("_")[0].upper() in device.kind.upper().replace("-", ""))
    size = 1 << 22
    for channels in (1, 4):
        machine = changed(table_machine, channels=channels, device_trefi_clocks=trefi)
        machine = machine.model_copy(update={"clock_mhz": device.clock_mhz})
        timing = simulate(assemble(copy + str(size * channels)), machine)
        share = size // device.burst_bytes * device.burst_clocks / timing.total_cycles
        least = device.trp_clocks + device.trfc_clocks + device.trcd_clocks
        before = device.trtp_clocks if copy is LOAD else device.cwl_clocks + device.burst_clocks + device.twr_clocks
        first = device.trcd_clocks + max(device.cas_clocks, device.cwl_clocks)
        most = least + before + 2 * device.trrd_l_clocks + 2 * device.tccd_l_clocks
        assert (
            1 - most / trefi - 2 * (first + 64) / timing.total_cycles
            <= share
            <= 1 - (least - device.trcd_clocks) / trefi
        )
        refreshes = timing.dram.refreshes / channels
        assert refreshes == pytest.approx(timing.total_cycles / trefi, abs=1.01)


def test_two_streams_share_the_bus_and_cost_their_turns(table_machine: Machine) -> None:
    """Slower than one after the other, by what turning the bus costs: less than a third."""
    machine = changed(table_machine, queue_entries=32, passed_limit=128)
    machine = machine.model_copy(update={"clock_mhz": machine.dram.device.clock_mhz})
    size, away = 1 << 18, 1 << 24
    load, store = f"{LOAD}{size}", f"{STORE}{size} dram_addr={away + machine.dram.device.row_bytes}"
    alone = [simulate(assemble(line), machine).total_cycles for line in (load, store)]
    both = simulate(assemble(f"{load}\n{store}"), machine).total_cycles
    assert sum(alone) < both <= 1.3 * sum(alone)


# ---------------------------------------------------------------------------------------------- device timings


def test_every_command_of_random_traffic_keeps_every_distance_and_each_is_reached(
    tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slack: dict[tuple[str, str, str], int] = defaultdict(lambda: 1 << 30)
    seen = 0
    for seed in range(150):
        rng = np.random.default_rng([21, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, 25, 0.1, False, COPIES)
        _, channels = traced(monkeypatch, code, machine)
        for commands in channels:
            assert not broken(machine.dram.device, commands), seed
            seen += len(commands)
            note_slack(slack, machine.dram.device, commands)
    assert seen > 20_000
    column = ("read", "write")
    for first, second, where in (
        *(("activate", c, "bank") for c in column),
        ("activate", "precharge", "bank"), ("precharge", "activate", "bank"),
        ("activate", "activate", "group"), ("activate", "activate", "other"),
        *((c, c, where) for c in column for where in ("group", "other")), ("read", "write", "bank"),
        *(("write", "read", where) for where in ("group", "other")), *((c, "precharge", "bank") for c in column),
        *((c, "precharge_all", "bank") for c in column), ("activate", "precharge_all", "bank"),
        ("precharge_all", "refresh", "bank"), ("refresh", "activate", "bank"), ("four", "activate", "bank"),
    ):  # fmt: skip
        assert slack[first, second, where] == 0, (first, second, where)


def note_slack(slack: dict[tuple[str, str, str], int], device: DramDevice, commands: list[Command]) -> None:
    """For each pair of commands the fewest clocks by which their least distance was exceeded."""
    recent: list[Command] = []
    activates: list[int] = []
    for clock, name, bank, row in commands:
        for before, first, one, _ in recent:
            least = distance(device, first, one, name, bank)
            if least:
                same = -1 in (one, bank) or one == bank
                group = "group" if one // device.banks_per_group == bank // device.banks_per_group else "other"
                for where in {group, "bank" if same or first == "read" else group}:
                    slack[first, name, where] = min(slack[first, name, where], clock - before - least)
        if name == "activate":
            if len(activates) >= 4:
                slack["four", name, "bank"] = min(
                    slack["four", name, "bank"], clock - activates[-4] - device.tfaw_clocks
                )
            activates.append(clock)
        recent = [*recent[-40:], (clock, name, bank, row)]


def test_commands_are_those_of_the_stepper(tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(40):
        rng = np.random.default_rng([22, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, 15, 0.1, False, COPIES)
        _, channels = traced(monkeypatch, code, machine)
        stepped = step(decode(code), machine).dram
        for ours, theirs in zip(channels, stepped.channels, strict=True):
            assert names(ours) == names([c for c in theirs.commands if c[0] <= (ours[-1][0] if ours else -1)]), seed


def test_the_check_itself_finds_each_fault(tiny_machine: Machine) -> None:
    device = tiny_machine.dram.device
    good = [(0, "activate", 0, 5), (4, "read", 0, 5), (9, "precharge", 0, 5), (12, "activate", 0, 6)]
    assert not broken(device, good)
    for clock, index in ((3, 1), (8, 2), (11, 3)):
        bad = list(good)
        bad[index] = (clock, *good[index][1:])
        assert len(broken(device, bad)) == 1
    assert "row 6 of bank 0 is not open" in broken(device, [good[0], (4, "read", 0, 6)])[0]
    assert "has row 5 open" in broken(device, [good[0], (40, "activate", 0, 6)])[0]
    assert "are open" in broken(device, [good[0], (40, "refresh", -1, -1)])[0]
    assert "is closed" in broken(device, [(0, "precharge", 1, 0)])[0]
    five = [(0, "activate", 0, 0), (2, "activate", 2, 0), (4, "activate", 1, 0), (6, "activate", 3, 0)]
    assert not broken(device, five)
    five += [(9, "precharge", 0, 0), (12, "activate", 0, 1)]
    assert not broken(device, five)
    longer = device.model_copy(update={"tfaw_clocks": 13})
    assert "the fifth within tFAW" in broken(longer, five)[0]


# ---------------------------------------------------------------------------------------------- the scheduler


def test_a_row_hit_goes_before_an_older_burst_of_another_row(
    tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load walks through row 0 of bank 0. The store wants row 1 of that bank from clock 16 on and gets it at the
    end.

    A row spans 2 groups x 1024 bytes, and there are 2 banks: row 1 of bank 0 begins at 4096.
    """
    machine = changed(tiny_machine, passed_limit=1000)
    code = assemble(f"{LOAD}256\n{STORE}32 dram_addr=4096")
    _, (commands,) = traced(monkeypatch, code, machine)
    assert [name for _, name, *_ in commands] == [
        "activate",
        "activate",
        *["read"] * 8,
        "precharge",
        "activate",
        "write",
    ]
    assert [row for _, name, _, row in commands if name == "activate"] == [0, 0, 1]


def test_the_limit_closes_a_row_that_others_hit(tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is the second burst to enter. One read goes before it as the older one, two overtake it, then its turn.

    Say it writes at t. Of the reads that are left, three hit the other group, from t + 9 on (5 + 2 + 2). The row of the
    others can be closed at t + 11 (5 + 2 + 4), where a read goes first, so it is at t + 12, and opened at t + 15.
    """
    machine = changed(tiny_machine, passed_limit=2)
    _, (commands,) = traced(monkeypatch, assemble(f"{LOAD}256\n{STORE}32 dram_addr=4096"), machine)
    order = [name for _, name, *_ in commands]
    assert order[:7] == ["activate", "activate", "read", "read", "read", "precharge", "activate"]
    assert order[7:] == ["write", "read", "read", "precharge", "read", "activate", "read", "read"]
    begin = commands[7][0]
    assert [clock - begin for clock, *_ in commands[7:]] == [0, 9, 11, 12, 13, 15, 19, 21]


def test_refresh_closes_all_rows_and_happens_once_in_each_interval(
    tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (commands,) = traced(monkeypatch, assemble(LOAD + "65536"), tiny_machine)
    d = tiny_machine.dram.device
    refreshes = [clock for clock, name, *_ in commands if name == "refresh"]
    assert len(refreshes) == commands[-1][0] // d.trefi_clocks
    for number, clock in enumerate(refreshes, 1):
        assert 0 <= clock - number * d.trefi_clocks <= d.tras_clocks + d.trp_clocks
    for before, refresh, after in zip(commands, commands[1:], commands[2:], strict=False):
        if refresh[1] == "refresh":
            assert (before[1], after[1]) == ("precharge_all", "activate")
            assert (refresh[0] - before[0], after[0] - refresh[0]) == (d.trp_clocks, d.trfc_clocks)


def test_background_traffic_has_its_rate_its_share_of_writes_and_costs_the_npu_time(
    tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """800 MB/s in bursts of 32 bytes: one in 8 clocks, every fourth a write; a load of 64 KiB alone takes 16 + 20 +
    4096 cycles and refreshes."""
    quiet = simulate(assemble(LOAD + "65536"), tiny_machine).total_cycles
    for pattern in ("sequential", "random"):
        machine = changed(
            tiny_machine, background_bytes_per_second=800_000_000, background_pattern=pattern,
            background_write_percent=25, passed_limit=64,
        )  # fmt: skip
        timing, (commands,) = traced(monkeypatch, assemble(LOAD + "65536"), machine)
        assert timing.dram.background_bursts == pytest.approx(timing.total_cycles / 8, abs=12)
        writes = sum(name == "write" for _, name, *_ in commands)
        assert writes == pytest.approx(timing.dram.background_bursts / 4, abs=12)
        assert timing.total_cycles > quiet + 2 * timing.dram.background_bursts
        again = simulate(assemble(LOAD + "65536"), machine)
        assert (again.total_cycles, again.dram) == (timing.total_cycles, timing.dram)
        half = machine.dram.capacity_bytes // 2
        rows = {row for _, name, _, row in commands if name == "write"}
        assert min(rows) >= half // (machine.dram.device.row_bytes * machine.dram.device.banks)


def test_a_burst_s_place(tiny_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two channels, interleaved by 64 bytes; two groups of two banks; a row of 1024 bytes is 16 pieces of 64."""
    machine = changed(tiny_machine, channels=2, interleave_bytes=64)
    other = changed(machine, mapping="row_column_bank_group_channel")
    row = 2 * 2 * 1024  # bytes of one row in every channel and group
    for address, ours, theirs in (
        (0, (0, 0, 0), (0, 0, 0)), (64, (1, 0, 0), (1, 0, 0)), (128, (0, 2, 0), (0, 2, 0)),
        (256, (0, 0, 0), (0, 1, 0)), (row, (0, 1, 0), (0, 0, 0)), (2 * row, (0, 0, 1), (0, 0, 1)),
        (3 * row + 192, (1, 3, 1), (1, 2, 1)),
    ):  # fmt: skip
        for machine_, expected in ((machine, ours), (other, theirs)):
            _, channels = traced(monkeypatch, assemble(f"{LOAD}32 dram_addr={address}"), machine_)
            places = [
                (c, bank, at) for c, commands in enumerate(channels) for _, name, bank, at in commands if name == "read"
            ]
            assert places == [expected], address
