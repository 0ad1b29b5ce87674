"""The page: HTML text around the pictures. It holds everything it shows, runs no script and asks no network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from compiler.schedule.bounds import COLUMNS, layer_bounds, total
from compiler.swap import IN_DRAM
from npusim.cost import Range
from npusim.cost.energy import COMPONENTS
from npusim.cost.energy import total as sum_of
from npusim.fidelity import PAIRS
from npusim.html.energy import rate_rows, words
from npusim.html.fidelity import figures
from npusim.html.figure import Picture
from npusim.html.source import RunData, layer_class
from npusim.html.stacks import BARRIER, by_layer
from npusim.timing import CAUSES

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", Arial, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 1180px; padding: 24px 28px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 38px 0 8px; border-bottom: 2px solid #0072B2;
  padding-bottom: 3px; } .sub { color: #444; margin: 0 0 18px; }
table { border-collapse: collapse; font-size: 13.5px; margin: 6px 0; } th, td { padding: 3px 10px; text-align: right;
  border-bottom: 1px solid #d9d9d9; font-variant-numeric: tabular-nums; } th { background: #f2f5f8; }
th:first-child, td:first-child, td.text { text-align: left; } caption { text-align: left; font-weight: bold;
  padding: 6px 0; }
figure { margin: 0; } figure img { max-width: 100%; height: auto; } figcaption, .note { color: #444; font-size: 13.5px;
  max-width: 100ch; } .cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 14px 0; }
.card { border: 1px solid #c9d3dc; border-radius: 6px; padding: 8px 14px; min-width: 128px; }
.card b { display: block; font-size: 21px; } .card span { color: #444; font-size: 13px; }
.wide { overflow-x: auto; } .pair { display: flex; flex-wrap: wrap; gap: 34px; align-items: flex-start; }
img.clips { image-rendering: pixelated; } details { margin: 8px 0; } summary { cursor: pointer; color: #0b5c8f; }
nav a { margin-right: 14px; color: #0b5c8f; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav, details { display: none; } h2 {
  break-after: avoid; } figure, .card { break-inside: avoid; } }
"""
HEAD = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
)
DEFINITIONS = (
    ("cycles", "NPU cycles of the denoiser for one video: the prologue once, then every step. Text encoder and "
     "autoencoder run on the host and are not in them."),
    ("MAC utilisation", "products that the model needs over what the array could do at its 8-bit rate in all cycles: "
     "16-bit operands, edge tiles and waiting all lower it."),
    ("DRAM share", "bytes that loads and stores move on the bus over what all channels could move in all cycles."),
    ("wait for data, for space", "the unit waits for a token: that its input has been written, or that its output's "
     "place has been read."),
    ("wait DRAM", "cycles of a transfer beyond its bytes at the peak rate: latency, rows, refresh, other traffic."),
    ("wait barrier", "no work before the barrier at the end of a part, or the barrier itself."),
    ("bound", "the least cycles: of the array for its products, of the vector unit, of DRAM for the bytes that must "
     "move once. Padding are cells of the array without work, at edges; fill are its first loads and drains."),
    ("n/a", "was not modelled or not measured in this run; never 0."),
)  # fmt: skip


