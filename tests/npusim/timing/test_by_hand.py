"""Cases worked out by hand on the tiny machine.

It has 200 MHz, as its DRAM, which moves a burst of 32 bytes in 2 cycles. Bursts alternate between two bank groups. A
read from a closed row takes 4 cycles to open it, 6 to the first data, and 10 for the interconnect: 20, and then 2 for
each burst. From an open row that is 16; a write takes 1 less. DMA set-up takes 16 cycles; the array is 8 x 8 with 64
accumulators per column and 4 cycles of requantization, the vector unit has 8 lanes and 8 cycles of latency, and a
barrier takes 60 cycles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from npusim.config import Machine
from npusim.errors import UserError
from npusim.hw import changed
from npusim.isa.assembly import assemble
from npusim.timing import CodeTiming, simulate

LOAD = "load unit=load planes=1 rows=1 row_bytes="
STORE = "store unit=store planes=1 rows=1 row_bytes="
MATMUL = "matmul unit=mac batch0=1 batch1=1 b_dtype=i8 m={0} k={1} n={2} out_row={2} "
RECIP = "recip unit=vector multiplier=0x40000000 shift=31 rows="  # takes rows + 8 cycles
BARRIER = "barrier unit=vector"
# in wait and signal masks: load 1, store 2, mac 4, vector 8


def timed(machine: Machine, *lines: str) -> CodeTiming:
    return simulate(assemble("\n".join(lines)), machine)


def spans(timing: CodeTiming) -> list[tuple[int, int]]:
    return list(zip(timing.start_cycle.tolist(), timing.end_cycle.tolist(), strict=True))


def causes(timing: CodeTiming, unit: str) -> dict[str, int]:
    return {cause: cycles for cause, cycles in timing.ledger[unit].items() if cycles}


def test_nothing_takes_no_time(tiny_machine: Machine) -> None:
    timing = simulate(np.zeros((0, 32), np.uint32), tiny_machine)
    assert (timing.total_cycles, timing.layers) == (0, {})


def test_one_load(tiny_machine: Machine) -> None:
    """Set-up 16, latency 20, 128 bytes at 16 per cycle: 8."""
    timing = timed(tiny_machine, LOAD + "128")
    assert spans(timing) == [(0, 44)]
    assert causes(timing, "load") == {"busy": 24, "wait_dram": 20}
    assert causes(timing, "mac") == {"idle_done": 44}
    assert timing.traffic.dram_read_bytes == timing.traffic.load_bytes == timing.traffic.sram_write_bytes == 128


def test_bursts_are_whole(tiny_machine: Machine) -> None:
    """1 byte moves 32; three rows of 33 bytes with a gap move 64 each; without a gap 99 bytes move 128."""
    assert timed(tiny_machine, LOAD + "1").total_cycles == 16 + 20 + 2
    gaps = timed(tiny_machine, "load unit=load planes=1 rows=3 row_bytes=33 dram_row=40 local_row=33 memory=param")
    assert (gaps.total_cycles, gaps.traffic.dram_read_bytes) == (16 + 20 + 12, 192)
    assert gaps.traffic.load_bytes == gaps.traffic.param_load_bytes == 99
    assert gaps.traffic.sram_write_bytes == 0
    dense = timed(tiny_machine, "load unit=load planes=1 rows=3 row_bytes=33 dram_row=33 local_row=33")
    assert (dense.total_cycles, dense.traffic.dram_read_bytes) == (16 + 20 + 8, 128)


def test_the_dram_has_a_clock_of_its_own(edge_machine: Machine) -> None:
    """1000 and 800 MHz. Set-up ends at 32, so the activate is in clock 26 (25.6), the read in 41, its data have passed
    in clock 60, cycle 75; the interconnect takes 60. 8 bursts of 32 bytes lie in one channel and bank group: reads
    every 4 clocks, the last in 69, its data passed in 88, cycle 110.
    """
    assert timed(edge_machine, LOAD + "32").total_cycles == 75 + 60
    assert timed(edge_machine, LOAD + "256").total_cycles == 110 + 60
    # 320 bytes: the last two bursts lie in the next channel
    assert timed(edge_machine, LOAD + "320").total_cycles == 110 + 60


def test_load_matmul_store_barrier_in_a_row(tiny_machine: Machine) -> None:
    """Load 0..44; weights 8, eight rows 8, skew and drain 14, requantize 4: 44..78; the row is open for the store: 78
    + 16 + 15 + 4; barrier."""
    timing = timed(
        tiny_machine,
        LOAD + "128 signal_raw=4",
        MATMUL.format(8, 8, 8) + "wait_raw=1 signal_raw=2 layer=1",
        STORE + "64 wait_raw=4 layer=2",
        BARRIER,
    )
    assert spans(timing) == [(0, 44), (44, 78), (78, 113), (113, 173)]
    assert timing.total_cycles == 173
    assert causes(timing, "load") == {"busy": 24, "wait_dram": 20, "drain": 69, "wait_barrier": 60}
    assert causes(timing, "store") == {"wait_token_raw": 78, "busy": 20, "wait_dram": 15, "wait_barrier": 60}
    assert causes(timing, "mac") == {"wait_token_raw": 44, "busy": 34, "drain": 35, "wait_barrier": 60}
    assert causes(timing, "vector") == {"drain": 113, "wait_barrier": 60}
    assert (timing.dram.row_misses, timing.dram.row_hits) == (2, 4)
    traffic = timing.traffic
    assert (traffic.dram_read_bytes, traffic.dram_write_bytes) == (128, 64)
    assert (traffic.sram_write_bytes, traffic.sram_read_bytes) == (128 + 64, 64 + 64 + 64)
    assert (traffic.mac_operations, traffic.instruction_fetch_bytes, traffic.param_read_bytes) == (512, 512, 12)
    assert timing.layers[1].busy_cycles == {"load": 0, "store": 0, "mac": 34, "vector": 0, "storage": 0}
    assert (timing.layers[1].start_cycle, timing.layers[1].end_cycle, timing.layers[1].span_cycles) == (44, 78, 34)
    assert timing.layers[2].traffic.dram_write_bytes == 64


# 16 + 20 + 32 = 68 cycles, 64 where the row is open; 8 + 64 + 14 + 4 = 90 cycles
TILE = (LOAD + "512 ", MATMUL.format(64, 8, 8))


def test_a_single_buffer_takes_turns(tiny_machine: Machine) -> None:
    lines = []
    for tile in range(4):
        lines.append(TILE[0] + "signal_raw=4" + (" wait_war=4" if tile else ""))
        lines.append(TILE[1] + "wait_raw=1" + (" signal_war=1" if tile < 3 else ""))
    timing = timed(tiny_machine, *lines)
    assert timing.total_cycles == 68 + 3 * 64 + 4 * 90
    assert causes(timing, "load") == {
        "busy": 4 * 48,
        "wait_dram": 20 + 3 * 16,
        "wait_token_war": 3 * 90,
        "idle_done": 90,
    }
    assert causes(timing, "mac") == {"busy": 4 * 90, "wait_token_raw": 68 + 3 * 64}


def test_two_buffers_hide_the_loads_behind_the_array(tiny_machine: Machine) -> None:
    lines = []
    for tile in range(4):
        lines.append(TILE[0] + "signal_raw=4" + (" wait_war=4" if tile >= 2 else ""))
        lines.append(TILE[1] + "wait_raw=1" + (" signal_war=1" if tile < 2 else ""))
    timing = timed(tiny_machine, *lines)
    assert spans(timing)[::2] == [(0, 68), (68, 132), (158, 222), (248, 312)]
    assert spans(timing)[1::2] == [(68, 158), (158, 248), (248, 338), (338, 428)]
    assert causes(timing, "mac") == {"wait_token_raw": 68, "busy": 360}
    # loads: waits 132..158 and 222..248 for a buffer
    assert causes(timing, "load") == {"busy": 192, "wait_dram": 68, "wait_token_war": 52, "idle_done": 116}


def test_of_equal_requests_the_load_comes_first_and_reads_go_on_until_none_is_ready(tiny_machine: Machine) -> None:
    """Bursts enter in turns from 16 on. Activates at 16 and 18; reads at 20, 22, 24, 26, and their data pass until 34;
    from a read to a write it takes 4, so writes follow at 30, 32, 34, 36, and their data pass until 43.
    """
    timing = timed(tiny_machine, STORE + "128", LOAD + "128")
    assert spans(timing) == [(0, 53), (0, 44)]
    assert causes(timing, "store") == {"busy": 24, "wait_dram": 29}


def test_a_burst_is_overtaken_by_no_more_than_the_limit(tiny_machine: Machine) -> None:
    """32 writes of the store: at 20, 22, ... The load asks at 25, when 7 writes are in the queue, and is the oldest
    after the tenth write, at 38. 16 more overtake it, the last at 70; the read comes 9 later, at 79, and three more
    follow until 85. Then the other six writes, from 89 to 99.
    """
    timing = timed(tiny_machine, RECIP + "1 signal_raw=1", LOAD + "128 wait_raw=8", STORE + "1024")
    assert spans(timing) == [(0, 9), (9, 85 + 8 + 10), (0, 99 + 7 + 10)]
    assert causes(timing, "load") == {"wait_token_raw": 9, "busy": 24, "wait_dram": 70, "idle_done": 13}


def test_a_unit_does_not_overlap_its_own_next_transfer(tiny_machine: Machine) -> None:
    assert spans(timed(tiny_machine, LOAD + "128", LOAD + "128")) == [(0, 44), (44, 84)]


def test_a_base_register_moves_a_copy(tiny_machine: Machine) -> None:
    """A run that crosses into one more burst moves it; rows that are open are hit from any base."""
    code = assemble(f"{LOAD}64 base=1\n{LOAD}64 dram_addr=40")
    timing = simulate(code, tiny_machine, (0, 40, 0))
    assert (timing.traffic.dram_read_bytes, timing.dram.row_misses) == (2 * 96, 2)
    with pytest.raises(UserError, match="instruction 0: load: DRAM address 281474976710657: allowed up to 2\\^48"):
        timed(tiny_machine, LOAD + f"1 dram_addr={(1 << 48) + 1}")
    with pytest.raises(UserError, match="instruction 1: load: reaches DRAM up to byte 2305843009213693953: allowed 28"):
        timed(
            tiny_machine, RECIP + "1", f"load unit=load planes=2 rows=1 row_bytes=1 local_plane=1 dram_plane={1 << 61}"
        )


def test_a_missing_raw_token_is_named_before_a_missing_war_token(tiny_machine: Machine) -> None:
    """The array waits for the load (38 cycles) and the vector unit (100): raw for 38 cycles, war for the other 62."""
    timing = timed(
        tiny_machine,
        LOAD + "1 signal_raw=4",
        RECIP + "92 signal_war=4",
        MATMUL.format(8, 8, 8) + "wait_raw=1 wait_war=8",
    )
    assert causes(timing, "mac") == {"wait_token_raw": 38, "wait_token_war": 62, "busy": 34}


def test_tokens_count_and_may_go_to_the_own_unit(tiny_machine: Machine) -> None:
    """Two tokens are sent before the first is taken."""
    timing = timed(
        tiny_machine, RECIP + "1 signal_raw=12", RECIP + "1 signal_raw=4 wait_raw=8",
        MATMUL.format(8, 8, 8) + "wait_raw=8", MATMUL.format(8, 8, 8) + "wait_raw=8",
    )  # fmt: skip
    assert spans(timing) == [(0, 9), (9, 18), (9, 43), (43, 77)]


def test_a_barrier_waits_for_every_unit_and_holds_every_unit(tiny_machine: Machine) -> None:
    """Load to 44, vector unit to 9, barrier from 44 to 104; the array, unused until then, starts at 104."""
    timing = timed(tiny_machine, LOAD + "128", RECIP + "1", BARRIER, MATMUL.format(8, 8, 8), RECIP + "1")
    assert spans(timing) == [(0, 44), (0, 9), (44, 104), (104, 138), (104, 113)]
    assert causes(timing, "load") == {"busy": 24, "wait_dram": 20, "wait_barrier": 60, "idle_done": 34}
    assert causes(timing, "vector") == {"busy": 18, "drain": 35, "wait_barrier": 60, "idle_done": 25}
    assert causes(timing, "mac") == {"drain": 44, "wait_barrier": 60, "busy": 34}
    assert causes(timing, "store") == {"drain": 44, "wait_barrier": 60, "idle_done": 34}
    assert set(timing.layers) == {0}


def test_a_deadlock_names_each_unit_and_what_it_waits_for(tiny_machine: Machine) -> None:
    with pytest.raises(UserError) as error:
        timed(
            tiny_machine, LOAD + "128", LOAD + "128 wait_war=4 signal_raw=4",
            MATMUL.format(8, 8, 8) + "wait_raw=1 wait_war=10 signal_war=1", STORE + "1 wait_raw=4",
        )  # fmt: skip
    assert str(error.value) == (
        "deadlock at cycle 44; load: instruction 1 (load) waits for a token war from mac; "
        "store: instruction 3 (store) waits for a token raw from mac; "
        "mac: instruction 2 (matmul) waits for a token raw from load and war from store and war from vector; "
        "vector: nothing left before the next barrier or the end; "
        "storage: nothing left before the next barrier or the end"
    )


def test_a_fetch_runs_beside_everything_and_a_load_waits_for_it(tiny_machine: Machine) -> None:
    """16 of set-up, 200 us at 200 MHz, 1001 bytes at 1.25 bytes a cycle: busy 40817. The last burst then needs an open
    row, 5 + 2 clocks, and the interconnect. The first load does not wait."""
    fetch = "fetch bytes=1001 dram_addr=4096 signal_raw=1"
    timing = timed(tiny_machine, fetch, LOAD + "128", LOAD + "128 dram_addr=4096 wait_raw=16", BARRIER)
    assert spans(timing)[:2] == [(0, 40834), (0, 44)]
    assert timing.start_cycle[2] == 40834
    assert causes(timing, "storage") == {
        "busy": 40817, "wait_dram": 17, "drain": timing.total_cycles - 60 - 40834, "wait_barrier": 60,
    }  # fmt: skip
    assert causes(timing, "load")["wait_param_swap"] == 40834 - 44
    assert causes(timing, "mac") == {"drain": timing.total_cycles - 60, "wait_barrier": 60}
    traffic = timing.traffic
    assert (traffic.storage_read_bytes, traffic.fetch_bytes, traffic.dram_fetch_bytes) == (1001, 1001, 1024)
    assert traffic.dram_write_bytes == 0


def with_storage(machine: Machine, **fields: int) -> Machine:
    data = machine.model_dump(mode="json")
    data["storage"]["device"] |= fields
    return Machine.model_validate(data)


def test_requests_overlap_their_latencies_up_to_the_queue_depth(tiny_machine: Machine) -> None:
    """Requests of 1000 bytes take 800 cycles each. Of a latency of 200: one at a time each waits for it and for the
    write before (5 + 2 clocks and 10 of interconnect, its row open); two outstanding: only the first does."""
    fetch = "fetch bytes=4000"
    for depth, latency_us, ideal in ((1, 1, 4 * 1000), (2, 1, 200 + 4 * 800), (4, 1, 200 + 4 * 800)):
        machine = with_storage(tiny_machine, request_bytes=1000, queue_depth=depth, latency_us=latency_us)
        timing = timed(machine, fetch)
        assert causes(timing, "storage")["busy"] == 16 + ideal
        assert timing.total_cycles == 16 + ideal + (4 if depth == 1 else 1) * 17
    # three requests of latency 2000 outstanding: the fourth is issued when the first is written
    machine = with_storage(tiny_machine, request_bytes=1000, queue_depth=3, latency_us=10)
    assert timed(machine, fetch).total_cycles == 16 + 2000 + 800 + 17 + 2000 + 800 + 17


def test_coded_bytes_are_paced_by_the_decoder_and_read_the_old_ones(tiny_machine: Machine) -> None:
    """1024 bytes from 100 coded ones: 80 cycles of the storage, 256 of the decoder's 4 bytes a cycle. Each of 32 bursts
    is read and written, from rows of one bank that take turns, so that the end is a row cycle later than a write's."""
    machine = with_storage(tiny_machine, latency_us=1)
    timing = timed(machine, "fetch bytes=1024 coded_bytes=100 dram_addr=4096 old_addr=65536")
    assert causes(timing, "storage")["busy"] == 16 + 200 + 256
    row_cycle = tiny_machine.dram.device.row_cycle_clocks
    assert 17 <= causes(timing, "storage")["wait_dram"] <= 17 + 2 * row_cycle
    traffic = timing.traffic
    assert (traffic.storage_read_bytes, traffic.fetch_bytes, traffic.dram_fetch_bytes) == (100, 1024, 2 * 1024)
    without = machine.model_copy(update={"dma": machine.dma.model_copy(update={"decoder_bytes_per_cycle": 0})})
    with pytest.raises(UserError, match="coded_bytes = 100: allowed 0 on a machine"):
        timed(without, "fetch bytes=1024 coded_bytes=100")
    with pytest.raises(UserError, match="coded_bytes = 67, bytes = 64: allowed at most the run's bytes and one"):
        timed(machine, "fetch bytes=64 coded_bytes=67")


