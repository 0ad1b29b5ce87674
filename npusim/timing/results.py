"""What a timing run returns. Cycles are NPU cycles, all counts are whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from npusim.timing.core import CAUSES

Ledger = Mapping[str, Mapping[str, int]]
"""Cycles by unit (`npusim.config.Machine.units`) and cause (`npusim.timing.core.CAUSES`)."""


@dataclass(frozen=True)
class _Counts:
    """Counts by field, which add up."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, count: int) -> Self:
        """The same work ``count`` times."""
        return type(self)(*(getattr(self, f.name) * count for f in fields(self)))


@dataclass(frozen=True)
class Traffic(_Counts):
    """Bytes at each level, and products.

    On-chip bytes count every element of every operand window once for each instruction, read or written, whatever the
    array or the lanes keep or fetch again inside the instruction: repeated rows (stride 0) count each time, gaps
    between rows do not, a per-channel vector or a table counts once.

    Attributes:
        dram_read_bytes: moved on the DRAM bus by LOAD: of each contiguous run every burst that it touches.
        dram_write_bytes: the same for STORE.
        load_bytes: asked for by LOAD, without that rounding.
        store_bytes: asked for by STORE.
        param_load_bytes: the part of ``load_bytes`` that goes to parameter memory; the rest goes to SRAM.
        sram_read_bytes: read from SRAM by STORE, the MAC array and the vector unit.
        sram_write_bytes: written to SRAM by LOAD, the MAC array and the vector unit.
        param_read_bytes: read from parameter memory by STORE, the MAC array and the vector unit.
        instruction_fetch_bytes: 128 for each instruction executed; fetch costs no cycles and no DRAM bandwidth here.
        mac_operations: products of MATMUL that the result needs, m k n for each batch; padding of the array is not in
            it.
        storage_read_bytes: read from storage by FETCH, coded or not.
        fetch_bytes: asked for by FETCH.
        decoded_bytes: the part of ``fetch_bytes`` that storage holds coded.
        dram_fetch_bytes: moved on the DRAM bus by FETCH, in whole bursts, written or (of coded sets, the old bytes)
            read; they are in no other figure.
    """

    dram_read_bytes: int = 0
    dram_write_bytes: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    param_load_bytes: int = 0
    sram_read_bytes: int = 0
    sram_write_bytes: int = 0
    param_read_bytes: int = 0
    instruction_fetch_bytes: int = 0
    mac_operations: int = 0
    storage_read_bytes: int = 0
    fetch_bytes: int = 0
    decoded_bytes: int = 0
    dram_fetch_bytes: int = 0


@dataclass(frozen=True)
class DramCounts(_Counts):
    """What the DRAM did.

    Attributes:
        row_hits: bursts of LOAD, STORE and FETCH that found their row open, or being opened for another burst.
        row_misses: those for which a row was opened.
        refreshes: refresh commands, one channel each.
        background_bursts: bursts of the background traffic that were served.
    """

    row_hits: int = 0
    row_misses: int = 0
    refreshes: int = 0
    background_bursts: int = 0


@dataclass(frozen=True)
class LayerTiming:
    """One layer's share of a piece of code; barriers belong to no layer.

    ``busy_cycles`` by unit; the layer's first instruction starts at ``start_cycle`` and its last one ends at
    ``end_cycle``. Spans of different layers may overlap.
    """

    busy_cycles: Mapping[str, int]
    start_cycle: int
    end_cycle: int
    traffic: Traffic

    @property
    def span_cycles(self) -> int:
        return self.end_cycle - self.start_cycle


@dataclass(frozen=True, eq=False)
class CodeTiming:
    """Timing of one piece of code.

    ``ledger[unit]`` sums to ``total_cycles`` for every unit. ``start_cycle`` and ``end_cycle``: int64 (instructions,),
    the instruction occupies ``start <= t < end``. ``wait_bank_cycles``: how many of these it waited for ports.
    ``layers`` by the number in the instruction's ``layer`` field.
    """

    total_cycles: int
    ledger: Ledger
    start_cycle: NDArray[np.int64]
    end_cycle: NDArray[np.int64]
    wait_bank_cycles: NDArray[np.int64]
    traffic: Traffic
    dram: DramCounts
    layers: Mapping[int, LayerTiming]


@dataclass(frozen=True, eq=False)
class ProgramTiming:
    """Timing of a whole program: the prologue once, then of each step the code that it runs.

    ``codes``: the timing of each step code, ``code_of_step`` which of them a step runs; ``step`` is the first of them.
    ``mac_utilisation`` is ``mac_operations`` over what all arrays could do at their 8-bit rate in ``cycles``: 16-bit
    operands, edge tiles and waiting all lower it. ``dram_bandwidth_share`` is the bytes that LOAD, STORE and FETCH move
    on the bus over what all channels could move in all ``cycles``. ``ledger``, ``traffic`` and ``dram`` are those of
    the whole program.
    """

    prologue: CodeTiming
    step: CodeTiming
    steps: int
    cycles: int
    seconds: float
    mac_utilisation: float
    dram_bandwidth_share: float
    traffic: Traffic
    dram: DramCounts
    ledger: Ledger
    codes: tuple[CodeTiming, ...] = ()
    code_of_step: tuple[int, ...] = ()

    def step_cycles(self, step: int) -> int:
        """Cycles of denoising step ``step``."""
        return self.codes[self.code_of_step[step]].total_cycles


def summed(first: Ledger, second: Ledger, times: int) -> Ledger:
    """``first + times * second``, unit by unit and cause by cause."""
    return {unit: {cause: first[unit][cause] + times * second[unit][cause] for cause in CAUSES} for unit in first}
