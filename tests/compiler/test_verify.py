"""Every kind of illegal program is refused, with part, instruction, layer and rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compiler.graph import Graph
from compiler.schedule.build import build_program
from compiler.verify import verify
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import decode
from npusim.isa.encoding import Decoded
from npusim.program import Program
from npusim.program_rules import outside
from npusim.units import UNITS
from tests.compiler.runs import altered

Choose = Callable[[Decoded], bool]


@pytest.fixture(scope="module")
def program(graph_of: Callable[[int, int], Graph], tiny_machine: Machine) -> Program:
    program = build_program(graph_of(8, 16), tiny_machine)
    verify(program)
    return program


def first(program: Program, part: str, op: str, choose: Choose = lambda ins: True) -> int:
    return next(i for i, ins in enumerate(decode(getattr(program, part))) if ins.op == op and choose(ins))


def refused(program: Program, part: str, index: int, rule: str) -> None:
    """The message names all there is to know about the instruction."""
    ins = decode(getattr(program, part))[index]
    layer = program.layers[ins.layer]
    with pytest.raises(UserError) as error:
        verify(program)
    assert re.match(rf"{part}: instruction {index} \({ins.op}\) of layer {re.escape(layer)}: {rule}", str(error.value))


@pytest.mark.parametrize("part", ["prologue", "step"])
@pytest.mark.parametrize(
    ("op", "field", "rule"),
    [
        ("matmul", "a_addr", r"sram bytes \d+\.\.\d+ lie outside its 65536 bytes"),
        ("matmul", "b_addr", r"sram bytes"),
        ("matmul", "out_addr", r"sram bytes"),
        ("matmul", "rq_addr", r"param bytes \d+\.\.\d+ lie outside its 8192 bytes"),
        ("ewlin", "out_addr", r"sram bytes"),
        ("ewlin", "a_addr", r"sram bytes"),
        ("table", "table_addr", r"param bytes"),
        ("load", "local_addr", r"(sram|param) bytes"),
        ("load", "dram_addr", r"dram bytes \d+\.\.\d+ lie outside its \d+ bytes"),
        ("store", "local_addr", r"sram bytes"),
        ("store", "dram_addr", r"dram bytes"),
    ],
)
def test_address_outside_its_memory(program: Program, part: str, op: str, field: str, rule: str) -> None:
    index = first(program, part, op)
    refused(altered(program, part, index, **{field: 0xFFFF_FF00}), part, index, rule)


@pytest.mark.parametrize(("base", "limit"), [(1, "sets"), (2, "noise")])
def test_load_beyond_what_a_step_has(program: Program, base: int, limit: str) -> None:
    index = first(program, "step", "load", lambda ins: ins.base == base)
    size = {"sets": program.sets.shape[1], "noise": program.buffers["noise"].bytes // program.steps}[limit]
    rule = rf"dram bytes {size}\.\.\d+ lie outside its {size} bytes"
    refused(altered(program, "step", index, dram_addr=size), "step", index, rule)


@pytest.mark.parametrize(
    ("op", "changes", "rule"),
    [
        ("matmul", {"k": 0}, "k = 0: allowed"),
        ("matmul", {"a_dtype": 0, "b_dtype": 2}, "a_dtype = u8, b_dtype = i16: allowed"),
        ("ewlin", {"shift": 0}, "shift"),
        ("load", {"rows": 0}, "rows = 0: allowed"),
        ("load", {"base": 10}, r"base = 10: allowed 0\.\.9"),
        ("lnstat", {"epsilon": 0}, "epsilon = 0: allowed"),
        ("smexp", {"fraction_bits": 17}, r"fraction_bits = 17: allowed 0\.\.16"),
        ("recip", {"multiplier": 5}, "multiplier = 5: allowed"),
        ("table", {"unit": UNITS.index("mac")}, "unit = mac: allowed vector"),
        (
            "store",
            {"base": 1, "dram_addr": 0, "rows": 1, "row_bytes": 8},
            "base = 1: a store is allowed through base 0 only",
        ),
        ("store", {"dram_addr": 64}, r"dram bytes 64\.\.\d+ overwrite the constants at 0\.\."),
    ],
)
def test_bad_field(program: Program, op: str, changes: dict[str, int], rule: str) -> None:
    index = first(program, "step", op)
    refused(altered(program, "step", index, **changes), "step", index, rule)


@pytest.mark.parametrize("name", ["sets", "noise"])
def test_store_over_inputs_of_other_steps(program: Program, name: str) -> None:
    index = first(program, "step", "store")
    address = {"sets": program.set_address, "noise": program.buffers["noise"].address}[name] + 64
    rule = rf"dram bytes {address}\.\.\d+ overwrite the {name} at"
    refused(altered(program, "step", index, dram_addr=address), "step", index, rule)


def test_layer_without_a_name(program: Program) -> None:
    index, count = first(program, "step", "matmul"), len(program.layers)
    message = (
        rf"step: instruction {index} \(matmul\) of layer number {count}: layer = {count}: allowed 0\.\.{count - 1}"
    )
    with pytest.raises(UserError, match=message):
        verify(altered(program, "step", index, layer=count))


def test_instruction_that_is_none(program: Program) -> None:
    code = program.step.copy()
    code[3, 0] = 0xEE
    with pytest.raises(UserError, match=r"^step: instruction 3: opcode 238 is not an instruction"):
        verify(replace(program, step=code))


def test_missing_token(program: Program) -> None:
    index = first(program, "step", "matmul", lambda ins: bool(ins.wait_raw))
    bad = altered(program, "step", index, wait_raw=0)
    # The tokens that follow each come one wait too early; the last one stays.
    with pytest.raises(UserError, match=r"^step: instruction \d+ \(\w+\) of layer \S+: its raw token to mac is never"):
        verify(bad)


def test_result_moved_into_bytes_that_others_use(program: Program) -> None:
    """Any legal address is accepted by the field rules; what it overwrites decides."""
    instructions = decode(program.step)
    index = first(program, "step", "matmul", lambda ins: bool(ins.signal_raw))
    weights = next(ins for ins in instructions[index:] if ins.op == "load" and ins.memory == 0)
    bad = altered(program, "step", index, out_addr=weights.local_addr)
    with pytest.raises(UserError, match=r"(reads|writes) sram bytes \d+\.\.\d+ while \w+ may still work on them"):
        verify(bad)


def test_number_of_faults_is_told(program: Program) -> None:
    code = program.step.copy()
    for index in np.flatnonzero([ins.op == "recip" for ins in decode(code)]):
        code = altered(replace(program, step=code), "step", int(index), rows=0).step
    count = sum(ins.op == "recip" for ins in decode(code))
    with pytest.raises(UserError, match=rf"rows = 0: allowed at least 1 \(and {count - 1} more\)"):
        verify(replace(program, step=code))


def test_limits_are_those_of_the_program(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "limits", {**program.limits, ("param", 0): 16})
    with pytest.raises(UserError, match=r"param bytes \d+\.\.\d+ lie outside its 16 bytes"):
        verify(program)
    assert "lie outside its 16 bytes" in outside(program, decode(program.step))[0][1]


def test_code_behind_halt(program: Program) -> None:
    count = len(program.step)
    bad = replace(program, step=np.concatenate([program.step, program.step[:1]]))
    with pytest.raises(UserError, match=f"^step: instruction {count} stands behind halt, where nothing runs"):
        verify(bad)