def test_a_fetch_and_loads_slow_each_other_down(tiny_machine: Machine) -> None:
    """The storage delivers 16 bytes a cycle, all that the DRAM moves: what a long load asks for comes on top."""
    machine = with_storage(tiny_machine, bandwidth_bytes_per_second=3_200_000_000, latency_us=1)
    fetch, load = "fetch bytes=65536 dram_addr=1048576", LOAD + "65536"
    both = timed(machine, fetch, load)
    alone, quiet = (
        timed(machine, fetch).ledger["storage"]["wait_dram"],
        timed(machine, load).ledger["load"]["wait_dram"],
    )
    assert both.ledger["load"]["wait_dram"] > 4 * quiet
    assert both.ledger["storage"]["wait_dram"] > 4 * alone
    assert both.total_cycles > 2 * 65536 // 16


def test_a_token_from_behind_the_barrier_deadlocks(tiny_machine: Machine) -> None:
    with pytest.raises(UserError, match=r"load: instruction 0 \(load\) waits for a token raw from vector"):
        timed(tiny_machine, LOAD + "1 wait_raw=8", BARRIER, RECIP + "1 signal_raw=1")


def test_leftover_tokens_are_refused(tiny_machine: Machine) -> None:
    with pytest.raises(
        UserError, match=r"tokens left over at instruction 1 \(barrier or halt\): 1 raw from load to mac"
    ):
        timed(tiny_machine, LOAD + "1 signal_raw=4", BARRIER, MATMUL.format(8, 8, 8) + "wait_raw=1")
    with pytest.raises(UserError, match="at the end of the code: 2 war from vector to vector"):
        timed(tiny_machine, RECIP + "1 signal_war=8", RECIP + "1 signal_war=8")


