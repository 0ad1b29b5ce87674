"""Every graph operation against the same thing computed another way: Python integers and fractions, or float64."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.builder import Builder
from compiler.graph import Graph, Op, Value
from compiler.interpret import run_graph
from compiler.passes.fold_zero_points import fold_zero_points
from compiler.semantics import SEMANTICS, attention_parts
from npusim import numerics
from npusim.isa.encoding import DTYPES

Array = NDArray[Any]


def run(
    kind: str,
    inputs: dict[str, Array],
    shape: tuple[int, ...],
    dtype: str,
    branches: int = 1,
    frames: int = 1,
    positions: int = 1,
    **attrs: Any,
) -> Array:
    """One operation on int64 arrays."""
    graph = Graph({"out": Value("out", shape, dtype)}, (), (), 1, branches, frames, positions)
    wide = {role: array if array.dtype.names else array.astype(np.int64) for role, array in inputs.items()}
    return SEMANTICS[kind](graph, Op(kind, "test", {role: role for role in inputs}, "out", attrs), wide)


def nearest(value: Fraction) -> int:
    """Round to nearest, ties to plus infinity."""
    return floor(value + Fraction(1, 2))


def clamp(value: int, dtype: str) -> int:
    _, low, high = DTYPES[dtype]
    return max(low, min(high, value))


# Linears


def linear_case(seed: int, act: str) -> dict[str, Any]:
    """A small quantized linear with extreme values among its numbers."""
    rng = np.random.default_rng(seed)
    rows, k, n = rng.integers(1, 6, 3)
    low, high = DTYPES[act][1:]
    bits = int(rng.choice([4, 6, 8]))
    top = (1 << bits) - 1
    weight, x = rng.integers(0, top + 1, (n, k)), rng.integers(low, high + 1, (rows, k))
    weight[0], x[0] = rng.choice([0, top], k), rng.choice([low, high], k)
    shift = rng.integers(8, 30, n)
    return {
        "x": x,
        "weight": weight,
        "bits": bits,
        "weight_zp": rng.integers(0, top + 1, n),
        "bias": rng.integers(-(2**20), 2**20, n),
        "multiplier": rng.integers(1, 2**15, n),
        "shift": shift,
        "in_zp": rng.integers(low, high + 1, 1),
        "x_shift": rng.integers(0, 4, k) if seed % 2 else np.zeros(k, np.int64),
        "out_zp": int(rng.integers(-100, 100)),
        "out": str(rng.choice(["u8", "i8", "i16"])),
    }


def linear_by_hand(c: dict[str, Any]) -> list[list[int]]:
    """Products of (q - z) 2^s in Python integers, then one exact rounding."""
    result = []
    for row in c["x"].tolist():
        line = []
        for j, weights in enumerate(c["weight"].tolist()):
            zero, total = int(c["weight_zp"][j]), int(c["bias"][j])
            for x, w, s in zip(row, weights, c["x_shift"].tolist(), strict=True):
                total += (x - int(c["in_zp"][0])) * 2**s * (w - zero)
            scaled = nearest(Fraction(total * int(c["multiplier"][j]), 1 << int(c["shift"][j])))
            line.append(clamp(clamp(scaled, "i32") + c["out_zp"], c["out"]))
        result.append(line)
    return result


@pytest.mark.parametrize("act", ["u8", "i16"])
@pytest.mark.parametrize("seed", range(20))
def test_linear_before_and_after_folding(seed: int, act: str) -> None:
    """Two time ranges, each with numbers of its own."""
    cases = [linear_case(seed, act) for _ in range(2)]
    rng = np.random.default_rng(seed)
    for name in ("weight_zp", "bias", "multiplier", "in_zp"):
        cases[1][name] = rng.permutation(cases[1][name]) // 2
    c = cases[0]
    build = Builder(steps=2, range_of_step=(0, 1))
    build.input("x", c["x"].shape, act)
    roles = {name: np.stack([case[name] for case in cases]) for name in ("weight_zp", "bias", "multiplier", "shift")}
    out = Value("out", (len(c["x"]), len(c["weight"])), c["out"], zero_point=c["out_zp"])
    build.linear(
        "l", "x", c["weight"].astype(np.uint8), out, **roles, weight_bits=c["bits"], x_shift=c["x_shift"],
        x_zp=np.stack([case["in_zp"] for case in cases]),
    )  # fmt: skip
    build.output("out")
    graph = build.graph()
    folded = fold_zero_points(graph)
    data = folded.values[folded.step[0].inputs["weight"]].data
    assert data is not None
    assert data.dtype == np.int8
    for step, case in enumerate(cases):
        expected = linear_by_hand(case)
        for made in (graph, folded):
            assert run_graph(made, {"x": c["x"]}, (step,))[0]["out"].tolist() == expected


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("seed", range(10))
def test_linear_dynamic_against_real_numbers(seed: int, bits: int) -> None:
    """Rows of very different size, one of zeros: within a step of what exact arithmetic on Eq. 1's grids gives."""
    rng = np.random.default_rng(seed)
    rows, k, n, top = 5, 40, 6, (1 << bits) - 1
    x = (rng.normal(0, 1, (rows, k)) * 10.0 ** rng.uniform(1, 4, (rows, 1))).astype(np.int64).clip(-32768, 32767)
    x[1] = 0
    weight, zero_point = rng.integers(0, 1 << bits, (n, k), np.uint8), rng.integers(0, 1 << bits, n)
    multiplier, shift, bias = rng.integers(2**14, 2**15, n), np.full(n, 8), rng.integers(-(2**20), 2**20, n)
    row = int(rng.integers(2**30, 2**31)), 40 + bits
    build = Builder()
    build.input("x", x.shape, "i16")
    build.linear_dynamic(
        "l", "x", weight, "i16", bits=bits, row=row, multiplier=multiplier, shift=shift, bias=bias,
        weight_zp=zero_point, weight_bits=bits, fraction_bits=12,
    )  # fmt: skip
    build.output("l")
    found = run_graph(build.graph(), {"x": x})[0]["l"]
    low, high = np.minimum(x.min(1), 0)[:, None], np.maximum(x.max(1), 0)[:, None]
    reach = (high - low).astype(float)
    scale = np.where(reach == 0, 1, reach) / top
    zero = np.round(-low / scale)
    q = np.clip(np.round(x / scale) + zero, 0, top) - zero
    acc = q @ (weight.astype(float) - zero_point[:, None]).T
    real = acc * multiplier * 2.0**-8 * (reach * row[0] * 2.0 ** -row[1])
    exact = np.clip((real + bias) / 2**12, -32768, 32767)
    # The row's 16-bit multiplier is off by up to 2^-15; ties of the grid may round the other way.
    assert np.abs(found - exact).max() <= 1 + np.abs(exact).max() * 2.0**-14 + 2 * 2.0 ** (15 - bits) * (bits > 8)


