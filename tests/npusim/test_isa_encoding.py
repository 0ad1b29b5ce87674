"""Instruction words: no overlapping fields, every field survives a round trip, every bad value is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.verify import verify
from npusim import engine, reference
from npusim.config import Machine
from npusim.errors import UserError
from npusim.explain import explain
from npusim.isa import ALL, BY_MNEMONIC, BY_OPCODE, decode, violations
from npusim.isa.assembly import assemble
from npusim.isa.encoding import HEADER, NO_ADDRESS, WORDS, Field, Instruction, decode_row, encode
from npusim.memory import MachineState
from npusim.program import Program
from npusim.simulate import Simulation
from npusim.timing import time_program
from tests.npusim.strategies import PARAM, any_fields, machine, make, small_program

SPECS = st.sampled_from(ALL)


@given(SPECS.flatmap(lambda spec: st.tuples(st.just(spec), any_fields(spec))))
def test_every_field_survives_encoding_and_decoding(pair: tuple[Instruction, dict[str, int]]) -> None:
    spec, values = pair
    words = encode(spec, values)
    assert words.shape == (WORDS,)
    assert words.dtype == np.uint32
    decoded = vars(decode_row(words.tolist(), BY_OPCODE))
    assert decoded.pop("op") == spec.mnemonic
    assert decoded.pop("opcode") == spec.opcode
    assert decoded == values


@given(SPECS.flatmap(lambda spec: st.tuples(st.just(spec), any_fields(spec))), st.data())
def test_fields_lie_where_the_table_says(pair: tuple[Instruction, dict[str, int]], data: st.DataObject) -> None:
    spec, values = pair
    whole = int.from_bytes(encode(spec, values).astype("<u4").tobytes(), "little")
    f = data.draw(st.sampled_from([f for f in spec.by_name.values() if f.name != "opcode"]))
    bits = whole >> (32 * f.word + f.lo) & ((1 << f.bits) - 1)
    assert bits == values[f.name] % (1 << f.bits)


def test_opcodes_and_mnemonics_are_unique() -> None:
    assert len(BY_OPCODE) == len(BY_MNEMONIC) == len(ALL)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.mnemonic)
def test_no_two_fields_share_a_bit(spec: Instruction) -> None:
    used = [32 * f.word + f.lo + bit for f in HEADER + spec.fields for bit in range(f.bits)]
    assert len(used) == len(set(used))
    assert max(used) < 32 * WORDS


@pytest.mark.parametrize(
    "field",
    [Field("x", 0, 4, 4), Field("x", 2, 8, 8), Field("x", 31, 16, 17), Field("x", 31, 0, 64), Field("x", 20, 20, 16)],
    ids=["header", "sibling", "past the end", "two words past the end", "crosses a word"],
)
def test_a_clashing_table_row_is_refused(field: Field) -> None:
    fields = (Field("a", 2, 0, 16), field)
    with pytest.raises(AssertionError, match="overlaps"):
        replace(BY_MNEMONIC["barrier"], fields=fields, by_name={}, reserved=[])


@pytest.mark.parametrize(
    ("op", "values", "message"),
    [
        ("load", {"rowz": 1}, "load: no field 'rowz'; allowed: opcode, unit"),
        ("load", {"rows": -1}, r"load.rows = -1: allowed 0..4294967295"),
        ("load", {"rows": 1 << 32}, "load.rows = 4294967296"),
        ("load", {"memory": 3}, r"load.memory = 3: allowed 0..2"),
        ("load", {"dram_addr": 1 << 64}, "load.dram_addr"),
        ("matmul", {"out_zp": -(2**31) - 1}, "matmul.out_zp"),
        ("matmul", {"a_dtype": 9}, r"matmul.a_dtype = 9: allowed 0..8"),
    ],
)
def test_values_that_do_not_fit_are_refused(op: str, values: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode(BY_MNEMONIC[op], values)


def test_a_float_is_no_field_value() -> None:
    values: dict[str, Any] = {"rows": 1.0}
    with pytest.raises(TypeError):
        encode(BY_MNEMONIC["load"], values)


def test_unknown_opcodes_enumerations_and_reserved_bits_are_refused_with_the_index() -> None:
    code = np.stack([encode(BY_MNEMONIC["barrier"], {"unit": 3})] * 3)
    code[1, 0] = 0xEE
    with pytest.raises(UserError, match=r"instruction 1: opcode 238 is not an instruction; known: \[1, 2"):
        decode(code)
    code[1, 0] = 0x7F | 10 << 8
    with pytest.raises(
        UserError, match=r"instruction 1: barrier.unit = 10: allowed 0..9 \(load, store, mac, vector, storage, load2, "
    ):
        decode(code)
    code[1] = code[0]
    code[2, 30] = 0x80
    with pytest.raises(UserError, match="instruction 2: barrier: reserved bits 0x80 of word 30 are not 0"):
        decode(code)


@pytest.mark.parametrize("shape", [(4, 31), (32,), (1, 1, 32)])
def test_code_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"allowed: \(count, 32\)"):
        decode(np.zeros(shape, np.uint32))


WINDOWS = {"rows": 1, "cols": 1, "batch": 1, "shift": 1}
PRODUCT = {"m": 1, "k": 1, "n": 1, "batch0": 1, "batch1": 1, "b_dtype": "i8"}
FACTORED = {**PRODUCT, "rq_mode": "factored", "fraction_bits": 1}
ROWS = {"rows": 1, "cols": 1, "multiplier": 1 << 30, "shift": 34, "scalars_addr": 64}
EXP = {"rows": 1, "cols": 1, "p_bits": 8, "sum_addr": 1 << 20}
UNDEFINED = [
    ("load", {"rows": 0, "planes": 1, "row_bytes": 1}, "rows = 0: allowed"),
    ("load", {"rows": 1, "planes": 1, "row_bytes": 1, "base": 10}, r"base = 10: allowed 0..9"),
    ("fetch", {"bytes": 0}, "bytes = 0: allowed"),
    ("fetch", {"bytes": 1, "base": 10}, r"base = 10: allowed 0..9"),
    ("fetch", {"bytes": 1, "storage_base": 10}, r"storage_base = 10: allowed 0..9"),
    ("ewlin", {**WINDOWS, "cols": 0}, "cols = 0: allowed"),
    ("ewlin", {**WINDOWS, "shift": 63}, r"shift = 63: allowed 1..62"),
    (
        "ewlin",
        {**WINDOWS, "a_dtype": "i32", "a_mul": -(2**30) - 1},
        "a_dtype = i32, a_mul = -1073741825: allowed at most",
    ),
    ("ewmul", {**WINDOWS, "b_addr": NO_ADDRESS}, "b_addr = 0xffffffff: allowed an address"),
    ("table", {"rows": 1, "cols": 1, "shift": 0}, r"shift = 0: allowed 1..62"),
    ("lnstat", {"rows": 1, "cols": 1}, "epsilon = 0: allowed"),
    ("lnstat", {"rows": 1, "cols": 1, "epsilon": 1 << 58}, "epsilon = "),
    ("lnstat", {"rows": 1, "cols": 16385, "epsilon": 1}, "cols = 16385: allowed at most 16384"),
    ("lnapply", {"rows": 1, "cols": 16385, "shift": 1}, "cols = 16385: allowed at most 16384"),
    (
        "smexp",
        {**EXP, "p_bits": 9, "out_dtype": "u8"},
        "p_bits = 9, out_dtype = u8: allowed 8 bits",
    ),
    (
        "smexp",
        {**EXP, "out_dtype": "i32"},
        "p_bits = 8, out_dtype = i32: allowed 8 bits",
    ),
    ("smexp", {**EXP, "fraction_bits": 17}, r"fraction_bits = 17: allowed 0\.\.16"),
    ("smexp", {**EXP, "cols": 65537, "p_bits": 15, "out_dtype": "i16"}, "cols = 65537, p_bits = 15: allowed cols"),
    ("recip", {"rows": 1, "multiplier": 2**30 - 1}, "multiplier = 1073741823"),
    ("matmul", {**PRODUCT, "k": 0}, "k = 0: allowed"),
    ("matmul", {**PRODUCT, "b_dtype": "u8"}, "a_dtype = u8, b_dtype = u8: allowed a: u4 to u16"),
    ("barrier", {"unit": "load"}, "unit = load: allowed vector"),
    ("load", {"rows": 2, "planes": 1, "row_bytes": 4, "local_row": 3}, "strides that write no byte twice"),
    ("store", {"rows": 1, "planes": 2, "row_bytes": 4}, "strides that write no byte twice"),
    ("ewlin", {**WINDOWS, "rows": 2, "cols": 3, "out_row": 2}, "strides that write no byte twice"),
    ("ewmul", {**WINDOWS, "batch": 2**32 - 1, "rows": 2**32 - 1}, "strides that write no byte twice"),
    ("table", {"rows": 2, "cols": 1, "shift": 1, "out_dtype": "i16", "out_row": 1}, "strides that write no byte twice"),
    ("lnapply", {"rows": 2, "cols": 1, "shift": 1}, "strides that write no byte twice"),
    ("smexp", {**EXP, "rows": 2}, "strides that write no byte twice"),
    (
        "smexp",
        {**EXP, "rows": 2, "cols": 9, "out_row": 9, "sum_addr": 17},
        "out_addr = 0x0, sum_addr = 0x11: allowed two",
    ),
    ("smexp", {**EXP, "rows": 2, "out_row": 1, "out_addr": 7, "sum_addr": 0}, "two results of which one begins behind"),
    ("matmul", {**PRODUCT, "m": 4, "n": 2, "batch1": 3, "out_row": 6, "out_b1": 1}, "strides that write no byte twice"),
    ("matmul", {**PRODUCT, "a_dtype": "i8", "b_dtype": "i16"}, "a_dtype = i8, b_dtype = i16"),
    ("matmul", {**PRODUCT, "b_dtype": "i4", "b_k": 1}, "b_k 0 for packed types"),
    ("matmul", {**PRODUCT, "a_dtype": "i16", "shifted": 1}, "shifted = 1, a_dtype = i16"),
    ("matmul", {**PRODUCT, "batch1": 2, "out_b1": 1, "acc_continue": 1}, "batch1 = 2: allowed acc_hold"),
    ("matmul", {**PRODUCT, "n": 9, "acc_hold": 1}, "n = 9, batch0 = 1"),
    ("matmul", {**PRODUCT, "rq_mode": "factored"}, r"fraction_bits 1\.\.15 in factored modes"),
    ("table8", {"rows": 1, "cols": 1, "a_dtype": "i16"}, "a_dtype = i16: allowed u4"),
    ("table8", {"rows": 1, "cols": 1, "out_dtype": "i32"}, "out_dtype = i32: allowed u4"),
    ("transpose", {"rows": 1, "cols": 1, "batch": 1, "out_dtype": "u4"}, "out_dtype = u4: allowed u8"),
    ("transpose", {"rows": 2, "cols": 2, "batch": 1, "out_row": 1}, "strides that write no byte twice"),
    ("pswitch", {"bank_bytes": 1024}, "bank_start = 0: allowed the end of the memory outside the banks"),
    ("pswitch", {"bank_start": PARAM - 1024}, "bank_bytes = 0: allowed param_memory.bank_bytes"),
    ("rtquant", {**ROWS, "shift": 33}, r"shift = 33: allowed 34\.\.62"),
    ("rtquant", {**ROWS, "cols": 65}, "out_addr = 0x0, scalars_addr = 0x40: allowed two results of which one begins"),
    ("rtquant", {**ROWS, "out_addr": 71}, "two results of which one begins behind"),
    ("rtquant", {**ROWS, "out_dtype": "i8"}, "out_dtype = i8: allowed u4, u6, u8"),
    ("barrier", {"signal_raw": 1}, "signal_raw = 1: allowed 0"),
    ("halt", {"wait_war": 2}, "wait_war = 2: allowed 0"),
]
OTHER_MACHINES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("matmul", {**PRODUCT, "a_dtype": "u4"}, {"narrowest_activation_bits": 6}, "a_dtype = u4, b_dtype = i8"),
    ("matmul", {**PRODUCT, "b_dtype": "i6"}, {"narrowest_weight_bits": 8}, "a_dtype = u8, b_dtype = i6"),
    ("matmul", {**PRODUCT, "shifted": 1}, {"input_shift": False}, "1 with mac_array.input_shift"),
    ("matmul", FACTORED, {"factored_requant": False}, "factored modes with mac_array.factored_requant"),
    ("matmul", {**PRODUCT, "m": 9, "acc_hold": 1}, {"dataflow": "output_stationary"}, "m = 9, n = 1"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "values", "array", "message"), OTHER_MACHINES)
def test_what_a_machine_lacks_is_undefined_on_it(
    op: str, values: dict[str, Any], array: dict[str, Any], message: str
) -> None:
    assert violations([make(op, **values)], machine()) == []
    (found,) = violations([make(op, **values)], machine(**array))
    assert message in found


def test_runtime_quantization_and_banks_are_for_machines_that_declare_them(tiny_machine: Machine) -> None:
    assert violations([make("rtquant", **ROWS)], machine()) == []
    (found,) = violations([make("rtquant", **ROWS)], tiny_machine)
    assert "vector_unit.runtime_quantization" in found
    switch = make("pswitch", bank_start=PARAM - 1024, bank_bytes=1024)
    assert violations([switch], machine()) == []
    assert "bank_bytes = 1024: allowed param_memory.bank_bytes" in violations([switch], tiny_machine)[0]


def test_nothing_stands_behind_halt() -> None:
    """Whoever runs, times, checks or shows code refuses the same."""
    program = small_program(lambda v: v.update(step=assemble("halt\nbarrier\n")))
    state, rule = MachineState(program.machine, program.dram_bytes), "instruction 1 stands behind halt, where nothing"
    users: list[Callable[[Any], Any]] = [partial(reference.run, state), partial(engine.run, state)]
    for user in users:
        with pytest.raises(UserError, match=f"^{rule}"):
            user(program.step)
    users = [Program.decoded, lambda p: Simulation(p, {}), time_program, lambda p: explain(p, 0), verify]
    for whole in users:
        with pytest.raises(UserError, match=f"^step: {rule}"):
            whole(program)


@pytest.mark.parametrize(("op", "values", "message"), UNDEFINED, ids=[f"{op} {text}" for op, _, text in UNDEFINED])
def test_undefined_instructions_are_named(op: str, values: dict[str, Any], message: str) -> None:
    found = violations([make("barrier"), make(op, **values)], machine())
    assert len(found) == 1
    assert re.search(rf"^instruction 1 \({op}\): .*{message}", found[0])


def test_results_may_touch() -> None:
    found = [make("smexp", **{**EXP, "rows": 2, "cols": 9, "out_row": 9, "sum_addr": 18}),
             make("smexp", **{**EXP, "rows": 2, "out_row": 1, "out_addr": 8, "sum_addr": 0}),
             make("rtquant", **{**ROWS, "cols": 64}), make("rtquant", **{**ROWS, "out_addr": 72})]  # fmt: skip
    assert violations(found, machine()) == []


def test_outputs_may_interleave() -> None:
    """Heads side by side in a row: the batch's stride is smaller than the row's."""
    heads = {**PRODUCT, "m": 4, "n": 2, "batch1": 3, "out_row": 6, "out_b1": 2}
    assert violations([make("matmul", **heads)], machine()) == []


def test_legal_code_has_no_violations() -> None:
    program = small_program()
    for _, code in program.code():
        assert violations(decode(code), program.machine) == []
