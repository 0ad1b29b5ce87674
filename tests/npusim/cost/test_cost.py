"""Energy and area: counts and sums computed another way, scaling, and refused tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler import Builder, compile_graph
from npusim.config import Machine, load_machine
from npusim.cost import area, energy, swap_energy, tables
from npusim.cost.actions import array_actions
from npusim.cost.energy import TIME, WORK, Range, unit_energies
from npusim.cost.static import leakage_mw
from npusim.cost.tables import Macros, base_table, macros_of, sram_table
from npusim.errors import UserError
from npusim.isa import decode
from npusim.isa.assembly import assemble
from npusim.program import Program
from npusim.program_rules import bare_program
from npusim.timing import time_program

M, K, N = 70, 20, 30


@pytest.fixture(scope="module")
def program(tiny_machine: Machine) -> Program:
    rng = np.random.default_rng(6)
    net = Builder(2)
    x = net.input("x", (M, K), "i8")
    weight = rng.integers(-8, 8, (N, K), np.int8)
    y = net.linear("gemm", x, weight, "i16", multiplier=20000, shift=20, weight_bits=4)
    net.output(net.sum("double", y, y, "i16", a_mul=1, b_mul=1, shift=1))
    return compile_graph(net.graph(), tiny_machine)


def test_counts_of_a_product(program: Program, tiny_machine: Machine) -> None:
    """Products, results and folds of the whole product; SRAM reads by walking over the instructions' tiles."""
    (actions,) = array_actions(program.step, tiny_machine).values()
    assert dict(actions.products) == {(8, 4): M * K * N}
    assert dict(actions.requantizations) == {16: M * N}
    folds = math.ceil(K / 8)
    assert actions.accumulations == M * N * (folds - 1)
    again = 0
    for ins in decode(program.step):
        if ins.op == "matmul":
            for first in range(0, ins.m, 64):
                rows = min(64, ins.m - first)
                for column in range(0, ins.n, 8):
                    again += rows * ins.k if column else 0
                    again += min(8, ins.n - column) * math.ceil(ins.k / 2) if first else 0
    assert actions.refetched_bytes == again > 0
    assert actions.row_sums == M * K * math.ceil(N / 8)


def test_a_layers_energy_by_hand(program: Program, tiny_machine: Machine) -> None:
    timing = time_program(program)
    found = energy(program, timing, node_nm=45)
    index = program.layers.index("gemm")
    work, traffic = found.step.layers[index], timing.step.layers[index].traffic
    mac = 0.2 * 8 * 4 / 64 + 0.1 * 40 / 32 + 0.003 * (8 + 40) * base_table().energy_factor(40, 45).nominal
    assert work["multiply_accumulate"].nominal == pytest.approx(mac * M * K * N + 0.1 * M * K * 4)
    assert work["requantization"].nominal == pytest.approx(2.0 * M * N)
    moved = traffic.dram_read_bytes + traffic.dram_write_bytes
    assert work["dram"] == Range(4 * 8 * moved, 12 * 8 * moved, 40 * 8 * moved)
    assert work["vector"] == Range()
    double = found.step.layers[program.layers.index("double")]
    assert double["vector"].nominal == pytest.approx(
        1.8 * 8 * timing.step.layers[program.layers.index("double")].busy_cycles["vector"]
    )
    assert double["multiply_accumulate"] == Range()


def test_layers_parts_and_components_sum_to_the_total(program: Program) -> None:
    found = energy(program, time_program(program))
    parts = [(found.prologue, 1), (found.step, 2)]
    for which in ("low", "nominal", "high"):
        layers = sum(
            times * getattr(layer[n], which) for p, times in parts for layer in p.layers.values() for n in WORK
        )
        time = sum(times * getattr(p.time[name], which) for p, times in parts for name in TIME)
        assert getattr(found.total_pj, which) == pytest.approx(layers + time)
    assert found.total_pj.low < found.total_pj.nominal < found.total_pj.high


