"""Our own random and directed operands on TOSA's reference model and on both executors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.isa.encoding import DTYPES
from tests.conformance import mapping
from tests.conformance.directed import bound_of, inputs_for, scales, values_for
from tests.conformance.tosa_graph import TosaGraphs

Array = NDArray[Any]

pytestmark = pytest.mark.timeout(900)
"""The first test may wait for an installation, and for the generated cases."""
OUTPUTS = (("i8", -7), ("i16", 0), ("i32", 0))
"""TOSA rescales 32 and 48 bits to signed types only, and has a zero point in 8 bits only."""


def one(graphs: TosaGraphs) -> Array:
    (result,) = graphs.run()
    return result


@pytest.mark.parametrize("double", [False, True])
def test_rescale_of_32_bit_accumulators_by_32_bit_multipliers(double: bool, tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(1)
    multipliers, shifts = scales(32, 96, 2, rng)
    x = inputs_for(multipliers, shifts, True, 32, 400, rng)
    graphs = TosaGraphs()
    for out, zero_point in OUTPUTS:
        graphs.rescale(x, "i32", multipliers, shifts, out, zero_point, scale32=True, double=double)
    for (out, zero_point), expected in zip(OUTPUTS, graphs.run(), strict=True):
        got = mapping.rescale_matmul(
            edge_machine, x.astype(np.int32), multipliers, shifts, 0, zero_point, out, True, double
        )
        np.testing.assert_array_equal(got, expected, out)


def test_double_rounding_differs_from_single_rounding_in_these_cases(tosa: str) -> None:
    rng = np.random.default_rng(1)
    multipliers, shifts = scales(32, 96, 2, rng)
    x = inputs_for(multipliers, shifts, True, 32, 400, rng)
    graphs = TosaGraphs()
    for double in (False, True):
        graphs.rescale(x, "i32", multipliers, shifts, "i32", scale32=True, double=double)
    single, double_rounded = graphs.run()
    assert np.mean(single != double_rounded) > 0.01


@pytest.mark.parametrize("acc_bits", [32, 40, 48])
def test_rescale_of_accumulators_by_16_bit_multipliers(acc_bits: int, tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(acc_bits)
    multipliers, shifts = scales(16, 48, 2, rng)
    x = inputs_for(multipliers, shifts, False, acc_bits, 200, rng)
    graphs = TosaGraphs()
    for out, zero_point in OUTPUTS:
        graphs.rescale(x, "i48", multipliers, shifts, out, zero_point)
    for (out, zero_point), expected in zip(OUTPUTS, graphs.run(), strict=True):
        got = mapping.rescale_bias(edge_machine, x, multipliers, shifts, zero_point, out, acc_bits)
        np.testing.assert_array_equal(got, expected, out)


@pytest.mark.parametrize("scale32", [False, True])
@pytest.mark.parametrize(("in_dtype", "in_zp", "out_dtype", "out_zp"), [
    ("u16", 0, "i16", 0), ("u16", 32768, "i16", 0), ("u16", 32768, "i8", -7), ("u16", 0, "i8", 5),
    ("i16", 0, "u16", 0), ("i16", 0, "u16", 32768), ("i8", -3, "u16", 32768),
])  # fmt: skip
def test_rescale_of_unsigned_16_bits(
    in_dtype: str, in_zp: int, out_dtype: str, out_zp: int, scale32: bool, tosa: str, edge_machine: Machine
) -> None:
    """TOSA's zero point of such a tensor is 0 or 32768; the generated cases have 0 only."""
    rng, bits = np.random.default_rng(11), 31 if scale32 else 15
    kind, least, greatest = DTYPES[in_dtype]
    multipliers = rng.integers(1 << bits - 1, 1 << bits, 48)
    multipliers[::4] = 1 << bits - 1  # has ties
    shifts = bits - rng.integers(-6, 12, 48)  # results from a few bits to beyond the output type
    x = np.clip(inputs_for(multipliers, shifts, scale32, 17, 300, rng) + in_zp, least, greatest).astype(kind)
    graphs = TosaGraphs()
    graphs.rescale(x, in_dtype, multipliers, shifts, out_dtype, out_zp, scale32=scale32, in_zp=in_zp)
    got = mapping.rescale_matmul(edge_machine, x, multipliers, shifts, in_zp, out_zp, out_dtype, scale32, False)
    np.testing.assert_array_equal(got.view(f"i{got.itemsize}"), one(graphs))
    _, low, high = DTYPES[out_dtype]
    ends = {high} if in_dtype == "u16" and in_zp == 0 else {low, high}  # nothing is negative there
    assert ends <= set(got.ravel().tolist())


