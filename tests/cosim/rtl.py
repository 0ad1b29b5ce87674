"""The matrix unit's SystemVerilog as a Python object: verilated, compiled with `harness.cpp`, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from npusim.config import Machine
from npusim.isa.encoding import Decoded
from npusim.memory import MachineState
from npusim.rtl import TOP, write_rtl

HARNESS = Path(__file__).with_name("harness.cpp")
TOOLS = {"verilator": "verilator", "g++": "g++", "make": "make"}
"""Programs that a build calls, and the Debian packages that hold them."""

_runtime: list[Path] = []
"""Verilator's own objects, left by the first build of this process: half of a small unit's compilation."""

CYCLE_LIMIT = 10_000_000

FIELDS = (
    "a_addr a_row a_b0 a_b1 b_addr b_k b_n b_b0 b_b1 out_addr out_row out_b0 out_b1 "
    "m k n batch0 batch1 rq_addr a_dtype b_dtype out_dtype rq_mode out_zp "
    "acc_continue acc_hold shifted fraction_bits shift_addr scalars_addr"
).split()
RESULTS = "start_cycle done_cycle values stray trap".split()


class Job(ctypes.Structure):
    """One instruction with its memories; the same fields in the same order as in `harness.cpp`."""

    _fields_ = [
        ("sram", ctypes.c_void_p),
        ("param", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in FIELDS + RESULTS),
    ]


@dataclass(frozen=True)
class Outcome:
    """What the unit did with one instruction; its results stand in the state's SRAM.

    ``cycles`` from the first weight row to the last result; ``gap`` idle cycles since the instruction before;
    ``values`` written inside the output and ``stray`` outside of it.
    """

    cycles: int
    gap: int
    values: int
    stray: int
    trap: bool


def require_tools() -> None:
    """Fail the test where a program is missing: a check that does not run must not look like one that passes."""
    missing = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    if missing:
        pytest.fail(
            f"the RTL cannot be checked without {', '.join(missing)}. On Debian or Ubuntu, as root: apt-get update && "
            f"apt-get install -y --no-install-recommends {' '.join(TOOLS.values())} (`make verilator` does the same)"
        )


def run_tool(command: Sequence[str], folder: Path) -> str:
    """Output of a program, which runs in ``folder``; a failure shows the end of it."""
    # The variables of an enclosing `make` would give the inner one its job server and flags.
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        command, cwd=folder, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")
    return done.stdout


def build(machine: Machine, folder: Path) -> Path:
    """Compile the sources in ``folder``, as `write_rtl` left them there, to a shared object; return its path."""
    require_tools()
    array = machine.mac_array
    sizes = {"ROWS": array.rows, "COLS": array.cols, "REQUANT_LATENCY": array.requant_latency_cycles}
    sizes["OUTPUT_STATIONARY"] = int(array.dataflow == "output_stationary")
    # -fno-gnu-unique: units of several machines run in one process and must share no static data.
    macros = " ".join(f"-D{name}={value}" for name, value in sizes.items())
    objects = folder / "obj"
    objects.mkdir(exist_ok=True)
    for path in _runtime:
        shutil.copy(path, objects)
    keep = " ".join(f"-o {path.name}" for path in _runtime)  # make takes them as up to date
    run_tool(
        [
            "verilator", "--cc", "--exe", "--build", "-j", "2", "--top-module", TOP, "-f", "npu.f", str(HARNESS),
            "-Mdir", "obj", "-o", "libcosim.so", "--x-assign", "unique", "--x-initial", "unique",
            "-CFLAGS", f"-std=c++17 -fPIC -fno-gnu-unique {macros}", "-LDFLAGS", "-shared",
            "-MAKEFLAGS", f"OPT_FAST=-O1 OPT_GLOBAL=-O0 {keep}",  # compiling takes longer than running
        ],
        folder,
    )  # fmt: skip
    _runtime[:] = objects.glob("verilated*.o")
    return objects / "libcosim.so"


class MatrixUnit:
    """A running simulation; instructions go through it back to back and without a reset in between."""

    def __init__(self, machine: Machine, library: Path) -> None:
        self.machine = machine
        self._code = ctypes.CDLL(str(library))
        self._code.bench_new.restype = ctypes.c_void_p
        self._code.bench_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(Job), ctypes.c_int64, ctypes.c_int64]
        self._code.bench_run.restype = ctypes.c_int64
        self._bench = self._code.bench_new()

    def run(self, instructions: Sequence[Decoded], states: Sequence[MachineState]) -> list[Outcome]:
        """Run each instruction on its state; results are written to the states' SRAM.

        Raises AssertionError when the unit does not end within `CYCLE_LIMIT` cycles.
        """
        jobs = (Job * len(instructions))()
        for job, ins, state in zip(jobs, instructions, states, strict=True):
            job.sram, job.param = state.sram.ctypes.data, state.param.ctypes.data
            for name in FIELDS:
                setattr(job, name, getattr(ins, name))
        ended = self._code.bench_run(self._bench, jobs, len(jobs), CYCLE_LIMIT)
        if ended != len(jobs):
            raise AssertionError(f"instruction {ended} of {len(jobs)} did not end within {CYCLE_LIMIT} cycles")
        outcomes, before = [], None
        for job in jobs:
            first = job.start_cycle + 1
            gap = 0 if before is None else first - before
            outcomes.append(Outcome(job.done_cycle - first, gap, job.values, job.stray, bool(job.trap)))
            before = job.done_cycle
        return outcomes


def matrix_unit(machine: Machine, folder: Path) -> MatrixUnit:
    """Write, build and start the matrix unit of ``machine``."""
    write_rtl(machine, folder)
    return MatrixUnit(machine, build(machine, folder))
