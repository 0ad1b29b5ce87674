"""The reference, family by family: equal to a third implementation, inside its footprint, near to real arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npusim import engine, reference
from npusim.exact_product import exact_product
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import NO_ADDRESS, Decoded, Region, row_bytes
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import FACTORED, RECORD, ROW_RECORD, SCALARS
from npusim.memory import MEMORIES, MachineState
from tests.npusim import scalar_model
from tests.npusim.strategies import (
    DRAM,
    FAMILIES,
    Case,
    machine,
    make,
)


def over(family: str, examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            max_examples=examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
        )
        return limits(given(FAMILIES[family])(test))

    return decorate


def same(a: MachineState, b: MachineState) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in MEMORIES)


@pytest.mark.parametrize("family", scalar_model.MODELS)
def test_reference_equals_the_element_by_element_model(family: str) -> None:
    @over(family, 60)
    def check(case: Case) -> None:
        state = case.state.copy()
        try:
            expected = scalar_model.after(case.state, scalar_model.MODELS[family](case.state, case.ins))
        except OverflowError:
            with pytest.raises(OverflowError, match="overflows"):
                reference.execute(state, [case.ins])
            assert same(state, case.state)
            return
        reference.execute(state, [case.ins])
        assert same(state, expected)
        if case.ins.op == "matmul":
            assert_held(state, case)

    check()


def assert_held(state: MachineState, case: Case) -> None:
    """The sums that a MATMUL leaves in the accumulators, or none."""
    ins = case.ins
    if not ins.acc_hold:
        assert ins.unit not in state.held
        return
    held = state.held[ins.unit]
    for m, n in product(range(ins.m), range(ins.n)):
        found = int(held.products[m, n]), int(held.rows[m, 0])
        assert found == scalar_model.sums(case.state, ins, m, ins.a_addr + m * ins.a_row, ins.b_addr, n)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_instruction_depends_on_what_its_footprint_reads_and_changes_what_it_writes(family: str) -> None:
    @over(family, 40)
    def check(case: Case) -> None:
        reads, writes = BY_MNEMONIC[case.ins.op].footprint(case.ins)
        inside = marked(case.state, [*reads, *writes])
        other = case.state.copy()
        for name in MEMORIES:  # all bytes that the instruction may not see
            getattr(other, name)[~inside[name]] ^= 0x5A
        before = case.state.copy()
        try:
            reference.execute(case.state, [case.ins])
        except OverflowError:
            return
        reference.execute(other, [case.ins])
        written = marked(case.state, writes)
        for name in MEMORIES:
            assert np.array_equal(getattr(case.state, name)[inside[name]], getattr(other, name)[inside[name]])
            assert np.array_equal(getattr(case.state, name)[~written[name]], getattr(before, name)[~written[name]])

    check()


def marked(state: MachineState, regions: list[Region]) -> dict[str, Any]:
    masks = {name: np.zeros(getattr(state, name).size, bool) for name in MEMORIES}
    for region in (region for region in regions if region.memory != "storage"):  # which nothing changes
        base = state.bases[region.base] if region.memory == "dram" else 0
        assert 0 <= region.start < region.end
        masks[region.memory][base + region.start : base + region.end] = True
    return masks


@given(FAMILIES["lnstat"])
def test_layernorm_statistics(case: Case) -> None:
    ins, state = case.ins, case.state
    rows = [
        [scalar_model.number(state.sram, ins.a_addr + r * ins.a_row + 2 * c, 2) for c in range(ins.cols)]
        for r in range(ins.rows)
    ]
    reference.execute(state, [ins])
    for row, (total, mantissa, shift) in zip(
        rows, state.vector("sram", ins.stat_addr, STATISTICS, ins.rows), strict=True
    ):
        assert total == sum(row)
        variance = ins.cols * sum(x * x for x in row) - sum(row) ** 2 + ins.epsilon
        assert float(mantissa) * 2.0 ** -float(shift) == pytest.approx(variance**-0.5, rel=2**-20, abs=0)


@given(FAMILIES["smexp"])
def test_exponentials_and_their_sums(case: Case) -> None:
    ins, state = case.ins, case.state
    valid = ins.cols
    if ins.valid_addr != NO_ADDRESS:
        valid = min(max(scalar_model.number(state.sram, ins.valid_addr, 3), 1), ins.cols)
    logits = [
        [scalar_model.number(state.sram, ins.a_addr + r * ins.a_row + 2 * c, 2) for c in range(valid)]
        for r in range(ins.rows)
    ]
    reference.execute(state, [ins])
    for r, row in enumerate(logits):
        p = [scalar_model.number(state.sram, ins.out_addr + r * ins.out_row, ins.out_dtype, c) for c in range(ins.cols)]
        exact = [(2**ins.p_bits - 1) * 2.0 ** ((x - max(row)) / 2**ins.fraction_bits) for x in row]
        assert all(abs(a - b) < 1 for a, b in zip(p, exact, strict=False))
        assert p[valid:] == [0] * (ins.cols - valid)
        assert scalar_model.number(state.sram, ins.sum_addr + 4 * r, 3) == sum(p)


@given(FAMILIES["recip"])
def test_reciprocals_of_row_sums(case: Case) -> None:
    ins, state = case.ins, case.state
    sums = [scalar_model.number(state.sram, ins.sum_addr + 4 * r, 3) for r in range(ins.rows)]
    reference.execute(state, [ins])
    for total, (multiplier, shift) in zip(sums, state.vector("sram", ins.out_addr, ROW_RECORD, ins.rows), strict=True):
        assert 2**14 <= multiplier < 2**15
        factor = float(multiplier) * 2.0 ** -float(shift)
        assert factor == pytest.approx(ins.multiplier * 2.0**-ins.shift / total, rel=1.01 * 2**-15)


@given(FAMILIES["rtquant"])
def test_runtime_quantization_follows_equation_1(case: Case) -> None:
    """Grid index within one half and 2^-18 of the exact quotient; the scale within 2^-14 of the exact one."""
    ins, state = case.ins, case.state
    rows = [
        [scalar_model.number(state.sram, ins.a_addr + r * ins.a_row, 2, c) for c in range(ins.cols)]
        for r in range(ins.rows)
    ]
    top = {0: 255, 4: 15, 6: 63}[ins.out_dtype]
    reference.execute(state, [ins])
    records = state.vector("sram", ins.scalars_addr, SCALARS, ins.rows)
    for r, (row, (zero_point, multiplier, shift)) in enumerate(zip(rows, records, strict=True)):
        q = [scalar_model.number(state.sram, ins.out_addr + r * ins.out_row, ins.out_dtype, c) for c in range(len(row))]
        low, reach = min(0, *row), max(0, *row) - min(0, *row)
        if reach == 0:
            assert (zero_point, multiplier, shift, *q) == (0, 0, 1, *[0] * len(q))
            continue
        assert abs(zero_point + low * top / reach) <= 0.5 + 2**-18
        exact = [zero_point + x * top / reach for x in row]
        assert all(a == min(max(a, 0), top) for a in q)
        assert all(abs(a - min(max(b, 0), top)) <= 0.5 + 2**-18 for a, b in zip(q, exact, strict=True))
        factor = float(multiplier) * 2.0 ** -float(shift)
        assert factor == pytest.approx(reach * ins.multiplier * 2.0**-ins.shift, rel=1.01 * 2**-15)


def test_a_small_table_holds_values_of_its_type_only() -> None:
    state = blank()
    state.param[3] = 16
    with pytest.raises(ValueError, match=r"table at param byte 0 is outside 0\.\.15"):
        reference.execute(state, [make("table8", rows=1, cols=1, a_dtype="u4", out_dtype="u4")])


@pytest.mark.parametrize("largest", [1, 255, (1 << 15) - 1, 1 << 18, (1 << 25) + 1, (1 << 27) + 1])
@given(data=st.data())
def test_products_are_exact_on_both_sides_of_the_53_bits_of_float64(largest: int, data: st.DataObject) -> None:
    """Against Python's integers; at the ends, two products of 27 bits have 55, which float64 would round."""
    m, k, n = (data.draw(st.integers(1, 5)) for _ in range(3))
    values = st.sampled_from([largest, -largest, largest - 1, 1, 0]) | st.integers(-largest, largest)
    x, w = (
        data.draw(st.lists(st.lists(values, min_size=b, max_size=b), min_size=a, max_size=a))
        for a, b in ((m, k), (k, n))
    )
    expected = [[sum(x[i][at] * w[at][j] for at in range(k)) for j in range(n)] for i in range(m)]
    found = exact_product(np.array(x, np.int64), np.array(w, np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_sums_held_by_nobody_stop_the_run() -> None:
    state, shape = blank(), {"m": 2, "k": 1, "n": 2, "batch0": 1, "batch1": 1, "b_dtype": "i8", "out_row": 2}
    hold = make("matmul", acc_hold=1, **shape)
    go_on = make("matmul", acc_hold=1, acc_continue=1, **{**shape, "n": 1})
    for code, found in (([go_on], "none"), ([hold, go_on], r"sums \(2, 2\)")):
        with pytest.raises(ValueError, match=f"m, n = 2, 1: the accumulators hold {found}"):
            reference.execute(state, code)


@given(st.data())
def test_a_product_in_parts_gives_the_bits_of_the_whole(data: st.DataObject) -> None:
    """A reduction split at any multiple of the fold, the parts held in between."""
    case = data.draw(FAMILIES["matmul"].filter(lambda c: not c.ins.acc_hold and c.ins.batch0 * c.ins.batch1 == 1))
    ins, array = case.ins, case.state.machine.mac_array
    if ins.m > array.rows or ins.a_dtype in PACKED or ins.b_dtype in PACKED or ins.shifted or ins.acc_continue:
        return
    cut = data.draw(st.integers(1, 4)) * (array.rows if array.dataflow == "weight_stationary" else 1)
    if cut >= ins.k:
        return
    size = row_bytes(ins.a_dtype, 1)
    first = replaced(ins, k=cut, acc_hold=1)
    rest = {"k": ins.k - cut, "a_addr": ins.a_addr + cut * size, "b_addr": ins.b_addr + cut * ins.b_k}
    second = replaced(ins, **rest, acc_continue=1)
    whole, parts = case.state.copy(), case.state.copy()
    try:
        reference.execute(whole, [ins])
    except OverflowError:
        with pytest.raises(OverflowError):
            reference.execute(parts, [first, second])
        return
    reference.execute(parts, [first, second])
    assert same(whole, parts)


PACKED = [4, 5, 6, 7]


def replaced(ins: Decoded, **fields: int) -> Decoded:
    return Decoded(**{**vars(ins), **fields})


def blank(**array: Any) -> MachineState:
    return MachineState(machine(**array), DRAM)


def test_padded_keys_give_the_bits_of_the_compacted_ones() -> None:
    rng = np.random.default_rng(5)
    logits = rng.integers(-2000, 2000, (4, 16)).astype(np.int16)
    probabilities = []
    for cols, pad in ((16, 32767), (16, -1), (5, 0)):
        state = blank()
        rows = np.full((4, cols), pad, np.int16)
        rows[:, :5] = logits[:, :5]
        state.vector("sram", 0, np.int16, rows.size)[:] = rows.ravel()
        state.vector("sram", 4000, np.int32, 1)[0] = 5
        reference.execute(
            state,
            [
                make("smexp", rows=4, cols=cols, a_row=2 * cols, out_row=64, out_addr=1024, sum_addr=2048,
                     valid_addr=4000, out_dtype="i16", p_bits=15, fraction_bits=8),
                make("recip", rows=4, sum_addr=2048, out_addr=2100, multiplier=1 << 30, shift=30),
            ],
        )  # fmt: skip
        p = state.window("sram", 1024, np.int16, (4, cols), (64, 2))
        assert (p[:, 5:] == 0).all()
        probabilities.append((p[:, :5].tolist(), state.vector("sram", 2048, np.uint8, 96).tolist()))
    assert probabilities[0] == probabilities[1] == probabilities[2]


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [("saturate", 2**23 - 1 - 300), ("wrap", 8 * 127 * 32767 - 300 - 2 * 2**24), ("trap", None)],
)
def test_accumulators_narrow_after_each_fold(overflow: str, expected: int | None) -> None:
    """Four folds of two products of 127 * 32767; the second fold passes 2^23, and only saturation remembers it."""
    state = blank(rows=2, acc_bits=24, overflow=overflow)
    state.vector("sram", 0, np.int16, 8)[:] = 32767
    state.vector("sram", 100, np.int8, 8)[:] = 127
    record = np.zeros(1, RECORD)
    record["bias_low"], record["bias_high"] = 2**32 - 300, -1
    record["multiplier"], record["shift"] = 2, 1
    state.vector("param", 0, RECORD, 1)[:] = record
    ins = make(
        "matmul", a_dtype="i16", b_dtype="i8", out_dtype="i32", rq_mode="tensor", m=1, k=8, n=1, batch0=1, batch1=1,
        a_addr=0, a_row=16, b_addr=100, b_k=1, b_n=1, out_addr=200, out_row=4,
    )  # fmt: skip
    if expected is None:
        before = state.copy()
        with pytest.raises(OverflowError, match="24 bits"):
            reference.execute(state, [ins])
        assert same(state, before)
    else:
        reference.execute(state, [ins])
        assert state.vector("sram", 200, np.int32, 1)[0] == expected


RECORDS = [
    ("multiplier", -1, "multiplier 0..32767"),
    ("multiplier", 2**15, "multiplier 0..32767"),
    ("shift", 0, "shift 1..62"),
]


@pytest.mark.parametrize(("name", "value", "rule"), RECORDS)
def test_an_undefined_requantization_record_stops_the_run(name: str, value: int, rule: str) -> None:
    state = blank()
    record = np.zeros(1, RECORD)
    record["multiplier"], record["shift"] = 1, 1
    record[name] = value
    state.vector("param", 24, RECORD, 1)[:] = record
    ins = make("matmul", b_dtype="i8", m=1, k=1, n=1, batch0=1, batch1=1, rq_addr=24)
    with pytest.raises(ValueError, match=rf"record at 0x18 is undefined: .*{rule}"):
        reference.execute(state, [ins])


@pytest.mark.parametrize("executor", [reference, engine])
@pytest.mark.parametrize("mode", ["tensor", "channel", "factored", "factored_row"])
def test_a_weight_zero_point_without_a_column_of_row_sums_stops_the_run(mode: str, executor: Any) -> None:
    fields = {"b_dtype": "i8", "m": 1, "k": 1, "n": 2, "batch0": 1, "batch1": 1, "out_addr": 64, "rq_addr": 24}
    fields |= {"rq_mode": mode, "fraction_bits": 1, "scalars_addr": 128}
    ins, kind = make("matmul", **fields), FACTORED if mode.startswith("factored") else RECORD
    for column in (True, False):
        state = blank(row_sum_column=column)
        records, scalars = state.vector("param", 24, kind, 2), np.array((0, 1, 1), SCALARS)
        state.vector("param", 128, SCALARS, 1)[:] = state.vector("sram", 128, SCALARS, 1)[:] = scalars
        records["multiplier"], records["shift"], records["zero_point"] = 1, 1, [0 if mode != "tensor" else 5, -1]
        if column:
            executor.execute(state, [ins])
            continue
        with pytest.raises(ValueError, match="record at 0x18 is undefined: weight zero point 0 without"):
            executor.execute(state, [ins])
        records["zero_point"] = 0
        executor.execute(state, [ins])


def test_missing_statistics_and_sums_stop_the_run() -> None:
    with pytest.raises(ValueError, match="no row statistics at sram byte 64"):
        reference.execute(blank(), [make("lnapply", rows=1, cols=1, shift=1, stat_addr=64)])
    with pytest.raises(ValueError, match="row sum at sram byte 64 is not positive"):
        reference.execute(blank(), [make("recip", rows=1, sum_addr=64, multiplier=1 << 30)])


@pytest.mark.parametrize(
    "values",
    [
        {"rows": 1, "planes": 1, "row_bytes": DRAM + 1},
        {"rows": 2, "planes": 1, "row_bytes": 1, "dram_row": DRAM},
        {"rows": 1, "planes": 3, "row_bytes": 1, "dram_plane": 2**63 - 1},
        {"rows": 1, "planes": 2, "row_bytes": 1, "dram_plane": 2**64 - 1},
        {"rows": 1, "planes": 1, "row_bytes": 1, "dram_addr": 2**64 - 1},
        {"rows": 2**32 - 1, "planes": 2**32 - 1, "row_bytes": 1, "local_plane": 2**32 - 1, "local_row": 1},
    ],
)
def test_an_access_outside_a_memory_is_refused_whatever_its_strides(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"bytes \d+\.\.\d+ lie outside its \d+ bytes|array is too big"):
        reference.execute(blank(), [make("load", **values)])


@given(st.sampled_from(sorted(BY_MNEMONIC)), st.data())
def test_cycles_are_positive_integers(mnemonic: str, data: st.DataObject) -> None:
    family = {"load": "dma", "store": "dma"}.get(mnemonic, mnemonic)
    ins = data.draw(FAMILIES[family]).ins if family in FAMILIES else make(mnemonic)
    cycles = BY_MNEMONIC[ins.op].cycles(ins, machine())
    assert type(cycles) is int
    assert cycles > 0
