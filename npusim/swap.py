"""What swapping parameter sets costs: the paper's question, for any program whose sets lie in DRAM.

`compare` takes one compiled program and answers for it: cycles, bytes and DRAM of each policy, as timed from the
program that really fetches. `swap` compiles a workload for several methods and numbers of time ranges and writes a
folder of tables. Timing only: no data flows, and no result depends on weights or prompts. The denoiser alone is
modelled; the text encoder and the autoencoder are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler import compile_model
from compiler.swap import IN_DRAM, POLICIES, swap_program, with_ranges, without_fetches
from compiler.swap.code import Coder
from compiler.swap.coded import Codes
from compiler.swap.kind import RANGE, STEP
from models.prepare import quantize_for
from models.quantize.outline import outline
from models.workloads import Workload
from npusim import callable_module
from npusim.clips import Notify, one_thread
from npusim.config import Machine, load_machine
from npusim.congruence import joins, pieces, time_digest
from npusim.cost import Range, swap_energy
from npusim.delta import coded_share
from npusim.errors import UserError
from npusim.folder import Layout, check_folder
from npusim.isa import decode
from npusim.isa.encoding import Decoded
from npusim.isa.storage_dma import FETCH
from npusim.program import Program
from npusim.run import stats_of, with_files
from npusim.swap_timer import Timer, Words, roomy, with_rate
from npusim.timing import simulate
from npusim.timing.cost import DMA, cost_of

callable_module(__name__)

METHODS, RANGES = ("tsw", "tsq", "tsq_pot"), (1, 2, 4, 10, 20)
STEP_CONSTANTS, ALL_SETS = "step constants", "all sets"
"""What a row swaps: the steps' constants alone, with the ranges' sets in DRAM from the start; or both."""
FOLDER = Layout(
    "comparison of policies",
    ("swap.csv", "boundaries.csv", "swap.md", "exposed.png", "pareto.csv", "pareto.png"),
)
MIN_RATE, MAX_RATE = 1_000_000, 1_000_000_000_000
"""Storage rates that a machine file allows, bytes per second."""
HIDING = ("shadow", "streamed", "adaptive")
"""Policies that fetch beside computation, so that a fast enough storage hides them."""

NOTHING = Range()


@dataclass(frozen=True)
class Boundary:
    """The change to one set of the time ranges, 0 being the first set.

    ``exposed_cycles`` are those that the steps with its fetches take longer than without fetches; of a step that
    fetches for several sets, the share of this one's storage cycles.
    """

    number: int
    storage_read_bytes: int
    dram_write_bytes: int
    storage_cycles: int
    exposed_cycles: int

    @property
    def hidden_cycles(self) -> int:
        """Storage cycles during which something else was done."""
        return max(0, self.storage_cycles - self.exposed_cycles)


@dataclass(frozen=True)
class SwapCost:
    """One policy on one program.

    ``swapped``: `STEP_CONSTANTS` or `ALL_SETS`. ``cycles``: of the whole video; ``plain_cycles``: with all sets in DRAM
    from the start. ``startup_cycles``: the part of the difference that brings the first sets (for ``resident`` all).
    ``dram_bytes``: what the program occupies; ``storage_bytes``: of all its sets; ``dram_fetch_bytes``: on the DRAM's
    bus, of fetches; ``energy``: of fetched bytes, in pJ (`npusim.cost.swap_energy`). ``break_even``: bytes per second
    of storage from which on no unit waits for it; None where there is no such rate. ``refused``: why the policy
    does not fit; the figures are then 0.
    """

    method: str
    ranges: int
    policy: str
    swapped: str
    set_bytes: int
    step_set_bytes: int
    dram_bytes: int = 0
    storage_bytes: int = 0
    storage_read_bytes: int = 0
    dram_write_bytes: int = 0
    dram_fetch_bytes: int = 0
    energy: Range = NOTHING
    storage_cycles: int = 0
    startup_cycles: int = 0
    cycles: int = 0
    plain_cycles: int = 0
    seconds: float = 0.0
    codes: int = 0
    boundaries: tuple[Boundary, ...] = ()
    break_even: int | None = None
    refused: str = ""

    @property
    def exposed_cycles(self) -> int:
        """What the boundaries add to the video, startup left out."""
        return self.cycles - self.plain_cycles - self.startup_cycles

    @property
    def hidden_cycles(self) -> int:
        """Storage cycles during which something else was done."""
        return max(0, self.storage_cycles - self.startup_cycles - self.exposed_cycles)


def compare(
    program: Program,
    machine: Machine,
    policies: Sequence[str] = tuple(POLICIES),
    method: str = "",
    swapped: str = ALL_SETS,
    break_even: bool = True,
    codes: Codes | None = None,
    timer: Timer | None = None,
) -> list[SwapCost]:
    """Cost of each of ``policies`` for a program whose sets lie in DRAM, on ``machine``.

    ``program`` may need more DRAM than ``machine`` has; only its code and the sizes of its sets are used. A policy that
    does not fit has ``refused``. ``codes``: of the ranges' sets, which storage then holds coded. ``timer``: one for
    ``machine`` that knows code from other programs.
    Raises UserError for an unknown policy and a program that cannot be swapped.
    """
    timer, found = (timer or Timer(machine, ())).at(program.bases(0)), list[SwapCost]()
    coder = Coder(program.prologue, program.step, len(program.layers))
    for policy in policies:
        if policy not in POLICIES:
            raise UserError(f"policy = {policy!r}: allowed all, or some of {', '.join(POLICIES)}")
        sizes = (int(program.range_sets.shape[1]), int(program.sets.shape[1]))
        head = (method, len(program.range_sets), policy, swapped, *sizes)
        try:
            pair = policy if swapped == ALL_SETS else IN_DRAM, policy
            made = swap_program(program, timer, *pair, machine, coder, codes)
        except UserError as error:
            found.append(SwapCost(*head, refused=str(error)))
            continue
        cost, rate = _cost(program, made, timer.at(made.bases(0)), SwapCost(*head)), None
        if break_even and policy in HIDING:
            if policy == "streamed":  # with fast storage other parts are best
                quick = Timer(with_rate(machine, MAX_RATE), program.bases(0))
                made = swap_program(program, quick, *pair, machine, coder, codes)
            rate = rate_that_hides(program, made, machine)
        found.append(replace(cost, seconds=cost.cycles / machine.clock_hz, break_even=rate))
    return found


def _cost(plain: Program, made: Program, timer: Timer, head: SwapCost) -> SwapCost:
    """Cycles and bytes of a swapped program, step by step against the same code without fetches."""
    shares: dict[tuple[str, int], list[int]] = {}
    on_bus, decoded_bytes, machine = 0, 0, timer.machine
    extra_of = _extra(plain, made, timer)
    fetches_of = {name: _fetches(code) for name, code in made.code()}
    for step in range(-1, made.steps):
        fetches = fetches_of[made.part_of_step(step) if step >= 0 else "prologue"]
        registers = made.bases(step) if step >= 0 else made.prologue_bases
        costs = [cost_of(ins, machine, registers[ins.base]) for ins in fetches]
        busy = [setup + storage for setup, storage, _ in costs]
        on_bus += sum(counts[DMA["fetch"]] for *_, counts in costs)
        decoded_bytes += sum(ins.bytes for ins in fetches if ins.coded_bytes)
        left = extra_of[step]
        for index, (ins, cycles) in enumerate(zip(fetches, busy, strict=True)):
            share = left if index + 1 == len(fetches) else extra_of[step] * cycles // sum(busy)
            left -= share
            row = shares.setdefault(_serves(made, ins.storage_base, ins.storage_addr, step), [0, 0, 0, 0])
            for place, value in enumerate((ins.coded_bytes or ins.bytes, ins.bytes, cycles, share)):
                row[place] += value
    startup = sum(row[-1] for (_, number), row in shares.items() if number == 0)
    read, written, busy_cycles, _ = (sum(column) for column in zip(*shares.values(), strict=True))
    boundaries = tuple(Boundary(number, *row) for (kind, number), row in sorted(shares.items()) if kind == "range")
    steps = [made.step_codes[made.code_number(step)] for step in range(made.steps)]
    cycles = timer(made.prologue) + sum(map(timer, steps))
    return replace(
        head, dram_bytes=made.dram_bytes, storage_bytes=made.storage_bytes, storage_read_bytes=read,
        dram_write_bytes=written, dram_fetch_bytes=on_bus, energy=swap_energy(machine, read, on_bus, decoded_bytes),
        storage_cycles=busy_cycles, startup_cycles=startup, cycles=cycles,
        plain_cycles=cycles - sum(extra_of.values()), codes=len(made.step_codes), boundaries=boundaries,
    )  # fmt: skip


def _extra(plain: Program, made: Program, timer: Timer) -> dict[int, int]:
    """By step, -1 the prologue: cycles beyond those of the same part without fetches."""
    before, without = map(timer, without_fetches(plain, made))
    extra = {step: timer(made.step_codes[made.code_number(step)]) - without for step in range(made.steps)}
    return {-1: timer(made.prologue) - before, **extra}


def _serves(program: Program, storage_base: int, address: int, step: int) -> tuple[str, int]:
    """Kind and number of the set that a fetch of ``step`` brings; what `resident` brings counts as the first set."""
    if storage_base == 0:
        return "step" if address < program.sets.size else "range", 0
    following = storage_base in (STEP.following, RANGE.following)
    if storage_base in (STEP.present, STEP.following):
        return "step", step + following
    return "range", 0 if step < 0 else program.range_of_step[step] + following


def _fetches(code: Words) -> list[Decoded]:
    return decode(code[(code[:, 0] & 0xFF) == FETCH.opcode])


def rate_that_hides(plain: Program, made: Program, machine: Machine) -> int | None:
    """The least storage rate, within 1 %, at which no unit waits for storage in a step of ``made``; None if none is.

    Fetches then still cost what they take from others at the DRAM. Found by bisection with the timing model, for each
    piece of code between barriers that needs more than those before it; the schedule stays as it is.
    """
    codes = [made.step_codes[number] for number in sorted({made.code_number(step) for step in range(made.steps)})]
    found = dict[bytes, tuple[Words, int]]()
    for piece in (code[begin:end] for code in codes for begin, end in pieces(joins(code))):
        if stored := sum(ins.coded_bytes or ins.bytes for ins in _fetches(piece)):
            found.setdefault(time_digest(piece, made.bases(0), machine), (piece, stored))
    timer = Timer(with_rate(machine, MAX_RATE), made.bases(0))
    # What needs most comes first: bytes of storage for each cycle with the fastest one.
    order = sorted(found.values(), key=lambda entry: -entry[1] / timer.cycles(entry[0]))
    rate = MIN_RATE
    for piece, stored in order:
        least = stored * machine.clock_hz // (2 * timer.cycles(piece))
        needed = _rate_of_piece(piece, machine, made.bases(0), rate, max(rate, least))
        if needed is None:
            return None
        rate = needed
    return rate


def _rate_of_piece(piece: Words, machine: Machine, bases: Sequence[int], enough: int, likely: int) -> int | None:
    """The same for one piece, at least ``enough``; below ``likely``, timing would take long, and it does not hide."""

    def hides(rate: int) -> bool:
        ledger = simulate(piece, with_rate(machine, rate), bases).ledger
        return not any(causes["wait_param_swap"] for causes in ledger.values())

    if likely == enough and hides(enough):
        return enough
    low, high = likely, likely
    while not hides(high):
        if high == MAX_RATE:
            return None
        low, high = high, min(2 * high, MAX_RATE)
    while high > low * 1.01:
        middle = max(low + 1, int((low * high) ** 0.5))
        low, high = (low, middle) if hides(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Study:
    """Costs of a workload on a machine.

    ``one_set``: cycles of the video with one set, by method. ``coded_shares``: bytes of the ranges' sets as differences
    to the one before (`npusim.delta`) over their bytes, by method and ranges; None with one set, and for
    outlines. ``delta``: storage holds them so.
    """

    workload: str
    machine: Machine
    costs: tuple[SwapCost, ...]
    one_set: dict[str, int]
    coded_shares: dict[tuple[str, int], float | None]
    delta: bool = False
    weight_bits: int = 8
    act_bits: int = 8

    def slow_down(self, cost: SwapCost) -> float:
        """Time of the video over that with one set, startup included."""
        return cost.cycles / self.one_set[cost.method]


ProgramOf = Callable[[str, int], Program]
"""By method and number of time ranges."""


def _compiled(work: Workload, machine: Machine, weight_bits: int, act_bits: int, factored: bool) -> ProgramOf:
    """Programs from the workload's weights and calibration statistics."""
    model = work.load_model()
    stats = stats_of(work, model)

    def make(method: str, ranges: int) -> Program:
        quantized = quantize_for(work, model, stats, method, weight_bits, act_bits, ranges=ranges)
        return compile_model(quantized, roomy(machine), factored=factored)

    return make


