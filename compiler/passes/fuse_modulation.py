"""Join LayerNorm with the modulation that follows it; the rounding of the normalised value in between stays."""

from __future__ import annotations

from dataclasses import replace

from compiler.graph import Graph, Op, prune


def fuse_modulation(graph: Graph) -> Graph:
    norms = {op.output: op for op in graph.step if op.kind == "layernorm"}
    readers = [name for op in graph.step for name in op.inputs.values()]
    ops: list[Op] = []
    for op in graph.step:
        norm = norms.get(op.inputs.get("x", ""))
        if op.kind == "modulate" and norm is not None and readers.count(norm.output) == 1:
            ops.remove(norm)
            inputs = {**op.inputs, "x": norm.inputs["x"]}
            op = Op("layernorm_modulate", norm.layer, inputs, op.output, {**norm.attrs, **op.attrs})
        ops.append(op)
    kept = prune(
        graph.values,
        [*graph.prologue, *ops],
        [*graph.outputs, *(n for n, v in graph.values.items() if v.kind == "input")],
    )
    return replace(graph, values=kept, step=tuple(ops))
