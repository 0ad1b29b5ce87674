"""Small networks with what the denoiser's methods do not reach: wide multipliers, mixed widths, odd rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler import Builder, Graph
from compiler.pipeline import run_passes
from compiler.tosa import validate
from compiler.tosa.emit_attention import DIVISION
from compiler.tosa.emit_linear import ROW_RECIPROCAL
from npusim.config import Machine
from tests.compiler.runs import machine_like

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation."""

ROWS, WIDTH = 12, 16


def compared(net: Builder, machine: Machine, **inputs: object) -> dict[str, str]:
    """Reasons of the cuts of a network, by tensor; every other tensor is equal."""
    graph: Graph = run_passes(net.graph())
    report = validate(graph, machine, {name: np.asarray(values) for name, values in inputs.items()})
    assert {row.tensor: row.difference for row in report.rows if row.difference} == {}
    return {row.tensor: row.cut for row in report.rows if row.cut}


def test_multipliers_of_32_bits(tiny_machine: Machine, model: Path) -> None:
    """Behind a product of 8 bits, and behind one of 16 bits."""
    machine = machine_like(tiny_machine, mac_array={"requant_multiplier_bits": 32, "acc_bits": 32})
    rng, net = np.random.default_rng(1), Builder()
    weight = rng.integers(0, 256, (WIDTH, WIDTH), np.uint8)
    large = rng.integers(1 << 30, 1 << 31, WIDTH)
    x = net.input("x", (ROWS, WIDTH), "u8", zero_point=120)
    wide = net.linear("wide", x, weight, "i16", weight_zp=128, multiplier=large, shift=36)
    net.output(net.linear("wider", wide, weight, "i16", weight_zp=128, multiplier=large, shift=44))
    assert compared(net, machine, x=rng.integers(0, 256, (ROWS, WIDTH), np.uint8)) == {}


def test_a_table_with_a_multiplier_of_16_bits(tiny_machine: Machine, model: Path) -> None:
    rng, net = np.random.default_rng(2), Builder()
    x = net.input("x", (ROWS, WIDTH), "i16")
    entries = np.arange(513) * 128 - 32768
    net.output(net.table("line", x, entries.clip(max=32767), "i16", multiplier=50000, shift=25))
    assert compared(net, tiny_machine, x=rng.integers(-32768, 32768, (ROWS, WIDTH), np.int16)) == {}


def test_attention_of_8_bit_values_with_15_bit_probabilities(tiny_machine: Machine, model: Path) -> None:
    rng, net = np.random.default_rng(3), Builder()
    parts = [net.input(name, (ROWS, WIDTH), "i8") for name in "qkv"]
    net.output(net.attention(
        "attn", *parts, "i8", heads=2, logit=(1 << 14, 18), output=(1 << 30, 30), fraction_bits=9, p_bits=15,
    ))  # fmt: skip
    values = {name: rng.integers(-128, 128, (ROWS, WIDTH), np.int8) for name in "qkv"}
    assert set(compared(net, tiny_machine, **values).values()) == {DIVISION}


def test_rows_of_every_range_quantized_at_run_time(tiny_machine: Machine, model: Path) -> None:
    """Zeros, ends of the range, one sign only, ranges of 1 and of powers of two; in blocks of output channels."""
    machine = machine_like(
        tiny_machine, vector_unit={"runtime_quantization": True}, param_memory={"capacity_bytes": 1024}
    )
    rng, net = np.random.default_rng(4), Builder()
    rows = rng.integers(-300, 300, (ROWS, WIDTH)).astype(np.int16)
    rows[:7] = np.array([0, -32768, 32767, 1, -1, 0, 0])[:, None]
    rows[5, :2], rows[6, 3] = (-32768, 32767), 1 << 12
    channels = 80
    x = net.input("x", (ROWS, WIDTH), "i16")
    net.output(net.linear_dynamic(
        "l", x, rng.integers(0, 64, (channels, WIDTH), np.uint8), "i16", bits=6, row=(1 << 30, 45),
        multiplier=rng.integers(1 << 14, 1 << 15, channels), shift=12, bias=rng.integers(-(1 << 20), 1 << 20, channels),
        weight_zp=rng.integers(0, 64, channels), weight_bits=6, fraction_bits=12,
    ))  # fmt: skip
    assert set(compared(net, machine, x=rows).values()) == {ROW_RECIPROCAL}
