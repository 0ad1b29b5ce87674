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
from models.grid import MIN_STEP
from models.quantize import QuantizedLinear, QuantizedModel, QuantizedWeight
from models.stats import executed_linears, weights_sha256
from models.stdit import STDiT

CHUNK = 1 << 16
"""Values that are rounded at a time: their float64 copies stay in the processor's cache."""


class FakeQuantLayer(nn.Module):
    """One linear, or the patch embedding, on the grids of a `QuantizedLinear`; float32 in and out.

    The input's grid index is found in float64, as Eq. 1 defines it: float32 division would move some of the 65,536
    steps of a 16-bit grid. Weights of one time range are held at a time.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv3d, quantized: QuantizedLinear) -> None:
        super().__init__()
        self._quantized = quantized
        self._stride = layer.stride if isinstance(layer, nn.Conv3d) else None
        self.register_buffer("weight", torch.empty_like(layer.weight, dtype=torch.float32))
        self.register_buffer("bias", torch.from_numpy(quantized.bias).float())
        self._held = -1
        self._time_range = -1
        self.set_range(0)

    def set_range(self, time_range: int) -> None:
        """Select the parameters of a time range."""
        if time_range == self._time_range:
            return
        self._time_range = time_range
        quantized = self._quantized
        if self._held != (index := int(quantized.set_of_range[time_range])):
            self._held = index
            self.weight.copy_(_values(quantized.weights[index]).reshape(self.weight.shape))
        divisor, smoothing = quantized.divisor(time_range), quantized.weight(time_range).smoothing
        if self._stride is not None:  # A patch embedding is never smoothed; one factor fits its layout, too.
            divisor, smoothing = divisor[:1], smoothing[:1]
        self._divisor = torch.tensor(divisor)
        # What the multiplier sees is shifted left, so that only the weights' own smoothing is divided out of it.
        self._gain = torch.tensor(divisor / smoothing)
        self._levels = 2 ** int(quantized.act_bits[time_range]) - 1
        if not quantized.dynamic:
            scale, zero_point = torch.tensor(quantized.act_scale[time_range]), int(quantized.act_zp[time_range])
            self._step, self._unit = self._divisor * scale, scale * self._gain
            self._least, self._greatest = -zero_point, self._levels - zero_point

    def quantize_input(self, x: Tensor) -> Tensor:
        """What the multiplier sees of an input (..., K): smoothed and rounded to its grid, same shape, float32."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        count = max(1, CHUNK // rows.shape[1])
        buffer = torch.empty((count, rows.shape[1]), dtype=torch.float64)
        for part, rounded in zip(torch.split(rows, count), torch.split(out, count), strict=True):
            rounded.copy_(self._rounded(buffer[: len(part)].copy_(part)))
        return out.reshape(x.shape)

    def _rounded(self, x: Tensor) -> Tensor:
        """`quantize_input` of rows (n, K) float64, in place."""
        if not self._quantized.dynamic:
            return x.div_(self._step).round_().clamp_(self._least, self._greatest).mul_(self._unit)
        scale, zero_point = token_grids(x.div_(self._divisor), self._levels)
        return x.div_(scale).round_().clamp_(-zero_point, self._levels - zero_point).mul_(scale * self._gain)

    def forward(self, x: Tensor) -> Tensor:
        """As the replaced layer's."""
        x = self.quantize_input(x)
        if self._stride is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv3d(x, self.weight, self.bias, self._stride)


def _values(weight: QuantizedWeight) -> Tensor:
    """`weight.values()` as float32, computed by torch; copied, because what lies in a mapped file cannot be written."""
    indices, scale, zero_point = (torch.tensor(values) for values in (weight.q, weight.scale, weight.zero_point))
    return ((indices.double() - zero_point[:, None]) * scale[:, None]).float()


def token_grids(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Eq. 1 for every token of (..., K) by its own least and largest value: scale and zero point, (..., 1) float64."""
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / levels).clamp(min=MIN_STEP)
    return scale, torch.round(-low / scale).clamp(0, levels)


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
        """Select the parameters of executed step `step` (0 is the noisiest).

        Raises:
            ModelError: there is no such step.
        """
        if not 0 <= step < len(self._range_of_step):
            raise ModelError(f"step {step}: allowed are 0..{len(self._range_of_step) - 1}")
        for layer in self._layers.values():
            layer.set_range(self._range_of_step[step])

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `STDiT.forward`."""
        out: Tensor = self.model(x, timestep, y, mask)
        return out