def test_illegal_instructions_are_named(tiny_machine: Machine) -> None:
    with pytest.raises(UserError, match="instruction 1: barrier and halt take and send no tokens"):
        timed(tiny_machine, RECIP + "1", BARRIER + " signal_raw=8")
    with pytest.raises(UserError, match="instruction 1: load: unit = mac: allowed load"):
        timed(tiny_machine, LOAD + "1", "load unit=mac planes=1 rows=1 row_bytes=1")
    with pytest.raises(UserError, match="instruction 0: load: row_bytes = 0: allowed at least 1"):
        timed(tiny_machine, LOAD + "0")
    with pytest.raises(UserError, match="instruction 2: opcode 0 is not an instruction"):
        simulate(np.concatenate([assemble(f"{RECIP}1\n{RECIP}1"), np.zeros((1, 32), np.uint32)]), tiny_machine)
    with pytest.raises(UserError, match=r"code has shape \(3, 31\)"):
        simulate(np.zeros((3, 31), np.uint32), tiny_machine)


def twice(machine: Machine, section: str, field: str) -> Machine:
    return changed(machine, {f"{section}.{field}": 2})


def test_two_arrays_work_side_by_side(tiny_machine: Machine) -> None:
    """Each product takes 34. The vector unit waits for both; the second array has no third, so it waits for the end."""
    product = MATMUL.format(8, 8, 8)
    second = product.replace("unit=mac", "unit=mac2")
    timing = timed(
        twice(tiny_machine, "mac_array", "count"), product + "signal_raw=8", second + "signal_raw=8",
        product, RECIP + "2 wait_raw=132", BARRIER,
    )  # fmt: skip
    assert spans(timing) == [(0, 34), (0, 34), (34, 68), (34, 44), (68, 128)]
    assert causes(timing, "mac") == {"busy": 68, "wait_barrier": 60}
    assert causes(timing, "mac2") == {"busy": 34, "drain": 34, "wait_barrier": 60}
    assert list(timing.ledger) == ["load", "store", "mac", "vector", "storage", "mac2"]
    assert timing.layers[0].busy_cycles["mac2"] == 34
    assert timed(tiny_machine, product, product, product).total_cycles == 3 * 34