def test_fetched_bytes_cost_storage_and_dram(tiny_machine: Machine) -> None:
    """150 pJ a bit of eMMC, 12 of a DRAM that no table names; a burst of 32 bytes for each of 1000 bytes begun."""
    code = assemble("fetch unit=storage bytes=1000\nhalt unit=vector")
    program = bare_program(assemble("halt unit=vector"), tiny_machine)
    program = replace(program, step=code)
    work = energy(program, time_program(program)).by_component
    assert work["storage"].nominal == pytest.approx(8 * 150 * 1000)
    assert work["dram"].nominal == pytest.approx(8 * 12 * 1024)
    assert work["storage"] + work["dram"] == swap_energy(tiny_machine, 1000, 1024, 0)
    assert work["decoder"] == Range()


def test_decoded_bytes_cost_what_a_byte_takes(edge_machine: Machine) -> None:
    """1000 coded bytes that become 3000, at 40 nm and the machine's 4: 0.417 + 0.251 + 0.21 / 4 pJ each, scaled."""
    decoded = swap_energy(edge_machine, 1000, 1024, 3000).nominal - swap_energy(edge_machine, 1000, 1024, 0).nominal
    assert decoded == pytest.approx(3000 * 0.72 * base_table().energy_factor(40, 4).nominal)


def test_a_port_decides_the_macros_of_a_bank(edge_machine: Machine, tiny_machine: Machine) -> None:
    """512 bits: one macro of the bank's 128 KiB. 128 bits: so, too. 2048 bits: four macros of a quarter."""
    assert macros_of(128 << 10, 64) == Macros(1, 128 << 10, 512)
    assert macros_of(128 << 10, 16) == Macros(1, 128 << 10, 128)
    assert macros_of(128 << 10, 256) == Macros(4, 32 << 10, 512)
    assert macros_of(1 << 10, 4) == Macros(1, 1 << 10, 64)
    read = unit_energies(edge_machine, 22).sram_read_byte
    assert read.nominal == pytest.approx(22.78 / 64)
    assert unit_energies(tiny_machine, 22).sram_read_byte.low == pytest.approx(
        sram_table().bank(tiny_machine.sram.bank_bytes, 128).read_pj[0] / 16
    )


def test_leakage_and_idle_follow_time(program: Program, tiny_machine: Machine) -> None:
    timing = time_program(program)
    found, units = energy(program, timing), unit_energies(tiny_machine, 22)
    seconds = timing.step.total_cycles / 200e6
    milliwatts = sum(value.nominal for value in leakage_mw(tiny_machine, 22).values())
    assert found.step.time["leakage"].nominal == pytest.approx(milliwatts * 1e-3 * seconds * 1e12)
    waiting = sum(cycles for cause, cycles in timing.step.ledger["mac"].items() if cause != "busy")
    lanes = sum(cycles for cause, cycles in timing.step.ledger["vector"].items() if cause != "busy")
    expected = units.idle_cell_cycle.high * 64 * waiting + units.idle_lane_cycle.high * 8 * lanes
    assert found.step.time["idle"].high == pytest.approx(expected)


def test_static_energy_by_cause(program: Program, tiny_machine: Machine) -> None:
    """A unit leaks in every cycle and idles where it is not busy; memories leak whatever the units do."""
    timing = time_program(program)
    found, units, leaks = energy(program, timing), unit_energies(tiny_machine, 22), leakage_mw(tiny_machine, 22)
    assert found.step.static.keys() == leaks.keys() == {"mac", "vector", "memories"}
    for unit, idle in (("mac", units.idle_cell_cycle.low * 64), ("vector", units.idle_lane_cycle.low * 8)):
        for cause, cycles in timing.step.ledger[unit].items():
            parts = found.step.static[unit][cause]
            assert parts["idle"].low == pytest.approx(0 if cause == "busy" else idle * cycles)
            assert parts["leakage"].low == pytest.approx(leaks[unit].low * 1e-3 * cycles / 200e6 * 1e12)
    logic = area(tiny_machine, 22).logic_mm2 * base_table().figures.logic_leakage_mw_per_mm2.range
    assert leaks["mac"].high + leaks["vector"].high == pytest.approx(logic.high)
    whole = sum(
        (part for causes in found.static.values() for parts in causes.values() for part in parts.values()), Range()
    )
    assert whole.high == pytest.approx(found.by_component["idle"].high + found.by_component["leakage"].high)
    array = found.static["mac"]["wait_dram"]["leakage"].nominal, found.static["mac"]["busy"]["leakage"].nominal
    assert array == pytest.approx([leaks["mac"].nominal * 5 * timing.ledger["mac"][c] for c in ("wait_dram", "busy")])