@pytest.mark.parametrize("seed", range(20))
def test_linear_factored_by_hand(seed: int) -> None:
    """Two time ranges with a zero point and a second factor of their own, in Python integers."""
    rng, c = np.random.default_rng(seed), linear_case(seed, str(["u8", "i16"][seed % 2]))
    n, fraction, bits = len(c["weight"]), int(rng.integers(1, 16)), c["bits"]
    x_shift = c["x_shift"] if seed % 2 == 0 else 0 * c["x_shift"]
    scale, x_zp = (rng.integers(1, 2**15, (2, 1)), rng.integers(1, 12, (2, 1))), rng.integers(0, 200, (2, 1))
    bias, shift = rng.integers(-(2**31), 2**31, n), rng.integers(1, 12, n)
    build = Builder(steps=2, range_of_step=(0, 1))
    build.input("x", c["x"].shape, ["u8", "i16"][seed % 2])
    build.linear_factored(
        "l", "x", c["weight"].astype(np.uint8), "i16", multiplier=c["multiplier"], shift=shift, bias=bias, scale=scale,
        weight_zp=c["weight_zp"], weight_bits=bits, x_zp=x_zp, fraction_bits=fraction, x_shift=x_shift,
    )  # fmt: skip
    build.output("l")
    for step in (0, 1):
        expected = []
        for row in c["x"].tolist():
            line = []
            for j, weights in enumerate(c["weight"].tolist()):
                total = sum(
                    (x - int(x_zp[step, 0])) * 2 ** int(s) * (w - int(c["weight_zp"][j]))
                    for x, w, s in zip(row, weights, x_shift, strict=True)
                )
                value = clamp(nearest(Fraction(total * int(c["multiplier"][j]), 1 << int(shift[j]))), "i32")
                m, s = (int(part[step, 0]) for part in scale)
                value = clamp(nearest(Fraction(value * m, 1 << s)), "i32")
                value = clamp(value + int(bias[j]), "i32")
                line.append(clamp(nearest(Fraction(value, 1 << fraction)), "i16"))
            expected.append(line)
        assert run_graph(build.graph(), {"x": c["x"]}, (step,))[0]["l"].tolist() == expected


