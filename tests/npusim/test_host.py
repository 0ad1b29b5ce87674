from dataclasses import replace

import numpy as np
import pytest
import torch

from models.calibrate import patches
from npusim.errors import UserError
from npusim.host import Host, latents_to_tokens, to_fixed, to_float, tokens_to_latents


def test_token_layout_by_its_definition():
    latents = np.arange(4 * 3 * 4 * 6).reshape(4, 3, 4, 6)
    tokens = latents_to_tokens(latents)
    assert tokens.shape == (3 * 2 * 3, 16)
    for c, t, h, w in np.ndindex(latents.shape):
        token, inside = (t * 2 + h // 2) * 3 + w // 2, (c * 2 + h % 2) * 2 + w % 2
        assert tokens[token, inside] == latents[c, t, h, w]


def test_token_layout_is_that_of_the_patch_embedding():
    latents = np.random.default_rng(0).standard_normal((4, 3, 4, 6)).astype(np.float32)
    expected = patches(torch.from_numpy(latents)[None], (1, 2, 2)).numpy()
    np.testing.assert_array_equal(latents_to_tokens(latents), expected)


def test_token_layout_round_trip_and_leading_dimensions():
    latents = np.random.default_rng(0).standard_normal((5, 4, 3, 4, 6))
    tokens = latents_to_tokens(latents)
    for index in range(5):
        np.testing.assert_array_equal(tokens[index], latents_to_tokens(latents[index]))
        np.testing.assert_array_equal(tokens_to_latents(tokens[index], (4, 3, 4, 6)), latents[index])


def test_fixed_point_rounds_half_to_even_and_saturates():
    values = np.array([0.5, 1.5, -0.5, -1.5, 1e9, -1e9, 0.25]) / 4
    assert to_fixed(values, 2, "i16").tolist() == [0, 2, 0, -2, 32767, -32768, 0]
    assert to_fixed(np.array([1e30, -1e30]), 24, "i32").tolist() == [2**31 - 1, -(2**31)]
    assert to_float(np.array([-(2**31), 1], np.int32), 24).tolist() == [-128.0, 2.0**-24]


def test_inputs_hold_the_very_noise(tiny):
    bits, inputs = tiny.program.host, tiny.inputs
    for name, source in (("state", "x_T"), ("noise", "noise")):
        exact = latents_to_tokens(tiny.floats[source])
        np.testing.assert_array_equal(to_float(inputs[name], bits[f"{name}_fraction_bits"]), exact)
    assert inputs["text_len"].tolist() == [[int(tiny.floats["mask"].sum())]]
    for name, values in inputs.items():
        buffer = tiny.program.buffers[name]
        assert values.shape == buffer.shape
        assert values.dtype == {"i16": np.int16, "i32": np.int32}[buffer.dtype]


def test_text_saturates(tiny):
    text = tiny.floats["text"].copy()
    text[0, 0], text[0, 1] = 1e6, -1e6
    values = tiny.host.inputs(**{**tiny.floats, "text": text})["text"]
    assert values[0, :2].tolist() == [32767, -32768]
    np.testing.assert_array_equal(values[1:], tiny.inputs["text"][1:])


def test_reads_back(tiny):
    bits, shape = tiny.program.host, tiny.workload.latent_shape
    tokens = tiny.program.buffers["eps"].shape[0]
    rng = np.random.default_rng(1)
    eps = rng.integers(-(2**31), 2**31, (tokens, 16)).astype(np.int32)
    np.testing.assert_array_equal(latents_to_tokens(tiny.host.eps_out(eps)), eps * 2.0 ** -bits["eps_fraction_bits"])
    raw = rng.integers(-(2**15), 2**15, (2 * tokens, 32)).astype(np.int16)
    cond, uncond, v = tiny.host.raw_out(raw)
    assert cond.shape == uncond.shape == v.shape == shape
    scale, v_scale = 2.0 ** -bits["raw_eps_fraction_bits"], 2.0 ** -bits["v_fraction_bits"]
    np.testing.assert_array_equal(latents_to_tokens(cond), raw[:tokens, :16] * scale)
    np.testing.assert_array_equal(latents_to_tokens(uncond), raw[tokens:, :16] * scale)
    np.testing.assert_array_equal(latents_to_tokens(v), raw[:tokens, 16:] * v_scale)
    state = tiny.host.state_in(tiny.floats["x_T"])
    np.testing.assert_array_equal(tiny.host.state_out(state), tiny.floats["x_T"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": np.zeros((3, 384), np.float32)}, r"text states \(3, 384\)"),
        ({"mask": np.zeros(16, bool)}, "valid tokens must come first"),
        ({"mask": np.arange(16) != 1}, "valid tokens must come first"),
        ({"x_T": np.zeros((4, 8, 8, 8), np.float32)}, r"x_T \(4, 8, 8, 8\)"),
        ({"noise": np.full((4, 4, 4, 8, 8), 2.0**-13, np.float32)}, r"noise: values are not multiples of 2\^-12"),
        ({"x_T": np.full((4, 4, 8, 8), 128.0, np.float32)}, "state: values are not multiples"),
    ],
)
def test_bad_inputs_are_refused(tiny, change, message):
    with pytest.raises(UserError, match=message):
        tiny.host.inputs(**{**tiny.floats, **change})


def test_bad_programs_are_refused(tiny):
    program, shape = tiny.program, tiny.workload.latent_shape
    with pytest.raises(UserError, match=r"buffer 'state' is \(64, 16\); latents \(4, 8, 8, 8\) need"):
        Host(program, (4, 8, 8, 8))
    for name in ("eps", "text"):
        buffers = {key: value for key, value in program.buffers.items() if key != name}
        with pytest.raises(UserError, match=f"buffer '{name}' is missing"):
            Host(replace(program, buffers=buffers), shape)
    with pytest.raises(UserError, match="'eps_fraction_bits' is missing or not an integer"):
        Host(replace(program, host={**program.host, "eps_fraction_bits": "7"}), shape)
