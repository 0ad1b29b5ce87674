"""Finds operations that can share blocks of rows: chains whose inner tensors nothing else reads.

A group is cut into stages. A stage is one operation, or a linear with the operations behind it that work column by
column: those follow each block of the linear's output channels, so that only a chunk of the result exists at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.graph import Graph, Op

COLUMNWISE = ("elementwise", "product", "table")
LINEARS = ("linear", "linear_factored", "linear_dynamic")
ROWWISE = (*COLUMNWISE, *LINEARS, "layernorm_modulate")


@dataclass(frozen=True)
class Stage:
    """``head``, and what follows each of its blocks of columns.

    ``quantizes``: only RTQUANT of the rows that ``head`` reads, in front of the stage that has its products.
    """

    head: Op
    tail: tuple[Op, ...] = ()
    quantizes: bool = False

    @property
    def ops(self) -> tuple[Op, ...]:
        return self.head, *self.tail

    @property
    def output(self) -> str:
        return quantized_input(self.head) if self.quantizes else self.ops[-1].output

    @property
    def linear(self) -> bool:
        """Whether the array works on it."""
        return self.head.kind in LINEARS and not self.quantizes

    def reads(self) -> list[str]:
        """Operands, with the rows of a linear that is quantized at run time as RTQUANT leaves them."""
        if self.quantizes:
            return [self.head.inputs["x"]]
        names = [name for op in self.ops for name in op.inputs.values()]
        if self.head.kind == "linear_dynamic":
            names.remove(self.head.inputs["x"])
            names.append(quantized_input(self.head))
        return names


@dataclass(frozen=True)
class Group:
    """Consecutive operations and their stages; ``inner``: tensors that live within a block of rows."""

    ops: tuple[Op, ...]
    stages: tuple[Stage, ...]
    inner: frozenset[str]


def quantized_input(op: Op) -> str:
    """Name of what RTQUANT makes for a linear; no value of the graph."""
    return f"{op.output}:rows"


def matrices(op: Op) -> list[str]:
    """The operands of an operation that have a row for each row of the result."""
    if op.kind == "attention":
        return [op.inputs["q"]] if op.attrs["over"] == "cross" else [op.inputs[role] for role in "qkv"]
    roles = ("x", "a") if op.kind == "layernorm_modulate" or op.attrs.get("b_rows") else ("x", "a", "b")
    return [op.inputs[role] for role in roles if role in op.inputs]


def fits_blocks(graph: Graph, op: Op) -> bool:
    """Whether an operation computes rows of its result from the same rows (or, within a frame, all) of its operands."""
    if graph.values[op.output].base:
        return False
    if op.kind == "attention":
        return bool(op.attrs["over"] != "temporal")
    return op.kind in ROWWISE


def uses_of(graph: Graph) -> dict[str, int]:
    """How many operations read each tensor (views count for their base); an output is read once more."""
    count: dict[str, int] = {}
    for op in (*graph.prologue, *graph.step):
        for owner in {graph.base(name).name for name in op.inputs.values()}:
            count[owner] = count.get(owner, 0) + 1
    for name in graph.outputs:
        count[name] = count.get(name, 0) + 1
    return count


def group_of(graph: Graph, ops: Sequence[Op], uses: dict[str, int]) -> Group | None:
    """The group of consecutive operations, or None where they are not one."""
    made, inner = {op.output for op in ops}, set()
    rows = {graph.values[op.output].shape[0] for op in ops}
    if len(rows) > 1 or not all(fits_blocks(graph, op) for op in ops):
        return None
    for op in ops[:-1]:
        readers = [o for o in ops if op.output in {graph.base(name).name for name in o.inputs.values()}]
        through_rows = all(op.output in {graph.base(n).name for n in matrices(o)} for o in readers)
        if len(readers) != uses.get(op.output, 0) or not readers or not through_rows:
            return None
        inner.add(op.output)
    if any(ops[-1].output == graph.base(name).name for op in ops for name in op.inputs.values()):
        return None
    if len([op for op in ops if op.kind == "attention"]) > 1 or not made:
        return None
    return Group(tuple(ops), tuple(_stages(graph, ops, inner)), frozenset(inner))


def _stages(graph: Graph, ops: Sequence[Op], inner: set[str]) -> list[Stage]:
    stages: list[list[Op]] = []
    for op in ops:
        readers = [
            o for o in ops if stages and stages[-1][-1].output in {graph.base(n).name for n in o.inputs.values()}
        ]
        if readers == [op] and _follows(graph, stages[-1], op, inner):
            stages[-1].append(op)
        else:
            stages.append([op])
    found = []
    for first, *rest in stages:
        if first.kind == "linear_dynamic":
            found.append(Stage(first, quantizes=True))
        found.append(Stage(first, tuple(rest)))
    return found


def _follows(graph: Graph, stage: list[Op], op: Op, inner: set[str]) -> bool:
    """Whether ``op`` can take the columns of the stage's result as they come."""
    if stage[0].kind not in LINEARS or op.kind not in COLUMNWISE or op.attrs.get("b_rows"):
        return False
    operands = matrices(op)
    last, earlier = stage[-1].output, {o.output for o in stage[:-1]}
    return operands.count(last) == 1 and last in inner and not earlier & {graph.base(name).name for name in operands}
