"""The handlers have the reference's bits where they take an instruction, and take those that they should."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import copy
from types import FunctionType
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from npusim import engine, reference
from npusim.config import Machine
from npusim.engine import lanes, stream, stream_matmul
from npusim.engine.context import table_of, table_of_words
from npusim.isa import ALL, BY_OPCODE
from npusim.isa.assembly import assemble
from npusim.isa.encoding import DTYPE_NAMES, Decoded, decode_row, encode
from npusim.isa.matmul import RECORD, ROW_RECORD, RQ_MODES
from npusim.memory import MachineState, Sums
from npusim.testing import cases, matmuls
from npusim.units import UNITS, of_kind
from tests.npusim.strategies import DRAM, FAMILIES, TINY, Case, any_fields, machine, make
from tests.npusim.test_engine import SLIPS, TIES, agree, tied

LEAST_TAKEN = 0.05
"""Share of the aligned cases; of the rest, many are packed or have operands that overlap."""
TAKEN = ("dma", "ewlin", "ewmul", "table", "lnstat", "lnapply", "smexp", "recip")
LARGE: dict[str, Any] = {**TINY, "sram": {**TINY["sram"], "capacity_bytes": 1 << 19}}
"""The tiny machine with room for products of several tiles."""
WIDTH = {"u8": 1, "i8": 1, "i16": 2, "u16": 2, "i32": 4}


@st.composite
def products(draw: st.DrawFn) -> Case:
    """MATMULs as compiled programs have them: operands apart, accumulators wide; shapes on both sides of every edge."""
    array = {"acc_bits": draw(st.sampled_from([40, 48])), "acc_rows": 64, "cols": 64, "rows": 64, "count": 2}
    on = Machine.model_validate({**LARGE, "mac_array": {**LARGE["mac_array"], **array}})
    state = draw(cases.states(on))
    a_kind = draw(st.sampled_from(["u8", "i8", "i16", "u16"]))
    b_kind = draw(st.sampled_from(["i8", "i16"])) if WIDTH[a_kind] == 2 else "i8"
    out_kind, mode = draw(st.sampled_from(list(WIDTH))), draw(st.sampled_from(["tensor", "channel", "row"]))
    held, unit = draw(st.sampled_from([0, 0, 1, 2, 3])), draw(st.sampled_from(of_kind("mac")))
    m, n = (
        draw(st.one_of(st.integers(1, 14), st.integers(45, 60))),
        draw(st.one_of(st.integers(1, 20), st.integers(60, 64))),
    )
    k = draw(st.one_of(st.integers(1, 9), st.integers(60, 70), st.sampled_from([255, 256, 257, 258, 511, 512, 600])))
    batch0, batch1 = (1, 1) if held else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    fields: dict[str, Any] = {"a_dtype": a_kind, "b_dtype": b_kind, "out_dtype": out_kind, "rq_mode": mode, "m": m}
    fields |= {"k": k, "n": n, "batch0": batch0, "batch1": batch1, "acc_continue": held & 1, "acc_hold": held >> 1}
    end = 0
    for name, rows, cols, kind in (("a", m, k, a_kind), ("b", n, k, b_kind), ("out", m, n, out_kind)):
        row = -(-(cols * WIDTH[kind] + draw(st.integers(0, 9))) // 4) * 4
        if name == "b" and WIDTH[kind] == 2 and draw(st.booleans()):  # values: n contiguous
            fields |= {"b_k": 2 * n + 2, "b_n": 2}
            plane = k * (2 * n + 2)
        else:
            fields |= {"b_k": WIDTH[kind], "b_n": row} if name == "b" else {f"{name}_row": row}
            plane = rows * row
        fields |= {f"{name}_addr": end, f"{name}_b1": plane, f"{name}_b0": batch1 * plane}
        end += batch0 * batch1 * plane + 3 & ~3
    records = matmuls.records(draw, state, mode, batch0 * batch1 * m, n)
    memory, at = (state.sram, end) if mode == "row" else (state.param, 4)
    cases.put(memory, at, records.dtype, records)
    if held & 1:
        sums = cases.randoms(draw, *draw(st.sampled_from([(-9, 9), (-(1 << 31), 1 << 31)])), m * n)
        state.held[unit] = Sums(sums.reshape(m, n), cases.randoms(draw, -999, 999, m).reshape(m, 1))
    return cases.legal(state, make("matmul", unit=unit, rq_addr=at, out_zp=draw(cases.zero_points), **fields))


def takes(state: MachineState, ins: Decoded) -> bool:
    session = stream.Session(state.copy(), stream.Code([ins]), stream.HANDLERS)
    return session.run(0, 1) == 1


@pytest.mark.parametrize("family", [*TAKEN, "products"])
def test_handlers_equal_the_reference(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "ALIGNMENT", 4)
    taken = []

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(products() if family == "products" else FAMILIES[family])
    def check(case: Case) -> None:
        taken.append(takes(case.state, case.ins))
        if taken[-1]:
            assert agree(case.state, case.ins)

    check()
    assert np.mean(taken) >= (0.5 if family == "products" else LEAST_TAKEN)


@st.composite
def repeated_products(draw: st.DrawFn) -> tuple[MachineState, list[Decoded]]:
    """A MATMUL, a LOAD over a few bytes of SRAM, and MATMULs of the same operands or of some of them."""
    case = draw(products())
    ins = case.ins
    assume(not (ins.acc_hold or ins.acc_continue))
    end = ins.rq_addr if RQ_MODES[ins.rq_mode] == "row" else ins.out_addr + 8
    near = st.sampled_from([ins.a_addr, ins.b_addr, ins.out_addr]).flatmap(lambda at: st.integers(at - 8, at + 8))
    size = draw(st.integers(1, 64))
    start = min(max(draw(st.one_of(near, st.integers(0, end))), 0), end - size)
    assume(start >= 0)
    load = make("load", unit=UNITS.index("load"), local_addr=start, row_bytes=size, rows=1, planes=1)
    again = [copy(ins) for _ in range(draw(st.integers(1, 4)))]
    for other in again:
        for name in draw(st.sets(st.sampled_from(["m", "n", "k"]), max_size=1)):
            setattr(other, name, draw(st.integers(1, getattr(ins, name))))
        for name in draw(st.sets(st.sampled_from(["a_row", "b_k", "b_n"]), max_size=1)):
            setattr(other, name, max(getattr(ins, name) - 4, 4 if name == "a_row" else WIDTH[DTYPE_NAMES[ins.b_dtype]]))
        for name, step in draw(st.sets(st.sampled_from([("a_addr", 4), ("b_addr", 4), ("b_addr", 8)]), max_size=1)):
            setattr(other, name, getattr(ins, name) + step)
        kinds = {1: ["u8", "i8"], 2: ["i16", "u16"]}[WIDTH[DTYPE_NAMES[ins.a_dtype]]]
        other.a_dtype = DTYPE_NAMES.index(draw(st.sampled_from(kinds)))
    return case.state, [ins, load, *again]


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(repeated_products())
def test_what_products_keep_is_what_memory_holds(drawn: tuple[MachineState, list[Decoded]]) -> None:
    """Packed operands and sums of rows are used again unless the bytes that they were made from are written."""
    state, code = drawn
    twin = state.copy()
    engine.execute(state, code)
    reference.execute(twin, code)
    assert state.difference(twin) is None


BYTES: dict[str, Any] = {"a_dtype": "u8", "b_dtype": "i8", "a_row": 160, "b_n": 72, "b_k": 1}
KEYS: dict[str, Any] = {"a_dtype": "i16", "b_dtype": "i16", "a_row": 160, "b_n": 144, "b_k": 2}
VALUES: dict[str, Any] = KEYS | {"b_n": 2, "b_k": 48}
OTHERS: list[dict[str, Any]] = [{"k": 69}, {"m": 19}, {"n": 19}, {"a_row": 156}, {"a_addr": 4}, {"b_addr": 8196}]


@pytest.mark.parametrize(("base", "other"), [
    *((base, other) for base in (BYTES, KEYS, VALUES) for other in OTHERS),
    (BYTES, {"b_n": 76}), (BYTES, {"a_dtype": "i8"}), (BYTES, {"a_dtype": "i16"}), (BYTES, {"a_dtype": "u16"}),
    (KEYS, {"b_n": 148}), (VALUES, {"b_k": 44}), (KEYS, {"a_dtype": "u16"}), (KEYS, {"b_dtype": "i8", "b_k": 1}),
    *((base, None) for base in (BYTES, KEYS, VALUES)),
])  # fmt: skip
def test_products_that_differ_a_little_share_nothing_wrong(base: dict[str, Any], other: dict[str, Any] | None) -> None:
    """A MATMUL, one that differs or a LOAD over the last byte that its columns are made from, and the first again."""
    array = {**LARGE["mac_array"], "acc_bits": 40, "acc_rows": 64, "cols": 64, "rows": 64}
    state = MachineState(Machine.model_validate({**LARGE, "mac_array": array}), DRAM)
    state.sram[:] = np.random.default_rng(3).integers(0, 256, state.sram.size)
    state.dram[:] = 85
    m, k, n = 20, 70, 20
    records = state.vector("param", 0, RECORD, n)
    records["multiplier"], records["shift"], records["zero_point"] = 20000, 24, 7 if base is BYTES else 0
    shape = {"m": m, "k": k, "n": n, "batch0": 1, "batch1": 1, "out_dtype": "i32", "out_row": 80, "rq_mode": "channel"}
    first, again = (make("matmul", b_addr=8192, out_addr=at, **shape, **base) for at in (16384, 24576))
    if other is None:
        last = 8192 + (n - 1) * base["b_n"] + (k - 1) * base["b_k"] + WIDTH[base["b_dtype"]] - 1
        middle = make("load", unit=UNITS.index("load"), local_addr=last, row_bytes=1, rows=1, planes=1)
    else:
        middle = make("matmul", **{"b_addr": 8192, "out_addr": 20480, **shape, **base, **other})
    code = [first, middle, again]
    assert stream.Session(state.copy(), stream.Code(code), stream.HANDLERS).run(0, 3) == 3
    twin = state.copy()
    engine.execute(state, code)
    reference.execute(twin, code)
    assert state.difference(twin) is None


def test_both_forms_give_one_table() -> None:
    """Of every instruction, each field at its ends or anything between."""

    @settings(max_examples=200)
    @given(st.sampled_from(ALL).flatmap(lambda spec: st.tuples(st.just(spec), any_fields(spec))))
    def check(drawn: Any) -> None:
        spec, fields = drawn
        words = encode(spec, fields)
        assert np.array_equal(table_of_words(words), table_of([decode_row(words.tolist(), BY_OPCODE)]))

    check()


def slipped(handler: Any, **names: Any) -> Any:
    """A handler, or a function that one calls, with other global ``names``."""
    function = getattr(handler, "py_func", handler)
    return FunctionType(function.__code__, {**function.__globals__, **names})


def half_down(builder: Any, product: Any, rounding: Any, shift: Any) -> Any:
    """As `npusim.engine.lanes.rounded`, with ties to -infinity."""
    return builder.ashr(builder.add(product, builder.sub(rounding, rounding.type([1] * rounding.type.count))), shift)


LANES = ("ewlin", "table", "matmul")
"""They round in LLVM code, and take seconds to compile."""


@pytest.mark.parametrize("op", ["ewmul", "lnapply", *(pytest.param(op, marks=pytest.mark.slow) for op in LANES)])
def test_a_rounding_slip_in_a_handler_is_seen(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = numba.njit(SLIPS["half down"])
    names: dict[str, Any] = {"rescale": wrong}
    if op in LANES:
        monkeypatch.setattr(lanes, "rounded", half_down)
    if op == "matmul":  # what calls `npusim.engine.finish.finish` is compiled by itself, so anew
        names["_requantize"] = numba.njit(stream_matmul._requantize.py_func)
    state, ins = tied(op), TIES[op]
    assert takes(state, ins)
    monkeypatch.setattr(stream, "callback", lambda function, signature: numba.cfunc(signature)(function))  # not on disk
    monkeypatch.setitem(stream.HANDLERS, op, slipped(stream.HANDLERS[op], **names))
    assert not agree(state, ins)


def test_what_a_handler_declines_is_untouched() -> None:
    """An undefined record, found behind all checks of places, stops the run before anything is written."""
    state = MachineState(machine(), DRAM)
    code = stream.Code(np.concatenate([assemble("token unit=vector"), assemble(
        "recip unit=vector rows=3 sum_addr=0 out_addr=64 multiplier=0x40000000 shift=31")]))  # fmt: skip
    state.vector("sram", 0, np.int32, 3)[:] = [5, 0, 7]
    before = state.copy()
    progress = engine.progress(state, code)
    assert next(progress) == 1
    with pytest.raises(ValueError, match="is not positive"):
        next(progress)
    assert state.difference(before) is None


def test_held_sums_pass_between_handlers_and_kernels() -> None:
    """On each of two arrays three MATMULs go on from one another; no handler takes those in the middle, which shift."""
    state = MachineState(machine(acc_bits=40), DRAM)
    state.sram[:] = np.random.default_rng(7).integers(0, 256, state.sram.size)
    state.vector("param", 0, RECORD, 1)["multiplier"], state.vector("param", 0, RECORD, 1)["shift"] = 20000, 17
    shape: dict[str, Any] = {"m": 7, "k": 40, "n": 5, "batch0": 1, "batch1": 1, "a_dtype": "i8", "b_dtype": "i8"}
    shape |= {"out_dtype": "i32", "a_row": 40, "b_addr": 4096, "b_n": 40, "b_k": 1, "out_addr": 8192, "out_row": 20}
    chain: list[dict[str, Any]] = [
        {"acc_hold": 1},
        {"acc_hold": 1, "acc_continue": 1, "shifted": 1, "shift_addr": 64, "a_addr": 512},
        {"acc_continue": 1, "a_addr": 1024},
    ]
    others = {UNITS.index("mac"): {}, UNITS.index("mac2"): {"m": 3, "n": 4, "b_addr": 5000, "out_addr": 9000}}
    fields = [shape | link | {"unit": unit} | other for link in chain for unit, other in others.items()]
    code = [make("matmul", **each) for each in fields]
    twin = state.copy()
    session = stream.Session(state.copy(), stream.Code(code), stream.HANDLERS)
    assert [session.run(0, 6), session.run(2, 6)] == [2, 2]
    engine.execute(state, code)
    reference.execute(twin, code)
    assert state.difference(twin) is None
    assert state.tallies == twin.tallies


@pytest.mark.parametrize("values", [[-(1 << 15)], [-(1 << 15), (1 << 15) - 1, -1, 255, -256]])
@pytest.mark.parametrize(("m", "k", "n"), [(7, 5, 3), (17, 448, 33), (17, 449, 33), (3, 1100, 20)])
@pytest.mark.parametrize("keys", [True, False])
def test_words_at_their_ends(values: list[int], m: int, k: int, n: int, keys: bool) -> None:
    """16 by 16 bits, whose bytes' products come close to int32 at 448 k where they are not added apart."""
    array = {**LARGE["mac_array"], "acc_bits": 48, "acc_rows": 64, "cols": 64, "rows": 64}
    state = MachineState(Machine.model_validate({**LARGE, "mac_array": array}), DRAM)
    state.sram.view(np.int16)[:] = np.random.default_rng(m).choice(values, state.sram.size // 2)
    record = state.vector("param", 0, RECORD, 1)
    record["multiplier"], record["shift"] = 20000, 30
    b = {"b_k": 2, "b_n": 2 * k} if keys else {"b_k": 2 * n, "b_n": 2}
    places = {"a_row": 2 * k, "b_addr": 2 * m * k, "out_addr": 2 * (m + n) * k, "out_row": 4 * n}
    ins = make(
        "matmul", m=m, k=k, n=n, batch0=1, batch1=1, a_dtype="i16", b_dtype="i16", out_dtype="i32", **b, **places
    )
    assert takes(state, ins)
    assert agree(state, ins)


@pytest.mark.parametrize(("largest", "taken"), [(16383, True), (16384, False), (-16383, True), (-32768, False)])
def test_what_a_holds_decides_where_its_type_could_overflow(largest: int, taken: bool) -> None:
    """1024 products by -2^15 stay below 2^39 if a is below 2^14; by its type it could be twice as large."""
    array = {**LARGE["mac_array"], "acc_bits": 40, "acc_rows": 64, "cols": 64, "rows": 64}
    state = MachineState(Machine.model_validate({**LARGE, "mac_array": array}), DRAM)
    m, k, n = 3, 1024, 5
    words = state.sram.view(np.int16)
    words[: 2 * m * k], words[2 * m * k :] = np.sign(largest), -(1 << 15)
    words[2 * m * k - 1] = largest  # the last element of the last batch
    record = state.vector("param", 0, RECORD, 1)
    record["multiplier"], record["shift"] = 20000, 30
    batches = {"batch0": 1, "batch1": 2, "a_b1": 2 * m * k, "out_b1": 4 * m * n}
    places = {
        "a_row": 2 * k,
        "b_addr": 4 * m * k,
        "b_k": 2,
        "b_n": 2 * k,
        "out_addr": 2 * (2 * m + n) * k,
        "out_row": 4 * n,
    }
    ins = make("matmul", m=m, k=k, n=n, a_dtype="i16", b_dtype="i16", out_dtype="i32", **batches, **places)
    assert takes(state, ins) == taken
    assert agree(state, ins)


@pytest.mark.parametrize(("multiplier", "shift", "zero_point", "taken"), [
    (65535, 7, 0, True), (65535, 7, 32766, True), (65535, 7, 32767, False), (65535, 6, 0, False), (65535, 1, 0, False),
    (40000, 1, -(1 << 31), False), (1, 1, (1 << 31) - 1, False), (1, 23, -(1 << 31) + 3, True),
])  # fmt: skip
@pytest.mark.parametrize("out", ["u8", "i16", "u16"])
def test_a_table_is_taken_where_its_results_fit_int32(
    multiplier: int, shift: int, zero_point: int, taken: bool, out: str
) -> None:
    """Interpolated values have 23 bits; 65535 * 2^22 >> 7 is 2^31 - 2^15."""
    state = MachineState(machine(), DRAM)
    state.sram.view(np.int16)[:512] = np.linspace(-32768, 32767, 512).astype(np.int16)
    state.vector("param", 0, np.int16, 513)[:] = np.resize([-32768, 32767, -32768, -32768, 32767], 513)
    ins = make(
        "table", rows=4, cols=100, a_row=200, out_addr=2048, out_row=200, multiplier=multiplier, shift=shift,
        out_zp=zero_point, out_dtype=out,
    )  # fmt: skip
    assert takes(state, ins) == taken
    assert agree(state, ins)


@pytest.mark.parametrize(("kind", "weights"), [("u8", "i8"), ("i8", "i8"), ("i16", "i8"), ("i16", "i16")])
@pytest.mark.parametrize("mode", ["tensor", "row"])
def test_results_beyond_int32_are_clamped(kind: str, weights: str, mode: str) -> None:
    """Whether sums are requantized in 32 bits or in 64 is decided from what they could be; here they are that."""
    array = {**LARGE["mac_array"], "acc_bits": 40, "acc_rows": 64, "cols": 64, "rows": 64}
    on = Machine.model_validate({**LARGE, "mac_array": array})
    m, k, n = 18, 64, 20
    a, b = -(-m * k * WIDTH[kind] // 64) * 64, -(-n * k * WIDTH[weights] // 64) * 64
    for shift in range(1, 26):
        state = MachineState(on, DRAM)
        state.sram[: a + b] = 0x80  # the greatest magnitude of signed bytes
        if WIDTH[kind] == 2:
            state.sram[:a].view(np.int16)[:] = -(1 << 15)
        if WIDTH[weights] == 2:
            state.sram[a : a + b].view(np.int16)[:] = -(1 << 15)
        if mode == "row":
            records = state.vector("sram", 1 << 17, ROW_RECORD, m)
        else:
            records = state.vector("param", 0, RECORD, 1)
        records["multiplier"], records["shift"] = 32767, shift
        ins = make(
            "matmul", m=m, k=k, n=n, batch0=1, batch1=1, a_dtype=kind, b_dtype=weights, out_dtype="i32", rq_mode=mode,
            a_row=k * WIDTH[kind], b_addr=a, b_k=WIDTH[weights], b_n=k * WIDTH[weights], out_addr=1 << 16,
            out_row=4 * n, rq_addr=1 << 17 if mode == "row" else 0, out_zp=(-1) ** shift * (1 << 30),
        )  # fmt: skip
        assert takes(state, ins)
        assert agree(state, ins)


@pytest.mark.parametrize(("k", "n", "taken"), [(4608, 2048, True), (4608, 2049, False)])
def test_columns_are_packed_where_there_is_room(k: int, n: int, taken: bool) -> None:
    """9 MiB of weights fit; with more, the kernels take them."""
    on = Machine.model_validate({
        **LARGE, "sram": {**LARGE["sram"], "capacity_bytes": 1 << 24},
        "mac_array": {**LARGE["mac_array"], "acc_bits": 40, "acc_rows": 64, "cols": 64, "rows": 64},
    })  # fmt: skip
    state = MachineState(on, DRAM)
    state.sram[:] = np.random.default_rng(n).integers(0, 256, state.sram.size)
    record = state.vector("param", 0, RECORD, 1)
    record["multiplier"], record["shift"] = 20000, 30
    ins = make(
        "matmul", m=2, k=k, n=n, batch0=1, batch1=1, a_dtype="u8", b_dtype="i8", out_dtype="i16", a_row=k,
        b_addr=2 * k, b_k=1, b_n=k, out_addr=(n + 2) * k, out_row=2 * n,
    )  # fmt: skip
    assert takes(state, ins) == taken
    assert agree(state, ins)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_the_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of instructions, each of which needs rows that the other thread wrote for the one before."""
    monkeypatch.setattr(stream.SETTINGS, "NUMBA_NUM_THREADS", threads)
    monkeypatch.setattr(stream, "SHARED_MACS", 0)
    monkeypatch.setattr(stream, "pool", lambda process: ThreadPoolExecutor(threads - 1))
    state = MachineState(machine(acc_bits=40), DRAM)
    state.sram[:] = np.random.default_rng(9).integers(0, 256, state.sram.size)
    state.vector("param", 0, RECORD, 1)["multiplier"], state.vector("param", 0, RECORD, 1)["shift"] = 20000, 27
    code = stream.Code(assemble(CHAIN * 20))
    assert code.parts == threads
    twin, session = state.copy(), stream.Session(state, code, stream.HANDLERS)
    assert session.run(0, len(code)) == len(code)
    reference.execute(twin, [code.decoded(index) for index in range(len(code))])
    assert state.difference(twin) is None
    assert state.tallies == twin.tallies


CHAIN = """
ewlin unit=vector a_addr=0 a_row=128 b_addr=0xffffffff a_mul=3 out_addr=8192 out_row=64 rows=64 cols=64 batch=1 \
a_dtype=i16 out_dtype=u8 shift=8 out_zp=100 a_mul_addr=0xffffffff b_mul_addr=0xffffffff bias_addr=0xffffffff
matmul unit=mac m=64 k=64 n=64 batch0=1 batch1=1 a_dtype=u8 b_dtype=i8 out_dtype=i16 rq_mode=tensor a_addr=8192 \
a_row=64 b_addr=8192 b_k=1 b_n=64 out_addr=16384 out_row=128
store unit=store local_addr=16384 local_row=128 dram_row=64 row_bytes=64 rows=64 planes=1
load unit=load local_addr=256 local_row=128 dram_row=64 row_bytes=64 rows=63 planes=1
"""
"""What it ends with is what it begins with: each instruction reads other rows than those that its thread wrote."""
