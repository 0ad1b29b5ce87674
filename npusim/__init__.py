"""Simulator of an integer NPU: executes a compiled program bit by bit and counts its cycles."""

__version__ = "0.1.0"
