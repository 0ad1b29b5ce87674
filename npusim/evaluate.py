"""Many clips of one workload: fidelity clip by clip and on average, and a contact sheet (``npusim evaluate``).

The model is quantized and compiled once; each caption is sampled with the float model, its fake-quantized copy and the
engine, all with the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import compile_model
from models.clips import load_digits, load_emoji
from models.prepare import quantize_for
from models.quantize import Override
from models.workloads import Workload, get_workload
from npusim import callable_module, pictures
from npusim.config import Machine, load_machine
from npusim.errors import UserError
from npusim.fidelity import PAIRS, Clip, Fidelity, measure
from npusim.folder import Layout, check_folder, write_folder
from npusim.report import csv_bytes, number
from npusim.run import ClipInputs, Notify, Stages, float_clips, integer_clip, one_thread, stats_of

callable_module(__name__)

CAPTION_SETS = ("evaluation", "sheet")
EVALUATION_FOLDER = Layout("evaluation", ("evaluation.json", "clips.csv", "sheet.png"))
METRICS: Mapping[str, Callable[[Fidelity], Mapping[str, float] | None]] = {
    "psnr_db": lambda f: f.psnr_db,
    "ssim": lambda f: f.ssim,
    "latent_sqnr_db": lambda f: f.latent_sqnr_db,
    "eps_equal_inputs_sqnr_db": lambda f: {n: float(np.mean(v)) for n, v in f.eps_equal_inputs_sqnr_db.items()},
}
"""What a row of clips.csv holds for each pair; noise predictions are averaged over the steps, in dB."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """``rows``: one per caption, as in clips.csv; ``means`` of every figure over them; ``clips`` by caption."""

    settings: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    means: Mapping[str, float | None]
    clips: Mapping[str, Mapping[str, Clip]]


@one_thread()
def evaluate(
    workload: str | Workload,
    hw: str | Path | Machine,
    method: str = "cw_tw",
    out: str | Path | None = None,
    *,
    captions: str = "evaluation",
    weight_bits: int = 8,
    act_bits: int = 8,
    attention_bits: int = 16,
    ranges: int | Sequence[int] | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    factored: bool = False,
    notify: Notify | None = None,
) -> Evaluation:
    """Sample the workload's ``captions`` ("evaluation" or "sheet") three ways and compare; other arguments as of `run`.

    Writes clips.csv, evaluation.json and sheet.png into the folder ``out``, if given, when all is done.
    Raises UserError or ModelError where the user's input is at fault; nothing was written then.
    """
    if out is not None:
        check_folder(Path(out), EVALUATION_FOLDER)
    if captions not in CAPTION_SETS:
        raise UserError(f"captions = {captions!r}: allowed {', '.join(CAPTION_SETS)}")
    work = get_workload(workload) if isinstance(workload, str) else workload
    machine, model = hw if isinstance(hw, Machine) else load_machine(hw), work.load_model()
    vae = work.load_vae() if work.vae else None
    quantized = quantize_for(
        work, model, stats_of(work, model), method, weight_bits, act_bits, ranges=ranges, alpha=alpha,
        overrides=overrides,
    )  # fmt: skip
    program = compile_model(quantized, machine, attention_bits, factored=factored)
    prompts = list(zip(getattr(work, f"{captions}_captions"), getattr(work, f"{captions}_seeds"), strict=True))
    clips: dict[str, Mapping[str, Clip]] = {}
    rows = []
    for done, (prompt, seed) in enumerate(prompts):
        if notify:
            notify("clips", done, len(prompts))
        inputs = ClipInputs.of(work, prompt, seed)
        three, trajectory = float_clips(Stages(None), inputs, model, quantized, vae)
        three["integer"], _ = integer_clip(Stages(None), inputs, program, trajectory, vae, ())
        clips[prompt] = three
        rows.append({"caption": prompt, "noise_seed": seed, **_figures(measure(three))})
    settings = {
        "workload": work.name, "machine": machine.name, "method": method, "weight_bits": weight_bits,
        "act_bits": act_bits, "attention_bits": attention_bits, "captions": captions, "num_steps": work.num_steps,
        "cfg_scale": work.cfg_scale, "cfg_channels": work.cfg_channels, "alpha": quantized.alpha,
        "range_of_step": quantized.range_of_step.tolist(), "factored": factored,
        "overrides": [asdict(override) for override in overrides],
    }  # fmt: skip
    names = [name for name in rows[0] if name not in ("caption", "noise_seed")]
    means = {n: None if rows[0][n] is None else float(np.mean([row[n] for row in rows])) for n in names}
    result = Evaluation(settings, tuple(rows), means, clips)
    if out is not None:
        write_folder(Path(out), EVALUATION_FOLDER, lambda folder: _write(result, folder))
    return result


def _figures(fidelity: Fidelity) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for metric, of in METRICS.items():
        values = of(fidelity)
        found |= {f"{pair}_{metric}": None if values is None else values[pair] for pair in PAIRS}
    return found


def real_clips() -> dict[str, NDArray[np.uint8]]:
    """The first real clip (8, 64, 64, 3) uint8 of every caption of both data sets."""
    found: dict[str, NDArray[np.uint8]] = {}
    for clip_set in (load_emoji(), load_digits()):
        for caption, frames in zip(clip_set.captions, clip_set.frames, strict=True):
            found.setdefault(caption, frames)
    return found


def sheet(result: Evaluation) -> bytes | None:
    """Contact sheet as PNG: real, float and integer clip of each caption; None where the workload has no frames."""
    columns: dict[str, dict[str, NDArray[np.uint8]]] = {}
    for caption, three in result.clips.items():
        exact, made = three["float"].frames, three["integer"].frames
        if exact is None or made is None:
            return None
        columns[caption] = {"float": exact, "integer": made}
    real = real_clips()
    columns = {caption: {"real": real[caption], **made} for caption, made in columns.items()}
    return pictures.contact_sheet(columns)


def _write(result: Evaluation, folder: Path) -> None:
    header = list(result.rows[0])
    rows = ([row[n] if n == "caption" else number(row[n]) for n in header] for row in result.rows)
    body = {"schema_version": 1, "settings": result.settings, "means": {n: number(v) for n, v in result.means.items()}}
    files = {
        "clips.csv": csv_bytes(header, rows),
        "evaluation.json": (json.dumps(body, indent=2, allow_nan=False) + "\n").encode(),
    }
    picture = sheet(result)
    if picture is not None:
        files["sheet.png"] = picture
    for name, data in files.items():
        (folder / name).write_bytes(data)