def test_two_arrays_share_the_leakage_of_their_logic(repository: Path) -> None:
    one, two = (load_machine(repository / "hwconfigs" / f"{name}.yaml") for name in ("edge_8k", "edge_2x4k"))
    single, several = leakage_mw(one, 4), leakage_mw(two, 4)
    assert several["mac"] == several["mac2"]
    assert several["mac"].nominal * 2 == pytest.approx(area_leakage(two))
    assert single["mac"].nominal == pytest.approx(area_leakage(one))


def area_leakage(machine: Machine) -> float:
    size = area(machine, 4)
    return (size.array_mm2 + size.requantizers_mm2).nominal * base_table().figures.logic_leakage_mw_per_mm2.nominal


def test_scaling() -> None:
    base = base_table()
    assert base.energy_factor(22, 22) == base.energy_factor(0, 22) == Range(1, 1, 1)
    assert base.energy_factor(45, 7).nominal == pytest.approx(0.38)
    assert base.energy_factor(45, 7).low == pytest.approx(0.30 * 0.7)
    assert base.energy_factor(7, 45).nominal == pytest.approx(1 / 0.38)
    between = base.energy_factor(45, 22).nominal * base.energy_factor(22, 7).nominal
    assert between == pytest.approx(0.38)
    assert base.energy_factor(7, 4).nominal == pytest.approx(math.sqrt(4 / 7))
    assert base.area_factor(45, 22).nominal == pytest.approx(3.3 / 16)
    assert base.area_factor(45, 22).high == pytest.approx(1.5 * 3.3 / 16)
    assert base.area_factor(22, 22) == Range(1, 1, 1)
    with pytest.raises(UserError, match="no node 13 nm; there: "):
        base.area_factor(45, 13)


def test_sram_table_is_ordered_and_as_published_elsewhere() -> None:
    """CACTI's figures for 128-bit words of itrs-lop were also computed apart: 1.29 and 29.9 pJ for 8 KiB and 2 MiB."""
    table = sram_table()
    for bank in table.banks:
        for values in (bank.read_pj, bank.write_pj, bank.leakage_mw, bank.area_mm2):
            assert 0 < values[0] <= values[1] <= values[2], bank
    assert table.bank(8 << 10, 128).read_pj[0] == pytest.approx(1.29, rel=0.01)
    assert table.bank(2 << 20, 128).read_pj[0] == pytest.approx(29.9, rel=0.01)
    assert table.bank(5 << 10, 128).kib == 8
    assert table.bank(1 << 30, 128).kib == 4096


def test_area_follows_the_machine(edge_machine: Machine) -> None:
    size = area(edge_machine)
    assert size.array_mm2.nominal == pytest.approx(8192 * 1010e-6 * 4.3 / 140)
    assert size.requantizers_mm2.nominal == pytest.approx(128 * 2 * 5.1 * 1010e-6 * 4.3 / 140)
    # 16 banks of 128 KiB with words of 512 bits
    assert size.sram_mm2.nominal == pytest.approx(16 * 0.2051 * 0.021 / 0.1, rel=1e-3)
    assert size.total_mm2.high > size.total_mm2.nominal > size.total_mm2.low
    assert area(edge_machine, 22).array_mm2.nominal > 4 * size.array_mm2.nominal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{low: 0.07, nominal: 0.2", "{low: 0.3, nominal: 0.2", "multiply_8x8_pj: low 0.3, nominal 0.2"),
        ("{low: 0.07, nominal", "{low: -1, nominal", "base.yaml:7: figures.multiply_8x8_pj.low"),
        ("  add_32_pj:", "  add_33_pj:", "figures.add_33_pj"),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (tables.TABLES / "base.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "base.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=r"base\.yaml") as error:
        base_table(tmp_path / "base.yaml")
    assert message in str(error.value)
