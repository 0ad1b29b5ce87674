"""Runs inside Vela's environment: ``vela_run.py IN.npz OUT.npz``, an estimate of one linear for each job.

A job is ``{"shape": [m, k, n], "seed": S, "arrays": []}``: int8 inputs (m, k) and weights (n, k), Gaussian ones over
most of their range, as quantized weights are. The network is one FULLY_CONNECTED of TensorFlow Lite, written here with
the flatbuffer code that Vela brings. The result is ``COLUMNS`` of the summary that Vela writes: its cycles, those of
the array and of the DRAM alone, bytes of DRAM read and written, and products.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ethosu.vela.tflite import (
    Buffer,
    FullyConnectedOptions,
    Model,
    Operator,
    OperatorCode,
    QuantizationParameters,
    SubGraph,
    Tensor,
)
from ethosu.vela.tflite.BuiltinOperator import BuiltinOperator
from ethosu.vela.tflite.BuiltinOptions import BuiltinOptions
from ethosu.vela.tflite.TensorType import TensorType

COLUMNS = ("cycles_total", "cycles_npu", "cycles_dram_access", "dram_total_bytes", "nn_macs")
MACHINE = ("ethos-u85-2048", "Arm/vela.ini", "Ethos_U85_SYS_DRAM_High", "Dedicated_Sram_512KB")


def network(m: int, k: int, n: int, seed: int) -> bytes:
    """A .tflite file with one FULLY_CONNECTED."""
    rng, builder = np.random.default_rng(seed), flatbuffers.Builder(1 << 20)
    weights = np.clip(np.rint(rng.normal(0, 32, (n, k))), -127, 127).astype(np.int8)
    data = [
        np.zeros(0, np.uint8),
        weights.view(np.uint8).ravel(),
        rng.integers(-999, 999, n).astype("<i4").view(np.uint8),
    ]
    buffers = []
    for values in data:
        vector = builder.CreateNumpyVector(values) if values.size else None
        Buffer.Start(builder)
        if vector is not None:
            Buffer.AddData(builder, vector)
        buffers.append(Buffer.End(builder))
    tensors = [
        tensor(builder, name, shape, kind, buffer, scale)
        for name, shape, kind, buffer, scale in (
            ("x", (m, k), TensorType.INT8, 0, 0.05),
            ("weight", (n, k), TensorType.INT8, 1, 0.002),
            ("bias", (n,), TensorType.INT32, 2, 0.0001),
            ("y", (m, n), TensorType.INT8, 0, 0.1),
        )
    ]
    FullyConnectedOptions.Start(builder)
    options = FullyConnectedOptions.End(builder)
    inputs, outputs = (builder.CreateNumpyVector(np.array(v, np.int32)) for v in ((0, 1, 2), (3,)))
    Operator.Start(builder)
    Operator.AddOpcodeIndex(builder, 0)
    Operator.AddInputs(builder, inputs)
    Operator.AddOutputs(builder, outputs)
    Operator.AddBuiltinOptionsType(builder, BuiltinOptions.FullyConnectedOptions)
    Operator.AddBuiltinOptions(builder, options)
    operators = offsets(builder, [Operator.End(builder)])
    tensor_list = offsets(builder, tensors)
    inputs, outputs = (builder.CreateNumpyVector(np.array(v, np.int32)) for v in ((0,), (3,)))
    SubGraph.Start(builder)
    SubGraph.AddTensors(builder, tensor_list)
    SubGraph.AddInputs(builder, inputs)
    SubGraph.AddOutputs(builder, outputs)
    SubGraph.AddOperators(builder, operators)
    graphs = offsets(builder, [SubGraph.End(builder)])
    OperatorCode.Start(builder)
    OperatorCode.AddDeprecatedBuiltinCode(builder, BuiltinOperator.FULLY_CONNECTED)
    OperatorCode.AddBuiltinCode(builder, BuiltinOperator.FULLY_CONNECTED)
    OperatorCode.AddVersion(builder, 4)
    codes, buffer_list = offsets(builder, [OperatorCode.End(builder)]), offsets(builder, buffers)
    Model.Start(builder)
    Model.AddVersion(builder, 3)
    Model.AddOperatorCodes(builder, codes)
    Model.AddSubgraphs(builder, graphs)
    Model.AddBuffers(builder, buffer_list)
    builder.Finish(Model.End(builder), b"TFL3")
    return bytes(builder.Output())


def offsets(builder: flatbuffers.Builder, items: list[int]) -> int:
    """A vector of tables."""
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def tensor(
    builder: flatbuffers.Builder, name: str, shape: tuple[int, ...], kind: int, buffer: int, scale: float
) -> int:
    scales = builder.CreateNumpyVector(np.array([scale], np.float32))
    zeros = builder.CreateNumpyVector(np.zeros(1, np.int64))
    QuantizationParameters.Start(builder)
    QuantizationParameters.AddScale(builder, scales)
    QuantizationParameters.AddZeroPoint(builder, zeros)
    quantization = QuantizationParameters.End(builder)
    label, sizes = builder.CreateString(name), builder.CreateNumpyVector(np.array(shape, np.int32))
    Tensor.Start(builder)
    Tensor.AddShape(builder, sizes)
    Tensor.AddType(builder, kind)
    Tensor.AddBuffer(builder, buffer)
    Tensor.AddName(builder, label)
    Tensor.AddQuantization(builder, quantization)
    return int(Tensor.End(builder))


def estimate(job: dict[str, Any]) -> list[int]:
    accelerator, config, system, memory = MACHINE
    with tempfile.TemporaryDirectory() as folder:
        network_file = Path(folder, "layer.tflite")
        network_file.write_bytes(network(*job["shape"], job["seed"]))
        command = [sys.executable, "-m", "ethosu.vela", str(network_file), "--output-dir", folder]
        command += ["--accelerator-config", accelerator, "--config", config, "--system-config", system]
        subprocess.run([*command, "--memory-mode", memory, "--verbose-performance"], check=True)
        with Path(folder, f"layer_summary_{system}.csv").open(encoding="utf-8") as file:
            (summary,) = csv.DictReader(file)
    return [int(float(summary[column])) for column in COLUMNS]


with np.load(sys.argv[1]) as given:
    jobs = json.loads(given["jobs"].tobytes())
np.savez(sys.argv[2], **{str(number): np.array(estimate(job)) for number, job in enumerate(jobs)})
