"""The compiler: quantized STDiT -> integer graph -> passes -> instructions for a described machine."""

from __future__ import annotations

from compiler.pipeline import compile_model

__all__ = ["compile_model"]
