"""Join LayerNorm with the modulation that follows it; the rounding of the normalised value in between stays."""

from __future__ import annotations

from compiler.graph import Graph, Op


def fuse_modulation(graph: Graph) -> Graph:
    """Replace ``layernorm`` and its only reader ``modulate`` by one ``layernorm_modulate``."""
    norms = {op.output: op for op in graph.step if op.kind == "layernorm" and op.output not in graph.outputs}
    readers = [name for op in graph.step for name in op.inputs.values()]
    fused: dict[str, Op] = {}
    for op in graph.step:
        norm = norms.get(op.inputs.get("x", ""))
        if op.kind == "modulate" and norm is not None and readers.count(norm.output) == 1:
            inputs, attrs = {**op.inputs, "x": norm.inputs["x"]}, {**norm.attrs, **op.attrs}
            fused[norm.output] = fused[op.output] = Op("layernorm_modulate", norm.layer, inputs, op.output, attrs)
    # The joined operation stands where the modulation stood.
    step = [fused.get(op.output, op) for op in graph.step if op.kind != "layernorm" or op.output not in fused]
    return graph.rewritten(graph.values, graph.prologue, step)
