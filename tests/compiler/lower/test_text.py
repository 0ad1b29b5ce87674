"""A padded prompt computes what the compacted prompt computes, whatever stands in the padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from compiler.graph import Graph
from compiler.pipeline import integer_graph
from models.quantize import QuantizedModel
from tests.compiler.runs import Inputs, assert_same_bits, run_graph

LENGTH = 16


@pytest.mark.parametrize("valid", [1, 5, 16])
def test_padded_text_equals_a_model_of_that_text_length(
    qm: QuantizedModel, graph_of: Callable[[int, int], Graph], inputs: Inputs, valid: int
) -> None:
    padded = run_graph(graph_of(8, 16), {**inputs, "text_len": np.array([[valid]])})
    # The same weights in a model that knows `valid` text tokens and has no padding at all.
    compact_model = replace(qm, y_embedding=qm.y_embedding[:valid], config={**qm.config, "model_max_length": valid})
    compact = {**inputs, "text": inputs["text"][:valid], "text_len": np.array([[valid]])}
    graph, whole = integer_graph(compact_model), graph_of(8, 16)
    if graph.host["text_fraction_bits"] == whole.host["text_fraction_bits"]:
        assert_same_bits(run_graph(graph, compact), padded)
    else:
        pytest.fail("cutting the null caption changed the text's scale; choose another seed")


@pytest.mark.parametrize("fill", [-32768, 0, 32767])
def test_padding_rows_have_no_influence(graph_of: Callable[[int, int], Graph], inputs: Inputs, fill: int) -> None:
    valid = int(inputs["text_len"][0, 0])
    text = inputs["text"].copy()
    text[valid:] = fill
    expected = run_graph(graph_of(8, 16), inputs)
    assert_same_bits(run_graph(graph_of(8, 16), {**inputs, "text": text}), expected)


def test_text_length_and_valid_rows_do_have_influence(graph_of: Callable[[int, int], Graph], inputs: Inputs) -> None:
    expected = run_graph(graph_of(8, 16), inputs)[0]["raw"]
    tokens = len(expected) // 2
    for changed in ({"text_len": inputs["text_len"] + 1}, {"text": inputs["text"][::-1].copy()}):
        raw = run_graph(graph_of(8, 16), {**inputs, **changed})[0]["raw"]
        assert not np.array_equal(raw[:tokens], expected[:tokens])
        # The unconditional branch has its own text, of the same length.
        assert np.array_equal(raw[tokens:], expected[tokens:]) == ("text" in changed)
