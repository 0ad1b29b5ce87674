"""The event-driven model against the per-cycle machine, and what must hold for any program."""

from __future__ import annotations

import numpy as np
import pytest

from npusim.config import LatencyByOp, Machine
from npusim.hw import changed
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa.control import JOINS
from npusim.isa.encoding import NO_ADDRESS, encode
from npusim.timing import CAUSES, CodeTiming, simulate
from npusim.timing.cost import costs
from npusim.timing.results import DramCounts
from npusim.units import KINDS, UNITS
from tests.npusim.timing.programs import Words, equipped, random_code, random_machine, several
from tests.npusim.timing.stepper import step


def equal_to_the_stepper(code: Words, machine: Machine) -> CodeTiming:
    """Assert that both take the same time; return the model's."""
    timing, stepped = simulate(code, machine), step(decode(code), machine)
    assert timing.total_cycles == stepped.total
    assert timing.start_cycle.tolist() == [stepped.start[i] for i in range(len(code))]
    assert timing.end_cycle.tolist() == [stepped.end[i] for i in range(len(code))]
    assert timing.ledger == {u: {c: stepped.ledger[u, c] for c in CAUSES} for u in machine.units}
    dram = stepped.dram
    assert timing.dram == DramCounts(dram.hits, dram.misses, dram.refreshes, dram.background_bursts)
    return timing


@pytest.mark.parametrize("block", range(10))
def test_equal_to_the_stepper_cycle_for_cycle(block: int, tiny_machine: Machine) -> None:
    for seed in range(block * 30, block * 30 + 30):
        rng = np.random.default_rng([1, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, int(rng.integers(1, 40)), float(rng.random()), bool(rng.integers(2)))
        equal_to_the_stepper(code, machine)


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 5))])
def test_equal_to_the_stepper_with_several_units_of_a_kind(block: int, tiny_machine: Machine) -> None:
    seen = dict.fromkeys(UNITS, 0)
    for seed in range(block * 15, block * 15 + 15):
        rng = np.random.default_rng([7, seed])
        machine = several(rng, random_machine(rng, tiny_machine))
        code = random_code(rng, int(rng.integers(1, 50)), float(rng.random()), True, units=machine.units)
        for unit, causes in equal_to_the_stepper(code, machine).ledger.items():
            seen[unit] += causes["busy"]
    assert all(seen.values())


def test_two_units_of_a_kind_take_the_time_of_one_where_only_the_first_works(tiny_machine: Machine) -> None:
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, 30, 0.3, True)
        one, more = simulate(code, machine), simulate(code, several(rng, machine))
        assert one.start_cycle.tolist() == more.start_cycle.tolist()
        assert one.end_cycle.tolist() == more.end_cycle.tolist()
        assert one.ledger == {unit: more.ledger[unit] for unit in machine.units}


