"""Runs inside the TensorFlow Lite Micro environment: ``tflm_run.py IN.npz OUT.npz``, one FULLY_CONNECTED for each job.

A job is ``{"arrays": [a, b, bias, scales], "in_zp": z, "out_zp": z}``: a int8 (m, k), b int8 (n, k), bias int32 (n,),
and the real factor of each channel as float32 (n,), which the weights' scales carry exactly; in and out have scale 1.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import flatbuffers
import numpy as np
from tflite_micro.python.tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

ARENA_BYTES = 4 << 20


def model_of(a: Any, b: Any, bias: Any, scales: Any, in_zp: int, out_zp: int) -> bytes:
    (m, k), n, types = a.shape, len(b), schema.TensorType
    one, unit = [0] * n, [1.0]
    tensors = [
        tensor([m, k], types.INT8, 0, unit, [in_zp]),
        tensor([n, k], types.INT8, 1, scales.tolist(), one),
        tensor([n], types.INT32, 2, scales.tolist(), one),
        tensor([m, n], types.INT8, 0, unit, [out_zp]),
    ]
    code = schema.BuiltinOperator.FULLY_CONNECTED
    operator = schema.OperatorT(
        inputs=[0, 1, 2],
        outputs=[3],
        builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
        builtinOptions=schema.FullyConnectedOptionsT(),
    )
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[3], operators=[operator])
    data = [schema.BufferT(data=np.frombuffer(v.tobytes(), np.uint8)) for v in (b, bias)]
    codes = [schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=5)]
    model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=[schema.BufferT(), *data])
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor(shape: list[int], kind: int, buffer: int, scale: list[float], zero_point: list[int]) -> Any:
    quantization = schema.QuantizationParametersT(scale=scale, zeroPoint=zero_point, quantizedDimension=0)
    return schema.TensorT(shape=shape, type=kind, buffer=buffer, name=f"t{buffer}", quantization=quantization)


with np.load(sys.argv[1]) as given:
    results = {}
    for number, job in enumerate(json.loads(given["jobs"].tobytes())):
        arrays = [given[name] for name in job["arrays"]]
        model = model_of(*arrays, job["in_zp"], job["out_zp"])
        interpreter = runtime.Interpreter.from_bytes(model, arena_size=ARENA_BYTES)
        interpreter.set_input(arrays[0], 0)
        interpreter.invoke()
        results[str(number)] = interpreter.get_output(0)
np.savez(sys.argv[2], **results)
