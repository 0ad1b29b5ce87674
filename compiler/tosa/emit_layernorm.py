"""LayerNorm with modulation: everything but the reciprocal square root, which TOSA has in floating point only."""

from __future__ import annotations

import numpy as np

from compiler.graph import Op
from compiler.tosa.emit import Case, Cut, Simulated, finished
from compiler.tosa.wide import WideSum, constant_limbs

ROOT = "reciprocal square root of a 64-bit variance: TOSA's integers end at 32 bits"


def layernorm_modulate(simulated: Simulated, op: Op) -> list[Case | Cut]:
    """Row sums; a cut; ``D x - S`` rescaled by row, then ``n g + b`` rounded once."""
    sums, mantissa, shift = (simulated.inner[op.output, name] for name in ("sum", "mantissa", "shift"))
    case = Case()
    tosa = case.tosa
    x = simulated.feed(tosa, op.inputs["x"], "i32")
    cols = x.shape[1]
    total = tosa.reduce("REDUCE_SUM", x, 1)
    case.compare(total, f"{op.output}: row sums", sums[:, None])
    centred = tosa.sub(tosa.times(x, cols), total)
    # RESCALE scales the last axis by channel: here the channels are the rows.
    down = np.maximum(shift - op.attrs["fraction_bits"], 1)
    by_row = tosa.rescale(tosa.transpose(centred, (1, 0)), mantissa, down, scale32=True)
    n = finished(tosa, tosa.transpose(by_row, (1, 0)), 0, -32768, 32767)
    modulated = WideSum(tosa)
    modulated.add_product([n], constant_limbs(tosa, simulated.whole(op.inputs["g"])[None]))
    modulated.add(constant_limbs(tosa, simulated.whole(op.inputs["b"])[None]))
    simulated.finish(case, op, modulated.rounded(op.attrs["shift"]))
    return [case, Cut(f"{op.output}: row mantissas and shifts", ROOT)]
