"""Instruction words: no overlapping fields, every field survives a round trip, every bad value is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.errors import UserError
from npusim.isa import ALL, BY_MNEMONIC, BY_OPCODE, decode, violations
from npusim.isa.encoding import HEADER, NO_ADDRESS, WORDS, Field, Instruction, decode_row, encode
from tests.npusim.strategies import any_fields, machine, make, small_program

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
        ("load", {"memory": 2}, r"load.memory = 2: allowed 0..1"),
        ("load", {"dram_addr": 1 << 64}, "load.dram_addr"),
        ("matmul", {"out_zp": -(2**31) - 1}, "matmul.out_zp"),
        ("matmul", {"a_dtype": 4}, r"matmul.a_dtype = 4: allowed 0..3"),
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
    code[1, 0] = 0x7F | 9 << 8
    with pytest.raises(UserError, match=r"instruction 1: barrier.unit = 9: allowed 0..3 \(load, store, mac, vector\)"):
        decode(code)
    code[1] = code[0]
    code[2, 31] = 0x80
    with pytest.raises(UserError, match="instruction 2: barrier: reserved bits 0x80 of word 31 are not 0"):
        decode(code)


@pytest.mark.parametrize("shape", [(4, 31), (32,), (1, 1, 32)])
def test_code_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"allowed: \(count, 32\)"):
        decode(np.zeros(shape, np.uint32))


WINDOWS = {"rows": 1, "cols": 1, "batch": 1, "shift": 1}
PRODUCT = {"m": 1, "k": 1, "n": 1, "batch0": 1, "batch1": 1, "b_dtype": "i8"}
UNDEFINED = [
    ("load", {"rows": 0, "planes": 1, "row_bytes": 1}, "rows is 0"),
    ("load", {"rows": 1, "planes": 1, "row_bytes": 1, "base": 3}, r"base = 3: allowed 0..2"),
    ("ewlin", {**WINDOWS, "cols": 0}, "cols is 0"),
    ("ewlin", {**WINDOWS, "shift": 63}, r"shift = 63: allowed 1..62"),
    ("ewlin", {**WINDOWS, "a_dtype": "i32", "a_mul": -(2**30) - 1}, "a_mul of a 32-bit operand"),
    ("ewmul", {**WINDOWS, "b_addr": NO_ADDRESS}, "b_addr is absent"),
    ("table", {"rows": 1, "cols": 1, "shift": 0}, r"shift = 0: allowed 1..62"),
    ("lnstat", {"rows": 1, "cols": 1}, "epsilon is 0"),
    ("lnstat", {"rows": 1, "cols": 1, "epsilon": 1 << 58}, "epsilon = "),
    ("lnstat", {"rows": 1, "cols": 16385, "epsilon": 1}, "cols = 16385: at most 16384"),
    ("lnapply", {"rows": 1, "cols": 16385, "shift": 1}, "cols = 16385: at most 16384"),
    ("smexp", {"rows": 1, "cols": 1, "p_bits": 9, "out_dtype": "u8"}, "p_bits = 9 in u8: allowed 8 in u8, 8 to 15"),
    ("smexp", {"rows": 1, "cols": 1, "p_bits": 8, "out_dtype": "i32"}, "p_bits = 8 in i32"),
    ("smexp", {"rows": 1, "cols": 1, "p_bits": 8, "fraction_bits": 17}, "fraction_bits = 17: allowed 0 to 16"),
    ("smexp", {"rows": 1, "cols": 65537, "p_bits": 8}, "cols = 65537: at most 65536"),
    ("recip", {"rows": 1, "multiplier": 2**30 - 1}, "multiplier = 1073741823"),
    ("matmul", {**PRODUCT, "k": 0}, "k is 0"),
    ("matmul", {**PRODUCT, "b_dtype": "u8"}, "operand types u8 x u8 are not a mode of the array"),
    ("barrier", {"unit": "load"}, "unit = load: allowed vector"),
    ("load", {"rows": 2, "planes": 1, "row_bytes": 4, "local_row": 3}, "overlaps itself: a stride of 3 within 4 bytes"),
    ("store", {"rows": 1, "planes": 2, "row_bytes": 4}, "overlaps itself: a stride of 0 within 4 bytes"),
    ("ewlin", {**WINDOWS, "rows": 2, "cols": 3, "out_row": 2}, "overlaps itself: a stride of 2 within 3 bytes"),
    ("ewmul", {**WINDOWS, "batch": 2**32 - 1, "rows": 2**32 - 1}, "overlaps itself: a stride of 0 within 1 bytes"),
    ("table", {"rows": 2, "cols": 1, "shift": 1, "out_dtype": "i16", "out_row": 1}, "overlaps itself"),
    ("lnapply", {"rows": 2, "cols": 1, "shift": 1}, "overlaps itself"),
    ("smexp", {"rows": 2, "cols": 1, "p_bits": 8}, "overlaps itself"),
    ("matmul", {**PRODUCT, "m": 4, "n": 2, "batch1": 3, "out_row": 6, "out_b1": 1}, "overlaps itself"),
]


@pytest.mark.parametrize(("op", "values", "message"), UNDEFINED, ids=[f"{op} {text}" for op, _, text in UNDEFINED])
def test_undefined_instructions_are_named(op: str, values: dict[str, Any], message: str) -> None:
    found = violations([make("barrier"), make(op, **values)], machine())
    assert len(found) == 1
    assert re.search(rf"^instruction 1 \({op}\): .*{message}", found[0])


def test_outputs_may_interleave() -> None:
    """Heads side by side in a row: the batch's stride is smaller than the row's."""
    heads = {**PRODUCT, "m": 4, "n": 2, "batch1": 3, "out_row": 6, "out_b1": 2}
    assert violations([make("matmul", **heads)], machine()) == []


def test_legal_code_has_no_violations() -> None:
    program = small_program()
    for _, code in program.code():
        assert violations(decode(code), program.machine) == []