# Element by element


def element(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    low, high = DTYPES[dtype][1:]
    values = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.2, rng.choice([low, high], shape), values)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pattern", ["", "position", "frame"])
def test_elementwise(seed: int, pattern: str) -> None:
    rng = np.random.default_rng(seed)
    branches, frames, positions, cols = (int(n) for n in rng.integers(1, 4, 4))
    rows = branches * frames * positions
    a_type, b_type, out = (str(rng.choice(["i16", "i32"])) for _ in range(3))
    a = element(rng, a_type, (rows, cols))
    b = element(rng, b_type, ({"position": positions, "frame": frames}.get(pattern, rows), cols))
    a_mul, b_mul, bias = (element(rng, "i16", (cols,)) for _ in range(3))
    shift, out_zp = int(rng.integers(1, 40)), int(rng.integers(-100, 100))
    inputs = {"a": a, "b": b, "a_mul": a_mul, "b_mul": b_mul, "bias": bias}
    attrs = {"shift": shift, "out_zp": out_zp, "b_rows": pattern}
    given_sizes = {"branches": branches, "frames": frames, "positions": positions}
    result = run("elementwise", inputs, (rows, cols), out, **given_sizes, **attrs)
    # The same multipliers as numbers, one channel at a time.
    for c in range(cols):
        numbers = {"a_mul": int(a_mul[c]), "b_mul": int(b_mul[c]), **attrs}
        column = {"a": a[:, c : c + 1], "b": b[:, c : c + 1], "bias": bias[c : c + 1]}
        again = run("elementwise", column, (rows, 1), out, **given_sizes, **numbers)
        np.testing.assert_array_equal(again[:, 0], result[:, c])
    index = 0
    for _ in range(branches):
        for frame in range(frames):
            for position in range(positions):
                b_row = {"position": position, "frame": frame}.get(pattern, index)
                for c in range(cols):
                    total = int(a[index, c]) * int(a_mul[c]) + int(b[b_row, c]) * int(b_mul[c]) + int(bias[c])
                    expected = clamp(nearest(Fraction(total, 1 << shift)) + out_zp, out)
                    assert result[index, c] == expected
                index += 1


def test_elementwise_of_one_operand_is_a_change_of_scale() -> None:
    a = np.array([[-32768, -3, -2, -1, 0, 1, 2, 3, 32767]])
    result = run("elementwise", {"a": a}, a.shape, "i8", a_mul=1, shift=1, out_zp=0)
    assert result.tolist() == [[-128, -1, -1, 0, 0, 1, 1, 2, 127]]  # ties go up


@given(st.integers(-32768, 32767), st.integers(-32768, 32767), st.integers(1, 31), st.integers(-9, 9))
def test_product(a: int, b: int, shift: int, out_zp: int) -> None:
    result = run("product", {"a": np.array([[a]]), "b": np.array([[b]])}, (1, 1), "i16", shift=shift, out_zp=out_zp)
    assert result[0, 0] == clamp(nearest(Fraction(a * b, 1 << shift)) + out_zp, "i16")


@given(
    st.integers(-32768, 32767), st.integers(-32768, 32767), st.integers(-(2**31), 2**31 - 1), st.integers(1, 31),
    st.sampled_from(["u8", "i16"]),
)  # fmt: skip
def test_modulate(x: int, g: int, b: int, shift: int, out: str) -> None:
    inputs = {"x": np.array([[x]]), "g": np.array([g]), "b": np.array([b])}
    result = run("modulate", inputs, (1, 1), out, shift=shift, out_zp=128)
    assert result[0, 0] == clamp(nearest(Fraction(x * g + b, 1 << shift)) + 128, out)


