"""Runs inside the ONNX environment: ``onnx_run.py IN.npz OUT.npz``, a MatMulInteger for each job ``{"arrays": [...]}``.

The arrays are a (m, k), b (k, n), the zero point of a and one zero point for each column of b.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

ROLES = ("a", "b", "a_zp", "b_zp")


def multiply(values: list[np.ndarray]) -> np.ndarray:
    inputs = [
        helper.make_tensor_value_info(role, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for role, value in zip(ROLES, values, strict=True)
    ]
    out = helper.make_tensor_value_info("out", TensorProto.INT32, [values[0].shape[0], values[1].shape[1]])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ROLES, ["out"])], "product", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(ROLES, values, strict=True)))[0]


with np.load(sys.argv[1]) as given:
    results = {
        str(number): multiply([given[name] for name in job["arrays"]])
        for number, job in enumerate(json.loads(given["jobs"].tobytes()))
    }
np.savez(sys.argv[2], **results)
