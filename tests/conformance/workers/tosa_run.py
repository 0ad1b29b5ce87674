"""Runs inside the TOSA environment: small graphs on the reference model.

``tosa_run.py IN.npz OUT.npz``: ``jobs`` is a JSON list of graphs ``{"inputs": [[array, type]], "constants": [[array,
type]], "operators": [[operator, [array...], output shape, output type, attribute arguments or null]]}``. The output of
operator i has the name ``t<i>``; the last one is the result, written under the number of the job.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tosa_reference_model
import tosa_serializer as ts

MODEL = Path(tosa_reference_model.__file__).resolve().parents[1] / "bin" / "tosa_reference_model"
KINDS = {"INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT48": np.int64}


def serialize(job: dict[str, Any], arrays: Any, folder: Path) -> bytes:
    graph = ts.TosaSerializer(str(folder))
    for name, kind in job["inputs"]:
        graph.addInputTensor(ts.TosaSerializerTensor(name, list(arrays[name].shape), getattr(ts.DType, kind)))
        np.save(folder / f"{name}.npy", arrays[name].astype(KINDS[kind]))
    names = {}
    for name, kind in job["constants"]:
        names[name] = graph.addConst(
            list(arrays[name].shape), getattr(ts.DType, kind), arrays[name].astype(KINDS[kind])
        ).name
    for number, (operator, inputs, shape, kind, arguments) in enumerate(job["operators"]):
        last = number == len(job["operators"]) - 1
        add = graph.addOutput if last else graph.addIntermediate
        out = names[f"t{number}"] = add(shape, getattr(ts.DType, kind)).name
        attribute = ts.TosaSerializerAttribute()
        if operator == "RESCALE":
            scale32, rounding, *rest = arguments
            attribute.RescaleAttribute(scale32, getattr(ts.RoundingMode, rounding), *rest)
        else:
            getattr(
                attribute, {"MATMUL": "MatMulAttribute", "TABLE": "TableAttribute", "MUL": "MulAttribute"}[operator]
            )()
        graph.addOperator(getattr(ts.Op, operator), [names.get(name, name) for name in inputs], [out], attribute)
    job["result"] = out
    return bytes(graph.serialize())


def main(given: Path, found: Path) -> None:
    results = {}
    with np.load(given) as arrays, tempfile.TemporaryDirectory() as top:
        values = dict(arrays)
        for number, job in enumerate(json.loads(values["jobs"].tobytes())):
            folder = Path(top, str(number))
            folder.mkdir()
            (folder / "graph.tosa").write_bytes(serialize(job, values, folder))
            inputs = [name for name, _ in job["inputs"]]
            command = [
                str(MODEL), "--tosa_file=graph.tosa", f"--flatbuffer_dir={folder}", f"--output_dir={folder}",
                "--ifm_name=" + ",".join(inputs), "--ifm_file=" + ",".join(f"{name}.npy" for name in inputs),
                f"--ofm_name={job['result']}", "--ofm_file=result.npy", "--tosa_level=NONE",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                # On an abort the model attaches a debugger, which prints much: keep what the model says itself.
                said = [
                    line
                    for line in (done.stdout + done.stderr).splitlines()
                    if re.search("REQUIRE|ASSERT|Op|ERROR", line)
                ]
                raise SystemExit(f"job {number} {job['operators']}: status {done.returncode}: " + " / ".join(said[:6]))
            results[str(number)] = np.load(folder / "result.npy")
    np.savez(found, **results)


main(Path(sys.argv[1]), Path(sys.argv[2]))