def page(run: RunData, pictures: Sequence[Picture], folder: str) -> str:
    """The whole file. ``folder``: where the pictures' files lie, as seen from the page."""
    title = _title(run)
    sections = [("summary", "Summary", _summary(run))]
    sections += [("clips", "Clips", _clips(run))]
    shown = {picture.name: picture for picture in pictures}
    for name, heading in (
        ("roofline", "Roofline"), ("causes_by_layer", "Cycles by cause and layer"),
        ("causes_by_step", "Cycles by cause and step"), ("timeline", "Units over one step"),
        ("memory", "Memories over one step"), ("energy_by_component", "Energy by component"),
        ("energy_by_layer", "Energy by layer"), ("energy_by_cause", "Idle and leakage by cause"),
        ("energy_by_step", "Energy by step"), ("area", "Area and rates"),
        ("swap", "Parameter swap"), ("fidelity", "Fidelity by step"),
        ("fidelity_by_layer", "Fidelity by layer and step"),
    ):  # fmt: skip
        text = _figure(shown[name], folder) if name in shown else f"<p>{escape(_absent(run, name))}</p>"
        sections.append((name, heading, text + TABLES[name](run) if name in TABLES else text))
    sections += [("layers", "Layers", _layers(run)), ("words", "Words", _definitions())]
    body = "".join(f'<h2 id="{name}">{escape(heading)}</h2>\n{text}\n' for name, heading, text in sections)
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    return (
        f"{HEAD}<title>{escape(title)}</title><style>{CSS}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="sub">{escape(_subtitle(run))}</p>\n<nav>{links}</nav>\n{body}</body></html>\n'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table; numbers are written with separators, everything else as it is."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ["".join(f"<td>{escape(shown(cell))}</td>" for cell in row) for row in rows]
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(value: object) -> str:
    """A figure as text: whole numbers with separators, others with four digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "n/a"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return four_digits(value) if isinstance(value, float) else str(value)


def four_digits(value: float) -> str:
    """At least four digits, and no exponent for large numbers."""
    return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:,.4g}"


def _title(run: RunData) -> str:
    config = run.record["config"]
    prompt = "Timing of any clip" if run.timing_only else config.get("prompt", "")
    return f"{prompt} ({config.get('workload', '')}, {config.get('method', '')})"


def _subtitle(run: RunData) -> str:
    config = run.record["config"]
    bits = f"W{config.get('weight_bits')}A{config.get('act_bits')}, attention {config.get('attention_bits')} bits"
    seed = "timing only" if run.timing_only else f"noise seed {run.record.get('seeds', {}).get('noise', 'n/a')}"
    return f"{bits}, on {run.program.machine.name}; {run.program.steps} steps, {seed}{_policy(config)}{_part(run)}"


def _policy(config: Mapping[str, Any]) -> str:
    """How parameter sets come from storage, where they begin there."""
    policy = config.get("policy", IN_DRAM)
    return "" if policy == IN_DRAM else f"; parameter sets fetched from storage, policy {policy}"


def _part(run: RunData) -> str:
    """What was run, where that was not the whole video."""
    part = run.record.get("part", "all")
    return "" if part == "all" else f"; ONLY A PART of the video was run, and all figures are of that: {part}"


def _summary(run: RunData) -> str:
    timing, machine = run.timing, run.program.machine
    cards = [
        (
            f"{four_digits(timing.seconds * 1e3)} ms",
            f"{'a part of ' * bool(_part(run))}one video at {machine.clock_mhz:,} MHz",
        ),
        (f"{timing.cycles:,}", "cycles"),
        (f"{timing.mac_utilisation:.1%}", "MAC utilisation"),
        (f"{timing.dram_bandwidth_share:.1%}", "DRAM share"),
        (
            f"{four_digits((timing.traffic.dram_read_bytes + timing.traffic.dram_write_bytes) / 1e6)} MB",
            "on the DRAM bus",
        ),
        _energy_card(run.energy.total_pj),
        (_bits(run.record), "engine against reference"),
    ]
    boxes = "".join(f'<div class="card"><b>{escape(number)}</b><span>{escape(text)}</span></div>'
                    for number, text in cards)  # fmt: skip
    parts = [(part.name, part.timing) for part in run.parts.values()]
    traffic = [*[t.traffic for _, t in parts], timing.traffic]
    rows: list[list[object]] = [
        ["cycles", *(t.total_cycles for _, t in parts), timing.cycles],
        ["instructions", *(len(p.instructions) for p in run.parts.values()), "n/a"],
        *([name.replace("_", " "), *(getattr(t, name) for t in traffic)]
          for name in ("mac_operations", "dram_read_bytes", "dram_write_bytes", "sram_read_bytes", "sram_write_bytes")),
    ]  # fmt: skip
    rows[1][-1] = _executed(run)
    whole = "this part" if _part(run) else "whole video"
    costs = table(["", *(_one(run, name) for name, _ in parts), whole], rows, "Cost")
    loss = table(["", *(pair.replace("_", " ") for pair in PAIRS)],
                 [[name, *values] for name, values in figures(run.record)], "Fidelity")  # fmt: skip
    ledger = table(
        ["unit", *(cause.replace("_", " ") for cause in CAUSES)],
        [
            [unit, *(f"{causes[cause] / timing.cycles:.1%}" for cause in CAUSES)]
            for unit, causes in ((unit, timing.ledger[unit]) for unit in run.units)
        ],
        "Share of all cycles by unit and cause",
    )
    return f'<div class="cards">{boxes}</div>\n<div class="pair">{costs}{loss}</div>{ledger}{_settings(run)}'


def _one(run: RunData, part: str) -> str:
    """A column's head: of several step codes, the parts have the first."""
    return f"{'first' if part == 'step' and run.program.more_steps else 'one'} {part}"


def _executed(run: RunData) -> int:
    """Instructions of prologue and all steps."""
    codes = run.program.step_codes
    return len(run.program.prologue) + sum(len(codes[number]) for number in run.timing.code_of_step)


def _energy_card(value: Range) -> tuple[str, str]:
    low, nominal, high = (four_digits(float(f"{pj / 1e9:.3g}")) for pj in (value.low, value.nominal, value.high))
    return f"{nominal} mJ", f"energy of the denoiser, {low} to {high} mJ"


def _energy_table(run: RunData) -> str:
    """Energy of the parts and in all, by component, with both bounds."""
    energy, parts = run.energy, run.parts
    columns = [getattr(energy, name).by_component for name in parts] + [energy.by_component]
    rows = [[words(name), *(_microjoules(column[name]) for column in columns)] for name in COMPONENTS]
    rows.append(["total", *(_microjoules(sum_of(column.values())) for column in columns)])
    header = ["µJ: nominal (low to high)", *(_one(run, name) for name in parts), "whole run"]
    return table(header, rows)


def _microjoules(value: Range) -> str:
    low, nominal, high = (four_digits(pj / 1e6) for pj in (value.low, value.nominal, value.high))
    return f"{nominal} ({low} to {high})"


def _rates_table(run: RunData) -> str:
    return table(["", "unit", "low", "nominal", "high"], rate_rows(run))


TABLES = {"energy_by_component": _energy_table, "area": _rates_table}
"""Tables behind figures."""


def _bits(record: Any) -> str:
    compared = record.get("bit_exact")
    equal = compared.get("equal") if isinstance(compared, dict) else None
    return {True: "equal", False: "DIFFER", None: "not compared"}[equal if isinstance(equal, bool) else None]


def _settings(run: RunData) -> str:
    def flat(value: Any, name: str = "") -> Iterable[tuple[str, object]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from flat(item, f"{name}.{key}" if name else str(key))
        else:
            yield name, "n/a" if value is None else value if isinstance(value, int | float | str) else str(value)

    settings = {name: run.record.get(name, {}) for name in ("config", "seeds", "versions")}
    return f"<details><summary>All settings</summary>{table(['setting', 'value'], flat(settings))}</details>"


def _clips(run: RunData) -> str:
    if run.clips is None:
        return f"<p>{NO_DATA if run.timing_only else 'n/a: this run has no clips.'}</p>"
    return (
        f'<img class="clips" alt="float, fake-quantized and integer clip side by side" '
        f'src="data:image/gif;base64,{base64.b64encode(run.clips).decode()}">'
        '<p class="note">The same noise through the float model, the fake-quantized model and the machine.</p>'
    )


def _figure(picture: Picture, folder: str) -> str:
    data, name = base64.b64encode(picture.png).decode(), escape(picture.name)
    files = f"{escape(folder)}/{name}.png, {escape(folder)}/{name}.csv"
    return (
        f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)} <small>Files: {files}</small></figcaption></figure>"
    )


