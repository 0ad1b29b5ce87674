"""From a workload and a method's name to a quantized model, or a network that torch runs.

Smoothing exponents come from the workload's search, second moments for GPTQ from its file, which is made if need be.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from models.fakequant import FakeQuantSTDiT
from models.iddpm import IDDPM
from models.quantize import TORCH_ONLY, Override, QuantizedModel, get_method, quantize
from models.quantize.alpha import AlphaTable
from models.quantize.ranges import Ranges
from models.sample import Predictor, fakequant_predictor, float_predictor
from models.stats import CalibrationStats
from models.stdit import STDiT
from models.workloads import Workload


def quantize_for(
    workload: Workload,
    model: STDiT,
    stats: CalibrationStats,
    method: str = "cw_tw",
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    ranges: Ranges | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
    out: Path | None = None,
) -> QuantizedModel:
    """`models.quantize.quantize`, with the exponent that was searched for this workload and the moments of its inputs.

    Raises:
        ModelError: as `quantize`; or the file of exponents or moments is damaged.
    """
    known = get_method(method)
    if alpha is None and known.smooths_by_default:
        table = searched_alphas(workload, stats.weights_sha256)
        alpha = None if table is None else table.best(method, weight_bits, act_bits)
    moments = workload.load_moments(model) if known.gptq else None
    return quantize(
        model, stats, method, weight_bits, act_bits, ranges=ranges, alpha=alpha, overrides=overrides, moments=moments,
        out=out,
    )  # fmt: skip


def searched_alphas(workload: Workload, weights_sha256: str) -> AlphaTable | None:
    """The workload's smoothing exponents; None without a file, or if it is of other weights: it says nothing of these.

    Raises:
        ModelError: the file is damaged.
    """
    table = None if workload.alphas is None else AlphaTable.load(workload.alphas)
    return table if table is not None and table.weights_sha256 == weights_sha256 else None


def network_for(
    workload: Workload,
    model: STDiT,
    stats: CalibrationStats,
    method: str,
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    ranges: Ranges | None = None,
    alpha: float | None = None,
    overrides: Sequence[Override] = (),
) -> nn.Module:
    """The network that a method makes of a float model, for torch: called like the STDiT.

    `fp32` is the model itself and `fp16` a copy in half precision, for which the other settings mean nothing; any other
    method is the paper's own setting, linears quantized and all else float (`models.fakequant`).

    Raises:
        ModelError: as `quantize_for`.
    """
    if method in TORCH_ONLY:
        return model if method == "fp32" else copy.deepcopy(model).half()
    quantized = quantize_for(
        workload, model, stats, method, weight_bits, act_bits, ranges=ranges, alpha=alpha, overrides=overrides
    )
    return FakeQuantSTDiT(model, quantized)


def predictor_for(network: nn.Module, sampler: IDDPM, states: Tensor, mask: Tensor, null: Tensor) -> Predictor:
    """What `network_for` made, as a predictor; the arguments are those of `models.sample.float_predictor`."""
    if isinstance(network, FakeQuantSTDiT):
        return fakequant_predictor(network, sampler, states, mask, null)
    return float_predictor(network, sampler, states, mask, null)