def test_two_load_units_share_the_dram(tiny_machine: Machine) -> None:
    """Set-up 16 and latency 20 of both overlap; 256 bytes at 16 per cycle take 16, whoever asks. One unit alone finds
    the row open for its second load: latency 16.
    """
    machine = twice(tiny_machine, "dma", "load_units")
    timing = timed(machine, LOAD + "128", LOAD.replace("unit=load", "unit=load2 dram_addr=128") + "128")
    assert timing.total_cycles == 16 + 20 + 16
    assert causes(timing, "load2") == {"busy": 24, "wait_dram": 28}
    assert timed(tiny_machine, LOAD + "128", LOAD + "128 dram_addr=128").total_cycles == 44 + 16 + 16 + 8


def test_two_fetches_read_a_device_each(tiny_machine: Machine) -> None:
    """A load that waits for either waits for parameters; neither FETCH delays the other by more than bursts."""
    machine = twice(tiny_machine, "dma", "storage_units")
    first, second = "fetch bytes=1001 dram_addr=4096 ", "fetch unit=storage2 bytes=1001 dram_addr=8192 "
    timing = timed(machine, first, second + "signal_raw=1", LOAD + "128 wait_raw=512", BARRIER)
    alone = timed(tiny_machine, first).total_cycles
    assert all(alone <= end < alone + 40 for end in timing.end_cycle[:2])
    assert causes(timing, "load")["wait_param_swap"] == timing.end_cycle[1] == timing.start_cycle[2]


