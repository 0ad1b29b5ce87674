"""``assert_golden``: written on demand, equal afterwards, and the first difference is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler import Builder, compile_graph
from npusim.config import Machine
from npusim.isa import decode
from npusim.program import Program
from npusim.testing import assert_golden
from tests.compiler.runs import altered


@pytest.fixture
def program(tiny_machine: Machine) -> Program:
    net = Builder()
    x = net.input("x", (3, 4), "i16")
    net.output(
        net.sum("add", x, net.rescale("scale", x, "i16", multiplier=5, shift=2), "i16", a_mul=1, b_mul=1, shift=1)
    )
    return compile_graph(net.graph(), tiny_machine)


@pytest.fixture
def golden(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "golden" / "add.txt"
    with pytest.raises(AssertionError, match=r"add\.txt: no such golden file; write it with NPUSIM_UPDATE_GOLDEN=1"):
        assert_golden(program, path)
    with monkeypatch.context() as patch:
        patch.setenv("NPUSIM_UPDATE_GOLDEN", "1")
        assert_golden(program, path)
    return path


def test_an_equal_program_is_accepted(program: Program, golden: Path) -> None:
    assert_golden(program, golden)
    lines = golden.read_text().splitlines()
    assert sum(line.startswith("ewlin ") for line in lines) == 2
    assert any(line.endswith("# scale") for line in lines)


def test_the_first_instruction_that_differs_is_shown(program: Program, golden: Path) -> None:
    index = next(i for i, ins in enumerate(decode(program.step)) if ins.op == "ewlin")
    message = rf"add\.txt: step instruction {index} differs: stored\n  ewlin .*a_mul=5.*# scale\nnow\n  ewlin .*a_mul=6"
    with pytest.raises(AssertionError, match=message):
        assert_golden(altered(program, "step", index, a_mul=6), golden)


@pytest.mark.parametrize(("change", "line"), [
    (lambda p: replace(p, constants=np.append(p.constants, 0).astype(np.uint8)), "# constants at 0 sha256"),
    (lambda p: replace(p, dram_bytes=p.dram_bytes + 1), "# steps 1 of ranges"),
    (lambda p: replace(p, machine=p.machine.model_copy(update={"barrier_cycles": 61})), "# machine tiny_8x8"),
    (lambda p: replace(p, layers=(*p.layers, "new")), "# layer 4 new"),
])  # fmt: skip
def test_a_difference_outside_the_code(
    program: Program, golden: Path, change: Callable[[Program], Program], line: str
) -> None:
    with pytest.raises(AssertionError, match=rf"the program's description differs: stored\n  .*(?s:.*)({line})"):
        assert_golden(change(program), golden)


def test_missing_instructions_are_a_difference(program: Program, golden: Path) -> None:
    with pytest.raises(AssertionError, match=r"step instruction \d+ differs"):
        assert_golden(replace(program, step=program.step[:-1]), golden)
