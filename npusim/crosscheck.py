"""One program on two executors: engine and reference compared in every byte, and in other orders of execution.

What `npusim verify` runs behind the legality check, and `npusim.testing.assert_same_bits` behind a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npusim import engine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.encoding import DTYPES, NO_ADDRESS, Decoded
from npusim.memory import ACCUMULATORS, MachineState
from npusim.orders import token_legal_order
from npusim.program import Program, input_buffers
from npusim.simulate import PROLOGUE, BitExact, Simulation

Notify = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Crosscheck:
    """What was compared and the first difference of each kind, as text; ``equal`` if there is none."""

    bit_exact: BitExact
    executors: str | None
    orders: int
    order: str | None

    @property
    def equal(self) -> bool:
        return self.executors is None and self.order is None

    def __str__(self) -> str:
        steps = self.bit_exact.steps_compared
        what = f"prologue and {len(steps)} step{'s' * (len(steps) != 1)}"
        lines = [f"DIFFER: {self.executors}" if self.executors else f"engine = reference in every byte, {what}"]
        if self.order:
            lines.append(f"DIFFER: {self.order}")
        elif self.orders and not self.executors:
            lines.append(f"{self.orders} random orders give the same bytes, prologue and 1 step")
        return "\n".join(lines)


def crosscheck(
    program: Program,
    steps: int = 1,
    orders: int = 0,
    seed: int = 0,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    notify: Notify = lambda stage, done, total: None,
) -> Crosscheck:
    """Run the prologue and ``steps`` steps on engine and reference, and again in ``orders`` other orders.

    Args:
        program: a legal program (see `compiler.verify.verify`).
        steps: 0 to ``program.steps``; with 0 the executors are compared behind the prologue only.
        orders: random orders that the tokens allow, each of the prologue and the first step, on the engine.
        seed: of the inputs and the orders.
        inputs: contents of the program's input buffers; random ones (`random_inputs`) if absent.
        notify: called with (stage, done, total).

    Raises:
        UserError: an argument is out of range, an input does not fit, or an instruction meets undefined contents.
    """
    if not 0 <= steps <= program.steps:
        raise UserError(f"steps = {steps}: the program has {program.steps}; allowed 0..{program.steps}")
    for name, value in (("orders", orders), ("seed", seed)):
        if value < 0:
            raise UserError(f"{name} = {value}: allowed: at least 0")
    inputs = random_inputs(program, seed) if inputs is None else inputs
    simulation = Simulation(program, inputs, range(steps), verify_prologue=True)
    first = simulation.twin()
    simulation.prologue()
    for step in range(steps):
        notify("compare", step, steps)
        simulation.step(step)
    notify("compare", steps, steps)
    found = simulation.bit_exact.first_difference
    changed = _order_difference(first, orders, seed, notify) if found is None else None
    return Crosscheck(simulation.bit_exact, str(found) if found else None, orders, changed)


def random_inputs(program: Program, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Contents of every buffer that ``program`` reads before writing it, in the buffer's type and shape.

    Rows of a buffer have different magnitudes, from a few units to the type's range. A single i32 counts columns (how
    many keys of an attention are valid); it lies between 1 and the columns of the widest softmax.
    """
    code = list(chain(*program.decoded().values()))
    widest = max((ins.cols for ins in code if getattr(ins, "valid_addr", NO_ADDRESS) != NO_ADDRESS), default=1)
    inputs = {}
    for name in input_buffers(program, code):
        buffer = program.buffers[name]
        kind, low, high = DTYPES[buffer.dtype]
        rng = np.random.default_rng([seed, *name.encode()])
        if buffer.dtype == "i32" and buffer.bytes == 4:
            inputs[name] = rng.integers(1, widest, buffer.shape, kind, endpoint=True)
            continue
        values = rng.integers(low, high, buffer.shape, np.int64, endpoint=True)
        shifts = rng.integers(0, high.bit_length() - 1, (*buffer.shape[:-1], 1))
        inputs[name] = (values >> shifts).astype(kind)
    return inputs


def _order_difference(first: Simulation, orders: int, seed: int, notify: Notify) -> str | None:
    """The first byte that another order changes, after the prologue and the first step."""
    program = first.program
    code = program.decoded()
    parts = [
        (PROLOGUE, code[PROLOGUE], program.prologue_bases),
        ("step 0", code[program.part_of_step(0)], program.bases(0)),
    ]
    start = first.state
    for part, instructions, bases in parts:
        start.bases = bases
        expected = start.copy()
        _execute(program, expected, part, instructions, range(len(instructions)))
        for number in range(orders):
            notify(f"orders, {part}", number, orders)
            order = token_legal_order(instructions, np.random.default_rng([seed, number]))
            state = start.copy()
            _execute(program, state, part, instructions, order)
            if place := expected.difference(state):
                memory, byte = place
                left, right = (each.contents(memory)[byte] for each in (expected, state))
                values = f"is {left} in program order, {right} in random order {number}"
                writers = _writers(program, instructions, order, memory, byte)
                return f"{part}: {memory} byte {byte} (u8) {values}; {writers}"
        start = expected
    return None


def _execute(program: Program, state: MachineState, part: str, code: list[Decoded], order: Iterable[int]) -> None:
    for index in order:
        try:
            engine.execute(state, (code[index],))
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            layer = program.layers[code[index].layer]
            raise UserError(f"{part}, instruction {index} ({code[index].op}, layer {layer}): {error}") from None


def _writers(program: Program, code: list[Decoded], order: list[int], memory: str, byte: int) -> str:
    """Who wrote a byte last in each order."""

    def writes(ins: Decoded) -> bool:
        if memory == ACCUMULATORS:
            return bool(ins.op == "matmul")
        regions = BY_MNEMONIC[ins.op].footprint(ins)[1]  # stores go through base 0 only
        return any(region.memory == memory and region.start <= byte < region.end for region in regions)

    names = []
    for title, indices in (("program order", list(range(len(code)))), ("the random one", order)):
        last = next((index for index in reversed(indices) if writes(code[index])), None)
        if last is not None:
            names.append(f"{title} instruction {last} ({code[last].op}, layer {program.layers[code[last].layer]})")
    return "last written in " + ", in ".join(names) if names else "nobody writes it"
