"""Fidelity by layer and step: the fake-quantized network beside the float one, on equal inputs.

The one figure of the report that runs networks again: a run folder holds clips, not what is inside the networks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.fakequant import FakeQuantSTDiT
from models.metrics.layers import layer_sqnr_db
from models.quantize import QuantizedModel
from models.sample import denoise, float_predictor
from models.stats import weights_sha256
from npusim.errors import UserError
from npusim.html.figure import Picture
from npusim.html.source import RunData, layer_class
from npusim.html.style import drawing, new_figure, shorter
from npusim.record import section
from npusim.run import ClipInputs, one_thread, with_files

CAPTION = (
    "SQNR in dB of every linear's output, fake-quantized against float, both fed the float run's state of that step: a "
    "layer's figure holds its own error and that of the layers before it in the step. Layers of one name in different "
    "blocks are averaged in dB. The CSV has every layer of its own."
)


@one_thread()
def measure_layers(run: RunData) -> dict[str, NDArray[np.float64]]:
    """`models.metrics.layers.layer_sqnr_db` of the run's caption, noise and quantized model: (steps,) dB by linear.

    Raises UserError for a run without data, or whose float weights are not the workload's own.
    """
    config, folder = section(run.record, "config"), run.folder
    prompt, seed = config.get("prompt"), section(run.record, "seeds").get("noise")
    if not isinstance(prompt, str) or not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{folder}: a run without prompt and seed has no fidelity by layer; allowed: a run with data")
    try:
        quantized = QuantizedModel.load(folder / "quantized.safetensors")
        work = with_files(str(config.get("workload")))
        model = work.load_model()
        if weights_sha256(model) != quantized.weights_sha256:
            raise UserError(f"{folder}: made from other float weights than workload {work.name!r} has now")
        inputs = ClipInputs.of(work, prompt, seed)
    except ModelError as error:
        raise UserError(str(error)) from None
    conditions = inputs.text, inputs.mask, model.y_embedder.y_embedding.detach()
    trajectory = denoise(float_predictor(model, inputs.sampler, *conditions), inputs.x_T, inputs.noises, inputs.sampler)
    return layer_sqnr_db(model, FakeQuantSTDiT(model, quantized), inputs.sampler, *conditions, trajectory)


def layers_fidelity(run: RunData) -> Picture:
    """A row for each class of layers in the network's order, a column for each step. Errors as `measure_layers`."""
    found = measure_layers(run)
    classes: dict[str, list[NDArray[np.float64]]] = {}
    for name, values in found.items():
        classes.setdefault(layer_class(name), []).append(values)
    grid = np.array([np.mean(rows, axis=0) for rows in classes.values()])
    labels = [f"{label}  ×{len(classes[name])}" if len(classes[name]) > 1 else label
              for name, label in zip(classes, shorter(list(classes)), strict=True)]  # fmt: skip
    with drawing():
        figure = new_figure(13, 1.4 + 0.26 * len(labels))
        axis = figure.subplots()
        image = axis.imshow(np.where(np.isfinite(grid), grid, np.nan), aspect="auto", cmap="cividis")
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel("step (0 is the noisiest)")
        figure.colorbar(image, ax=axis, label="SQNR, dB")
    steps = grid.shape[1]
    rows = [[name, *(value if np.isfinite(value) else "inf" for value in values.tolist())]
            for name, values in found.items()]  # fmt: skip
    header = ["layer", *(f"step_{step}_sqnr_db" for step in range(steps))]
    return Picture.of("fidelity_by_layer", "Fidelity by layer and step", CAPTION, figure, header, rows)
