"""The compiler: quantized STDiT, or any small network -> integer graph -> passes -> instructions for a machine."""

from __future__ import annotations

from compiler.builder import Builder
from compiler.graph import Graph
from compiler.interpret import run_graph
from compiler.pipeline import compile_graph, compile_model

__all__ = ["Builder", "Graph", "compile_graph", "compile_model", "run_graph"]
