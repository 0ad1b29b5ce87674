"""Instructions spread over several units keep every bit, use all units, and are cut where no byte is shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from compiler import Builder, Graph, compile_graph
from compiler.schedule.halves import halves
from compiler.schedule.spread import schedule, spread
from compiler.verify import verify
from npusim import reference
from npusim.config import Machine
from npusim.errors import UserError
from npusim.hw import changed
from npusim.isa import decode
from npusim.isa.assembly import assemble
from npusim.program import Program
from npusim.testing import assert_same_bits
from npusim.testing.cases import Case
from npusim.timing import time_program
from npusim.units import UNITS
from tests.npusim.strategies import FAMILIES, machine

TWICE = {
    "mac_array.count": 2, "vector_unit.count": 2, "dma.load_units": 2, "dma.store_units": 2, "dma.storage_units": 2,
}  # fmt: skip
BOTH = changed(machine(), TWICE)
MAC, MAC2, VECTOR, VECTOR2 = (UNITS.index(unit) for unit in ("mac", "mac2", "vector", "vector2"))
CUT = ("matmul", "ewlin", "ewmul", "transpose", "table", "table8", "lnstat", "lnapply", "smexp", "recip", "rtquant")


def network(rows: int = 60, width: int = 40, seed: int = 3) -> Graph:
    """LayerNorm, two linears, a residual connection."""
    rng = np.random.default_rng(seed)
    net = Builder()
    x = net.input("x", (rows, width), "i16")
    g, b = rng.integers(8192, 24576, width), rng.integers(-(2**20), 2**20, width)
    n = net.layernorm("norm", x, g, b, "i16", epsilon=1, fraction_bits=12, shift=14)
    h = net.linear("fc1", n, rng.integers(-127, 128, (72, width), np.int8), "i16", multiplier=20000, shift=22, bias=500)
    weight = rng.integers(0, 256, (width, 72), np.uint8)
    h = net.linear("fc2", h, weight, "i16", weight_zp=128, multiplier=20000, shift=24)
    net.output(net.sum("residual", x, h, "i16", a_mul=3, b_mul=1, shift=2))
    return net.graph()


def used(program: Program) -> set[str]:
    return {UNITS[ins.unit] for part in program.decoded().values() for ins in part}


def test_a_network_on_two_of_each_unit_keeps_its_bits_in_any_order(tiny_machine: Machine) -> None:
    more, graph = changed(tiny_machine, TWICE), network()
    assert_same_bits(graph, more, orders=3)
    program = compile_graph(graph, more)
    assert used(program) >= {"mac", "mac2", "vector", "vector2", "load", "load2", "store"}
    assert time_program(program).cycles < time_program(compile_graph(graph, tiny_machine)).cycles


def test_held_sums_stay_on_their_array(tiny_machine: Machine) -> None:
    """A reduction too long for the weight ring: chains of MATMULs, none of which is cut or changes its array."""
    rng = np.random.default_rng(6)
    net = Builder()
    x = net.input("x", (40, 2500), "i8")
    net.output(net.linear("fc", x, rng.integers(-128, 128, (20, 2500), np.int8), "i16", multiplier=20000, shift=26))
    on = changed(tiny_machine, TWICE)
    program = compile_graph(net.graph(), on)
    products = [ins for part in program.decoded().values() for ins in part if ins.op == "matmul"]
    holding = {MAC: 0, MAC2: 0}
    for ins in products:
        assert ins.acc_continue == holding[ins.unit]
        holding[ins.unit] = ins.acc_hold
    assert sum(ins.acc_continue for ins in products) > 4
    assert_same_bits(net.graph(), on, orders=2)
    line = "matmul m=64 k=64 n=8 batch0=1 batch1=1 b_dtype=i8 a_addr={0} b_addr={0} out_addr={0} "
    line += "acc_hold={1} acc_continue={2}\n"
    chains = "".join(line.format(8192 * at, *flags) for at in range(2) for flags in ((1, 0), (1, 1), (0, 1)))
    assert units(chains, on) == [(at, MAC if at < 3 else MAC2) for at in range(6)]


def test_one_unit_of_each_kind_changes_nothing(tiny_machine: Machine) -> None:
    code = compile_graph(network(), tiny_machine).step
    assert spread(code, tiny_machine) is code


def test_a_program_for_two_arrays_is_refused_by_a_machine_with_one(tiny_machine: Machine) -> None:
    program = compile_graph(network(), changed(tiny_machine, TWICE))
    fields = {name: getattr(program, name) for name in program.__dataclass_fields__} | {"machine": tiny_machine}
    with pytest.raises(UserError, match=r"unit = \w+2: allowed \w+"):
        verify(Program(**fields))


def units(text: str, on: Machine) -> list[tuple[int, int]]:
    """(source, unit) of scheduled assembler text."""
    return [(placed.source, placed.unit) for placed in schedule(decode(assemble(text)), on)]


RECIP = "recip multiplier=0x40000000 shift=31 rows={} sum_addr={} out_addr={}\n"
SHORT, LONG = 20, 400


def test_the_unit_that_is_free_first_takes_the_next(tiny_machine: Machine) -> None:
    """By hand, rows + 8 cycles each; nothing is shared. The long one is cut unless the other unit is at work."""
    on = changed(tiny_machine, {"vector_unit.count": 2})
    text = "".join(RECIP.format(1, 64 * at, 4096 + 64 * at) for at in range(4))
    assert units(text, on) == [(0, VECTOR), (1, VECTOR2), (2, VECTOR), (3, VECTOR2)]
    # Each needs the result of the one before: the unit that made it goes on.
    chain = "".join(RECIP.format(1, 64 * at, 64 * at + 64) for at in range(4))
    assert units(chain, on) == [(at, VECTOR) for at in range(4)]
    assert units(RECIP.format(LONG, 0, 4096), on) == [(0, VECTOR), (0, VECTOR2)]
    assert units(RECIP.format(LONG, 0, 4096), tiny_machine) == [(0, VECTOR)]


def test_equal_pieces_are_spread_alike(tiny_machine: Machine) -> None:
    on = changed(tiny_machine, TWICE)
    piece = "load memory=sram dram_addr={0} row_bytes=64 rows=1 planes=1 layer={1}\n"
    piece += RECIP.format(LONG, 0, 4096).replace("0x40000000", "{2}") + RECIP.format(SHORT, 8192, 12288)
    piece += "barrier unit=vector\n"
    code = spread(assemble("".join(piece.format(4096 * at, at, (1 << 30) + at) for at in range(3))), on)
    parts = np.split(code, 3)
    for at, part in enumerate(parts):
        found = decode(part)
        assert [(ins.op, ins.unit) for ins in found] == [(ins.op, ins.unit) for ins in decode(parts[0])]
        assert {ins.layer for ins in found if ins.op == "load"} == {at}
        assert [ins.multiplier & 7 for ins in found if ins.op == "recip"] == [at, at, 0]
        assert [ins.dram_addr for ins in found if ins.op == "load"] == [4096 * at]


@pytest.mark.parametrize("family", CUT)
def test_halves_in_any_order_are_the_whole(family: str) -> None:
    seen = []

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(FAMILIES[family], st.booleans())
    def check(case: Case, turned: bool) -> None:
        ins, state = case.ins, case.state
        state.machine = changed(state.machine, TWICE)
        pair = halves(ins, state.machine)
        seen.append(pair is not None)
        assume(pair)
        one, other = state.copy(), state.copy()
        assert pair is not None
        outcomes = [run(one, [ins]), run(other, pair[::-1] if turned else pair)]
        assert outcomes[0] == outcomes[1]
        if not outcomes[0]:
            assert one.difference(other) is None
            assert one.tallies == other.tallies

    check()
    assert any(seen)


def run(state: Any, instructions: Any) -> bool:
    """Whether the reference stops."""
    try:
        reference.execute(state, instructions)
    except (ValueError, OverflowError):
        return True
    return False


def test_a_cut_shares_no_byte_between_halves() -> None:
    """Rows that are written where the other half reads are not cut; columns beside columns are not either."""
    spare = "a_row=128 out_row=128 rows=64 cols=64 out_dtype=i16 multiplier=16 shift=7"
    cut: list[tuple[str, bool]] = [
        (f"table a_addr=0 out_addr=8192 {spare}", True),
        (f"table a_addr=0 out_addr=0 {spare}", True),  # in place
        (f"table a_addr=0 out_addr=128 {spare}", False),  # writes the first row of the other half
    ]
    for text, expected in cut:
        (ins,) = decode(assemble(text))
        assert (halves(ins, BOTH) is not None) == expected, text
