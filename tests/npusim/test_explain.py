"""One instruction in words, checked by hand on two small programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler import Builder, compile_graph
from npusim.config import Machine
from npusim.errors import UserError
from npusim.explain import explain
from npusim.isa import BY_MNEMONIC, decode
from npusim.program import Program
from tests.compiler.runs import altered
from tests.npusim.strategies import small_program


@pytest.fixture(scope="module")
def program() -> Program:
    return small_program()


def test_a_sum_with_operands_of_three_origins(program: Program) -> None:
    # Cycles: 16 elements over 8 lanes, two passes for a 32-bit operand, and the latency of 8: 2 * 2 + 8.
    # Bias: the second set's 64 bytes are 0, 1, 0, 1, ...: four of them are 0x01000100 = 16777472.
    assert (
        explain(program, 3, step=1)
        == """\
step instruction 3 of 6: ewlin on unit vector, layer sampler.add
  SUMMARY
  number 1 of 1 ewlin in this layer, which has 1 ewlin
  a_row=0 a_batch=0 b_row=0 b_batch=0 out_row=0 out_batch=0 rows=1 cols=16 batch=1 a_dtype=i32 b_dtype=i16 \
out_dtype=i32 shift=1 out_zp=0 a_mul=2 b_mul=3 wide=0 shared_mul=0 shared_bias=0
  absent operands: a_mul, b_mul

operands
  reads  a: sram 0x0..0x40 (64 bytes), i32[1, 1, 16], strides [0, 0, 4] bytes
      written by step instruction 0 (load, layer (no name)), from buffer state i32[16], rows 0..1
  reads  b: sram 0x40..0x60 (32 bytes), i16[1, 1, 16], strides [0, 0, 2] bytes
      written by step instruction 1 (load, layer (no name)), from base 2: the step's noise, bytes 0..32 of 32
  reads  bias: param 0x0..0x40 (64 bytes), i32[16], strides [4] bytes
      written by step instruction 2 (load, layer (no name)), from base 1: the step's constants, bytes 0..64 of 64
      values of step 1 (the first 4 of 16): 16777472, 16777472, 16777472, 16777472
  writes out: sram 0x0..0x40 (64 bytes), i32[1, 1, 16], strides [0, 0, 4] bytes

tokens
  waits for a raw token from load, sent by step instruction 2 (load, layer (no name))
  sends a raw token to store, taken by step instruction 4 (store, layer (no name))

cost
  12 cycles busy (closed form)
  sram_read_bytes 96
  sram_write_bytes 64
  param_read_bytes 64
  instruction_fetch_bytes 128
""".replace("SUMMARY", BY_MNEMONIC["ewlin"].summary)
    )


def test_a_load_of_what_the_step_before_stored(program: Program) -> None:
    text = explain(program, 0)
    assert "  reads  dram: dram 0x140..0x180 (64 bytes), u8[1, 1, 64], strides [0, 0, 1] bytes\n" in text
    assert "      buffer state i32[16], rows 0..1\n" in text
    assert "      written by step instruction 4 (store, layer (no name)) of the step before\n" in text
    assert "  writes local: sram 0x0..0x40 (64 bytes)" in text
    # 64 bytes are 2 bursts of 32; at 16 bytes a cycle they take 4 cycles.
    assert "  16 cycles busy (closed form), then 4 or more of DRAM\n  dram_read_bytes 64\n" in text
    assert "tokens\n  none\n" in text


def test_the_latest_writers_come_first_and_hide_earlier_ones(program: Program) -> None:
    text = explain(altered(program, "step", 1, local_addr=0), 3)  # over the first half of what instruction 0 loads
    a = text[text.index("reads  a:") : text.index("reads  b:")]
    assert [line.split(",")[0].strip() for line in a.splitlines()[1:-1]] == [
        "written by step instruction 1 (load", "written by step instruction 0 (load",
    ]  # fmt: skip
    hidden = explain(altered(program, "step", 1, local_addr=0, row_bytes=64), 3)
    assert "instruction 0" not in hidden[hidden.index("reads  a:") : hidden.index("reads  b:")]


def test_a_barrier_and_the_prologue(program: Program) -> None:
    text = explain(program, 0, "prologue")
    assert text.startswith("prologue instruction 0 of 1: barrier on unit vector, layer (no name)\n")
    assert "  no fields\n" in text
    assert text.endswith("cost\n  60 cycles busy (closed form)\n  instruction_fetch_bytes 128\n")


@pytest.fixture(scope="module")
def linear(tiny_machine: Machine) -> Program:
    """Twelve rows by a weight of 3 channels, a part of whose result is stored; 5000 + 2^40 needs both bias fields."""
    weight: Any = np.arange(12, dtype=np.int8).reshape(3, 4) - 5
    net = Builder()
    x = net.input("x", (12, 4), "u8", zero_point=10)
    bias = np.array([7, 5000 + 2**36, -(2**36)])
    net.output(net.linear("fc", x, weight, "i16", multiplier=[3, 4, 5], shift=[20, 21, 22], bias=bias, weight_zp=2))
    return compile_graph(net.graph(), tiny_machine)


def test_records_and_weights_are_decoded(linear: Program) -> None:
    index = next(i for i, ins in enumerate(decode(linear.step)) if ins.op == "matmul")
    text = explain(linear, index)
    assert "      values (the first 4 of 12): -5, -4, -3, -2\n" in text
    # Folded: bias - 10 * sum(w) + 4 * 10 * 2 with sums of -14, 2 and 18.
    biases = [7 + 140 + 80, 5000 + 2**36 - 20 + 80, -(2**36) - 180 + 80]
    records = zip(biases, (20, 21, 22), (3, 4, 5), strict=True)
    for number, (bias, shift, multiplier) in enumerate(records):
        assert f"        [{number}] bias={bias} zero_point=2 shift={shift} multiplier={multiplier}\n" in text
    assert "      records:\n" in text
    assert ", from buffer x u8[12, 4], rows 0..12\n" in text
    assert "  mac_operations 144\n" in text  # 12 x 4 x 3


def test_a_part_of_a_buffer_is_named(linear: Program) -> None:
    index = next(i for i, ins in enumerate(decode(linear.step)) if ins.op == "store")
    address = linear.buffers["fc"].address
    # Rows have 3 values of 2 bytes: from row 2, column 1, two values of each of 4 rows.
    fields = {"dram_addr": address + 2 * 6 + 2, "row_bytes": 4, "rows": 4, "dram_row": 6, "local_row": 4}
    text = explain(altered(linear, "step", index, **fields), index)
    assert "      buffer fc i16[12, 3], rows 2..6, columns 1..3\n" in text


def test_tokens_that_nobody_sends_or_takes(program: Program) -> None:
    text = explain(altered(program, "step", 3, wait_war=4, signal_war=4), 3)
    assert "  waits for a war token from mac, sent by nobody\n" in text
    assert "  sends a war token to mac, taken by nobody\n" in text


@pytest.mark.parametrize(("arguments", "message"), [
    ((6,), r"step has no instruction 6; allowed 0\.\.5"), ((-1,), "step has no instruction -1"),
    ((1, "prologue"), r"prologue has no instruction 1; allowed 0\.\.0"),
    ((0, "epilogue"), "part = 'epilogue': allowed prologue, step"), ((0, "step", 2), r"step = 2: allowed 0\.\.1"),
])  # fmt: skip
def test_bad_requests(program: Program, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain(program, *arguments)
