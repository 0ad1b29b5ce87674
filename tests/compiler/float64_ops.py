"""What each operation of the lowered graph means in real numbers, in float64, on the integer run's own inputs.

An independent statement: weights, biases, smoothing and grids of linears come from the quantized model, modulation from
the real time-embedding tables, the sampler from its formulas. Only the integers that enter an operation (gates among
them), and the scales of other tensors, are taken from the graph.
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


class Float64:
    """Evaluates operations of ``graph`` (as lowered, before any pass) in float64."""

    def __init__(self, graph: Graph, qm: QuantizedModel, sampler: IDDPM) -> None:
        self.graph, self.qm, self.sampler = graph, qm, sampler
        ops = (*graph.prologue, *graph.step)
        self.readers = {graph.base(op.inputs["x"]).name: op.layer for op in ops if op.kind.startswith("linear")}
        # Values whose scales and offsets make the weighted sum come out on the projection's grid.
        self.folded = {f"{op.layer}.v.part": op for op in ops if op.kind == "attention" and self.readers.get(op.output)}

    def __call__(self, op: Op, x: dict[str, np.ndarray], step: int) -> np.ndarray:
        return getattr(self, op.kind)(op, x, step)

    def columns(self, name: str, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of each column of a tensor in a step: real = (q - zero point) * scale."""
        value, owner = self.graph.values[name], self.graph.base(name)
        r, count = int(self.qm.range_of_step[step]), value.shape[-1]
        if name in self.folded:
            op = self.folded[name]
            scale, zero = self.columns(op.output, step)
            factor = op.attrs["out_multiplier"] * 2.0 ** -op.attrs["out_shift"]
            return factor * scale, (zero - op.attrs["out_zp"]) / factor
        layer = self.readers.get(owner.name)
        if layer and not self.qm.linears[layer].dynamic:
            q = self.qm.linears[layer]
            zero = int(q.act_zp[r]) - (32768 if q.act_bits[r] == 16 else 0)
            return q.divisor(r) * q.act_scale[r], np.full(count, zero)
        if layer:
            return value.scale * self.qm.linears[layer].divisor(r), np.zeros(count)
        scales, zeros = np.full(count, value.scale), np.full(count, float(value.zero_point))
        for view in self.graph.values.values():  # views of a value may have scales of their own
            if view.base == name:
                part = slice(view.col, view.col + view.shape[-1])
                scales[part], zeros[part] = self.columns(view.name, step)
        return scales, zeros

    def deq(self, op: Op, x: dict[str, np.ndarray], role: str, step: int) -> np.ndarray:
        scale, zero = self.columns(op.inputs[role], step)
        return (x[role] - zero) * scale

    def linear_centred(self, op, x, step):
        q = self.qm.linears[op.layer]
        w = q.weight(int(self.qm.range_of_step[step]))
        weight, bias = (w.q - w.zero_point[:, None].astype(float)) * w.scale[:, None], q.bias
        real = self.deq(op, x, "x", step)
        if op.layer == "final_layer.linear":  # Emitted as eps then v, each (channel, patch position).
            order = [p * 8 + c for half in (0, 4) for c in range(half, half + 4) for p in range(4)]
            weight, bias = weight[order], bias[order]
        return (real / w.smoothing) @ weight.T + bias

    def linear_dynamic(self, op, x, step):
        q = self.qm.linears[op.layer]
        (w,), top = q.weights, 2 ** int(q.act_bits[0]) - 1
        divided = self.deq(op, x, "x", step) / w.smoothing
        low, high = (np.minimum(divided.min(1), 0)[:, None], np.maximum(divided.max(1), 0)[:, None])
        scale = np.maximum((high - low) / top, 1e-12)
        zero = np.round(-low / scale)
        index = np.clip(np.round(divided / scale) + zero, 0, top) - zero
        weight = (w.q - w.zero_point[:, None].astype(float)) * w.scale[:, None]
        return index * scale @ weight.T + q.bias

    def layernorm(self, op, x, step):
        rows = self.deq(op, x, "x", step)
        return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6)

    def modulate(self, op, x, step):
        _, block, *rest = op.output.split(".")
        if op.output == "final.in":
            add, scale = self.qm.final_table + self.qm.te[step]
        else:
            rows = (0, 1) if rest == ["attn", "in"] else (3, 4)
            add, scale = ((self.qm.scale_shift_table[int(block)] + self.qm.t0[step])[row] for row in rows)
        return self.deq(op, x, "x", step) * (1 + scale) + add

    def elementwise(self, op, x, step):
        a = self.deq(op, x, "a", step)
        if op.layer == "guidance":
            b, guided = self.deq(op, x, "b", step), np.arange(16) < 4 * self.sampler.cfg_channels
            return np.where(guided, b + self.sampler.cfg_scale * (a - b), a)
        if op.layer == "update" and "a_mul" in op.inputs:
            k, t = self.sampler.num_sampling_steps - 1 - step, self.sampler.tables
            clip = t.sqrt_recip_alphas_cumprod[k] * a - t.sqrt_recipm1_alphas_cumprod[k] * self.deq(op, x, "b", step)
            return t.posterior_mean_coef1[k] * clip + t.posterior_mean_coef2[k] * a
        if "b" not in x:
            return a
        b = spread(self.graph, self.deq(op, x, "b", step), op.attrs.get("b_rows", ""), len(a))
        gated = "b_mul" in op.inputs and op.inputs["b_mul"].endswith(".gate")
        return a + b * (self.deq(op, x, "b_mul", step) if gated else 1.0)

    def product(self, op, x, step):
        return self.deq(op, x, "a", step) * self.deq(op, x, "b", step)

    def table(self, op, x, step):
        v = self.deq(op, x, "x", step)
        if op.layer != "deviation":
            return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
        k, fraction = self.sampler.num_sampling_steps - 1 - step, (v + 1) / 2
        log_variance = fraction * np.log(self.sampler.betas[k])
        log_variance = log_variance + (1 - fraction) * self.sampler.posterior_log_variance_clipped[k]
        return np.exp(0.5 * log_variance) * (k > 0)

    def attention(self, op, x, step):
        over = op.attrs["over"]
        side = "text" if over == "cross" else over
        q = heads_first(self.graph, op, self.deq(op, x, "q", step), over)
        k, v = (heads_first(self.graph, op, self.deq(op, x, role, step), side) for role in "kv")
        kept = int(x["valid"].ravel()[0]) if "valid" in x else k.shape[2]
        logits = q @ k[:, :, :kept].swapaxes(-1, -2) * q.shape[-1] ** -0.5
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return rows_first(self.graph, op, p / p.sum(-1, keepdims=True) @ v[:, :, :kept])


def audit(graph: Graph, qm: QuantizedModel, sampler: IDDPM, inputs: dict[str, np.ndarray], step: int) -> list[Finding]:
    """Run prologue and one step in integers; compare every operation with its float64 meaning on the same inputs."""
    meaning, interpreter, findings = Float64(graph, qm, sampler), Interpreter(graph, inputs), []

    def compare(op: Op, x: dict[str, np.ndarray], out: np.ndarray) -> None:
        value = graph.values[op.output]
        scale, zero = meaning.columns(op.output, step)
        real = meaning(op, x, step)
        _, low, high = DTYPES[value.dtype]
        steps = real / scale + zero
        kept = np.clip(steps, low, high)
        noise = (((kept - out) * scale) ** 2).sum()
        ratio = 10 * np.log10((real**2).sum() / noise) if noise else np.inf
        clipped = ((steps < low - 1) | (steps > high + 1)).mean()
        findings.append(Finding(op.kind, op.layer, value.dtype, float(np.abs(kept - out).max()), float(ratio), clipped))

    interpreter.on_op = compare
    interpreter.run("prologue", 0)
    interpreter.run("step", step)
    return findings
