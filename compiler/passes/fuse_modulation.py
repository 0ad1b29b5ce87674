"""Join LayerNorm with the modulation that follows it; the rounding of the normalised value in between stays."""

from __future__ import annotations

from compiler.graph import Graph, Op


def fuse_modulation(graph: Graph) -> Graph:
    """Replace ``layernorm`` and its only reader ``modulate`` by one ``layernorm_modulate``."""
    readers = [name for op in (*graph.prologue, *graph.step) for name in op.inputs.values()]
    prologue, step = (_fused(graph, ops, readers) for ops in (graph.prologue, graph.step))
    return graph.rewritten(graph.values, prologue, step)


def _fused(graph: Graph, ops: tuple[Op, ...], readers: list[str]) -> list[Op]:
    norms = {op.output: op for op in ops if op.kind == "layernorm" and op.output not in graph.outputs}
    fused: dict[str, Op] = {}
    for op in ops:
        norm = norms.get(op.inputs.get("x", ""))
        if op.kind == "modulate" and norm is not None and readers.count(norm.output) == 1:
            inputs, attrs = {**op.inputs, "x": norm.inputs["x"]}, {**norm.attrs, **op.attrs}
            fused[norm.output] = fused[op.output] = Op("layernorm_modulate", norm.layer, inputs, op.output, attrs)
    # The joined operation stands where the modulation stood.
    return [fused.get(op.output, op) for op in ops if op.kind != "layernorm" or op.output not in fused]
