"""Graph passes in order. Each takes a graph and returns one that computes the same bits."""

from collections.abc import Callable

from compiler.graph import Graph
from compiler.passes.fold_zero_points import fold_zero_points
from compiler.passes.fuse_modulation import fuse_modulation

PASSES: tuple[Callable[[Graph], Graph], ...] = (fold_zero_points, fuse_modulation)
