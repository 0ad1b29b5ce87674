"""A program whose sets lie in DRAM becomes one that fetches them from storage as a policy says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from compiler.swap import adaptive, blocking, resident, shadow, streamed
from compiler.swap.code import Coder, Fetch, Words
from compiler.swap.coded import Codes, placed
from compiler.swap.kind import PROLOGUE, RANGE, STEP, Fetches, Kind, Plan, Registers, Timer, merged
from npusim.config import Machine
from npusim.congruence import ADDRESS, copies
from npusim.errors import UserError
from npusim.isa.addressing import BASES
from npusim.program import Buffer, Program, Swap

POLICIES: dict[str, Callable[[Kind], Plan]] = {
    "blocking": blocking.plan,
    "resident": resident.plan,
    "shadow": shadow.plan,
    "streamed": streamed.plan,
    "adaptive": adaptive.plan,
}
IN_DRAM = "in_dram"
"""In place of a policy: these sets lie in DRAM from the start, and nothing is charged for bringing them there."""
LAYER = "parameter swap"

Made = dict[Registers, tuple[Kind, Plan]]


def swap_program(
    program: Program,
    timer: Timer,
    range_policy: str = IN_DRAM,
    step_policy: str = IN_DRAM,
    machine: Machine | None = None,
    coder: Coder | None = None,
    codes: Codes | None = None,
) -> Program:
    """Swap the sets of a program whose sets lie in DRAM, those of time ranges and those of steps by a policy each.

    Tokens of code that fetches are set anew. DRAM then holds as few sets as the policies need, and what lay behind the
    sets moves down, by whole turns of the address mapping, so that its rows and banks stay.

    Args:
        program: as compiled; its machine's DRAM budget may be larger than ``machine``'s.
        timer: cycles of a piece of code on ``machine``; what `streamed` and `adaptive` decide by.
        range_policy: of `POLICIES`, or `IN_DRAM`.
        step_policy: the same for the steps' constants.
        machine: what the result is for; by default the program's own.
        coder: of the same program, from an earlier call that it shares its work with.
        codes: of the time ranges' sets: storage holds all but the first as differences, which FETCH decodes. `resident`
            and sets of which there is one stay as they are.

    Raises UserError for an unknown policy, sets that the steps do not use one after the other, and a policy that does
    not fit the DRAM budget, with the numbers.
    """
    machine = machine or program.machine
    _check(program, range_policy, step_policy)
    if codes and not program.contents:
        raise UserError("a program without contents has no differences to code; allowed: one compiled from weights")
    coder = coder or Coder(program.prologue, program.step, len(program.layers))
    pairs = [(range_policy, step_policy)]
    if pairs == [("adaptive", "adaptive")]:
        pairs += [(policy, policy) for policy in POLICIES if policy != "adaptive"]
    found, refused = [], list[UserError]()
    for pair in pairs:
        try:
            found.append(_planned(program, machine, coder, timer, *pair, codes))
        except UserError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    made = min(found, key=partial(_cycles, program, coder, timer)) if len(found) > 1 else found[0]
    swapped = _assembled(program, machine, coder, made)
    _check_capacity(swapped)
    return swapped


def _planned(
    program: Program,
    machine: Machine,
    coder: Coder,
    timer: Timer,
    range_policy: str,
    step_policy: str,
    codes: Codes | None,
) -> Made:
    """The plans of both kinds; that of the ranges knows the other. Raises UserError where DRAM is too small."""
    rest = program.dram_bytes - program.sets.size - program.range_sets.size
    least = program.range_sets.size if range_policy == IN_DRAM else _row(program)
    budget, made, given = machine.dram.npu_budget_bytes, Made(), Fetches()
    start, storage, room = program.set_address, 0, machine.dram.npu_budget_bytes - rest - least
    for name, registers, policy, sets, steps in (
        ("step constants", STEP, step_policy, program.sets, tuple((step,) for step in range(program.steps))),
        ("range sets", RANGE, range_policy, program.range_sets, _steps_of_ranges(program)),
    ):
        count, size = sets.shape
        most = room // size if size else count
        some = codes if registers is RANGE and count > 1 else None
        kind = Kind(
            name, registers, size, steps, start, storage, most, coder, timer, given, machine.dram.turn_bytes,
            machine.storage_latency_cycles, some,
        )  # fmt: skip
        plan = Plan(tuple(range(count)), {}) if policy == IN_DRAM or not size else POLICIES[policy](kind)
        if plan.places > most:
            raise UserError(
                f"{policy}: {plan.places} places of {size} bytes for the {name} and {budget - room} bytes beside them "
                f"need {plan.places * size + budget - room} bytes of DRAM; allowed: dram.npu_budget_bytes = {budget}"
            )
        made[registers], given = (kind, plan), merged(given, plan.fetches)
        start, storage, room = start + plan.places * size, storage + sets.size, room + least - plan.places * size
    return made


def _fetches(program: Program, made: Made) -> dict[int, tuple[Fetch, ...]]:
    """What the prologue and each step fetch."""
    found = merged(*(plan.fetches for _, plan in made.values()))
    return {step: tuple(found.get(step, ())) for step in range(PROLOGUE, program.steps)}


def _cycles(program: Program, coder: Coder, timer: Timer, made: Made) -> int:
    """Of the whole program."""
    codes = Counter((step == PROLOGUE, found) for step, found in _fetches(program, made).items())
    return sum(count * sum(map(timer, coder.parts(*key))) for key, count in codes.items())


def _row(program: Program) -> int:
    return int(program.range_sets.shape[1])


def _check(program: Program, *policies: str) -> None:
    for policy in policies:
        if policy not in (*POLICIES, IN_DRAM):
            raise UserError(f"policy = {policy!r}: allowed {', '.join(POLICIES)}, {IN_DRAM}")
    if program.swap is not None:
        raise UserError("the program swaps its sets already; allowed: one whose sets lie in DRAM")
    if program.range_address != program.set_address + program.sets.size:
        raise UserError(
            f"range_address = {program.range_address}: allowed the end of the steps' constants, "
            f"{program.set_address + program.sets.size}"
        )


def _check_capacity(program: Program) -> None:
    capacity = program.machine.storage.device.capacity_bytes
    if program.storage_bytes > capacity:
        ranges = 1 if program.coded.size else len(program.range_sets)
        areas = (
            f"{program.steps} sets of step constants of {program.sets.shape[1]}, {ranges} range sets of "
            f"{program.range_sets.shape[1]}, {program.coded.size} of codes"
        )
        raise UserError(
            f"{program.storage_bytes} bytes of storage are needed ({areas}); allowed: storage.device.capacity_bytes = "
            f"{capacity}"
        )


def _steps_of_ranges(program: Program) -> tuple[tuple[int, ...], ...]:
    groups = [(key, tuple(steps)) for key, steps in groupby(range(program.steps), program.range_of_step.__getitem__)]
    if [key for key, _ in groups] != list(range(len(program.range_sets))):
        raise UserError(
            f"range_of_step = {list(program.range_of_step)}: allowed 0..{len(program.range_sets) - 1} one after another"
        )
    return tuple(steps for _, steps in groups)


def _assembled(program: Program, machine: Machine, coder: Coder, made: Made) -> Program:
    """The program with the fetches of both kinds, its sets' places, and the rest moved down behind them."""
    (_, step_plan), (range_kind, range_plan) = made[STEP], made[RANGE]
    numbers: dict[tuple[Fetch, ...], int] = {}
    fetches, coded = _fetches(program, made), np.zeros((0, 0), np.uint8)
    if range_kind.codes and any(fetch.coded for found in fetches.values() for fetch in found):
        fetches, coded = placed(fetches, range_kind.codes)
    code_of_step = tuple(numbers.setdefault(fetches[step], len(numbers)) for step in range(program.steps))
    old_end = program.range_address + program.range_sets.size
    new_end = range_kind.address + range_plan.places * range_kind.set_bytes
    moved = (old_end - new_end) // machine.dram.turn_bytes * machine.dram.turn_bytes
    codes = [coder.code(prologue=False, fetches=key) for key in numbers]
    prologue, *steps = (_moved(words, old_end, moved) for words in (coder.code(True, fetches[PROLOGUE]), *codes))
    buffers = {
        name: replace(buffer, address=buffer.address - moved) if buffer.address >= old_end else buffer
        for name, buffer in program.buffers.items()
    }
    set_places, range_places = (plan.places if plan.fetches else 0 for plan in (step_plan, range_plan))
    registers = _registers(program, buffers, made, coded.shape[1])
    swap = Swap(set_places, range_places, registers) if set_places or range_places else None
    return replace(
        program, machine=machine, prologue=prologue, step=steps[0], more_steps=tuple(steps[1:]),
        code_of_step=code_of_step if steps[1:] else (), buffers=buffers, swap=swap,
        coded=coded.reshape(-1), range_address=range_kind.address, dram_bytes=program.dram_bytes - moved,
        layers=(*program.layers, LAYER),
    )  # fmt: skip


