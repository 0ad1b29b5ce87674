"""What a run prints: fidelity, cost, cycles by unit and cause, and the bit comparison, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from npusim.cost import Range
from npusim.evaluate import METRICS, Evaluation
from npusim.fidelity import PAIRS, Fidelity
from npusim.memory import Tally
from npusim.report import saturation
from npusim.run import RunResult, TimingResult
from npusim.simulate import BitExact
from npusim.timing import CAUSES

LEDGER_KEY = "raw: waits for data; war: for room; swap: for storage; drain: for other units"
"""What stands in the ledger's head, as far as it is no word; npusim/timing/README.md has all."""


def summary(result: TimingResult) -> RenderableType:
    """One screen, 80 columns wide or more."""
    c = result.config
    if not isinstance(result, RunResult):
        extent = f"a part: {c.part}" if c.part else f"{c.num_steps} steps, both guidance branches"
        head = Text(
            f"{c.workload}, {c.method} W{c.weight_bits}A{c.act_bits}, attention {c.attention_bits} bits, on "
            f"{c.machine.name}\n{extent}; timing only: fidelity n/a"
        )
        return Group(head, _cost(result), _ledger(result), Text(LEDGER_KEY))
    head = Text.assemble(
        (f"{c.prompt}", "bold"),
        f" by {c.workload}, {c.method} W{c.weight_bits}A{c.act_bits}, attention {c.attention_bits} bits, "
        f"on {c.machine.name}\n"
        f"{c.num_steps} steps, guidance {c.cfg_scale:g} on {c.cfg_channels} of 4 channels, noise seed {c.seed}"
        f"{f'{chr(10)}only a part of the video: {c.part}' if c.part else ''}",
    )
    fidelity = Text("integer clip only: fidelity n/a") if result.fidelity is None else _fidelity(result.fidelity)
    texts = saturation_line(saturation(result)), bits_line(result.bit_exact)
    return Group(
        head, fidelity, _cost(result), _ledger(result), Text(LEDGER_KEY), *(Text(line) for line in texts if line)
    )


def written_line(result: TimingResult, out: Path) -> str:
    """Where a run was written to, and the most memory that it has occupied on this computer."""
    return f"written to {out}; peak resident memory {float(result.wall_clock['peak_resident_bytes']) / 1e9:.2f} GB"


def evaluation_table(result: Evaluation) -> RenderableType:
    """Means over the clips of an evaluation."""
    table = _table(f"mean of {len(result.rows)} clips", "integer:float", "integer:fake-q.", "fake-q.:float")
    for metric in METRICS:
        values = [result.means[f"{pair}_{metric}"] for pair in PAIRS]
        table.add_row(metric, *("n/a" if v is None else f"{v:.4f}" if metric == "ssim" else f"{v:.2f}" for v in values))
    return table


def bits_line(bits: BitExact) -> str:
    """The result of the bit comparison in words."""
    if bits.equal is None:
        return "engine and reference: not compared"
    parts = ["prologue"] if bits.prologue_compared else []
    parts += [f"{len(bits.steps_compared)} whole steps"] if bits.steps_compared else []
    single = f"{bits.sampled_instructions:,} single instructions"
    if bits.first_difference is None:
        texts = [f"engine = reference in every byte of memory: {' and '.join(parts)} compared"] if parts else []
        texts += [f"engine = reference in all results of {single}"] if bits.sampled_instructions else []
        return "\n".join(texts)
    return f"engine and reference DIFFER: {bits.first_difference}"


def saturation_line(tallies: Mapping[tuple[str, str, str], Tally]) -> str:
    """How many results were clamped and where most, and how many accumulators overflowed; "" where nothing did."""
    clamped, overflows = (sum(getattr(t, name) for t in tallies.values()) for name in ("saturated", "overflows"))
    parts = [f"{overflows:,} accumulator overflows"] if overflows else []
    if clamped:
        layers = Counter[str]()
        for (_, layer, mnemonic), tally in tallies.items():
            layers[f"{layer} ({mnemonic})"] += tally.saturated
        (layer, most), *_ = layers.most_common(1)
        total = sum(tally.outputs for tally in tallies.values())
        parts.append(f"{clamped:,} of {total:,} results clamped, {most:,} of them in {layer}")
    return "; ".join(parts)


def energy_text(value: Range) -> str:
    """In mJ: nominal, and between what bounds sources leave it."""
    return f"{_short(value.nominal / 1e9)} ({_short(value.low / 1e9)}..{_short(value.high / 1e9)})"


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _fidelity(f: Fidelity) -> Table:
    table = _table("fidelity", "integer:float", "integer:fake-q.", "fake-q.:float")

    def row(name: str, values: Mapping[str, float] | None, digits: int) -> None:
        table.add_row(name, *("n/a" if values is None else f"{values[pair]:.{digits}f}" for pair in PAIRS))

    row("noise SQNR dB, equal inputs", _means(f.eps_equal_inputs_sqnr_db), 2)
    row("noise SQNR dB, free running", _means(f.eps_sqnr_db), 2)
    row("final latent, SQNR dB", f.latent_sqnr_db, 2)
    row("frames, PSNR dB", f.psnr_db, 2)
    row("frames, SSIM", f.ssim, 4)
    return table


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(steps) / len(steps) for name, steps in values.items()}


def _cost(result: TimingResult) -> Table:
    t, machine = result.timing, result.config.machine
    table = _table("cost", "prologue", "one step", "all")
    parts = (t.prologue.total_cycles, t.step.total_cycles, t.cycles)
    table.add_row("cycles", *(f"{cycles:,}" for cycles in parts))
    table.add_row(f"ms at {machine.clock_mhz} MHz", *(f"{cycles / machine.clock_hz * 1e3:,.3f}" for cycles in parts))
    traffic = (t.prologue.traffic, t.step.traffic, t.traffic)
    macs = [x.mac_operations / (machine.peak_macs_per_cycle * cycles) for x, cycles in zip(traffic, parts, strict=True)]
    table.add_row("MAC utilisation", *(f"{value:.1%}" for value in macs))
    digits = 2 if t.traffic.dram_read_bytes < 1e9 else 0
    moved = (f"{x.dram_read_bytes / 1e6:,.{digits}f} + {x.dram_write_bytes / 1e6:,.{digits}f}" for x in traffic)
    table.add_row("DRAM MB read + write", *moved)
    energy = result.energy
    parts_mj = (_short(x.total_pj.nominal / 1e9) for x in (energy.prologue, energy.step))
    table.add_row("energy mJ", *parts_mj, energy_text(energy.total_pj))
    return table


def _ledger(result: TimingResult) -> Table:
    table = _table("% of cycles", *(cause.split("_")[-1] for cause in CAUSES))
    for unit, causes in result.timing.ledger.items():
        if unit.startswith("storage") and not causes["busy"]:
            continue  # a program that swaps nothing
        table.add_row(unit, *(f"{100 * causes[cause] / result.timing.cycles:.1f}" for cause in CAUSES))
    return table
