"""Steps cut into segments by barriers: the same bits, alike where the network repeats, ordered and checked in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.builder import Builder
from compiler.graph import Graph
from compiler.pipeline import run_passes
from compiler.schedule import segments
from compiler.schedule.build import build_program
from compiler.schedule.repeat import Repeats
from compiler.schedule.segments import Group
from compiler.schedule.tokens import insert_tokens
from compiler.verify import _certainly_legal, _verify, verify
from npusim.config import Machine
from npusim.congruence import IMMEDIATES, copies, digest, joins, pieces
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, BY_OPCODE, decode
from npusim.isa.encoding import TOKENS, decode_row, encode
from npusim.program import Program
from npusim.testing import assert_same_bits
from npusim.timing import time_program
from npusim.units import UNITS
from tests.compiler.runs import machine_like

LOW = BY_MNEMONIC["store"].by_name["dram_addr"].word
ROWS, WIDTH, HIDDEN, BLOCKS = 600, 64, 96, 4


def network(blocks: int = BLOCKS) -> Graph:
    """Equal blocks: LayerNorm with each step's factors, two linears, and a sum; far too large for 64 KiB of SRAM."""
    rng = np.random.default_rng(5)
    net = Builder(steps=2)
    x = net.input("x", (ROWS, WIDTH), "i16")
    for block in range(blocks):
        name = f"block{block}"
        g = net.const(f"{name}.g", rng.integers(8192, 24576, (2, WIDTH)), "i16", per="step")
        b = net.const(f"{name}.b", rng.integers(-(2**20), 2**20, (2, WIDTH)), "i32", per="step")
        h = net.layernorm(f"{name}.norm", x, g, b, "i16", epsilon=1, fraction_bits=12, shift=14)
        for layer, shape in (("fc1", (HIDDEN, WIDTH)), ("fc2", (WIDTH, HIDDEN))):
            weight = rng.integers(-127, 128, shape, np.int8)
            h = net.linear(f"{name}.{layer}", h, weight, "i16", multiplier=20000, shift=23)
        x = net.sum(f"{name}.sum", x, h, "i16", a_mul=3, b_mul=1, shift=2)
    net.output(x)
    return net.graph()


@pytest.fixture(scope="module")
def machine(tiny_machine: Machine) -> Machine:
    return machine_like(tiny_machine, dram={"interconnect_ns": 0}, dma={"setup_cycles": 1})


@pytest.fixture(scope="module")
def program(machine: Machine) -> Program:
    return build_program(run_passes(network()), machine)


def parts(program: Program) -> list[np.ndarray]:
    return [program.step[begin:end] for begin, end in pieces(joins(program.step))]


def test_bits_stay(machine: Machine) -> None:
    assert_same_bits(network(), machine, steps=2, orders=1)


def test_no_cut_where_it_costs_more_than_its_share(
    machine: Machine, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(parts(program)) > 2
    monkeypatch.setattr(segments, "SHARE", 10**6)
    uncut = build_program(run_passes(network()), machine)
    assert [len(part) for part in parts(uncut)] == [len(uncut.step) - 1, 1]
    gain = time_program(uncut).step.total_cycles / time_program(program).step.total_cycles
    assert gain > 1 - 1 / 200  # what barriers may cost


def test_blocks_are_alike(program: Program) -> None:
    """What changes with the step is loaded in front of a segment, and all blocks' segments are equal."""
    bodies = []
    for part in parts(program):
        found = copies(part)
        assert found is not None
        if (found.base == 1).any():
            assert {ins.op for ins in decode(part)} == {"load", "barrier"}
        elif len(part) > 1:
            bodies.append(digest(part))
    assert len(bodies) == BLOCKS // 2  # two blocks make a group
    assert len(set(bodies)) == 1


def test_tokens_are_those_of_every_piece_by_itself(program: Program) -> None:
    for part in parts(program):
        instructions = decode(part)
        for ins, found in zip(instructions, insert_tokens(instructions), strict=True):
            assert {f.name: getattr(ins, f.name) for f in TOKENS if getattr(ins, f.name)} == found


def test_equal_time_without_reuse(program: Program) -> None:
    quick, long = time_program(program), time_program(program, reuse=False)
    assert (quick.cycles, quick.ledger, quick.traffic, quick.dram) == (
        long.cycles,
        long.ledger,
        long.traffic,
        long.dram,
    )


def legal(program: Program) -> str:
    """What the check of every instruction says; empty where it says nothing."""
    try:
        for part, instructions in program.decoded().items():
            _verify(program, part, instructions)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("fault", ["token", "constants", "outside", "layer"])
def test_a_fault_in_a_repeated_segment_is_found(program: Program, fault: str) -> None:
    code = program.step.copy()
    begin, end = pieces(joins(code))[-2]
    kinds = (code[begin:end, 0] & 0xFF).tolist()
    store, matmul = (begin + kinds.index(BY_MNEMONIC[name].opcode) for name in ("store", "matmul"))
    if fault == "token":
        code[matmul, 1] = 0
    elif fault == "constants":
        code[store, LOW : LOW + 2] = 0
    elif fault == "outside":
        code[store, LOW] = program.dram_bytes - 1
    else:
        code[matmul, 0] |= np.uint32(0xFFFF << 16)
    broken = replace(program, step=code)
    assert _certainly_legal(program, program.step)
    with pytest.raises(UserError) as quick:
        verify(broken)
    assert str(quick.value) == legal(broken) != ""


def test_a_copy_that_meets_another_is_found(program: Program) -> None:
    """Whether a load moved to where the segment stores needs a token depends on places in DRAM alone."""
    begin, end = pieces(joins(program.step))[-2]
    found = copies(program.step)
    assert found is not None
    inside = (found.at >= begin) & (found.at < end)
    store = found.at[inside & found.stores][0]
    said = set()
    for load in found.at[inside & ~found.stores][1::40]:
        code = program.step.copy()
        code[load, LOW : LOW + 2] = code[store, LOW : LOW + 2]
        broken = replace(program, step=code)
        said.add(bool(legal(broken)))
        assert _certainly_legal(broken, code) == (not legal(broken))
    assert said == {True, False}


def test_a_repeated_segment_is_what_would_be_emitted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated, words, graph = [], Repeats.words, run_passes(network(2 * BLOCKS))

    def counted(self: Repeats, segment: Sequence[Group]) -> NDArray[np.uint32] | None:
        repeated.append(words(self, segment))
        return repeated[-1]

    monkeypatch.setattr(Repeats, "words", counted)
    program = build_program(graph, machine)
    assert (
        sum(code is not None for code in repeated) == BLOCKS - 2
    )  # but for those that read the input, write the output
    monkeypatch.setattr(Repeats, "words", lambda *_: None)
    emitted = build_program(graph, machine)
    assert np.array_equal(emitted.step, program.step)
    assert emitted.layers == program.layers


@pytest.mark.parametrize("mnemonic", sorted(BY_MNEMONIC))
def test_neither_footprint_nor_cycles_depend_on_an_immediate(machine: Machine, mnemonic: str) -> None:
    spec, rng = BY_MNEMONIC[mnemonic], np.random.default_rng(0)
    ins = decode_row(
        encode(spec, {f.name: 1 for f in spec.fields} | {"unit": UNITS.index(spec.units[0])}).tolist(), BY_OPCODE
    )
    expected = spec.footprint(ins), spec.cycles(ins, machine)
    for f in (f for f in spec.fields if f.name in IMMEDIATES):
        setattr(ins, f.name, int(rng.integers(2, 16)))
        assert (spec.footprint(ins), spec.cycles(ins, machine)) == expected
