"""Assembler text and words describe the same instructions, and a mistake in the text is named with its line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa import ALL, assembly, decode
from npusim.isa.assembly import assemble, disassemble
from npusim.isa.encoding import encode
from npusim.units import UNITS
from tests.npusim.strategies import any_fields


@st.composite
def codes(draw: st.DrawFn) -> np.ndarray:
    specs = draw(st.lists(st.sampled_from(ALL), min_size=1, max_size=4))
    return np.stack([encode(spec, draw(any_fields(spec))) for spec in specs])


@given(codes())
def test_disassembly_assembles_to_the_same_words(code: np.ndarray) -> None:
    text = disassemble(code)
    assert np.array_equal(assemble(text), code)
    assert disassemble(assemble(text)) == text


def test_the_unit_is_the_instructions_own_unless_it_is_named() -> None:
    code = decode(assemble("matmul m=1\nload rows=1\ntoken unit=vector\nbarrier unit=mac\n"))
    assert [UNITS[ins.unit] for ins in code] == ["mac", "load", "vector", "mac"]


def test_text_of_an_instruction() -> None:
    line = "recip unit=vector layer=3 wait_raw=8 sum_addr=0x40 out_addr=0x80 rows=2 multiplier=1073741824 shift=31"
    assert disassemble(assemble(line)) == line + "\n"


def test_comments_blank_lines_and_number_bases() -> None:
    text = "# nothing\n\n  recip rows=0x10 multiplier=0b11 sum_addr=8 # the rest is 0\nmatmul out_zp=-5 b_dtype=i8\n"
    code = assemble(text)
    assert code.shape == (2, 32)
    assert "rows=16 multiplier=3" in disassemble(code)
    assert "b_dtype=i8" in disassemble(code)
    assert "out_zp=-5" in disassemble(code)
    assert assemble("# empty\n").shape == (0, 32)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("matmull m=1", "no instruction 'matmull'; allowed: load, store, fetch, pswitch"),
        ("recip row=1", "recip: no field 'row'; allowed: unit, layer"),
        ("recip opcode=81", "recip: no field 'opcode'; allowed: unit"),
        ("recip rows", "recip: field 'rows' has no value; write rows="),
        ("recip rows=1 rows=2", "recip: field 'rows' stands twice"),
        ("recip rows=one", "rows = 'one' is not an integer"),
        ("recip rows=1.0", r"rows = '1\.0' is not an integer"),
        ("recip rows=", "rows = '' is not an integer"),
        ("recip rows=-1", r"recip.rows = -1: allowed 0..4294967295"),
        ("recip unit=gpu", "unit = 'gpu': allowed load, store, mac, vector"),
        ("recip unit=3", "unit = '3': allowed load, store, mac, vector"),
    ],
)
def test_bad_text_is_named_with_file_and_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^code\.s:3: ({message})"):
        assemble(f"# first\n\n{line}\n", "code.s")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("recip rows=0 multiplier=0x40000000", "recip: rows = 0: allowed at least 1"),
        ("recip rows=1 multiplier=0x40000000 unit=mac", "recip: unit = mac: allowed vector"),
        (
            "rtquant rows=1 cols=1 multiplier=0x40000000 shift=34 scalars_addr=9",
            "rtquant: out_dtype = u8: allowed on",
        ),
        ("halt\nbarrier", "barrier: stands behind halt, where nothing runs"),
    ],
)
def test_what_a_machine_refuses_is_named_with_its_line(line: str, message: str, tiny_machine: Machine) -> None:
    text = f"# first\n{line}\n"
    assert len(assemble(text)) == line.count("\n") + 1
    with pytest.raises(UserError, match=rf"^code\.s:{len(text.splitlines())}: {message}"):
        assemble(text, "code.s", tiny_machine)


def test_a_text_of_absurd_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_LINES", 3)
    assert assemble("barrier\n" * 3).shape == (3, 32)
    with pytest.raises(UserError, match=r"long\.s: 4 lines; allowed: at most 3"):
        assemble("barrier\n" * 4, "long.s")
