"""Runs inside the environment of Arm's TOSA reference model, never in npusim's own: graphs on the model.

``worker.py IN.npz OUT.npz``: ``jobs`` is a JSON list of graphs, each with ``inputs`` and ``constants`` (lists of [name,
type]), ``operators`` (a list of [operator, [name...], output shape, output type, attribute arguments]) and ``outputs``
(names). The result of operator i has the name ``t<i>``. The array of input or constant ``name`` of job j is ``j/name``;
outputs are written likewise. What the model says when it rejects job j is written as ``j/rejected``.
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
import tosa_reference_model  # type: ignore[import-not-found]
import tosa_serializer as ts  # type: ignore[import-not-found]

MODEL = Path(tosa_reference_model.__file__).resolve().parents[1] / "bin" / "tosa_reference_model"
ELEMENTS = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT48": np.int64, "SHAPE": np.int64,
}  # fmt: skip
ATTRIBUTES = {"MATMUL": "MatMul"}
"""Operators whose attribute is not called like the operator in camel case."""
WITH_NAN_MODE = ("MAXIMUM", "MINIMUM", "REDUCE_MAX", "REDUCE_MIN")
"""Operators whose attribute asks for a treatment of NaN, which integers do not have."""


def attribute(operator: str, arguments: list[Any]) -> Any:
    found = ts.TosaSerializerAttribute()
    if operator == "RESCALE":
        arguments[1] = getattr(ts.RoundingMode, arguments[1])
    if operator in WITH_NAN_MODE:
        arguments = [*arguments, ts.NanPropagationMode.PROPAGATE]
    name = ATTRIBUTES.get(operator) or operator.title().replace("_", "")
    getattr(found, f"{name}Attribute")(*arguments)
    return found


def serialize(job: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> tuple[bytes, list[str]]:
    """The graph as a flatbuffer, and the names that its outputs have there."""
    graph, names = ts.TosaSerializer(str(folder)), {}
    for name, kind in job["inputs"]:
        shape = list(arrays[name].shape)
        graph.addInputTensor(ts.TosaSerializerTensor(name, shape, getattr(ts.DType, kind)))
        names[name] = name
        np.save(folder / f"{name}.npy", arrays[name].astype(ELEMENTS[kind]))
    for name, kind in job["constants"]:
        values: Any = arrays[name].astype(ELEMENTS[kind])
        names[name] = graph.addConst(list(values.shape), getattr(ts.DType, kind), values).name
    for number, (operator, inputs, shape, kind, arguments) in enumerate(job["operators"]):
        add = graph.addOutput if f"t{number}" in job["outputs"] else graph.addIntermediate
        out = names[f"t{number}"] = add(shape, getattr(ts.DType, kind)).name
        read = [names[name] for name in inputs]
        graph.addOperator(getattr(ts.Op, operator), read, [out], attribute(operator, arguments))
    return bytes(graph.serialize()), [names[name] for name in job["outputs"]]


def run(job: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    data, outputs = serialize(job, arrays, folder)
    (folder / "graph.tosa").write_bytes(data)
    inputs = [name for name, _ in job["inputs"]]
    command = [
        str(MODEL), "--tosa_file=graph.tosa", f"--flatbuffer_dir={folder}", f"--output_dir={folder}",
        "--ifm_name=" + ",".join(inputs), "--ifm_file=" + ",".join(f"{name}.npy" for name in inputs),
        "--ofm_name=" + ",".join(outputs), "--ofm_file=" + ",".join(f"{name}.out.npy" for name in job["outputs"]),
        "--tosa_level=NONE",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # On an abort the model attaches a debugger, which prints much: keep what the model says itself.
        lines = (done.stdout + done.stderr).splitlines()
        said = [line.strip() for line in lines if re.search("REQUIRE|ASSERT|Op|ERROR", line)]
        text = f"status {done.returncode}: " + " / ".join(said[:6])
        return {"rejected": np.frombuffer(text.encode(), np.uint8)}
    return {name: np.load(folder / f"{name}.out.npy") for name in job["outputs"]}


def main(given: Path, found: Path) -> None:
    results: dict[str, Any] = {}
    with np.load(given) as arrays:
        for number, job in enumerate(json.loads(arrays["jobs"].tobytes())):
            own = {name: arrays[f"{number}/{name}"] for name, _ in job["inputs"] + job["constants"]}
            with tempfile.TemporaryDirectory() as folder:
                results |= {f"{number}/{name}": values for name, values in run(job, own, Path(folder)).items()}
    np.savez(found, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