def test_the_random_programs_show_every_cause_on_every_unit_that_can_have_it(tiny_machine: Machine) -> None:
    seen = {unit: dict.fromkeys(CAUSES, 0) for unit in KINDS}
    for seed in range(60):
        rng = np.random.default_rng([1, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, int(rng.integers(1, 40)), float(rng.random()), bool(rng.integers(2)))
        for unit, causes in simulate(code, machine).ledger.items():
            for cause, cycles in causes.items():
                seen[unit][cause] += cycles
    missing = {(u, c) for u in KINDS for c in CAUSES if not seen[u][c]}
    assert missing == {
        *((unit, "wait_dram") for unit in ("mac", "vector")),
        *(("storage", cause) for cause in ("wait_bank", "wait_param_swap")),
    }


def test_ledger_layers_and_bounds_of_random_programs(tiny_machine: Machine) -> None:
    for seed in range(60):
        rng = np.random.default_rng([2, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, 30, 0.3, True)
        timing, cost = simulate(code, machine), costs(code, machine)
        for unit, causes in timing.ledger.items():
            assert sum(causes.values()) == timing.total_cycles
            assert causes["busy"] == sum(layer.busy_cycles[unit] for layer in timing.layers.values())
            assert all(cycles >= 0 for cycles in causes.values())
        assert timing.total_cycles >= cost.transfer.max()
        work = ~cost.barrier
        for number, layer in timing.layers.items():
            mine = work & (cost.layer == number)
            assert layer.start_cycle == timing.start_cycle[mine].min()
            assert layer.end_cycle == timing.end_cycle[mine].max()
            assert layer.span_cycles <= timing.total_cycles
        barrier_fetches = 128 * int(cost.barrier.sum())
        fetched = sum(layer.traffic.instruction_fetch_bytes for layer in timing.layers.values())
        assert fetched + barrier_fetches == timing.traffic.instruction_fetch_bytes == 128 * len(code)
        assert sum(layer.traffic.mac_operations for layer in timing.layers.values()) == timing.traffic.mac_operations


def test_costs_are_those_of_each_instruction_by_itself(tiny_machine: Machine) -> None:
    """Instructions that differ in address, layer or tokens only share a calculation; it must be right for each."""
    rng = np.random.default_rng(3)
    first = random_code(rng, 300, 0.5, True)
    again = []
    for ins in decode(first):
        values = {name: value for name, value in vars(ins).items() if name not in ("op", "opcode")}
        if ins.op == "pswitch":  # its address is the machine's
            again.append(encode(BY_MNEMONIC[ins.op], {**values, "layer": 7}))
            continue
        moved = {name: 4096 * index for index, name in enumerate(values) if name.endswith("addr")}
        values |= {name: at for name, at in moved.items() if values[name] != NO_ADDRESS} | {"layer": 7}
        again.append(encode(BY_MNEMONIC[ins.op], values))
    code = np.concatenate([first, np.stack(again)])
    machine = equipped(tiny_machine)
    cost = costs(code, machine)
    for index, ins in enumerate(decode(code)):
        assert cost.busy[index] == BY_MNEMONIC[ins.op].cycles(ins, machine)
        assert (cost.unit[index], cost.layer[index]) == (ins.unit, ins.layer)
        assert cost.wait[index].tolist() == [ins.wait_raw, ins.wait_war]
        assert cost.signal[index].tolist() == [ins.signal_raw, ins.signal_war]


def test_on_chip_traffic_of_dense_operands_is_their_footprint(tiny_machine: Machine) -> None:
    # A bank switch names both banks and moves no byte of them.
    code = random_code(np.random.default_rng(4), 400, 0.2, False, set(BY_MNEMONIC) - {"pswitch"})
    timing = simulate(code, equipped(tiny_machine))
    expected = dict.fromkeys(("sram_read", "sram_write", "param_read", "param_load"), 0)
    for ins in decode(code):
        for regions, way in zip(BY_MNEMONIC[ins.op].footprint(ins), ("read", "write"), strict=True):
            for region in regions:
                if region.memory not in ("dram", "storage"):
                    name = f"{region.memory}_{way}".replace("param_write", "param_load")
                    expected[name] += region.end - region.start
    traffic = timing.traffic
    assert expected == {name: getattr(traffic, f"{name}_bytes") for name in expected}
    assert traffic.load_bytes <= traffic.dram_read_bytes
    assert traffic.store_bytes <= traffic.dram_write_bytes


def faster(machine: Machine, rng: np.random.Generator) -> Machine:
    """``machine`` with a multiple of the DRAM's clock, of lanes and of ports, and a shorter way to the DRAM."""
    fields = machine.model_dump(mode="json")
    fields["dram"]["device"]["clock_mhz"] *= int(rng.integers(1, 5))
    fields["dram"]["interconnect_ns"] = int(rng.integers(0, fields["dram"]["interconnect_ns"] + 1))
    fields["vector_unit"]["lanes"] *= int(rng.integers(1, 5))
    fields["sram"]["bytes_per_cycle"] <<= int(rng.integers(0, 3)) * (fields["sram"]["mapping"] == "blocked")
    if fields["sram"]["ports"] == "1rw":
        fields["sram"]["ports"] = str(rng.choice(["1rw", "1r1w", "2rw", "unlimited"]))
    return Machine.model_validate(fields)


def one_burst_at_a_time(machine: Machine) -> Machine:
    """``machine`` without refresh, background traffic, choice of bursts, and conflicts in SRAM."""
    fields = machine.model_dump(mode="json")
    fields["dram"] |= {"queue_entries": 1, "background_bytes_per_second": 0}
    fields["dram"]["device"]["trefi_clocks"] = 1_000_000
    fields["sram"]["ports"] = "unlimited"
    return Machine.model_validate(fields)


def test_a_faster_machine_never_takes_longer_where_nothing_chooses(tiny_machine: Machine) -> None:
    """One DMA unit, one burst at a time, no refresh: every event only waits for earlier ones."""
    for seed in range(200):
        rng = np.random.default_rng([5, seed])
        machine = one_burst_at_a_time(random_machine(rng, tiny_machine))
        ops = set(BY_MNEMONIC) - ({"load", "store", "fetch"} - {str(rng.choice(["load", "store", "fetch"]))})
        code = random_code(rng, 30, 0.4, True, ops)
        assert simulate(code, faster(machine, rng)).total_cycles <= simulate(code, machine).total_cycles, seed


def test_with_choices_a_faster_machine_stays_within_the_stated_bound(tiny_machine: Machine) -> None:
    """Another order of service, or another meeting at a bank, can cost cycles (a scheduling anomaly), at most all
    transfers and all waits for banks on the faster machine.

    Take, on the faster machine, the chain of instructions that ends last, each started by the end of the one before.
    Its cycles outside of these are at most the slower machine's total.
    """
    for seed in range(200):
        rng = np.random.default_rng([6, seed])
        machine = random_machine(rng, tiny_machine)
        code = random_code(rng, 30, 0.4, True)
        better = faster(machine, rng)
        timing = simulate(code, better)
        transfers = int(costs(code, better).transfer.sum()) + sum(
            causes["wait_dram"] + causes["wait_bank"] for causes in timing.ledger.values()
        )
        assert timing.total_cycles <= simulate(code, machine).total_cycles + transfers, seed


def test_each_vector_operation_has_the_latency_that_the_machine_gives_it(tiny_machine: Machine) -> None:
    """As often as the operation goes through its pipeline: RTQUANT twice, the others once."""
    ops = [op for op, spec in BY_MNEMONIC.items() if "vector" in spec.units and op not in ("token", *JOINS)]
    own = {op: 20 + index for index, op in enumerate(ops)}
    plain = changed(equipped(tiny_machine), {"vector_unit.op_latency_cycles": 1, "sram.ports": "unlimited"})
    machine = changed(plain, {f"vector_unit.latency_by_op.{op}_cycles": cycles for op, cycles in own.items()})
    seen = set[str]()
    for seed in range(12):
        code = random_code(np.random.default_rng([9, seed]), 40, 0.2, True)
        timing, short = equal_to_the_stepper(code, machine), simulate(code, plain)
        longer = (timing.end_cycle - timing.start_cycle) - (short.end_cycle - short.start_cycle)
        for index, ins in enumerate(decode(code)):
            if ins.op in own:
                seen.add(ins.op)
                assert longer[index] == (own[ins.op] - 1) * (2 if ins.op == "rtquant" else 1), ins.op
    assert seen == set(own) == {name.removesuffix("_cycles") for name in LatencyByOp.model_fields}
