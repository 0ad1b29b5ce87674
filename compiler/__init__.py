"""Compiler: lowers a quantized video diffusion transformer to an integer-only program for a described machine."""