@pytest.mark.parametrize("seed", range(10))
def test_table_interpolates_between_its_entries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = element(rng, "i16", (513,))
    x = np.array([element(rng, "i16", (200,))])
    x[0, :3] = -32768, 32767, 0
    multiplier, shift = int(rng.integers(1, 2**15)), int(rng.integers(7, 30))
    result = run("table", {"x": x, "table": table}, x.shape, "i16", multiplier=multiplier, shift=shift, out_zp=3)
    for value, found in zip(x[0].tolist(), result[0].tolist(), strict=True):
        left, part = divmod(value + 32768, 128)
        at = int(table[left]) * (128 - part) + int(table[left + 1]) * part  # 128 times the straight line's value
        assert found == clamp(nearest(Fraction(at * multiplier, 1 << shift)) + 3, "i16")


# LayerNorm


@pytest.mark.parametrize("columns", [1, 7, 32, 256, 1152])
@pytest.mark.parametrize("spread", [1, 40, 9000])
def test_layernorm_against_float64(columns: int, spread: int) -> None:
    rng = np.random.default_rng(columns + spread)
    x = np.clip(np.rint(rng.normal(rng.normal(0, 3000), spread, (50, columns))), -32768, 32767).astype(np.int64)
    x[0] = 1234  # no variance at all
    bits, epsilon = 11, 3 * columns**2
    result = run("layernorm", {"x": x}, x.shape, "i16", epsilon=epsilon, fraction_bits=bits)
    centred = x - x.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon / columns**2)
    kept = np.abs(expected) < 15.9
    error = np.abs(result * 2.0**-bits - expected)[kept]
    # Half a step of rounding, and 2^-20 of the value from the reciprocal square root.
    assert error.max() <= 2.0**-bits * 0.51 + np.abs(expected).max() * 2.0**-20
    assert (result[0] == 0).all()


def test_layernorm_modulate_is_both_in_turn() -> None:
    rng = np.random.default_rng(1)
    x, g, b = element(rng, "i16", (5, 16)), element(rng, "i16", (16,)), element(rng, "i16", (16,))
    norm = {"epsilon": 77, "fraction_bits": 10}
    end = {"shift": 9, "out_zp": -5}
    n = run("layernorm", {"x": x}, x.shape, "i16", **norm)
    expected = run("modulate", {"x": n, "g": g, "b": b}, x.shape, "i16", **end)
    fused = run("layernorm_modulate", {"x": x, "g": g, "b": b}, x.shape, "i16", **norm, **end)
    np.testing.assert_array_equal(fused, expected)


# Attention


SIZES = {"branches": 2, "frames": 3, "positions": 4}
HEADS, WIDTH, TEXT = 2, 5, 6
ROWS = SIZES["branches"] * SIZES["frames"] * SIZES["positions"]
ATTENTION = {
    "heads": HEADS, "fraction_bits": 9, "p_bits": 15, "logit_multiplier": 20000, "logit_shift": 30,
    "out_multiplier": 1 << 30, "out_shift": 31, "out_zp": 11,
}  # fmt: skip


