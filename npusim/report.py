"""The run folder, written from a `RunResult`. README.md in this folder defines every figure.

Files: ``run.json``, ``layers.csv``, ``steps.csv``, ``clips.gif`` and ``clips.png`` (where there are frames),
``quantized.safetensors``, ``program.npu``, and ``passes/*.txt`` if they were asked for. A timing-only run has
``run.json``, ``layers.csv`` and ``steps.csv``. Equal inputs give equal
files, except for the block ``wall_clock`` of run.json. A figure that is not modelled is "n/a", never 0; infinity is
"inf".
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import npusim
from compiler.schedule.bounds import COLUMNS, layer_bounds
from npusim import pictures
from npusim.cost.energy import WORK, PartEnergy, energy_block, total
from npusim.fidelity import PAIRS
from npusim.folder import Layout, write_folder
from npusim.memory import Tally
from npusim.program_file import save_program
from npusim.record import SCHEMA_VERSION
from npusim.run import RunResult, TimingResult
from npusim.timing import CodeTiming, Traffic
from npusim.unfinished import FOLDER

NOT_MODELLED = "n/a"
PACKAGES = ("numba", "numpy", "pillow", "safetensors", "scikit-image", "torch")
CLIP_LABELS = {"float": "float", "fakequant": "fake-quant", "integer": "integer"}

ENERGY_COLUMNS = ("energy_low_pj", "energy_nominal_pj", "energy_high_pj")
JSON, PASSES = "run.json", "passes"
RUN_FOLDER = Layout(
    "run",
    (
        JSON,
        "layers.csv",
        "steps.csv",
        "saturation.csv",
        "clips.gif",
        "clips.png",
        "quantized.safetensors",
        "program.npu",
        PASSES,
        # what `npusim report` adds, about the run that was here
        "report.html",
        "figures",
        FOLDER,
    ),
    FOLDER,
)


def number(value: float | None) -> float | int | str:
    """A figure as files hold it: None is "n/a", infinities are "inf" and "-inf"."""
    if value is None:
        return NOT_MODELLED
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return number(value) if value is None or isinstance(value, float) else value


def _traffic(traffic: Traffic) -> dict[str, int]:
    return {f.name: getattr(traffic, f.name) for f in fields(traffic)}


def as_dict(result: TimingResult) -> dict[str, Any]:
    """run.json's contents."""
    config, program, timing, quantized = result.config, result.program, result.timing, result.quantized
    workload = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("machine", "seed")}
    if config.timing_only:
        workload |= dict.fromkeys(("prompt", "verify"), NOT_MODELLED)
    traffic = _traffic(timing.traffic)
    mac_operations = traffic.pop("mac_operations")
    measured = _measured(result) if isinstance(result, RunResult) else dict.fromkeys(MEASURED, NOT_MODELLED)
    return {
        "schema_version": SCHEMA_VERSION,
        "part": config.part or "all",
        "config": workload | {"machine": config.machine.model_dump(mode="json")},
        "seeds": {"noise": number(config.seed)},
        "versions": {"npusim": npusim.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "model": {
            "weights_sha256": quantized.weights_sha256 if quantized.contents else NOT_MODELLED,
            "alpha": quantized.alpha if quantized.contents else NOT_MODELLED,
            "range_of_step": quantized.range_of_step.tolist(),
        },
        "calibration": measured["calibration"],
        "program": {
            "prologue_instructions": len(program.prologue),
            "step_instructions": len(program.step),
            "constants_bytes": program.constants.size,
            "step_set_bytes": program.sets.shape[1],
            "step_sets": program.steps,
            "range_set_bytes": program.range_sets.shape[1],
            "range_sets": len(program.range_sets),
            "dram_bytes": program.dram_bytes,
        },
        "fidelity": measured["fidelity"],
        "cost": {
            "cycles": timing.cycles,
            "prologue_cycles": timing.prologue.total_cycles,
            "step_cycles": timing.step.total_cycles,
            "seconds": timing.seconds,
            "mac_operations": mac_operations,
            "mac_utilisation": timing.mac_utilisation,
            "dram_bandwidth_share": timing.dram_bandwidth_share,
            "dram": asdict(timing.dram),
            "bytes": traffic | {"storage_read_bytes": NOT_MODELLED},
            "energy_joules": {name: value / 1e12 for name, value in asdict(result.energy.total_pj).items()},
            "energy_pj": energy_block(result.energy),
        },
        "saturation": measured["saturation"],
        "ledger_cycles": {unit: dict(causes) for unit, causes in timing.ledger.items()},
        "bit_exact": measured["bit_exact"],
        "wall_clock": dict(result.wall_clock),
    }


MEASURED = ("calibration", "fidelity", "saturation", "bit_exact")
"""Blocks of run.json that need weights and tensor data."""


def _measured(result: RunResult) -> dict[str, Any]:
    """Those blocks, of a run that had both."""
    stats, fidelity, saturated = result.calibration, result.fidelity, saturation(result).values()
    return {
        "calibration": {
            "workload": stats.workload,
            "captions": list(stats.captions),
            "seeds": list(stats.seeds),
            "recorded_steps": stats.recorded_steps or stats.steps,
            "values_sha256": stats.values_sha256(),
        },
        "fidelity": NOT_MODELLED
        if fidelity is None
        else {
            "eps_sqnr_db": _numbers(fidelity.eps_sqnr_db),
            "eps_equal_inputs_sqnr_db": _numbers(fidelity.eps_equal_inputs_sqnr_db),
            "latent_sqnr_db": _numbers(fidelity.latent_sqnr_db),
            "frames_psnr_db": _numbers(fidelity.psnr_db),
            "frames_ssim": _numbers(fidelity.ssim),
        },
        "saturation": {
            "accumulator_overflows": sum(tally.overflows for tally in saturated),
            "clamped_results": sum(tally.saturated for tally in saturated),
            "results": sum(tally.outputs for tally in saturated),
        },
        "bit_exact": asdict(result.bit_exact),
    }


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file with one header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def layers_csv(result: TimingResult) -> bytes:
    """One row for each layer of prologue and step, by start; cycles and bytes of one execution, beside their bounds."""
    counts = [f.name for f in fields(Traffic)]
    code, machine = dict(result.program.code()), result.config.machine
    arrays, peak = machine.units_of("mac"), machine.peak_macs_per_cycle / machine.mac_array.count
    header = ["part", "layer", "executions", "start_cycle", "span_cycles"]
    header += [f"{unit}_busy_cycles" for unit in machine.units]
    header += [*counts, *COLUMNS, "mac_busy_utilisation", *(f"energy_{name}_pj" for name in WORK), *ENERGY_COLUMNS]

    def rows(part: str, timing: CodeTiming, energy: PartEnergy, executions: int) -> Iterable[list[Any]]:
        bounds = layer_bounds(code[part], result.program.machine)
        for index, layer in sorted(timing.layers.items(), key=lambda item: (item[1].start_cycle, item[0])):
            busy, work = sum(layer.busy_cycles[array] for array in arrays), energy.layers[index]
            yield [
                part,
                result.program.layers[index],
                executions,
                layer.start_cycle,
                layer.span_cycles,
                *(layer.busy_cycles[unit] for unit in machine.units),
                *(getattr(layer.traffic, name) for name in counts),
                *bounds[index].row().values(),
                layer.traffic.mac_operations / (peak * busy) if busy else NOT_MODELLED,
                *(round(work[name].nominal) for name in WORK),
                *(round(value) for value in asdict(total(work.values())).values()),
            ]

    timing, energy = result.timing, result.energy
    parts = (("prologue", timing.prologue, energy.prologue, 1), ("step", timing.step, energy.step, timing.steps))
    return csv_bytes(header, [row for part in parts for row in rows(*part)])


def steps_csv(result: TimingResult) -> bytes:
    """One row for each denoising step in order of execution."""
    step, unknown = result.timing.step, [None] * result.timing.steps
    free: Mapping[str, Sequence[float | None]] = dict.fromkeys(PAIRS, unknown)
    equal = free
    if isinstance(result, RunResult) and result.fidelity is not None:
        free, equal = result.fidelity.eps_sqnr_db, result.fidelity.eps_equal_inputs_sqnr_db
    columns: dict[str, Sequence[float | None]] = {f"eps_{name}_sqnr_db": values for name, values in free.items()}
    columns |= {f"eps_equal_inputs_{name}_sqnr_db": values for name, values in equal.items()}
    compared = result.bit_exact.steps_compared if isinstance(result, RunResult) else None
    traffic = {name: count for name, count in _traffic(step.traffic).items() if name.startswith("dram")}
    header = ["step", "timestep", "time_range", "cycles", "seconds", *traffic, *ENERGY_COLUMNS]
    header += [*columns, "compared_bit_for_bit"]
    energy_pj = [round(value) for value in asdict(result.energy.step.total_pj).values()]
    clock_hz = result.config.machine.clock_hz
    rows = [
        [
            index,
            timestep,
            int(result.quantized.range_of_step[index]),
            step.total_cycles,
            step.total_cycles / clock_hz,
            *traffic.values(),
            *energy_pj,
            *(number(values[index]) for values in columns.values()),
            NOT_MODELLED if compared is None else "yes" if index in compared else "no",
        ]
        for index, timestep in enumerate(result.timesteps)
    ]
    return csv_bytes(header, rows)


def saturation(result: RunResult) -> dict[tuple[str, str, str], Tally]:
    """What accumulators and clamps did, by time range (or prologue), layer and mnemonic."""
    found: dict[tuple[str, str, str], Tally] = {}
    for part, tallies in result.tallies.items():
        step = part.removeprefix("step ")
        when = part if step == part else str(int(result.quantized.range_of_step[int(step)]))
        for (layer, mnemonic), tally in tallies.items():
            total = found.setdefault((when, result.program.layers[layer], mnemonic), Tally())
            total.overflows += tally.overflows
            total.saturated += tally.saturated
            total.outputs += tally.outputs
    return found


def saturation_csv(result: RunResult) -> bytes:
    """One row for each time range, layer and mnemonic of the integer clip, in order of execution."""
    header = ["time_range", "layer", "mnemonic", "accumulator_overflows", "clamped_results", "results"]
    rows = ([*key, t.overflows, t.saturated, t.outputs] for key, t in saturation(result).items())
    return csv_bytes(header, rows)


def write_run(result: TimingResult, out: Path) -> None:
    """Write the run folder, as `npusim.folder.write_folder`, which see for errors."""
    write_folder(out, RUN_FOLDER, lambda folder: _write(result, folder))


def _write(result: TimingResult, folder: Path) -> None:
    contents = {"layers.csv": layers_csv(result), "steps.csv": steps_csv(result)}
    if isinstance(result, RunResult):
        contents |= {"saturation.csv": saturation_csv(result), **_pictures(result)}
        result.quantized.save(folder / "quantized.safetensors")
        save_program(result.program, folder / "program.npu")
    contents |= {f"{PASSES}/{stage}.txt": text.encode() for stage, text in result.passes.items()}
    contents[JSON] = (json.dumps(as_dict(result), indent=2, allow_nan=False) + "\n").encode()
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _pictures(result: RunResult) -> dict[str, bytes]:
    """The clips as files, where there are frames."""
    frames = {CLIP_LABELS[name]: clip.frames for name, clip in result.clips.items() if clip.frames is not None}
    if not frames:
        return {}
    title = f"{result.config.prompt} ({result.config.workload}, {result.config.method}, seed {result.config.seed})"
    return {"clips.gif": pictures.gif(frames, title), "clips.png": pictures.png(frames, title)}
