"""Slips planted in the RTL, each of which the cases must notice. A slip that survives is a hole in the cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from npusim.config import Machine
from npusim.rtl import write_rtl
from tests.cosim.cases import all_cases
from tests.cosim.compare import differences
from tests.cosim.machines import Fields, variant
from tests.cosim.rtl import MatrixUnit, build

SMALL: Fields = {"rows": 3, "cols": 4, "acc_rows": 6}
SINGLE: Fields = SMALL | {"acc_bits": 28}
DOUBLE: Fields = SINGLE | {"requant_multiplier_bits": 32, "requant_rounding": "double"}
TRAP: Fields = SINGLE | {"overflow": "trap"}

REQUANTIZER, CELL, TOP, SEQUENCER = "npu_requantizer.sv", "npu_pe.sv", "npu_matmul.sv", "npu_sequencer.sv"
NARROW, ACCUMULATOR, COLUMN = "npu_narrow.sv", "npu_accumulator.sv", "npu_column.sv"
HALF = "64'sd1 <<< (scale3.shift - 6'd1)"

MUTANTS: dict[str, tuple[Fields, str, str, str]] = {
    "rounding term less by one": (SINGLE, REQUANTIZER, f"half = {HALF};", f"half = ({HALF}) - 1;"),
    "rounding term greater by one": (SINGLE, REQUANTIZER, f"half = {HALF};", f"half = ({HALF}) + 1;"),
    "half away from zero": (SINGLE, REQUANTIZER, f"half = {HALF};", f"half = ({HALF}) - 64'(product[63]);"),
    "logical shift": (SINGLE, REQUANTIZER, "(product + rounding) >>>", "(product + rounding) >>"),
    "double rounding from 31": (DOUBLE, REQUANTIZER, "scale3.shift > 6'd31", "scale3.shift >= 6'd31"),
    "double rounding from 33": (DOUBLE, REQUANTIZER, "scale3.shift > 6'd31", "scale3.shift > 6'd32"),
    "double rounding upwards": (DOUBLE, REQUANTIZER, "away = product[63] ? -(64'sd1", "away = product[63] ? (64'sd1"),
    "sign of the zero point": (SINGLE, REQUANTIZER, "64'(bias1) - correction", "64'(bias1) + correction"),
    "unsigned zero point": (SINGLE, REQUANTIZER, "64'(zero_point1) *", "$signed(64'($unsigned(zero_point1))) *"),
    "bias of 32 bits": (SINGLE, REQUANTIZER, "64'(bias1)", "64'($signed(bias1[31:0]))"),
    "int32 wraps": (SINGLE, REQUANTIZER, ".OUT_BITS(32), .MODE(SATURATE)", ".OUT_BITS(32), .MODE(WRAP)"),
    "clamp of i8 at -127": (SINGLE, REQUANTIZER, "-33'sd128", "-33'sd127"),
    "clamp of u8 at 256": (SINGLE, REQUANTIZER, "33'sd255", "33'sd256"),
    "clamp before the zero point": (SINGLE, REQUANTIZER, "= 33'(scaled) + 33'(out_zero_point)", "= 33'(scaled)"),
    "saturation bound": (SINGLE, NARROW, "{OUT_BITS - 1{!sign}}", "{OUT_BITS - 2{!sign}}, 1'b1"),
    "saturation from one bit more": (SINGLE, NARROW, "in[IN_BITS-1:OUT_BITS-1];", "{sign, in[IN_BITS-1:OUT_BITS]};"),
    "a fold's sum wraps": (SINGLE, ACCUMULATOR, "WIDE'(part)", "WIDE'($signed(BITS'(part)))"),
    "signed low byte of 16 bits": (SINGLE, TOP, "signed_low = job.a_type == I8", "signed_low = job.a_type != 4'd0"),
    "i8 as u8": (SINGLE, TOP, "signed_low = job.a_type == I8", "signed_low = 1'b0"),
    "elements beyond k": (SINGLE, TOP, "act_active && 32'(r) < depth", "act_active && 32'(r) < depth + 1"),
    "signed low byte of a wide weight": (SINGLE, CELL, "!stream_in.w_wide && weight[7]", "weight[7]"),
    "latch a cycle late": (SINGLE, CELL, "stream_in.latch ? chain : active", "active"),
    "row sum counts bytes twice": (SINGLE, "npu_row_sum_cell.sv", "if (!w_high)", "if (1'b1)"),
    "overflow of an unused column": (TRAP, COLUMN, "whole && used && sum_overflow", "whole && sum_overflow"),
    "trap forgotten by the correction": (TRAP, COLUMN, "(corrected_used && corrected_overflow)", "1'b0"),
    "load of one row more": (SINGLE, SEQUENCER, "load_row == 32'(ROWS - 1)", "load_row == 32'(ROWS)"),
    "a load waits for the stream": (SINGLE, SEQUENCER, "if (loading) load_row", "if (loading && !feeding) load_row"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(tiny_machine: Machine, tmp_path: Path, name: str) -> None:
    fields, file, right, wrong = MUTANTS[name]
    machine = variant(tiny_machine, fields)
    write_rtl(machine, tmp_path)
    text = (tmp_path / file).read_text()
    assert text.count(right) == 1, f"{file} holds {text.count(right)} times {right!r}: the mutant is out of date"
    (tmp_path / file).write_text(text.replace(right, wrong))
    unit = MatrixUnit(machine, build(machine, tmp_path))
    assert differences(unit, all_cases(machine, seed=0)) != []