def with_ranges(program: Program, range_of_step: tuple[int, ...]) -> Program:
    """A program without contents, with as many of the ranges' sets as ``range_of_step`` says instead of its own.

    The code of two or more ranges is the same but for what lies behind the sets, which moves by whole turns of the
    address mapping. Raises UserError for a program with contents, which says nothing of other ranges' sets.
    """
    if program.contents:
        raise UserError("a program with contents has these ranges' sets only; allowed: one compiled from an outline")
    count, size = 1 + max(range_of_step), int(program.range_sets.shape[1])
    turn, old_end = program.machine.dram.turn_bytes, program.range_address + program.range_sets.size
    up = -(-(count - len(program.range_sets)) * size // turn) * turn
    buffers = {
        name: replace(buffer, address=buffer.address + up) if buffer.address >= old_end else buffer
        for name, buffer in program.buffers.items()
    }
    return replace(
        program, prologue=_moved(program.prologue, old_end, -up), step=_moved(program.step, old_end, -up),
        buffers=buffers, range_sets=np.broadcast_to(np.uint8(0), (count, size)), range_of_step=range_of_step,
        dram_bytes=program.dram_bytes + up,
    )  # fmt: skip


def without_fetches(program: Program, made: Program) -> tuple[Words, Words]:
    """Prologue and step of ``program`` with the addresses that they have in ``made``, which swaps its sets."""
    old_end = program.range_address + program.range_sets.size
    moved = program.dram_bytes - made.dram_bytes
    return _moved(program.prologue, old_end, moved), _moved(program.step, old_end, moved)


def _moved(words: Words, old_end: int, moved: int) -> Words:
    """The code with everything at ``old_end`` or behind it, absolute in DRAM, ``moved`` bytes lower (or higher)."""
    if not moved:
        return words
    words, low, high = words.copy(), ADDRESS.word, ADDRESS.word + 1
    found = copies(words)
    assert found is not None, "a program as compiled"
    behind = (found.base == 0) & (found.first >= old_end)
    at, address = found.at[behind], found.first[behind] - moved
    words[at, low], words[at, high] = address & 0xFFFF_FFFF, address >> 32
    return words


def _registers(
    program: Program, buffers: dict[str, Buffer], made: Made, coded_bytes: int
) -> tuple[tuple[int, ...], ...]:
    """Base registers of the prologue and of each step; those of a next set that does not exist are 0.

    ``coded_bytes``: of each of the ranges' sets but the first in storage, if they are coded; else 0.
    """
    table = np.zeros((1 + program.steps, BASES), np.int64)
    if "noise" in buffers:
        table[1:, 2] = buffers["noise"].address + program.noise_bytes * np.arange(program.steps)
    for kind, plan in made.values():
        r, size = kind.registers, kind.set_bytes
        stored = size if not (coded_bytes and r is RANGE) else coded_bytes
        storage = [kind.storage, *(kind.storage + size + n * stored for n in range(len(kind.steps) - 1))]
        set_of_step = [number for number, steps in enumerate(kind.steps) for _ in steps]
        for row, present in enumerate([-1, *set_of_step]):
            if present >= 0:
                table[row, r.base] = kind.address + plan.place[present] * size
                table[row, r.present] = storage[present]
            if present + 1 < len(kind.steps):
                table[row, r.place] = kind.address + plan.place[present + 1] * size
                table[row, r.following] = storage[present + 1]
    return tuple(tuple(row) for row in table.tolist())
