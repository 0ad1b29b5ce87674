"""Eq. 2, the two averages it is made of, and the float model that smoothing must leave as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from models.quantize.smoothing import MIN_MAGNITUDE, running_average, salience_average, smoothing_scales, spearman
from models.stats import block_linears
from models.workloads import get_workload

MAGNITUDES = st.floats(0, 1e4, width=32)


def test_running_average_by_hand() -> None:
    """Three steps in order of execution: the last begins, the first is the newest."""
    steps = np.array([[8.0, 0.0], [4.0, 0.0], [2.0, 1.0]])
    expected = 0.95 * (0.95 * steps[2] + 0.05 * steps[1]) + 0.05 * steps[0]
    np.testing.assert_allclose(running_average(steps), expected, rtol=1e-15)


def test_running_average_weighs_twenty_steps_as_documented() -> None:
    weight = np.array([running_average(np.eye(20)[:, [step]])[0] for step in range(20)])
    assert weight.sum() == pytest.approx(1.0)
    assert weight[-1] == pytest.approx(0.377, abs=5e-4)
    assert weight[0] == pytest.approx(0.05)
    assert weight[-2] == pytest.approx(0.020, abs=5e-4)


@given(hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(0, 6)), st.randoms())
def test_spearman_is_scipys(a: np.ndarray, random: object) -> None:
    b = np.random.default_rng(len(a)).integers(0, 6, len(a)).astype(float)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert spearman(a, b) == 0.0
    else:
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_salience_favours_steps_that_do_not_follow_the_weights() -> None:
    weight = np.array([1.0, 2.0, 3.0])
    alike, opposite = np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.0])
    share = np.exp(1.0) / (np.exp(1.0) + np.exp(-1.0))  # rho is 1 and -1
    expected = share * opposite + (1 - share) * alike
    np.testing.assert_allclose(salience_average(np.stack([alike, opposite]), weight), expected, rtol=1e-12)


@given(
    hnp.arrays(np.float64, 5, elements=MAGNITUDES),
    hnp.arrays(np.float64, 5, elements=MAGNITUDES),
    st.floats(0.1, 1.0),
)
def test_scales_are_positive_and_raise_tiny_channels_one_by_one(a: np.ndarray, w: np.ndarray, alpha: float) -> None:
    scales = smoothing_scales(a, w, alpha)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    # A channel of zeros changes its own scale only.
    zeroed = a.copy()
    zeroed[2] = 0.0
    np.testing.assert_array_equal(np.delete(smoothing_scales(zeroed, w, alpha), 2), np.delete(scales, 2))
    expected = max(a[0], MIN_MAGNITUDE) ** alpha / max(w[0], MIN_MAGNITUDE) ** (1 - alpha)
    assert scales[0] == pytest.approx(expected)


def test_alpha_one_half_balances_activations_and_weights() -> None:
    a, w = np.array([100.0, 1.0]), np.array([0.01, 4.0])
    scales = smoothing_scales(a, w, 0.5)
    np.testing.assert_allclose(a / scales, w * scales)


@torch.inference_mode()
def test_smoothing_folded_or_not_leaves_the_float_model_as_it_was() -> None:
    """Every block linear's weights times s, and its input divided by s where the integer model divides it.

    attn.qkv and mlp.fc1: in the modulation's shift and 1 + scale of one time step; the projections: in the rows that
    make the attention's values; the others: in front of the layer.
    """
    work = get_workload("tiny")
    model = work.load_model()
    smooth = copy.deepcopy(model)
    rng = np.random.default_rng(0)
    s = {
        name: torch.from_numpy(np.exp(rng.normal(0, 1, layer.in_features))).float()
        for name, layer in block_linears(model).items()
    }
    timestep = torch.tensor([500.0])
    t0 = model.t_block(model.t_embedder(timestep, torch.float32)).view(6, -1)
    hidden = model.hidden_size
    for name, layer in block_linears(smooth).items():
        layer.weight.mul_(s[name])
        block, kind = smooth.get_submodule(".".join(name.split(".")[:2])), name.split(".", 2)[2]
        if kind in ("attn.qkv", "mlp.fc1"):
            shift = 0 if kind == "attn.qkv" else 3
            table = block.scale_shift_table
            table[shift] = (table[shift] + t0[shift]) / s[name] - t0[shift]
            table[shift + 1] = (1 + table[shift + 1] + t0[shift + 1]) / s[name] - 1 - t0[shift + 1]
        elif kind.endswith(".proj"):
            source = smooth.get_submodule(name.replace("proj", "kv_linear" if "cross" in name else "qkv"))
            assert isinstance(source, nn.Linear)
            source.weight[-hidden:].div_(s[name][:, None])
            source.bias[-hidden:].div_(s[name])
        else:
            layer.register_forward_pre_hook(lambda _m, args, scale=s[name]: (args[0] / scale,))
    x = torch.randn(1, *work.latent_shape, generator=torch.Generator().manual_seed(3))
    text = work.text("fire")[0][None, None]
    expected = model(x, timestep, text)
    torch.testing.assert_close(smooth(x, timestep, text), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
