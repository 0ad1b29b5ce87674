"""What the network's own order and numbers must become, and models at the edge of what can be lowered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.lower import lower
from compiler.lower.stdit import probability_bits
from compiler.pipeline import integer_graph
from compiler.verify_graph import verify_graph
from models.quantize import QuantizedModel
from tests.compiler.runs import Inputs, run_graph


def test_operations_follow_the_forward_pass(qm: QuantizedModel) -> None:
    graph = integer_graph(qm)
    block = [op.layer.removeprefix("blocks.0.") for op in graph.step if op.layer.startswith("blocks.0.")]
    assert block == [
        "norm1", "attn.qkv", "attn", "attn.proj", "attn",
        "attn_temp.qkv", "attn_temp.qkv", "attn_temp", "attn_temp.proj", "attn_temp",
        "cross_attn.q_linear", "cross_attn.q_linear", "cross_attn", "cross_attn.proj", "cross_attn",
        "norm2", "mlp.fc1", "mlp.gelu", "mlp.fc2", "mlp",
    ]  # fmt: skip
    prompt_only = {op.layer for op in graph.prologue}
    kv = {f"blocks.{i}.cross_attn.kv_linear" for i in range(2)}
    assert prompt_only == {"y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2"} | kv
    linears = {op.layer for op in (*graph.prologue, *graph.step) if op.kind == "linear"}
    assert linears == set(qm.linears)


def test_time_of_each_step_is_its_own_constant(qm: QuantizedModel) -> None:
    """Modulation against the float tables: integers stand for (1 + scale), shift and gate of every step."""
    graph = integer_graph(qm)
    table = qm.scale_shift_table[1][None] + qm.t0  # (steps, 6, C): shift, scale, gate of attention, then of the MLP
    for row, name in ((0, "attn.in.b"), (1, "attn.in.g"), (3, "mlp.in.b"), (4, "mlp.in.g"), (5, "tap_mlp.gate")):
        data = graph.values[f"blocks.1.{name}"].data
        assert data is not None
        real = table[:, row] + (1 if name.endswith(".g") else 0)
        factor = (data * real).sum() / (real**2).sum()  # one step of this model's grids serves all steps and channels
        assert np.abs(data - real * factor).max() <= 1
        assert len({step.tobytes() for step in data}) == qm.num_steps


@pytest.mark.parametrize(
    "name", ["pos_embed_temporal", "pos_embed", "y_embedding", "t0", "te", "scale_shift_table", "final_table"]
)
def test_constants_of_zero_are_lowered(qm: QuantizedModel, inputs: Inputs, name: str) -> None:
    # `no_temporal_pos_emb` zeroes the first of them; the others may be as small in an untrained model.
    model = replace(qm, **{name: np.zeros_like(getattr(qm, name))})
    graph = lower(model)
    verify_graph(graph)
    assert np.unique(run_graph(graph, inputs, (1,))[0]["raw"]).size > 100


def test_guidance_branches_share_everything_but_the_text(qm: QuantizedModel, inputs: Inputs) -> None:
    # With the null caption as the prompt, both branches are the same computation.
    graph = integer_graph(qm)
    null = np.rint(qm.y_embedding * 2.0 ** graph.host["text_fraction_bits"]).astype(np.int64)
    raw = run_graph(graph, {**inputs, "text": null}, (1,))[0]["raw"]
    np.testing.assert_array_equal(raw[: len(raw) // 2], raw[len(raw) // 2 :])


@given(keys=st.integers(1, 1 << 14))
def test_probabilities_take_as_many_bits_as_40_bits_of_accumulator_leave(keys: int) -> None:
    bits = probability_bits(16, keys)
    assert keys * ((1 << bits) - 1) * 32768 < 1 << 39
    assert bits == 15 or keys * ((1 << bits + 1) - 1) * 32768 >= 1 << 39