def operands(over: str, bits: int = 16, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    keys = SIZES["branches"] * TEXT if over == "cross" else ROWS
    limit = 1 << (bits - 1)
    shapes = {"q": (ROWS, HEADS * WIDTH), "k": (keys, HEADS * WIDTH), "v": (keys, HEADS * WIDTH)}
    return {name: rng.integers(-limit, limit, shape) for name, shape in shapes.items()}


def keys_of(over: str, row: int) -> list[int]:
    """The rows of k and v that a row of q looks at."""
    frames, positions = SIZES["frames"], SIZES["positions"]
    branch, rest = divmod(row, frames * positions)
    frame, position = divmod(rest, positions)
    if over == "spatial":
        return [(branch * frames + frame) * positions + p for p in range(positions)]
    if over == "temporal":
        return [(branch * frames + f) * positions + position for f in range(frames)]
    return [branch * TEXT + t for t in range(TEXT)]


@pytest.mark.parametrize("over", ["spatial", "temporal", "cross"])
@pytest.mark.parametrize("p_bits", [8, 15])
def test_attention_row_by_row(over: str, p_bits: int) -> None:
    x, attrs = operands(over), {**ATTENTION, "over": over, "p_bits": p_bits}
    result = run("attention", x, (ROWS, HEADS * WIDTH), "i16", **SIZES, **attrs)
    for row in range(ROWS):
        for head in range(HEADS):
            part = slice(head * WIDTH, (head + 1) * WIDTH)
            q, keys = x["q"][row, part].tolist(), keys_of(over, row)
            logits = []
            for key in keys:
                dot = sum(a * b for a, b in zip(q, x["k"][key, part].tolist(), strict=True))
                logits.append(
                    clamp(nearest(Fraction(dot * attrs["logit_multiplier"], 1 << attrs["logit_shift"])), "i16")
                )
            distance = np.array([max(logits) - logit for logit in logits])
            p = numerics.exp2_negative(distance, attrs["fraction_bits"], p_bits).tolist()
            mantissa, shift = numerics.reciprocal(np.array([sum(p)]))
            factor = (int(mantissa[0]) * attrs["out_multiplier"] + (1 << 29)) >> 30
            m, s = numerics.normalised_multiplier(np.array([factor]), shift + attrs["out_shift"] - 30, 16)
            for c in range(WIDTH):
                total = sum(w * int(x["v"][key, head * WIDTH + c]) for w, key in zip(p, keys, strict=True))
                expected = clamp(nearest(Fraction(total * int(m[0]), 1 << int(s[0]))) + attrs["out_zp"], "i16")
                assert result[row, head * WIDTH + c] == expected


@pytest.mark.parametrize("over", ["spatial", "temporal", "cross"])
def test_attention_against_float64(over: str) -> None:
    x, attrs = operands(over), {**ATTENTION, "over": over, "out_zp": 0, "logit_shift": 32}  # no logit saturates
    result = run("attention", x, (ROWS, HEADS * WIDTH), "i16", **SIZES, **attrs)
    logit_scale = attrs["logit_multiplier"] * 2.0 ** -(attrs["logit_shift"] + attrs["fraction_bits"])
    expected = np.zeros((ROWS, HEADS * WIDTH))
    for row in range(ROWS):
        for head in range(HEADS):
            part, keys = slice(head * WIDTH, (head + 1) * WIDTH), keys_of(over, row)
            logits = np.array([x["q"][row, part] @ x["k"][key, part] for key in keys], float) * logit_scale
            weights = 2.0 ** (logits - logits.max())
            expected[row, part] = weights @ x["v"][keys, part] / weights.sum() / 2
    error = result - expected
    assert 10 * np.log10((expected**2).sum() / (error**2).sum()) > 60


@pytest.mark.parametrize("valid", [1, 2, TEXT - 1, TEXT])
def test_padded_text_equals_compacted_text(valid: int) -> None:
    x, attrs = operands("cross", seed=valid), {**ATTENTION, "over": "cross"}
    graph = Graph({"out": Value("out", (ROWS, HEADS * WIDTH), "i16")}, (), (), 1, **SIZES)
    op = Op("attention", "test", {}, "out", attrs)
    parts = attention_parts(graph, op, {**x, "valid": np.array([[valid]])})
    assert (parts["p"][..., valid:] == 0).all()
    assert (parts["p"][..., :valid].max(axis=-1) == 2**15 - 1).all()
    kept = np.concatenate([np.arange(valid) + branch * TEXT for branch in range(SIZES["branches"])])
    compacted = attention_parts(graph, op, {"q": x["q"], "k": x["k"][kept], "v": x["v"][kept]})
    for name in ("sums", "multiplier", "shift", "out"):
        np.testing.assert_array_equal(parts[name], compacted[name])
    # What stands in the padding is of no consequence, however large.
    padding = np.setdiff1d(np.arange(len(x["k"])), kept)
    for fill in (-32768, 32767):
        garbage = {**x, "k": x["k"].copy(), "v": x["v"].copy()}
        garbage["k"][padding] = garbage["v"][padding] = fill
        again = attention_parts(graph, op, {**garbage, "valid": np.array([[valid]])})
        np.testing.assert_array_equal(again["out"], parts["out"])


@pytest.mark.parametrize(("length", "counts"), [(-3, 1), (0, 1), (TEXT + 1, TEXT)])
def test_text_length_is_held_to_what_exists(length: int, counts: int) -> None:
    x, attrs = operands("cross"), {**ATTENTION, "over": "cross"}
    shape = (ROWS, HEADS * WIDTH)
    results = [
        run("attention", {**x, "valid": np.array([[n]])}, shape, "i16", **SIZES, **attrs) for n in (length, counts)
    ]
    np.testing.assert_array_equal(*results)