def test_a_unit_that_the_machine_has_not_is_named(tiny_machine: Machine) -> None:
    second = MATMUL.format(8, 8, 8).replace("unit=mac", "unit=mac2")
    with pytest.raises(UserError, match=r"instruction 0: matmul: unit = mac2: allowed mac$"):
        timed(tiny_machine, second)
    with pytest.raises(UserError, match=r"0: token: unit = load2: allowed load, store, mac, vector, storage$"):
        timed(tiny_machine, "token unit=load2")


def matmul_cycles(machine: Machine, m: int, k: int, n: int, types: str = "b_dtype=i8") -> int:
    return timed(machine, MATMUL.format(m, k, n).replace("b_dtype=i8", types)).total_cycles


def without_shadow(machine: Machine) -> Machine:
    return machine.model_copy(update={"mac_array": machine.mac_array.model_copy(update={"shadow_weights": False})})


def test_weight_stationary_folds_by_hand(tiny_machine: Machine) -> None:
    """Fill 8; per fold the longer of rows and next weights (8), in the last fold rows; skew, drain 14; requantize 4."""
    assert matmul_cycles(tiny_machine, 20, 8, 8) == 8 + 20 + 14 + 4
    assert matmul_cycles(tiny_machine, 20, 9, 17) == 8 + 2 * 3 * 20 + 14 + 4  # ragged folds cost as full ones
    assert matmul_cycles(tiny_machine, 3, 16, 8) == 8 + 8 + 3 + 14 + 4  # loading is the longer; the last loads nothing
    assert matmul_cycles(tiny_machine, 3, 8, 8) == 8 + 3 + 14 + 4
    assert matmul_cycles(tiny_machine, 64, 16, 8) == 8 + 2 * 64 + 14 + 4
    assert matmul_cycles(tiny_machine, 65, 16, 8) == 8 + 2 * 64 + 8 + 1 + 14 + 4  # one row more than accumulators
    assert matmul_cycles(tiny_machine, 20, 8, 8, "a_dtype=i16 b_dtype=i8") == 8 + 2 * 20 + 14 + 4
    assert matmul_cycles(tiny_machine, 20, 8, 8, "a_dtype=i16 b_dtype=i16") == 8 + 4 * 20 + 14 + 4
    assert matmul_cycles(without_shadow(tiny_machine), 20, 16, 8) == 2 * (8 + 20) + 14 + 4