NO_DATA = "n/a: a timing-only run: no data flowed, so there is nothing to look at or to measure."


def _absent(run: RunData, name: str) -> str:
    """Why a figure is not there."""
    if run.timing_only and name.startswith("fidelity"):
        return NO_DATA
    return {
        "swap": "n/a: all parameter sets lie in DRAM from the start; npusim run --policy fetches them from storage.",
        "fidelity": "n/a: this run measured no fidelity.",
        "fidelity_by_layer": "n/a: not measured; npusim report --by-layer does.",
        "roofline": "n/a: the step has no matrix products.",
    }.get(name, "n/a")


def _layers(run: RunData) -> str:
    rows: list[list[object]] = []
    used = [run.program.machine.units.index(unit) for unit in run.units]
    for part in run.parts.values():
        for name, every_unit in by_layer(part).items():
            cycles = every_unit[used]
            total = cycles.sum(axis=1).tolist()
            rows.append([name, part.name, *cycles[:, CAUSES.index("busy")].tolist(), *total])
    classes: dict[str, list[Any]] = {}
    for layer, _, *counts in (row for row in rows if row[0] != BARRIER and row[1] == "step"):
        of_class = classes.setdefault(layer_class(str(layer)), [0, *[0] * len(counts)])
        classes[layer_class(str(layer))] = [a + b for a, b in zip(of_class, [1, *counts], strict=True)]
    named = [[f"{name}  ×{count}" if count > 1 else name, "step", *c] for name, (count, *c) in classes.items()]
    longest = sorted(named, key=_busiest, reverse=True)
    header = ["layer", "part", *(f"{unit} busy" for unit in run.units), *(f"{unit} all" for unit in run.units)]
    note = (
        '<p class="note">Cycles of one execution: busy, and with waiting; layers of one name in different blocks are '
        "summed above, each of its own in all rows. The CSV of the figure by cause and layer has "
        "them by cause.</p>"
    )
    every = f"<details><summary>All {len(rows)} rows</summary>{table(header, rows)}</details>"
    return note + table(header, longest[:15], "The layers that keep a unit busy longest") + every + _bounds(run)


