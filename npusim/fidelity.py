"""How close three runs with the same noise are: the float model, its fake-quantized copy, and the integer machine.

Each is compared with each, the less quantized one as the reference. Noise predictions are the guided ones, per step,
and that twice:

* free running: each run goes on from its own state, so differences of earlier steps are in it;
* equal inputs: each is fed the float run's state of that step, so only the step itself is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import psnr_db, sqnr_db, ssim

PAIRS = {
    "integer_vs_float": ("float", "integer"),
    "integer_vs_fakequant": ("fakequant", "integer"),
    "fakequant_vs_float": ("float", "fakequant"),
}
"""Name of a comparison: (reference, tested)."""

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Clip:
    """One run's results.

    eps, eps_equal_inputs: (steps, 4, T, H, W), the guided noise predictions free running and fed the float run's
    states;
    latent: (4, T, H, W), the finished clip; frames: (T, 8H, 8W, 3) uint8, or None where the workload has no
    autoencoder.
    """

    eps: Array
    eps_equal_inputs: Array
    latent: Array
    frames: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Fidelity:
    """Each a mapping by the names in `PAIRS`. SQNR and PSNR in dB, infinite where equal; SSIM 1 where equal.

    eps_sqnr_db, eps_equal_inputs_sqnr_db: one value per step in order of execution; latent_sqnr_db: of the finished
    latent clip; psnr_db, ssim: of its frames, or None.
    """

    eps_sqnr_db: Mapping[str, tuple[float, ...]]
    eps_equal_inputs_sqnr_db: Mapping[str, tuple[float, ...]]
    latent_sqnr_db: Mapping[str, float]
    psnr_db: Mapping[str, float] | None
    ssim: Mapping[str, float] | None


def measure(clips: Mapping[str, Clip]) -> Fidelity:
    """Compare the clips "float", "fakequant" and "integer"."""

    def steps(field: str) -> dict[str, tuple[float, ...]]:
        return {
            name: tuple(
                sqnr_db(a, b) for a, b in zip(getattr(clips[ref], field), getattr(clips[test], field), strict=True)
            )
            for name, (ref, test) in PAIRS.items()
        }

    def frames(metric: Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]) -> dict[str, float] | None:
        out = {}
        for name, (ref, test) in PAIRS.items():
            a, b = clips[ref].frames, clips[test].frames
            if a is None or b is None:
                return None
            out[name] = metric(a, b)
        return out

    return Fidelity(
        eps_sqnr_db=steps("eps"),
        eps_equal_inputs_sqnr_db=steps("eps_equal_inputs"),
        latent_sqnr_db={n: sqnr_db(clips[ref].latent, clips[test].latent) for n, (ref, test) in PAIRS.items()},
        psnr_db=frames(psnr_db),
        ssim=frames(ssim),
    )
