"""The `tiny` workload, quantized: what the compiler's tests lower, compile and run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from compiler.graph import Graph
from compiler.pipeline import integer_graph
from models.quantize import QuantizedModel, quantize
from models.workloads import get_workload
from tests.compiler.runs import Inputs

BITS = [(8, 16), (8, 8), (16, 16), (16, 8)]
"""(act_bits, attention_bits) that are lowered to different code."""


@pytest.fixture(scope="session")
def quantized() -> Callable[[int], QuantizedModel]:
    """``quantized(act_bits)``: `tiny` (2 blocks of 32 channels, 64 tokens, 4 steps) with 8-bit weights."""
    workload = get_workload("tiny")
    model, stats = workload.load_model(), workload.load_stats()
    return cache(lambda act_bits: quantize(model, stats, act_bits=act_bits))


@pytest.fixture(scope="session")
def qm(quantized: Callable[[int], QuantizedModel]) -> QuantizedModel:
    return quantized(8)


@pytest.fixture(scope="session")
def graph_of(quantized: Callable[[int], QuantizedModel]) -> Callable[[int, int], Graph]:
    """``graph_of(act_bits, attention_bits)``: the graph after all passes."""
    return cache(lambda act_bits, attention_bits: integer_graph(quantized(act_bits), attention_bits))


@pytest.fixture(scope="session")
def inputs(graph_of: Callable[[int, int], Graph]) -> Inputs:
    """Random integers of the size that a run has: text near its calibrated range, state and noise near 1."""
    graph, rng = graph_of(8, 16), np.random.default_rng(7)
    text, state, noise = (graph.values[name] for name in ("text", "state", "noise"))
    return {
        "text": rng.normal(0, 0.2 / text.scale, text.shape).astype(np.int64),
        "text_len": np.array([[5]]),
        "state": rng.normal(0, 1 / state.scale, state.shape).astype(np.int64),
        "noise": rng.normal(0, 1 / noise.scale, (graph.steps, *noise.shape)).astype(np.int64),
    }
