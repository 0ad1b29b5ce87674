"""Which layers quantization hurts, and when: SQNR of every linear's output, step by step, on equal inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.fakequant import FakeQuantSTDiT
from models.iddpm import IDDPM
from models.metrics.fidelity import sqnr_db
from models.sample import Trajectory, fakequant_predictor, float_predictor
from models.stats import executed_linears
from models.stdit import STDiT


def layer_sqnr_db(
    model: STDiT,
    fakequant: FakeQuantSTDiT,
    sampler: IDDPM,
    states: Tensor,
    mask: Tensor,
    null: Tensor,
    trajectory: Trajectory,
) -> dict[str, NDArray[np.float64]]:
    """SQNR in dB of every linear's output, fake-quant against float, both networks fed the same state in each step.

    So a layer's figure holds its own error and that of the layers before it in the same step, but nothing of earlier
    steps. Both guidance branches count together, and valid text tokens only.

    Args:
        model: the float model.
        fakequant: its fake-quantized copy.
        sampler: steps and guidance.
        states: the prompt's token states,
        mask: its valid tokens, and
        null: the null caption, as `float_predictor` takes them.
        trajectory: the float model's run of that prompt; its states are fed to both.

    Returns:
        by module path of the linear: (steps,) float64, in order of execution; infinite where outputs are equal.

    Raises:
        ModelError: an output is NaN or infinite, or the model has other latent channels than the sampler.
    """
    names = list(executed_linears(model))
    text = (states[mask], mask[mask], null[mask])  # no padding, whose outputs nobody reads
    runs = (
        (model, float_predictor(model, sampler, *text)),
        (fakequant.model, fakequant_predictor(fakequant, sampler, *text)),
    )
    found: dict[str, list[float]] = {name: [] for name in names}
    for step in range(sampler.num_sampling_steps):
        outputs = []
        for network, predict in runs:
            with _outputs(network, names) as kept:
                predict(step, torch.from_numpy(trajectory.states[step]))
            outputs.append(kept)
        for name in names:
            found[name].append(sqnr_db(outputs[0][name], outputs[1][name]))
    return {name: np.array(values) for name, values in found.items()}


@contextmanager
def _outputs(network: nn.Module, names: list[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """While active, the last output of each named module is kept."""
    kept: dict[str, NDArray[np.float32]] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            kept[name] = output.numpy()

        return keep

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
