"""The machines that stand for known accelerators: they load, time a product near their bound, and compute exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler import Builder, Graph, compile_graph
from compiler.graph import Value
from npusim.config import Machine, load_machine
from npusim.hw import derive
from npusim.testing import assert_same_bits
from npusim.timing import time_program

KNOWN = ("ethos_u85_like", "gemmini_like", "tpuv3_like")
PEAK_TOPS = {"ethos_u85_like": 4.096, "gemmini_like": 0.512, "tpuv3_like": 61.6}
"""As published: 4 TOPS, 16 x 16 cells at 1 GHz, half of a chip's 123 TFLOPS."""


@pytest.fixture(params=KNOWN)
def machine(request: pytest.FixtureRequest, repository: Path) -> Machine:
    return load_machine(repository / "hwconfigs" / f"{request.param}.yaml")


def gemm(m: int, k: int, n: int) -> Graph:
    rng = np.random.default_rng(4)
    net = Builder()
    x = net.input("x", (m, k), "i8")
    weight = rng.integers(-128, 128, (n, k), np.int8)
    net.output(net.linear("gemm", x, weight, "i8", multiplier=rng.integers(1 << 14, 1 << 15, n), shift=28))
    return net.graph()


def test_peak_rates_are_the_published_ones(machine: Machine) -> None:
    assert derive(machine).peak_tops == pytest.approx(PEAK_TOPS[machine.name], rel=0.01)


def test_a_product_takes_its_bound_and_little_more(machine: Machine) -> None:
    m, k, n = 512, 512, 1024
    timing = time_program(compile_graph(gemm(m, k, n), machine))
    moved = m * k + k * n + m * n  # each operand once
    bound = max(m * k * n / machine.peak_macs_per_cycle, moved / machine.dram_bytes_per_cycle)
    assert timing.traffic.mac_operations == m * k * n
    assert bound < timing.cycles < 1.8 * bound, timing.cycles / bound


def test_same_bits_everywhere(machine: Machine) -> None:
    rng = np.random.default_rng(5)
    net = Builder()
    x = net.input("x", (70, 48), "u8", zero_point=99)
    weight = rng.integers(0, 256, (72, 48), np.uint8)
    h = net.linear("fc", x, weight, "i16", weight_zp=rng.integers(90, 160, 72), multiplier=30000, shift=19, bias=-700)
    table = np.maximum(np.arange(513) * 128 - 32768, -1000).clip(max=32767)
    y = net.table("bend", h, table, Value("y", (70, 72), "u8", zero_point=10), multiplier=1 << 14, shift=28)
    net.output(net.linear("out", y, rng.integers(-128, 128, (20, 72), np.int8), "i16", multiplier=20000, shift=20))
    assert_same_bits(net.graph(), machine, orders=2)
