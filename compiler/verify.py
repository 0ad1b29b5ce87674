"""Legality of a program: every instruction defined, every address inside its memory, no hazard left without a token.

The hazard check does not trust the token pass: it follows the tokens through the queues (the k-th wait takes the k-th
token sent) to learn what is certainly finished when an instruction starts, and then demands that of every earlier
instruction whose bytes overlap. So any order that the tokens allow computes what program order computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from compiler.accesses import READ, WRITE, Accesses, units_used
from compiler.verify_fetches import Fault, fetch_faults
from npusim.congruence import copies, digest, joins, pieces
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, broken_rules, check_halt, decode
from npusim.isa.control import JOINS, named_tokens
from npusim.isa.encoding import WORDS, Decoded
from npusim.isa.storage_dma import FETCH
from npusim.program import Program
from npusim.program_rules import outside
from npusim.timing.cost import shapes
from npusim.units import UNITS


def verify(program: Program) -> None:
    """Raise UserError naming part, instruction, layer and rule if the program is not legal."""
    if not all(_certainly_legal(program, code) for _, code in program.code()):
        for part, instructions in program.decoded().items():
            _verify(program, part, instructions)


def _verify(program: Program, part: str, instructions: list[Decoded]) -> None:
    # In this order: an address means nothing in an undefined instruction, an overlap nothing outside a memory.
    faults = (
        broken_rules(instructions, program.machine)
        or outside(program, instructions)
        or list[tuple[int, str]](_forbidden_stores(program, instructions))
        or hazards(instructions)
        or fetch_faults(program, part, instructions)
    )
    if faults:
        index, rule = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{part}: {program.named(index, instructions[index])}: {rule}{more}")


def _certainly_legal(program: Program, code: NDArray[np.uint32]) -> bool:
    """Whether all rules hold, found quickly: False may also mean that only `_verify` can tell.

    What depends on places in DRAM is checked for every copy, the rules of a family for every shape of instruction. The
    rest is the same for pieces between barriers that differ in these places and in immediates alone
    (`npusim.congruence.digest`), so it is checked for one of each.
    """
    if code.ndim != 2 or code.shape[1] != WORDS or ((code[:, 0] & 0xFF) == FETCH.opcode).any():
        return False
    found = copies(code)
    if found is None or (code[:, 0] >> 16 >= len(program.layers)).any():
        return False
    limits = program.limits
    most = [limits.get(("dram", base), 0) for base in range(1 + int(found.base.max(initial=0)))]
    if (found.end > np.array(most, np.int64)[found.base]).any() or found.base[found.stores].any():
        return False
    for start, end in _constant(program).values():
        if (found.stores & (found.first < end) & (found.end > start)).any():
            return False
    return _pieces_legal(program, code)


def _pieces_legal(program: Program, code: NDArray[np.uint32]) -> bool:
    """The part of `_certainly_legal` that is checked for one of each kind of piece."""
    seen, ruled = set[bytes](), set[bytes]()
    try:
        check_halt(code)
        for begin, end in pieces(joins(code)):
            piece = code[begin:end]
            new = {shape.tobytes(): shape for shape in shapes(piece)}
            fresh = [new[key] for key in new.keys() - ruled]
            if broken_rules(decode(np.array(fresh, np.uint32).reshape(-1, WORDS)), program.machine):
                return False
            ruled |= new.keys()
            key = digest(piece)
            if key not in seen:
                instructions = decode(piece)
                if outside(program, instructions) or hazards(instructions):
                    return False
                seen.add(key)
    except UserError:
        return False
    return True


def _constant(program: Program) -> dict[str, tuple[int, int]]:
    """Bytes [start, end) of DRAM that a program must not change: name to start and end."""
    constant = {name: (address, address + data.size) for name, (address, data) in program.areas.items()}
    if noise := program.buffers.get("noise"):
        constant["noise"] = noise.address, noise.address + noise.bytes
    return constant | program.places


def _forbidden_stores(program: Program, instructions: list[Decoded]) -> Iterator[Fault]:
    """Stores into what a program must not change."""
    constant = _constant(program)
    for index, ins in ((i, ins) for i, ins in enumerate(instructions) if ins.op != "fetch"):
        for region in (r for r in BY_MNEMONIC[ins.op].footprint(ins)[1] if r.memory == "dram"):
            if region.base:
                yield Fault(index, f"base = {region.base}: a store is allowed through base 0 only")
            for name, (start, end) in constant.items():
                if region.start < end and region.end > start:
                    yield Fault(index, f"{region} overwrite the {name} at {start}..{end}")


def completed_before(instructions: list[Decoded]) -> tuple[list[list[int]], list[Fault]]:
    """For each instruction and unit: how many instructions of that unit are certainly complete when it starts.

    The faults are waits for a token that no earlier instruction sends, and tokens left over at a barrier or at the end.
    """
    faults: list[Fault] = []
    sent: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    position: list[int] = []
    knowledge: list[list[int]] = []
    units = range(units_used(instructions))
    last = [[0] * len(units) for _ in units]
    counts = [0] * len(units)
    for index, ins in enumerate(instructions):
        barrier = ins.op in JOINS
        known = list(counts) if barrier else list(last[ins.unit])
        for kind, unit in named_tokens(ins, "wait"):
            if not sent[kind, unit, ins.unit]:
                faults.append(Fault(index, f"waits for a {kind} token that {UNITS[unit]} has not been told to send"))
                continue
            producer = sent[kind, unit, ins.unit].pop(0)
            known = [max(pair) for pair in zip(known, knowledge[producer], strict=True)]
            known[unit] = max(known[unit], position[producer] + 1)
        if barrier:
            faults += _left_over(sent)
        for kind, unit in named_tokens(ins, "signal"):
            sent[kind, ins.unit, unit].append(index)
        known[ins.unit] = counts[ins.unit]
        position.append(counts[ins.unit])
        knowledge.append(known)
        counts[ins.unit] += 1
        last = [list(counts) for _ in units] if barrier else [*last[: ins.unit], known, *last[ins.unit + 1 :]]
    return knowledge, faults + _left_over(sent)


def _left_over(sent: dict[tuple[str, int, int], list[int]]) -> list[Fault]:
    """Tokens that were sent and not taken; they are removed."""
    faults = []
    for (kind, _, consumer), tokens in sent.items():
        faults += [Fault(index, f"its {kind} token to {UNITS[consumer]} is never taken") for index in tokens]
        tokens.clear()
    return faults


def hazards(instructions: list[Decoded]) -> list[Fault]:
    """Token faults, or pairs that touch the same bytes, at least one writing, with nothing that orders them."""
    knowledge, faults = completed_before(instructions)
    if faults:
        return faults
    units = units_used(instructions)
    touched, counts = Accesses(units), [0] * units
    for index, ins in enumerate(instructions):
        reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
        for access, region in [(READ, r) for r in reads] + [(WRITE, r) for r in writes]:
            latest = touched.latest(region)
            earlier = latest[WRITE] if access == READ else latest.max(axis=0)
            for unit, number in enumerate(earlier.tolist()):
                if unit != ins.unit and number >= knowledge[index][unit]:
                    action = "reads" if access == READ else "writes"
                    rule = f"{action} {region} while {UNITS[unit]} may still work on them: a token is missing"
                    faults.append(Fault(index, rule))
        for access, regions in ((READ, reads), (WRITE, writes)):
            for region in regions:
                touched.add(region, access, ins.unit, counts[ins.unit])
        counts[ins.unit] += 1
    return faults
