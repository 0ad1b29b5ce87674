"""Helpers for tests of programs, graphs and compilers: see README.md in this folder.

``strategies`` needs hypothesis and is imported on its own: ``from npusim.testing import strategies``.
"""

from npusim.crosscheck import random_inputs
from npusim.testing.bits import assert_same_bits
from npusim.testing.golden import assert_golden

__all__ = ["assert_golden", "assert_same_bits", "random_inputs"]