def with_array(machine: Machine, **fields: Any) -> Machine:
    return machine.model_copy(update={"mac_array": machine.mac_array.model_copy(update=fields)})


def with_outputs(machine: Machine) -> Machine:
    return with_array(machine, dataflow="output_stationary")


def test_output_stationary_tiles_by_hand(tiny_machine: Machine) -> None:
    """Each tile k, or its rows where there are more (the last one k); skew 14, the last tile's rows; requantize 4."""
    machine = with_outputs(tiny_machine)
    assert matmul_cycles(machine, 8, 20, 8) == 20 + 14 + 8 + 4
    assert matmul_cycles(machine, 3, 20, 8) == 20 + 14 + 3 + 4
    assert matmul_cycles(machine, 9, 20, 17) == 2 * 3 * 20 + 14 + 1 + 4
    assert matmul_cycles(machine, 9, 5, 17) == 3 * 8 + 3 * 5 + 14 + 1 + 4
    assert matmul_cycles(machine, 8, 20, 8, "a_dtype=i16 b_dtype=i16") == 4 * 20 + 14 + 8 + 4
    assert matmul_cycles(machine, 8, 21, 8, "a_dtype=u4 b_dtype=i4") == 11 + 14 + 8 + 4  # two values of k at once


def test_input_stationary_folds_are_weight_stationary_ones_of_the_transposed_product(tiny_machine: Machine) -> None:
    machine = with_array(tiny_machine, dataflow="input_stationary")
    assert matmul_cycles(machine, 8, 8, 20) == 8 + 20 + 14 + 4
    assert matmul_cycles(machine, 17, 9, 20) == 8 + 2 * 3 * 20 + 14 + 4
    assert matmul_cycles(machine, 8, 16, 65) == 8 + 2 * 64 + 8 + 1 + 14 + 4
    for m, k, n in ((3, 16, 8), (20, 9, 17), (65, 16, 8), (1, 1, 1)):
        assert matmul_cycles(machine, n, k, m) == matmul_cycles(tiny_machine, m, k, n)


