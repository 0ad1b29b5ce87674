"""Operands of every family as the family itself asks for them: complete, and inside its footprint."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC
from npusim.memory import MachineState
from npusim.operands import Access, accesses
from tests.npusim.strategies import DRAM, FAMILIES, Case, machine, make


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_operands_cover_the_footprint(family: str, data: st.DataObject) -> None:
    case: Case = data.draw(FAMILIES[family])
    found = accesses(case.ins, case.state.machine)
    reads, writes = BY_MNEMONIC[case.ins.op].footprint(case.ins)
    regions = [(a.memory, a.start, a.end, a.base, a.written) for a in found]
    assert regions == [(r.memory, r.start, r.end, r.base, w) for w, rs in ((False, reads), (True, writes)) for r in rs]
    for access in found:
        assert getattr(case.ins, f"{access.name}_addr", access.start) == access.start
        if access.shape:
            assert span(access) == access.end - access.start
            last = tuple(count - 1 for count in access.shape)
            assert access.address((0,) * len(access.shape)) == access.start
            assert access.address(last) <= access.end - -(-access.bits // 8)
            assert access.values(case.state).shape == access.shape
        assert access.name or case.ins.op == "pswitch"  # which exchanges memories and has no address
        assert access.shape or not access.written or case.ins.op == "pswitch"


def span(access: Access) -> int:
    """Bytes from the first element's first to the last one's last."""
    gaps = sum((count - 1) * stride for count, stride in zip(access.shape, access.strides, strict=True))
    elements = access.shape[-1] if access.bits < 8 else 1
    return gaps + -(-elements * access.bits // 8)


def test_a_matmul_by_hand() -> None:
    ins = make(
        "matmul", a_addr=0x100, a_row=40, b_addr=0x100, b_k=1, b_n=16, out_addr=0x200, out_row=64, m=3, k=16, n=5,
        batch0=1, batch1=2, out_b1=200, a_dtype="i16", b_dtype="i8", out_dtype="i32", rq_mode="channel", rq_addr=0x100,
    )  # fmt: skip
    a, b, rq, out = accesses(ins, machine())
    assert a == Access("a", "sram", 0x100, 0x100 + 2 * 40 + 32, 0, False, "i16", (1, 2, 3, 16), (0, 0, 40, 2))
    assert b == Access("b", "sram", 0x100, 0x100 + 4 * 16 + 16, 0, False, "i8", (1, 2, 5, 16), (0, 0, 16, 1))
    assert (rq.name, rq.memory, rq.start, rq.end, rq.shape) == ("rq", "param", 0x100, 0x100 + 60, (5,))
    assert rq.type_name == "record(bias_low, bias_high, zero_point, shift, multiplier)"
    assert (out.written, out.dtype, out.shape, out.strides) == (True, "i32", (1, 2, 3, 5), (0, 200, 64, 4))
    assert out.address((0, 1, 2, 3)) == 0x200 + 200 + 2 * 64 + 3 * 4


def test_a_large_matmul_is_not_computed(edge_machine: Machine) -> None:
    """19 GMAC, minutes on the reference; and its operands, of 26 MB, are not made up either."""
    ins = make(
        "matmul", m=4096, k=1152, n=4608, batch0=1, batch1=1, a_row=1152, b_k=1, b_n=1152, b_addr=1 << 23, b_dtype="i8",
        out_addr=1 << 24, out_row=4608, rq_mode="channel",
    )  # fmt: skip
    start = time.perf_counter()
    found = accesses(ins, edge_machine)
    assert time.perf_counter() - start < 1
    assert [access.name for access in found] == ["a", "b", "rq", "out"]
    assert all(access.shape for access in found)


def test_packed_elements_share_a_byte() -> None:
    packed = Access("out", "sram", 10, 16, 0, True, "u6", (2, 4), (3, 0))
    assert [packed.address((0, i)) for i in range(4)] == [10, 10, 11, 12]
    assert packed.address((1, 0)) == 13
    state = MachineState(machine(), DRAM)
    state.sram[10:16] = [0b01_000001, 0b0011_0000, 0b000100_00, 5, 0, 0]
    assert packed.values(state).tolist() == [[1, 1, 3, 4], [5, 0, 0, 0]]


def test_a_copy_by_hand() -> None:
    fields = {"rows": 2, "row_bytes": 8, "planes": 1, "dram_row": 16, "local_row": 8}
    dram, local = accesses(make("load", base=2, dram_addr=4, local_addr=4, memory="param", **fields), machine())
    assert dram == Access("dram", "dram", 4, 28, 2, False, "u8", (1, 2, 8), (0, 16, 1))
    assert local == Access("local", "param", 4, 20, 0, True, "u8", (1, 2, 8), (0, 8, 1))
    assert np.prod(local.shape) == 16
