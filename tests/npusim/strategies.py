"""A machine that has everything, arrays of any kind, and a program written by hand, for the simulator's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from npusim.config import Machine, load_machine
from npusim.isa.assembly import assemble
from npusim.isa.encoding import Instruction
from npusim.program import Buffer, Program
from npusim.testing.cases import DRAM_BYTES as DRAM
from npusim.testing.cases import Case, fill, make
from npusim.testing.matmuls import matmuls
from npusim.testing.strategies import families

__all__ = ["DRAM", "FAMILIES", "PARAM", "Case", "any_fields", "fill", "machine", "make", "small_program"]

TINY: dict[str, Any] = load_machine(Path(__file__).resolve().parents[2] / "hwconfigs" / "tiny_8x8.yaml").model_dump()
BANK = 1024
TINY["param_memory"]["bank_bytes"] = BANK
TINY["vector_unit"]["runtime_quantization"] = True
PARAM = TINY["param_memory"]["capacity_bytes"] - BANK


def machine(**array: Any) -> Machine:
    """The tiny machine with parameter banks, run-time quantization and other ``mac_array`` fields."""
    return Machine.model_validate({**TINY, "mac_array": {**TINY["mac_array"], **array}})


@st.composite
def arrays(draw: st.DrawFn) -> Machine:
    """MAC arrays of any accumulator width, overflow mode and rounding; few rows, so that sums have several folds."""
    bits = draw(st.sampled_from([24, 25, 32, 40, 48]))
    wide = bits <= 32 and draw(st.booleans())
    rounding = draw(st.sampled_from(["single", "double"])) if wide else "single"
    overflow = draw(st.sampled_from(["saturate", "wrap", "trap"]))
    return machine(
        rows=draw(st.sampled_from([1, 3, 8, 64])), acc_bits=bits, overflow=overflow,
        requant_multiplier_bits=32 if wide else 16, requant_rounding=rounding,
        factored_requant=rounding == "single", acc_rows=64, cols=32,
        dataflow=draw(st.sampled_from(["weight_stationary", "output_stationary", "input_stationary"])),
        a4w4_per_cell=draw(st.sampled_from([1, 2])), row_sum_column=draw(st.booleans()),
    )  # fmt: skip


FAMILIES: dict[str, st.SearchStrategy[Case]] = families(machine()) | {"matmul": arrays().flatmap(matmuls)}
"""Every instruction that computes or moves, by name of its strategy."""


@st.composite
def any_fields(draw: st.DrawFn, spec: Instruction) -> dict[str, int]:
    """A value for every field of an instruction but the opcode, legal to encode though not always to execute."""
    values = {}
    for f in spec.by_name.values():
        if f.name != "opcode":
            high = len(f.names) - 1 if f.names else f.high
            values[f.name] = draw(st.one_of(st.sampled_from([f.low, high]), st.integers(f.low, high)))
    return values


def small_program(edit: Callable[[dict[str, Any]], None] | None = None) -> Program:
    """Two steps that add the step's noise to a state of 16 values; ``edit`` changes the constructor's arguments."""
    values: dict[str, Any] = {
        "machine": machine(),
        "prologue": assemble("barrier unit=vector\n"),
        "step": assemble(
            "load unit=load dram_addr=0x140 memory=sram local_addr=0 row_bytes=64 rows=1 planes=1\n"
            "load unit=load base=2 memory=sram local_addr=0x40 row_bytes=32 rows=1 planes=1\n"
            "load unit=load base=1 memory=param local_addr=0 row_bytes=64 rows=1 planes=1 signal_raw=8\n"
            "ewlin unit=vector a_addr=0 b_addr=0x40 out_addr=0 rows=1 cols=16 batch=1 a_dtype=i32 b_dtype=i16 "
            "out_dtype=i32 shift=1 a_mul=2 b_mul=3 a_mul_addr=0xffffffff b_mul_addr=0xffffffff bias_addr=0 layer=1 "
            "wait_raw=1 signal_raw=2\n"
            "store unit=store dram_addr=0x140 memory=sram local_addr=0 row_bytes=64 rows=1 planes=1 wait_raw=8\n"
            "barrier unit=vector\n"
        ),
        "constants": np.arange(64, dtype=np.uint8),
        "sets": np.arange(128, dtype=np.uint8).reshape(2, 64) % 2,
        "range_sets": np.zeros((1, 0), np.uint8),
        "set_address": 64,
        "range_address": 192,
        "range_of_step": (0, 0),
        "dram_bytes": 0x200,
        "buffers": {"noise": Buffer(0xC0, "i16", (2, 16)), "state": Buffer(0x140, "i32", (16,))},
        "layers": ("", "sampler.add"),
        "host": {"state_fraction_bits": 24},
    }
    if edit:
        edit(values)
    return Program(**values)
