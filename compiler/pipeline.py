"""The compiler's stages in order: lower, passes, build, verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compiler.graph import Graph
from compiler.passes import PASSES
from compiler.schedule.build import build_program
from compiler.verify import verify
from compiler.verify_graph import verify_graph
from npusim.config import Machine
from npusim.errors import UserError
from npusim.isa.assembly import disassemble
from npusim.program import Program

if TYPE_CHECKING:
    from models.quantize import QuantizedModel

Dump = Callable[[str, str], None]


def integer_graph(
    qm: QuantizedModel, attention_bits: int = 16, dump: Dump | None = None, factored: bool = False,
    branch: str | None = None,
) -> Graph:  # fmt: skip
    """Lower and run every pass, checking the graph after each. Arguments as of `compile_model`."""
    return run_passes(_lowered(qm, attention_bits, factored, branch), dump)


def _lowered(qm: QuantizedModel, attention_bits: int, factored: bool, branch: str | None = None) -> Graph:
    from compiler.lower import lower  # imports torch, which takes seconds and which other graphs do not need

    return lower(qm, attention_bits, factored, branch)


def run_passes(graph: Graph, dump: Dump | None = None) -> Graph:
    """Run every pass on a graph as it was built, checking it before and after each."""
    _finish("00_lower", graph, dump)
    for number, one_pass in enumerate(PASSES, 1):
        graph = one_pass(graph)
        _finish(f"{number:02d}_{one_pass.__name__}", graph, dump)
    return graph


def _finish(stage: str, graph: Graph, dump: Dump | None) -> None:
    verify_graph(graph, stage)
    if dump:
        dump(stage, graph.text())


def compile_model(
    qm: QuantizedModel, machine: Machine, attention_bits: int = 16, dump: Dump | None = None, factored: bool = False,
    branch: str | None = None,
) -> Program:  # fmt: skip
    """Compile a quantized model for ``machine``.

    Args:
        qm: any method of `models.quantize`, with bits that are the same in all steps.
        machine: what the program is for.
        attention_bits: width of queries, keys and values, 8 or 16.
        dump: ``dump(stage, text)`` receives each stage as text.
        factored: with several time ranges, requantize in two factors wherever only one number of a layer changes with
            the range, and keep the values of attention free of it. That swaps least, and costs vector operations.
        branch: "conditional" or "unconditional": that guidance branch alone, without guidance; None for both.

    Raises UserError when the model does not fit the machine, naming the layer and the numbers that clash.
    """
    return compile_graph(_lowered(qm, attention_bits, factored, branch), machine, dump)


def compile_graph(graph: Graph, machine: Machine, dump: Dump | None = None) -> Program:
    """Compile a graph as `compiler.Builder` makes it; ``dump`` as for `compile_model`.

    Raises UserError when the graph is not legal or does not fit the machine, naming the layer and what clashes.
    """
    for name, value, kind, source in (
        ("graph", graph, Graph, "Builder.graph() makes one"),
        ("machine", machine, Machine, "npusim.config.load_machine reads one from a file"),
    ):
        if not isinstance(value, kind):
            raise UserError(f"{name} is {value!r} of type {type(value).__name__}; allowed: a {kind.__name__}: {source}")
    program = build_program(run_passes(graph, dump), machine)
    if dump:
        for part, code in program.code():
            dump(f"{len(PASSES) + 1:02d}_{part}", disassemble(code))
    verify(program)
    return program