def test_without_overlap_every_fold_takes_its_whole_time(tiny_machine: Machine) -> None:
    plain = with_array(tiny_machine, fold_overlap=False)
    assert matmul_cycles(plain, 20, 9, 17) == 2 * 3 * (8 + 20 + 14) + 4
    assert matmul_cycles(plain, 65, 16, 8) == 2 * (8 + 64 + 14) + 2 * (8 + 1 + 14) + 4
    outputs = with_outputs(plain)
    assert matmul_cycles(outputs, 9, 20, 17) == 2 * 3 * (20 + 14) + 1 + 4
    assert matmul_cycles(outputs, 8, 20, 8, "b_dtype=i8 acc_hold=1") == 20 + 14 + 1


def test_sums_that_are_held_skip_the_requantizer(tiny_machine: Machine) -> None:
    held = "b_dtype=i8 acc_hold=1"
    assert matmul_cycles(tiny_machine, 20, 8, 8, held) == 8 + 20 + 14 + 1
    assert matmul_cycles(with_outputs(tiny_machine), 8, 20, 8, held) == 20 + 14 + 1


def test_one_tile_of_outputs_is_scale_sims_formula_and_the_requantizer(edge_machine: Machine) -> None:
    """SCALE-Sim, output stationary: 2 R + C + K - 2."""
    array = edge_machine.mac_array
    for k in (1, 64, 1152):
        expected = 2 * array.rows + array.cols + k - 2 + array.requant_latency_cycles
        assert matmul_cycles(with_outputs(edge_machine), array.rows, k, array.cols) == expected


