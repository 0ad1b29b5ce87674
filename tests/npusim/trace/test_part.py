import numpy as np
import pytest

from npusim.isa import BY_MNEMONIC
from npusim.orders import tokens
from npusim.program_rules import bare_program
from npusim.timing import CAUSES, simulate
from npusim.timing.cost import costs
from npusim.trace.counters import mean_by_bin, most_by_bin
from npusim.trace.occupancy import occupancy
from npusim.trace.part import instruction_causes, parts_of, token_pairs, unit_free
from npusim.units import UNITS
from tests.npusim.timing import programs


@pytest.mark.parametrize("seed", range(40))
def test_causes_of_random_programs_sum_to_the_ledger(tiny_machine, seed):
    rng = np.random.default_rng(seed)
    machine = programs.random_machine(rng, programs.equipped(tiny_machine))
    if seed % 2:
        machine = programs.several(rng, machine)
    code = programs.random_code(rng, 60, 0.5, True, units=machine.units)
    timing, cost = simulate(code, machine), costs(code, machine)
    causes = instruction_causes(cost, timing, token_pairs(cost))
    assert (causes >= 0).all()
    for name in machine.units:
        own = (cost.unit == UNITS.index(name)) & ~cost.barrier
        ledger, sums = timing.ledger[name], dict(zip(CAUSES, causes[own].sum(axis=0).tolist(), strict=True))
        of_instructions = ("busy", "wait_token_raw", "wait_token_war", "wait_dram", "wait_bank")
        assert {cause: sums[cause] for cause in of_instructions} == {cause: ledger[cause] for cause in of_instructions}
        # A unit with an empty queue waits for storage units, too.
        assert 0 <= sums["wait_param_swap"] <= ledger["wait_param_swap"]
        assert sums["drain"] == sums["wait_barrier"] == sums["idle_done"] == 0
        # Each instruction's own cycles reach from its unit's last one to its end.
        assert (causes[own].sum(axis=1) == (timing.end_cycle - unit_free(cost, timing.end_cycle))[own]).all()


def test_token_pairs_are_those_of_the_orders(tiny_result):
    for part in parts_of(tiny_result.program, tiny_result.timing).values():
        found = {(int(s), int(t), p.kind) for p in part.tokens for s, t in zip(p.sender, p.taker, strict=True)}
        assert found == {tuple(token) for token in tokens(part.instructions)}
        for pairs in part.tokens:
            assert (part.end[pairs.sender] <= part.start[pairs.taker]).all()


def test_occupancy_is_what_every_byte_says(tiny_result):
    """Byte by byte: born when written, needed until the last read before the next write."""
    for part in parts_of(tiny_result.program, tiny_result.timing).values():
        capacity, total = tiny_result.config.machine.sram.capacity_bytes, part.timing.total_cycles
        birth, use = np.zeros(capacity, np.int64), np.full(capacity, -1, np.int64)
        inherited, held = np.zeros(capacity, bool), np.zeros(total + 1, np.int64)

        def close(span: slice, birth=birth, use=use, held=held) -> None:
            alive = use[span] >= 0
            np.add.at(held, birth[span][alive], 1)
            np.add.at(held, use[span][alive], -1)

        for index, ins in enumerate(part.instructions):
            reads, writes = BY_MNEMONIC[ins.op].footprint(ins)
            for region in (r for r in reads if r.memory == "sram"):
                span = slice(region.start, region.end)
                inherited[span] |= use[span] < 0
                use[span] = np.maximum(use[span], part.end[index])
            for region in (r for r in writes if r.memory == "sram"):
                span = slice(region.start, region.end)
                close(span)
                birth[span], use[span] = part.start[index], part.end[index]
        use[inherited] = total
        close(slice(None))
        every = np.cumsum(held)[:-1]
        assert every.max() > 0
        curve, edges = occupancy(part), np.arange(total + 1)
        assert (mean_by_bin(curve, edges) == every).all()
        assert most_by_bin(curve, np.array([0, total])) == every.max()


def test_layers_without_a_name(tiny_machine):
    code = programs.random_code(np.random.default_rng(1), 12, 0.5, True, ops=("ewlin",))
    from npusim.timing import time_program

    program = bare_program(code, tiny_machine)
    part = parts_of(program, time_program(program))["step"]
    assert {part.layer(i) for i in range(len(part.instructions))} <= {"", "(no name)"}