def _bounds(run: RunData) -> str:
    """What no schedule can beat, beside what the layers of a step took."""
    part, names = run.step, run.program.layers
    bounds = layer_bounds(run.program.step, run.program.machine)
    classes: dict[str, list[int]] = {}
    for index in sorted(set(part.timing.layers) & set(bounds)):
        classes.setdefault(layer_class(names[index]), []).append(index)
    taken = {name: sum(part.timing.layers[index].span_cycles for index in own) for name, own in classes.items()}
    longest = sorted(taken, key=lambda name: (-taken[name], name))[:15]
    header = ["layer", "first start to last end", *(name.replace("_", " ") for name in COLUMNS)]
    rows = [
        [f"{name}  ×{len(classes[name])}" if len(classes[name]) > 1 else name, taken[name],
         *total(bounds[index] for index in classes[name]).row().values()]
        for name in longest
    ]  # fmt: skip
    every = total(bounds.values()).row().values()
    return table(header, [*rows, ["whole step", part.timing.total_cycles, *every]], "Bounds of the longest layers")


def _busiest(row: Sequence[Any]) -> int:
    return int(max(row[2 : 2 + (len(row) - 2) // 2]))


def _definitions() -> str:
    rows = "".join(f'<tr><td>{escape(a)}</td><td class="text">{escape(b)}</td></tr>' for a, b in DEFINITIONS)
    return f"<table>{rows}</table>"
