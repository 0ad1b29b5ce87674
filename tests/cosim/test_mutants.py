"""Slips planted in the RTL, each of which the cases must notice. A slip that survives is a hole in the cases."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from npusim.config import Machine
from npusim.rtl import write_rtl
from tests.cosim.cases import Case
from tests.cosim.compare import differences
from tests.cosim.edges import all_cases
from tests.cosim.machines import OUTPUT_STATIONARY, Fields, variant
from tests.cosim.rtl import MatrixUnit, build

SMALL: Fields = {"rows": 3, "cols": 4, "acc_rows": 6}
SINGLE: Fields = SMALL | {"acc_bits": 28}
DOUBLE: Fields = SINGLE | {"requant_multiplier_bits": 32, "requant_rounding": "double", "factored_requant": False}
TRAP: Fields = SINGLE | {"overflow": "trap"}

OUTPUTS: Fields = SINGLE | OUTPUT_STATIONARY
OUTPUTS_TRAP: Fields = OUTPUTS | {"overflow": "trap"}

REQUANTIZER, ROUND, COLUMN, NARROW = "npu_requantizer.sv", "npu_round.sv", "npu_column.sv", "npu_narrow.sv"
OPERAND, MULTIPLY, ACCUMULATOR, TOP = "npu_operand.sv", "npu_multiply.sv", "npu_accumulator.sv", "npu_matmul.sv"
TYPES, LANE_SUM, WS, WS_CELL, WS_SEQUENCER = (
    "npu_types.sv", "npu_lane_sum.sv", "npu_ws.sv", "npu_ws_cell.sv", "npu_ws_sequencer.sv",
)  # fmt: skip
OS, OS_ARRAY, OS_SUM, OS_SEQUENCER = "npu_os.sv", "npu_os_array.sv", "npu_os_sum.sv", "npu_os_sequencer.sv"
HALF = "64'sd1 <<< (shift - 6'd1)"

MUTANTS: dict[str, tuple[Fields, str, str, str]] = {
    "rounding term less by one": (SINGLE, ROUND, f"half = {HALF};", f"half = ({HALF}) - 1;"),
    "rounding term greater by one": (SINGLE, ROUND, f"half = {HALF};", f"half = ({HALF}) + 1;"),
    "half away from zero": (SINGLE, ROUND, f"half = {HALF};", f"half = ({HALF}) - 64'(product[63]);"),
    "logical shift": (SINGLE, ROUND, "(product + rounding) >>>", "(product + rounding) >>"),
    "double rounding from 31": (DOUBLE, ROUND, "shift > 6'd31", "shift >= 6'd31"),
    "double rounding from 33": (DOUBLE, ROUND, "shift > 6'd31", "shift > 6'd32"),
    "double rounding upwards": (DOUBLE, ROUND, "away = product[63] ? -(64'sd1", "away = product[63] ? (64'sd1"),
    "sign of the zero point": (SINGLE, REQUANTIZER, "64'(bias1) - correction", "64'(bias1) + correction"),
    "unsigned zero point": (SINGLE, REQUANTIZER, "64'(zero_point1) *", "$signed(64'($unsigned(zero_point1))) *"),
    "bias of 32 bits": (SINGLE, REQUANTIZER, "64'(bias1)", "64'($signed(bias1[31:0]))"),
    "int32 wraps": (SINGLE, ROUND, ".OUT_BITS(32), .MODE(SATURATE)", ".OUT_BITS(32), .MODE(WRAP)"),
    "clamp of i8 at -127": (SINGLE, REQUANTIZER, "-33'sd128", "-33'sd127"),
    "clamp of u8 at 256": (SINGLE, REQUANTIZER, "33'sd255", "33'sd256"),
    "clamp of i4 at -7": (SINGLE, REQUANTIZER, "-33'sd8,", "-33'sd7,"),
    "clamp of u6 at 62": (SINGLE, REQUANTIZER, "33'sd63", "33'sd62"),
    "clamp of u16 at 65534": (SINGLE, REQUANTIZER, "33'sd65535", "33'sd65534"),
    "clamp before the zero point": (SINGLE, REQUANTIZER, "= 33'(scaled) + 33'(out_zero_point)", "= 33'(scaled)"),
    "late bias wraps": (SINGLE, REQUANTIZER, "(33), .OUT_BITS(32), .MODE(SAT", "(33), .OUT_BITS(32), .MODE(WRAP + SAT"),
    "late bias added twice": (SINGLE, COLUMN, "{48'd0, record[63:56]}", "{16'd0, record[31:0], record[63:56]}"),
    "second product rounded down": (SINGLE, REQUANTIZER, ".product(second_product),", ".product(second_product - 1),"),
    "fraction bits rounded down": (SINGLE, REQUANTIZER, ".product(64'(biased))", ".product(64'(biased) - 1)"),
    "one fraction bit too many": (SINGLE, REQUANTIZER, "{2'b00, fraction_bits}", "{2'b00, fraction_bits} + 6'd1"),
    "first scale for the second": (SINGLE, REQUANTIZER, "64'(scale4.second_multiplier)", "64'(scale4.multiplier)"),
    "saturation bound": (SINGLE, NARROW, "{OUT_BITS - 1{!sign}}", "{OUT_BITS - 2{!sign}}, 1'b1"),
    "saturation from one bit more": (SINGLE, NARROW, "in[IN_BITS-1:OUT_BITS-1];", "{sign, in[IN_BITS-1:OUT_BITS]};"),
    "a fold's sum wraps": (SINGLE, ACCUMULATOR, "WIDE'(part)", "WIDE'($signed(BITS'(part)))"),
    "signed low byte of 16 bits": (SINGLE, OPERAND, "LANE_BITS'({1'b0, x[7:0]})", "LANE_BITS'($signed(x[7:0]))"),
    "i8 as u8": (SINGLE, OPERAND, "value = 17'($signed(bits[7:0]));", "value = {9'd0, bits[7:0]};"),
    "u16 as i16": (SINGLE, OPERAND, "U16: value = {1'b0, bits};", "U16: value = 17'($signed(bits));"),
    "input zero point of 16 bits": (SINGLE, OPERAND, "value - zero;", "value - 17'($signed(zero[15:0]));"),
    "input zero point in every mode": (SINGLE, OPERAND, "FACTORED && job.factored ? zero_point : '0", "zero_point"),
    "pair without its zero point": (SINGLE, OPERAND, "- PAIR_BITS'(zero)", ""),
    "pair with the first one's shift": (SINGLE, OPERAND, "other <<< left[3:2]", "other <<< left[1:0]"),
    "zero point not shifted": (SINGLE, OPERAND, "(x) <<< left[1:0]", "((value <<< left[1:0]) - zero)"),
    "shift of at most 1": (SINGLE, OPERAND, "LANE_BITS'(x) <<< left[1:0]", "LANE_BITS'(x) <<< left[0]"),
    "i4 without its sign": (SINGLE, TYPES, "{{12{bits[3]}}, bits[3:0]}", "{12'd0, bits[3:0]}"),
    "first of a pair without its sign": (SINGLE, TYPES, "bits[7:4], {4{bits[3]}}", "bits[7:4], 4'd0"),
    "second of a pair without its sign": (SINGLE, MULTIPLY, "wire signed [3:0] w", "wire [3:0] w"),
    "i6 without its sign": (SINGLE, TYPES, "{{10{bits[5]}}, bits[5:0]}", "{10'd0, bits[5:0]}"),
    "elements beyond k": (SINGLE, WS, ": 32'(r) < depth)", ": 32'(r) < depth + 1)"),
    "second of a pair beyond k": (SINGLE, WS, "32'(2 * r + 1) < depth", "32'(2 * r) < depth"),
    "signed low byte of a wide weight": (SINGLE, MULTIPLY, "!w_wide && weight[7]", "weight[7]"),
    "latch a cycle late": (SINGLE, WS_CELL, "stream_in.latch ? chain : active", "active"),
    "row sum counts bytes twice": (SINGLE, LANE_SUM, "if (!w_high)", "if (1'b1)"),
    "row sum without the second of a pair": (SINGLE, LANE_SUM, "sum = pair;", "sum = '0;"),
    "sums not continued": (SINGLE, WS_SEQUENCER, "first_k && !job.acc_continue", "first_k"),
    "sums held and written": (SINGLE, WS_SEQUENCER, "last_k && !job.acc_hold", "last_k"),
    "a hold waits for the requantizer": (SINGLE, TOP, "last_token.last && !job.acc_hold", "last_token.last"),
    "overflow of an unused column": (TRAP, COLUMN, "token.acc.last_phase && used", "token.acc.last_phase"),
    "trap forgotten by the correction": (TRAP, COLUMN, "(corrected_used && corrected_overflow)", "1'b0"),
    "load of one row more": (SINGLE, WS_SEQUENCER, "load_row == 32'(ROWS - 1)", "load_row == 32'(ROWS)"),
    "a load waits for the stream": (SINGLE, WS_SEQUENCER, "if (loading) load_row", "if (loading && !feeding) load_row"),
    "outputs: sums not continued": (OUTPUTS, OS_SEQUENCER, "k == '0 && !job.acc_continue", "k == '0"),
    "outputs: sums held and written": (OUTPUTS, OS_SEQUENCER, "feed_ends && !job.acc_hold", "feed_ends"),
    "outputs: tiles add up": (OUTPUTS, ACCUMULATOR, "control.first_fold ? '0 : bank[index]", "bank[index]"),
    "outputs: every phase adds": (OUTPUTS, ACCUMULATOR, "control.last_phase) bank", "1'b1) bank"),
    "outputs: drain as fast as the pipe": (OUTPUTS, OS_ARRAY, ".DEPTH(2)", ".DEPTH(1)"),
    "outputs: unused rows drain": (OUTPUTS, OS_SEQUENCER, "rows: drain_rows}", "rows: ROW_COUNT_BITS'(ROWS)}"),
    "outputs: unused rows count": (OUTPUTS_TRAP, OS_ARRAY, "used = ROW_COUNT_BITS'(r) < at.rows", "used = 1'b1"),
    "outputs: unused columns count": (OUTPUTS_TRAP, OS, "COLUMN_BITS'(c) < columns", "1'b1"),
    "outputs: zero point of the row above": (OUTPUTS, OS_ARRAY, "at.latch ? zero_point : kept_zero", "kept_zero"),
    "outputs: odd k in pairs": (OUTPUTS, OS_SEQUENCER, "paired(job) && depth > 1", "paired(job)"),
    "outputs: tiles do not wait for rows": (OUTPUTS, OS_SEQUENCER, "&& (!reading || read_ends)", ""),
    "outputs: trap forgotten by the cells": (OUTPUTS_TRAP, TOP, "trapped || cell_overflow", "trapped"),
}  # fmt: skip


@cache
def cases_of(machine: Machine) -> list[Case]:
    return all_cases(machine, seed=0)


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
    cases = cases_of(machine)
    assert any(differences(unit, cases[at : at + 50]) for at in range(0, len(cases), 50))