def test_one_fold_is_scale_sims_formula_and_the_requantizer(tiny_machine: Machine, edge_machine: Machine) -> None:
    """SCALE-Sim, weight stationary: 2 R + C + M - 2 for each fold; several folds: where streaming M hides the loads."""
    for machine in (tiny_machine, edge_machine):
        array = machine.mac_array
        rows, cols, requantize = array.rows, array.cols, array.requant_latency_cycles
        for m in (1, rows, rows + 1, array.acc_rows):
            fold = 2 * rows + cols + m - 2
            for k, n in ((rows, cols), (1, cols), (rows, 1)):
                assert matmul_cycles(machine, m, k, n) == fold + requantize
                assert matmul_cycles(without_shadow(machine), m, k, n) == fold + requantize
            if m < rows:
                continue
            # SCALE-Sim overlaps nothing between folds; here only the last fold's skew and drain show
            many = 3 * fold - 2 * (rows + cols - 2)
            assert matmul_cycles(without_shadow(machine), m, 3 * rows, cols) == many + requantize
            assert matmul_cycles(machine, m, 3 * rows, cols) == many - 2 * rows + requantize


def test_a_rule_about_addresses_is_checked_of_every_instruction(tiny_machine: Machine) -> None:
    line = "smexp p_bits=8 rows=1 cols=4 sum_addr={}\n"
    with pytest.raises(UserError, match="instruction 1: smexp: out_addr = 0x0, sum_addr = 0x3: allowed two results"):
        timed(tiny_machine, line.format(4) + line.format(3))


def test_vector_durations_by_hand(tiny_machine: Machine) -> None:
    """8 lanes, 8 cycles of latency: passes over ceil(elements / 8) cycles."""
    dense = "unit=vector rows=3 cols=6 out_row=6 "
    assert timed(tiny_machine, "ewmul shift=1 batch=1 out_batch=18 " + dense).total_cycles == 3 + 8
    assert timed(tiny_machine, "ewlin shift=1 batch=2 out_batch=18 a_dtype=i32 " + dense).total_cycles == 2 * 5 + 8
    assert timed(tiny_machine, "table shift=1 " + dense).total_cycles == 3 + 8
    assert timed(tiny_machine, "lnstat epsilon=1 unit=vector rows=3 cols=6").total_cycles == 3 + 3 + 8
    assert timed(tiny_machine, "lnapply shift=1 " + dense).total_cycles == 2 * 3 + 8
    assert timed(tiny_machine, "smexp p_bits=8 sum_addr=18 " + dense).total_cycles == 2 * 3 + 8
    assert timed(tiny_machine, RECIP + "5").total_cycles == 5 + 8
