"""A random share of a run's instructions, each computed again by the reference from what it met in memory.

Comparing whole steps (`npusim.simulate`) costs as much as the reference takes for them, hours for a large network.
Here only the bytes that a chosen instruction reads or writes are kept and put back, so the cost is in proportion to the
share. What an engine writes where its instruction should not write at all goes unnoticed, unless it is read there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npusim import engine, reference
from npusim.isa import BY_MNEMONIC
from npusim.memory import ACCUMULATORS, MachineState


@dataclass
class Sample:
    """Which instructions are computed again: each with probability ``share``, the same ones for the same ``seed``.

    ``instructions``: how many have been so far.
    """

    share: float
    seed: int = 0
    instructions: int = 0

    def chosen(self, execution: int, count: int) -> NDArray[np.bool_]:
        """Whether each of a part's ``count`` instructions is, in its ``execution``: 0 the prologue, then the steps."""
        return np.random.default_rng([self.seed, execution]).random(count) < self.share


def execute_twice(state: MachineState, code: engine.Code, index: int) -> MachineState | None:
    """Run instruction number ``index`` on the engine, and on the reference from the same memory contents.

    Returns None where they are equal; else what the reference leaves, ``state`` being what the engine leaves. Events
    are counted once. Raises as `npusim.engine.execute`.
    """
    ins = code.decoded(index)
    views = [
        getattr(state, region.memory)[state.bases[region.base] + region.start : state.bases[region.base] + region.end]
        for regions in BY_MNEMONIC[ins.op].footprint(ins)
        for region in regions
    ]
    before, held, tallies = [view.copy() for view in views], dict(state.held), state.tallies
    state.tallies = {}
    for _ in engine.progress(state, code, index, index + 1):
        pass
    made, made_held, counted = [view.copy() for view in views], state.contents(ACCUMULATORS), state.tallies
    made_sums = dict(state.held)
    for view, contents in zip(views, before, strict=True):
        view[...] = contents
    state.held, state.tallies = held, {}
    reference.execute(state, (ins,))
    state.tallies = tallies
    for key, tally in counted.items():
        state.count_of(*key, tally.saturated, tally.outputs, tally.overflows)
    same = all(np.array_equal(view, contents) for view, contents in zip(views, made, strict=True))
    if same and np.array_equal(state.contents(ACCUMULATORS), made_held):
        return None
    expected = state.copy()
    for view, contents in zip(views, made, strict=True):
        view[...] = contents
    state.held = made_sums
    return expected
