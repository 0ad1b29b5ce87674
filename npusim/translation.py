"""`npusim verify --tosa`: a run, or a quantized model on a machine, against Arm's TOSA reference model.

`compiler.tosa` does the comparison; this module finds out what to compare, and on which inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import Graph
from compiler.pipeline import integer_graph
from compiler.schedule.build import build_program
from compiler.tosa import Report, validate
from models.quantize import QuantizedModel
from models.workloads import get_workload
from npusim.clips import ClipInputs, Notify
from npusim.config import load_machine
from npusim.errors import UserError
from npusim.host import Host
from npusim.isa.encoding import DTYPES
from npusim.program_file import TENSORS, load_program
from npusim.report import JSON

SEED = 7
TEXT_TOKENS = 5


def verify_tosa(
    source: Path,
    hw: Path | None = None,
    block: int | None = None,
    attention_bits: int | None = None,
    notify: Notify | None = None,
    step: int = 0,
    factored: bool = False,
) -> Report:
    """Compare prologue and one denoising step, as the simulator computes them, with Arm's TOSA reference model.

    Args:
        source: a run folder, whose model, program, machine, caption and noise are taken; or a quantized model, which
            needs ``hw`` and is run on random inputs.
        hw: machine file, for a quantized model.
        block: one transformer block instead of the whole network.
        attention_bits: of queries, keys and values, for a quantized model; 16 if None.
        notify: told of progress.
        step: the denoising step, 0 the first; the steps before it are run too.
        factored: as in `compiler.compile_model`, for a quantized model.

    Raises:
        UserError, ModelError: the input is at fault, or the reference model cannot be installed.
    """
    if source.is_dir():
        if hw is not None or attention_bits is not None or factored:
            raise UserError(
                f"{source}: a run folder has its own machine, attention bits and factors; allowed: no option for them"
            )
        return _verify_run(source, block, notify, step)
    if hw is None:
        raise UserError(f"{source}: not a run folder; allowed: a run folder, or a quantized model and --hw")
    bits = 16 if attention_bits is None else attention_bits
    graph = integer_graph(QuantizedModel.load(source), bits, factored=factored)
    return validate(graph, load_machine(hw), random_inputs(graph), block=block, notify=notify, step=step)


def _verify_run(folder: Path, block: int | None, notify: Notify | None, step: int) -> Report:
    config, seed = _described(folder / JSON)
    model, compiled = folder / "quantized.safetensors", folder / "program.npu"
    program = load_program(compiled)
    bits, factored, branch = config["attention_bits"], config["factored"], config.get("branch")
    graph = integer_graph(QuantizedModel.load(model), bits, factored=factored, branch=branch)
    again = build_program(graph, program.machine)
    if not all(np.array_equal(getattr(program, name), getattr(again, name)) for name in TENSORS):
        raise UserError(
            f"{compiled}: not what {model} compiles to; they belong to different runs or to another version of npusim"
        )
    work = get_workload(config["workload"])
    clip = ClipInputs.of(work, config["prompt"], seed)
    host = Host(program, clip.latent_shape)
    inputs = host.inputs(*(tensor.numpy() for tensor in (clip.text, clip.mask, clip.x_T, clip.noises)))
    return validate(graph, program.machine, inputs, program, block, notify, step)


def _described(path: Path) -> tuple[Mapping[str, Any], int]:
    """The block ``config`` of a run.json, and the seed of the noise."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config, seed = data["config"], data["seeds"]["noise"]
        kinds = {"workload": str, "prompt": str, "attention_bits": int, "factored": bool}
        wrong = [name for name, kind in kinds.items() if not isinstance(config[name], kind)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allowed: a run folder") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not the run.json of a run folder ({error!r})") from None
    if wrong or not isinstance(seed, int):
        raise UserError(f"{path}: {(wrong or ['seeds.noise'])[0]} has the wrong type")
    return config, seed


def random_inputs(graph: Graph) -> dict[str, NDArray[Any]]:
    """Seeded integers of the size that a run has: text near its calibrated range, state and noise near 1."""
    rng = np.random.default_rng(SEED)
    found: dict[str, NDArray[Any]] = {"text_len": np.array([[TEXT_TOKENS]], np.int32)}
    for name, deviation in (("text", 0.2), ("state", 1.0), ("noise", 1.0)):
        value = graph.values[name]
        kind, low, high = DTYPES[value.dtype]
        shape = (graph.steps, *value.shape) if name == "noise" else value.shape
        drawn = np.rint(rng.normal(0, deviation / value.scale, shape))
        found[name] = np.clip(drawn, low, high).astype(kind)
    return found


def report_text(report: Report) -> str:
    """One line for each tensor, the differences, the reasons of the cuts, and how much was compared."""
    reasons = list(dict.fromkeys(row.cut for row in report.rows if row.cut))
    lines = [f"{'result':8} {'elements':>10}  {'operation':18}  tensor"]
    for row in report.rows:
        result = f"cut {reasons.index(row.cut) + 1}" if row.cut else "DIFFERS" if row.difference else "equal"
        lines.append(f"{result:8} {row.elements or '':>10}  {row.kind:18}  {row.tensor}")
    lines.append("")
    for row in report.rows:
        if row.difference:
            at, simulator, tosa = row.difference
            where = f"{row.tensor} (layer {row.layer}) differs first at {list(at)}"
            lines.append(f"{where}: simulator {simulator}, TOSA {tosa}")
    lines += [f"cut {number}: {reason}" for number, reason in enumerate(reasons, 1)]
    compared = [row for row in report.rows if not row.cut]
    different = sum(row.difference is not None for row in compared)
    elements = sum(row.elements for row in compared)
    lines.append(f"{len(compared)} tensors compared ({elements:,} elements), {different} differ")
    lines.append(f"{len(report.rows) - len(compared)} tensors cut and fed from the simulator")
    lines.append(
        f"{report.ops[0]} of {report.ops[1]} operations compared, and {_share(*report.macs)} of their products"
    )
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