@pytest.mark.parametrize("in_dtype", ["i8", "i16", "i32"])
def test_rescale_by_the_vector_unit(in_dtype: str, tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(5)
    bits = int(in_dtype[1:])
    multipliers, shifts = scales(31, 24, 2, rng)
    graphs, inputs = TosaGraphs(), []
    for m, s in zip(multipliers.tolist(), shifts.tolist(), strict=True):
        x = values_for(m, s, bound_of(m, s, True, bits), 300, rng)
        inputs.append(x.astype(f"i{bits // 8}"))
        graphs.rescale(x, in_dtype, np.array([m]), np.array([s]), "i16", scale32=True)
    for x, m, s, expected in zip(inputs, multipliers, shifts, graphs.run(), strict=True):
        got = mapping.rescale_elementwise(edge_machine, x, np.array([m]), np.array([s]), 0, 0, "i16", False)
        assert got is not None
        np.testing.assert_array_equal(got, expected, f"multiplier {m}, shift {s}")


def test_products_by_the_vector_unit(tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(6)
    graphs, jobs = TosaGraphs(), []
    for shift in (1, 2, 7, 15, 16, 31, 32, 45, 61, 62):
        power = rng.integers(0, min(shift, 31), 200)
        a = np.concatenate(
            [(2 * rng.integers(-4, 4, 200) + 1) << np.minimum(power, 27), rng.integers(-(2**31), 2**31, 200)]
        )
        # a * b = odd * 2^(shift - 1) where the powers allow it: a tie.
        ties = (2 * rng.integers(-4, 4, 200) + 1) << np.clip(shift - 1 - power, 0, 27)
        b = np.concatenate([ties, rng.integers(-(2**31), 2**31, 200)])
        a, b = (np.concatenate([v, [-(2**31), 2**31 - 1, -(2**31)]]) for v in (a, b))
        b[-1] = 2**31 - 1
        fits = np.array([abs(int(p) * int(q)) >> shift < 2**31 - 1 for p, q in zip(a, b, strict=True)])
        jobs.append((a[fits].astype(np.int32), b[fits].astype(np.int32), shift))
        graphs.mul(*jobs[-1])
    for (a, b, shift), expected in zip(jobs, graphs.run(), strict=True):
        np.testing.assert_array_equal(mapping.mul(edge_machine, a, b, shift), expected, f"shift {shift}")


@pytest.mark.parametrize("shift", [2, 5, 14, 17, 28])
def test_linear_combinations_by_the_vector_unit(shift: int, tosa: str, edge_machine: Machine) -> None:
    """TOSA has no such operator: a product over k of both operands and the parts of the bias, rescaled once."""
    rng, rows, channels = np.random.default_rng(shift), 120, 24
    top = 1 << min(15, 1 + shift // 2)  # keeps most results within 16 bits
    a = rng.choice([-32768, 32767, -1, 0, 1, 2, 3, 4096], (rows, channels))
    b = rng.integers(-32768, 32768, (rows, channels))
    a_mul, b_mul = rng.integers(-top, top, (2, channels))
    bias = rng.integers(-(1 << 31), 1 << 31, channels) >> rng.integers(0, 31, channels)
    # Exact ties: an odd multiple of 2^(shift - 1) alone, in a quarter of the rows of half the channels.
    power = min(shift - 1, 13)
    a[: rows // 4] = (2 * rng.integers(-2, 2, (rows // 4, channels)) + 1) << power
    b[: rows // 4], a_mul[: channels // 2], bias[: channels // 2] = 0, 1 << (shift - 1 - power), 0
    parts = np.broadcast_to(mapping.column(bias[:, None]), (rows, channels, 6))
    left = np.concatenate([a[..., None], b[..., None], parts], axis=-1).transpose(1, 0, 2)
    weights = np.broadcast_to(mapping.column_weights(1).T, (channels, 6))
    right = np.concatenate([a_mul[:, None], b_mul[:, None], weights], axis=1)[..., None]
    graphs = TosaGraphs()
    graphs.matmul_rescale(left, right, np.array([1]), np.array([shift]), "i16", 0)
    operands, multipliers = [a.astype(np.int16), b.astype(np.int16)], [m.astype(np.int16) for m in (a_mul, b_mul)]
    got = mapping.combine(edge_machine, operands, multipliers, bias.astype(np.int32), shift)
    np.testing.assert_array_equal(got, one(graphs)[..., 0].T)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 63, 9), (17, 64, 130), (9, 65, 33), (33, 300, 40)])
def test_products_of_bytes(m: int, k: int, n: int, tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(k)
    graphs, jobs = TosaGraphs(), []
    for a_zp, b_zp, extreme in ((0, 0, True), (-128, 127, True), (17, -100, False)):
        draw = (
            (lambda shape: rng.choice([-128, 127], shape))
            if extreme
            else (lambda shape: rng.integers(-128, 128, shape))
        )
        jobs.append((draw((2, m, k)).astype(np.int8), draw((2, k, n)).astype(np.int8), a_zp, b_zp))
        graphs.matmul(*jobs[-1])
    for job, expected in zip(jobs, graphs.run(), strict=True):
        np.testing.assert_array_equal(mapping.matmul_i32(edge_machine, *job), expected)


@pytest.mark.parametrize("b_dtype", ["i8", "i16"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (7, 64, 11), (17, 129, 33), (12, 500, 40)])
def test_products_of_16_bits_rescaled(m: int, k: int, n: int, b_dtype: str, tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(k)
    graphs, jobs = TosaGraphs(), []
    limit = 1 << (int(b_dtype[1:]) - 1)
    for case in range(6):
        channels = n if case % 2 else 1
        if case < 2:
            a, b = np.full((m, k), -(1 << 15)), np.full((k, n), -limit)
            b[:, ::2] = limit - 1
        else:
            a, b = rng.integers(-(1 << 15), 1 << 15, (m, k)), rng.integers(-limit, limit, (k, n))
        peak = int(np.abs(a @ b).max())
        multiplier = rng.integers(1 << 14, 1 << 15, channels)
        # Results of 15 to 18 bits: some saturate. A multiplier of 2^14 makes ties in the lowest bit dropped.
        shift = np.maximum(2, peak.bit_length() + 15 - rng.integers(15, 19, channels))
        multiplier[::3] = 1 << 14
        out, zero_point = (("i16", 0), ("i32", 0), ("i8", 5))[case // 2]
        jobs.append(
            (a.astype(np.int16), b.astype(np.dtype(f"i{limit.bit_length() // 8}")), multiplier, shift, zero_point, out)
        )
        graphs.matmul_rescale(a[None], b[None], multiplier, shift, out, zero_point)
    for (a, b, multiplier, shift, zero_point, out), expected in zip(jobs, graphs.run(), strict=True):
        got = mapping.matmul_rescale(edge_machine, a, b, multiplier, shift, zero_point, out)
        np.testing.assert_array_equal(got, expected[0])


def test_requantization_by_row_is_by_channel_of_the_transposed_product(tosa: str, edge_machine: Machine) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 1 << 15, (23, 70)).astype(np.int16), rng.integers(-128, 128, (70, 19)).astype(np.int8)
    multiplier, shift = rng.integers(1 << 14, 1 << 15, 23), rng.integers(20, 28, 23)
    graphs = TosaGraphs()
    graphs.matmul_rescale(b.T[None], a.T[None], multiplier, shift, "i16", 0)
    got = mapping.matmul_by_row(edge_machine, a, b, multiplier, shift, "i16")
    np.testing.assert_array_equal(got, one(graphs)[0].T)


def tables() -> dict[str, Array]:
    """513 entries each; TOSA defines those whose neighbours differ by at most 16 bits."""
    rng = np.random.default_rng(9)
    steps = np.cumsum(rng.integers(-3000, 3001, 513))
    return {
        "random": rng.integers(-(1 << 14), 1 << 14, 513),
        "steep": np.where(np.arange(513) % 2, 16383, -16384),
        "ends": np.repeat([-32768, -1, 0, 32767], 129)[:513],
        "walk": np.clip(steps, -32768, 32767),
        "least": np.full(513, -32768),
        "greatest": np.full(513, 32767),
    }


@pytest.mark.parametrize("name", list(tables()))
def test_table_over_all_inputs(name: str, tosa: str, edge_machine: Machine) -> None:
    x, entries = np.arange(-32768, 32768).reshape(256, 256), tables()[name]
    graphs = TosaGraphs()
    graphs.table(x, entries)
    scales_and_outputs = [
        (1 << 14, 21, "i16", 0),
        (32767, 22, "i16", 0),
        (12345, 24, "i8", -3),
        (1 << 14, 16, "i32", 0),
    ]
    for scale in scales_and_outputs:
        graphs.table_rescale(x, entries, *scale)
    raw, *scaled = graphs.run()
    given = x.astype(np.int16), entries.astype(np.int16)
    np.testing.assert_array_equal(mapping.table(edge_machine, *given), raw)
    for scale, expected in zip(scales_and_outputs, scaled, strict=True):
        np.testing.assert_array_equal(mapping.table(edge_machine, *given, *scale), expected, str(scale))


def test_table_over_all_bytes(tosa: str, edge_machine: Machine) -> None:
    x, entries = np.arange(-128, 128).reshape(8, 32), np.random.default_rng(10).integers(-128, 128, 256)
    graphs = TosaGraphs()
    graphs.table_of_bytes(x, entries)
    got = mapping.table_of_bytes(edge_machine, x.astype(np.int8), entries.astype(np.int8))
    np.testing.assert_array_equal(got, one(graphs))
