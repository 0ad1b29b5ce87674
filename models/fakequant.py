"""Fake quantization: the paper's own setting, evaluated by torch in floating point.

Every quantized linear sees its input and weights rounded to the very grids of the `QuantizedModel`; all else (residual
stream, LayerNorm, softmax, attention products, GELU, modulation) stays float32. The distance from the float model is
what quantizing the linears costs; the distance from here to an integer run is what going integer-only costs on top.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import ModelError
from models.quantize import QuantizedLinear, QuantizedModel
from models.stats import executed_linears, weights_sha256
from models.stdit import STDiT


class FakeQuantLayer(nn.Module):
    """One linear, or the patch embedding, on the grids of a `QuantizedLinear`; float32 in and out.

    The input's grid index is found in float64, as Eq. 1 defines it: float32 division would move some of the 65,536
    steps of a 16-bit grid.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv3d, quantized: QuantizedLinear) -> None:
        super().__init__()
        weight = torch.from_numpy(quantized.weight()).float().reshape(layer.weight.shape)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.from_numpy(quantized.bias).float())
        self._stride = layer.stride if isinstance(layer, nn.Conv3d) else None
        self._scales = quantized.act_scale.tolist()
        self._zero_points = quantized.act_zp.tolist()
        self._levels = 2**quantized.act_bits - 1
        self.time_range = 0

    def quantize_input(self, x: Tensor) -> Tensor:
        """The input rounded to the grid of the current time range, same shape, float32."""
        scale, zero_point = self._scales[self.time_range], self._zero_points[self.time_range]
        index = (torch.round(x.double() / scale) + zero_point).clamp(0, self._levels)
        rounded: Tensor = (index - zero_point) * scale
        return rounded.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As the replaced layer's."""
        x = self.quantize_input(x)
        if self._stride is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv3d(x, self.weight, self.bias, self._stride)


class FakeQuantSTDiT(nn.Module):
    """A copy of an STDiT whose linears are fake-quantized; called like the STDiT itself.

    The given model is not altered, and its quantized weights are not copied.

    Raises:
        ModelError: the quantized model was made from other weights.
    """

    def __init__(self, model: STDiT, quantized: QuantizedModel) -> None:
        super().__init__()
        digest = weights_sha256(model)
        if digest != quantized.weights_sha256:
            raise ModelError(
                f"quantized model: made from weights sha256 {quantized.weights_sha256[:12]}, "
                f"the model has {digest[:12]}"
            )
        linears = executed_linears(model)
        self._layers = {name: FakeQuantLayer(layer, quantized.linears[name]) for name, layer in linears.items()}
        # deepcopy takes the replacement wherever it meets a layer listed in its memo.
        memo: dict[int, object] = {id(layer): self._layers[name] for name, layer in linears.items()}
        self.model = copy.deepcopy(model, memo).eval().requires_grad_(False)
        self._range_of_step = quantized.range_of_step.tolist()

    def set_step(self, step: int) -> None:
        """Select the activation grids of executed step `step` (0 is the noisiest).

        Raises:
            ModelError: there is no such step.
        """
        if not 0 <= step < len(self._range_of_step):
            raise ModelError(f"step {step}: allowed are 0..{len(self._range_of_step) - 1}")
        for layer in self._layers.values():
            layer.time_range = self._range_of_step[step]

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `STDiT.forward`."""
        out: Tensor = self.model(x, timestep, y, mask)
        return out
