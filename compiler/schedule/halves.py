"""Cuts an instruction into two that do half of it each, so that two units of a kind can share it.

A cut goes through rows or batches, never through columns or the reduction: what one half writes lies in ranges of bytes
that the other does not touch, since who waits for whom is known by ranges (`compiler.accesses`), not columns in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

from npusim.config import Machine
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import NO_ADDRESS, Decoded, Region
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import ROW_RECORD, RQ_MODES, SCALARS
from npusim.units import kind_of

Strides = Mapping[str, int]
"""By address field: how far it moves for the next place of a dimension."""

WORTH = 0.75
"""The longer half takes at most this share of the cycles, else there is no cut."""


def halves(ins: Decoded, machine: Machine) -> tuple[Decoded, Decoded] | None:
    """The two instructions, or None where a cut gains nothing or the machine has one unit of that kind."""
    if ins.op not in _DIMENSIONS or machine.unit_counts[kind_of(ins.unit)] == 1:
        return None
    cycles = BY_MNEMONIC[ins.op].cycles
    best, least = None, WORTH * cycles(ins, machine)
    for pair in _cuts(ins, machine):
        longest = max(cycles(half, machine) for half in pair)
        if longest < least:
            best, least = pair, longest
    return best


def _cuts(ins: Decoded, machine: Machine) -> Iterator[tuple[Decoded, Decoded]]:
    """All legal pairs."""
    spec = BY_MNEMONIC[ins.op]
    for dimension, strides in _DIMENSIONS[ins.op](ins).items():
        count = getattr(ins, dimension)
        first = -(-count // 2)
        if count == first:
            continue
        moved = {at: getattr(ins, at) + first * by for at, by in strides.items() if getattr(ins, at) != NO_ADDRESS}
        pair = _with(ins, {dimension: first}), _with(ins, {dimension: count - first, **moved})
        one, other = (spec.footprint(half) for half in pair)
        meet = _overlap(one[1], [*other[0], *other[1]]) or _overlap(other[1], one[0])
        if not meet and not any(spec.check(half, machine) for half in pair):
            yield pair


def _overlap(one: list[Region], other: list[Region]) -> bool:
    """Whether a byte lies in both."""
    return any(a.meets(b) for a in one for b in other)


def _with(ins: Decoded, fields: Mapping[str, int]) -> Decoded:
    return SimpleNamespace(**{**vars(ins), **fields})


def _matmul(ins: Decoded) -> dict[str, Strides]:
    """Held sums stay whole. Tables of rows lie batch behind batch."""
    if ins.acc_hold or ins.acc_continue:
        return {}
    table = {"row": ("rq_addr", ROW_RECORD.itemsize), "factored_row": ("scalars_addr", SCALARS.itemsize)}
    rows = {"batch0": ins.batch1 * ins.m, "batch1": ins.m, "m": 1}
    found: dict[str, dict[str, int]] = {
        "batch0": {"a_addr": ins.a_b0, "b_addr": ins.b_b0, "out_addr": ins.out_b0},
        "batch1": {"a_addr": ins.a_b1, "b_addr": ins.b_b1, "out_addr": ins.out_b1},
        "m": {"a_addr": ins.a_row, "out_addr": ins.out_row},
    }
    if mode := table.get(RQ_MODES[ins.rq_mode]):
        for dimension, strides in found.items():
            strides[mode[0]] = rows[dimension] * mode[1]
        # What is left of the outer dimensions must be one, so that the table's part has no gaps.
        del found["batch1" if ins.batch0 > 1 else "batch0"]
        if ins.batch0 * ins.batch1 > 1:
            del found["m"]
    return dict(found)


def _planes(ins: Decoded) -> dict[str, Strides]:
    return {
        dimension: {f"{name}_addr": getattr(ins, f"{name}_{stride}") for name in ("a", "b", "out")}
        for dimension, stride in (("batch", "batch"), ("rows", "row"))
    }


def _matrices(ins: Decoded) -> dict[str, Strides]:
    return {"batch": {"a_addr": ins.a_batch, "out_addr": ins.out_batch}}


def _rows(*addresses: str, **records: int) -> Callable[[Decoded], dict[str, Strides]]:
    """Of an instruction by rows: ``addresses`` have a stride of their own, ``records`` are of that many bytes a row."""

    def of(ins: Decoded) -> dict[str, Strides]:
        own = {f"{name}_addr": getattr(ins, f"{name}_row") for name in addresses}
        return {"rows": own | {f"{name}_addr": size for name, size in records.items()}}

    return of


_DIMENSIONS: dict[str, Callable[[Decoded], dict[str, Strides]]] = {
    "matmul": _matmul,
    "ewlin": _planes,
    "ewmul": _planes,
    "transpose": _matrices,
    "table": _rows("a", "out"),
    "table8": _rows("a", "out"),
    "lnstat": _rows("a", stat=STATISTICS.itemsize),
    "lnapply": _rows("a", "out", stat=STATISTICS.itemsize),
    "smexp": _rows("a", "out", sum=4),
    "recip": _rows(sum=4, out=ROW_RECORD.itemsize),
    "rtquant": _rows("a", "out", scalars=SCALARS.itemsize),
}
