"""Which cells make which table: every row of the paper, every method, and captions that nothing was fitted to."""

from __future__ import annotations

import pytest

from models.metrics.text_sim import TextHeads
from models.quantize import METHODS
from models.text import TextStates
from models.workloads import CALIBRATION_CAPTIONS, SEARCH_CAPTIONS, get_workload
from npusim.errors import UserError
from npusim.tables.cells import (
    CAPTIONS,
    Cell,
    calibrated_on_first,
    cells_of,
    clips_of,
    integer_cells,
    make_tables,
    parse_tables,
)
from npusim.tables.paper import TABLES


def test_captions_are_known_and_used_for_nothing_else() -> None:
    known, held_out = set(TextStates().captions), set(TextHeads.load().metadata["held_out_captions"])
    for captions in CAPTIONS.values():
        assert len(captions) == len(set(captions)) == 32
        assert set(captions) <= known - {*CALIBRATION_CAPTIONS, *SEARCH_CAPTIONS}
    assert set(CAPTIONS["emoji"]) <= held_out
    words = [caption.split() for caption in CAPTIONS["digits"]]
    assert all(word[0] == "digit" for word in words)
    assert len({word[1] for word in words}) == 10
    assert len({word[3] for word in words}) == 4
    assert not any(caption.startswith("digit ") for caption in CAPTIONS["emoji"])


def test_seeds_differ_between_clips_and_data_sets() -> None:
    seeds = [seed for data_set in CAPTIONS for seed in clips_of(data_set, 32)[1]]
    work = get_workload("emoji")
    assert len(set(seeds)) == 64
    assert not set(seeds) & {*work.calibration_seeds, *work.search_seeds}


def test_every_row_of_the_paper_stands_in_its_table() -> None:
    tables = make_tables(20)
    for numeral, printed in TABLES.items():
        rows = [row for row in tables[numeral].rows if row.paper is not None and not row.average]
        found = [((row.cell.method, row.cell.bits, row.cell.ranges), row.paper) for row in rows]
        assert sorted(found) == sorted(printed.items())
    assert [row.label for row in tables["III"].rows if row.average] == ["+TSQ+TSW", "+ASQ", "Dynamic"]
    assert all(len(row.cells) == 9 for row in tables["III"].rows if row.average)


def test_rows_belong_to_the_right_data_set_and_have_names_of_their_own() -> None:
    for numeral, table in make_tables(20).items():
        cells = [row.cell for row in table.rows if not row.average]
        assert {cell.data_set for cell in cells} == {"digits" if numeral in ("II", "V") else "emoji"}
        assert len({cell.name for cell in cells}) == len(cells)


def test_methods_of_the_first_tables() -> None:
    cells = [row.cell for row in make_tables(20)["I"].rows]
    ours = {"ssq": 1, "tsq_pot": 20, "tsq_dp": 4, "tsq_pot_dp": 4}
    paper = {"dynamic": 1, "cw_tw": 1, "tsw": 20, "asq": 1, "tsq": 20}
    assert {cell.method: cell.ranges for cell in cells if cell.quantized} == paper | ours
    assert {cell.method for cell in cells if not cell.quantized} == {"real", "fp32", "fp16"}
    assert {(cell.weight_bits, cell.act_bits) for cell in cells} == {(8, 8)}


def test_four_bit_weights_are_rounded_by_gptq_too() -> None:
    cells = {row.cell.name for row in make_tables(20)["III"].rows}
    for act_bits in (4, 6, 8, 16):
        assert {f"emoji-tsq_gptq-w4a{act_bits}-r20", f"emoji-asq_gptq-w4a{act_bits}-r1"} <= cells


def test_shared_cells_are_measured_once() -> None:
    cells = cells_of(parse_tables("all"), 20)
    rows = [cell for table in make_tables(20).values() for row in table.rows for cell in row.cells]
    assert len(cells) == len(set(rows)) + len(METHODS) < len(rows)
    assert sum(cell == Cell("emoji", "asq") for cell in rows) == 4  # I, III, its average, IV


def test_the_integer_table_holds_every_method() -> None:
    cells = {cell.method: cell for cell in integer_cells(20)}
    assert set(cells) == set(METHODS)
    assert (cells["tsq"].ranges, cells["tsq_dp"].ranges, cells["asq"].ranges) == (20, 4, 1)
    assert cells["tsq"].bits == "8/8"
    assert cells["tsq_gptq"].bits == "4/8"


def test_ranges_follow_the_number_of_steps() -> None:
    assert {row.cell.ranges for row in make_tables(4)["IV"].rows} == {1, 2, 4}


def test_tables_are_parsed() -> None:
    assert parse_tables("all") == ("I", "II", "III", "IV", "V", "integer")
    assert parse_tables("integer, I") == ("I", "integer")
    for text in ("iv", "I,,II", "", "VI", "1"):
        with pytest.raises(UserError, match="allowed all, or some of I, II, III, IV, V, integer"):
            parse_tables(text)
    with pytest.raises(UserError, match="did you mean 'IV'"):
        parse_tables("I,iv")


def test_the_second_data_set_is_new_to_the_calibration() -> None:
    work = calibrated_on_first(get_workload("emoji"))
    assert len(work.calibration_captions) == len(work.calibration_seeds) == 8
    assert not any(caption.startswith("digit ") for caption in work.calibration_captions)
    original = get_workload("emoji")
    kept = dict(zip(original.calibration_captions, original.calibration_seeds, strict=True))
    assert all(kept[c] == s for c, s in zip(work.calibration_captions, work.calibration_seeds, strict=True))
