"""What each operation of the lowered graph means in real numbers, in float64, on the integer run's own inputs.

An independent statement: weights and biases come from the quantized model, modulation from the real time-embedding
tables, the sampler from its formulas. Only the integers that enter an operation (gates among them), and their scales,
are taken from the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.graph import Graph, Op
from compiler.interpret import Interpreter
from compiler.semantics import heads_first, rows_first, spread
from models.iddpm import IDDPM
from models.quantize import QuantizedModel
from npusim.isa.encoding import DTYPES


@dataclass(frozen=True)
class Finding:
    """Error of one operation: the largest in output steps, signal to noise in dB, the share of clipped values.

    Values beyond the output's range are compared as clipped; ``clipped`` tells how many there are.
    """

    kind: str
    layer: str
    dtype: str
    largest_lsb: float
    sqnr_db: float
    clipped: float


def column_scales(graph: Graph, name: str) -> np.ndarray:
    """Scale of each column; views of a value may have scales of their own."""
    value = graph.values[name]
    scales = np.full(value.shape[-1], value.scale)
    for view in graph.values.values():
        if view.base == name:
            scales[view.col : view.col + view.shape[-1]] = view.scale
    return scales


class Float64:
    """Evaluates operations of ``graph`` (as lowered, before any pass) in float64."""

    def __init__(self, graph: Graph, qm: QuantizedModel, sampler: IDDPM) -> None:
        self.graph, self.qm, self.sampler = graph, qm, sampler
        self.producers = {op.output: op for op in graph.step}

    def real_constant(self, name: str, step: int) -> np.ndarray:
        """A constant in real numbers, before the rounding to its own integer type."""
        value, op = self.graph.values[name], self.producers.get(name)
        if op is not None and op.kind == "const_add":
            return sum(self.real_constant(n, step) for n in op.inputs.values())
        if op is not None:
            assert op.kind == "const_scale"
            offset = op.attrs["offset"] * 2.0**-24
            return self.real_constant(op.inputs["a"], step)[op.attrs["row"]] + offset
        data = value.data[step] if value.kind == "step_const" else value.data
        return data * value.scale

    def __call__(self, op: Op, x: dict[str, np.ndarray], step: int) -> np.ndarray:
        return getattr(self, op.kind)(op, x, step)

    def deq(self, op: Op, x: dict[str, np.ndarray], role: str) -> np.ndarray:
        value = self.graph.values[op.inputs[role]]
        return (x[role] - value.zero_point) * value.scale

    def linear_centred(self, op, x, step):
        q = self.qm.linears[op.layer]
        weight, bias = q.weights[0].values(), q.bias
        if op.layer == "final_layer.linear":  # Emitted as eps then v, each (channel, patch position).
            order = [p * 8 + c for half in (0, 4) for c in range(half, half + 4) for p in range(4)]
            weight, bias = weight[order], bias[order]
        return self.deq(op, x, "x") @ weight.T + bias

    def layernorm(self, op, x, step):
        rows = self.deq(op, x, "x")
        return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6)

    def modulate(self, op, x, step):
        g, b = (self.real_constant(op.inputs[role], step) for role in "gb")
        return self.deq(op, x, "x") * g + b

    def elementwise(self, op, x, step):
        a = self.deq(op, x, "a")
        if op.layer == "guidance":
            b, guided = self.deq(op, x, "b"), np.arange(16) < 4 * self.sampler.cfg_channels
            return np.where(guided, b + self.sampler.cfg_scale * (a - b), a)
        if op.layer == "update" and "a_mul" in op.inputs:
            k, t = self.sampler.num_sampling_steps - 1 - step, self.sampler.tables
            clip = t.sqrt_recip_alphas_cumprod[k] * a - t.sqrt_recipm1_alphas_cumprod[k] * self.deq(op, x, "b")
            return t.posterior_mean_coef1[k] * clip + t.posterior_mean_coef2[k] * a
        if "b" not in x:
            return a
        b = spread(self.graph, self.deq(op, x, "b"), op.attrs.get("b_rows", ""), len(a))
        return a + b * (self.deq(op, x, "b_mul") if "b_mul" in op.inputs else 1.0)

    def product(self, op, x, step):
        return self.deq(op, x, "a") * self.deq(op, x, "b")

    def table(self, op, x, step):
        v = self.deq(op, x, "x")
        if op.layer != "deviation":
            return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
        k, fraction = self.sampler.num_sampling_steps - 1 - step, (v + 1) / 2
        log_variance = fraction * np.log(self.sampler.betas[k])
        log_variance = log_variance + (1 - fraction) * self.sampler.posterior_log_variance_clipped[k]
        return np.exp(0.5 * log_variance) * (k > 0)

    def attention(self, op, x, step):
        over = op.attrs["over"]
        side = "text" if over == "cross" else over
        q = heads_first(self.graph, op, self.deq(op, x, "q"), over)
        k, v = (heads_first(self.graph, op, self.deq(op, x, role), side) for role in "kv")
        kept = int(x["valid"].ravel()[0]) if "valid" in x else k.shape[2]
        logits = q @ k[:, :, :kept].swapaxes(-1, -2) * q.shape[-1] ** -0.5
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return rows_first(self.graph, op, p / p.sum(-1, keepdims=True) @ v[:, :, :kept])


def audit(graph: Graph, qm: QuantizedModel, sampler: IDDPM, inputs: dict[str, np.ndarray], step: int) -> list[Finding]:
    """Run prologue and one step in integers; compare every operation with its float64 meaning on the same inputs."""
    meaning, interpreter, findings = Float64(graph, qm, sampler), Interpreter(graph, inputs), []

    def compare(op: Op, x: dict[str, np.ndarray], out: np.ndarray) -> None:
        if op.kind.startswith("const"):
            return
        value = graph.values[op.output]
        scale = value.scale if value.base else column_scales(graph, op.output)
        real = meaning(op, x, step)
        _, low, high = DTYPES[value.dtype]
        steps = real / scale + value.zero_point
        kept = np.clip(steps, low, high)
        noise = (((kept - out) * scale) ** 2).sum()
        ratio = 10 * np.log10((real**2).sum() / noise) if noise else np.inf
        clipped = ((steps < low - 1) | (steps > high + 1)).mean()
        findings.append(Finding(op.kind, op.layer, value.dtype, float(np.abs(kept - out).max()), float(ratio), clipped))

    interpreter.on_op = compare
    interpreter.run("prologue", 0)
    interpreter.run("step", step)
    return findings
