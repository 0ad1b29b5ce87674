"""From a quantized STDiT to the integer graph: the last place where real numbers are seen."""

from compiler.lower.stdit import lower

__all__ = ["lower"]