def _outlined(work: Workload, machine: Machine, weight_bits: int, act_bits: int, factored: bool) -> ProgramOf:
    """Programs without contents; those of one method and several ranges are compiled once."""
    made = dict[str, Program]()

    def make(method: str, ranges: int) -> Program:
        model = outline(work, method, weight_bits, act_bits, ranges=ranges)
        if ranges > 1 and method in made:
            return with_ranges(made[method], tuple(model.range_of_step))
        program = compile_model(model, roomy(machine), factored=factored)
        if ranges > 1:
            made.clear()  # a large program takes much memory
            made[method] = program
        return program

    return make


@one_thread()
def swap(
    workload: str | Workload,
    hw: str | Path | Machine,
    methods: Sequence[str] = METHODS,
    ranges: Sequence[int] = RANGES,
    policies: Sequence[str] = tuple(POLICIES),
    out: str | Path | None = None,
    *,
    weight_bits: int = 8,
    act_bits: int = 8,
    factored: bool = False,
    delta: bool = False,
    fidelity: str | Path | None = None,
    notify: Notify | None = None,
) -> Study:
    """Compare policies for each method and number of time ranges; write the folder ``out`` unless it is None.

    ``ranges`` that are more than the workload's steps are left out. A workload without a checkpoint has random weights,
    which say nothing of how alike its sets are: its programs are outlines (`models.quantize.outline`) and its coded
    shares n/a, but with ``delta``. ``delta``: storage holds the ranges' sets but the
    first as differences to the set before (`npusim.delta`), which FETCH decodes; ``resident`` fetches them as they are.
    ``fidelity``: a folder of `npusim evaluate
    --tables`, whose noise SQNR goes beside latency and capacity. Other arguments as of `npusim.run.run`.

    Raises:
        UserError, ModelError: the user's input is at fault; nothing was written.
    """
    from npusim.swap_write import write_study  # needs this module's types

    if out is not None:
        check_folder(Path(out), FOLDER)
    machine = hw if isinstance(hw, Machine) else load_machine(hw)
    work = with_files(workload)
    counts = sorted({count for count in ranges if 1 <= count <= work.num_steps})
    if not counts or not methods:
        raise UserError(f"ranges = {list(ranges)}, methods = {list(methods)}: allowed some, of 1..{work.num_steps}")
    unknown = [policy for policy in policies if policy not in POLICIES]
    if unknown:
        raise UserError(f"policy = {unknown[0]!r}: allowed all, or some of {', '.join(POLICIES)}")
    if delta and not machine.dma.decoder_bytes_per_cycle:
        raise UserError(
            f"{machine.name}: dma.decoder_bytes_per_cycle = 0: nothing decodes differences; allowed: at least 1"
        )
    program_of = _outlined(work, machine, weight_bits, act_bits, factored)
    if delta or work.checkpoint is not None:
        program_of = _compiled(work, machine, weight_bits, act_bits, factored)
    costs, one_set, shares = list[SwapCost](), dict[str, int](), dict[tuple[str, int], float | None]()
    timer = Timer(machine, ())
    for number, method in enumerate(methods):
        for index, count in enumerate([1, *(count for count in counts if count > 1)]):
            if notify:
                notify(f"{method}, {count} ranges", number * len(counts) + index, len(methods) * len(counts))
            program = program_of(method, count)
            if count == 1:
                one = timer.at(program.bases(0))
                one_set[method] = one(program.prologue) + program.steps * one(program.step)
                costs += compare(program, machine, policies, method, STEP_CONSTANTS, timer=timer)
            if count in counts:
                codes = Codes(program.range_sets) if delta and count > 1 else None
                costs += compare(program, machine, policies, method, codes=codes, timer=timer)
                shares[method, count] = coded_share(program.range_sets) if program.contents else None
    study = Study(work.name, machine, tuple(costs), one_set, shares, delta, weight_bits, act_bits)
    if out is not None:
        write_study(study, Path(out), None if fidelity is None else Path(fidelity))
    return study
