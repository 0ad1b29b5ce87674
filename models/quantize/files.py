"""The files of a quantized model: one safetensors file, and one more for each weight set where sets differ by range.

`model.safetensors` holds everything but the weights of linears with several sets; set i of those lies in
`model.set<i>.safetensors` beside it, whose size is what a change of range to that set moves. Reading maps the set
files into memory instead of copying them. The model file holds the SHA-256 of its own contents and of each set file's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.grid import Float64
from models.iddpm import IDDPM
from models.quantize.model import QuantizedLinear, QuantizedModel
from models.quantize.overrides import ACT_BITS, WEIGHT_BITS
from models.quantize.pot import MAX_SHIFT
from models.quantize.weights import QuantizedWeight
from models.stats import calibrated_points, executed_linears, input_channels
from models.stdit import STDiT, skeleton
from models.store import ArrayWriter, array_sha256, check_array, load_arrays, save_arrays

FILE_KIND = "quantized model"
SET_KIND = "quantized weights"
FILE_VERSION = 3

# A damaged file's numbers end here; the committed model's constants are below 3.
CONSTANT_LIMIT = 1e6

Arrays = Mapping[str, NDArray[Any]]

_SETTINGS: dict[str, type] = {
    "method": str,
    "weight_bits": int,
    "act_bits": int,
    "num_steps": int,
    "config": dict,
    "iddpm": dict,
    "workload": str,
    "weights_sha256": str,
}
_FIELDS = ("set_of_range", "bias", "act_bits", "act_scale", "act_zp")


def set_path(path: Path, index: int) -> Path:
    """The file of weight set `index` of the model file `path`."""
    return path.with_name(f"{path.stem}.set{index:02d}{path.suffix}")


def write_model(
    path: Path, model: QuantizedModel, sets: Mapping[str, int], linears: Iterable[tuple[str, QuantizedLinear]]
) -> None:
    """Write a model whose linears come one by one, and are not kept where they have several weight sets.

    Args:
        path: the file; set files lie beside it.
        model: the model; its own `linears` are not looked at.
        sets: number of weight sets of each linear.
        linears: every linear, in the order of `sets`.

    Raises:
        ModelError: a file cannot be written.
    """
    outline = skeleton(model.config)
    shapes = linear_shapes(outline)
    arrays: dict[str, NDArray[Any]] = {name: getattr(model, name) for name in constant_shapes(outline, model.num_steps)}
    arrays["range_of_step"] = model.range_of_step
    for kind in ("point_absmax", "value_absmax"):
        arrays |= {f"{kind}/{name}": values for name, values in getattr(model, kind).items()}
    metadata: dict[str, Any] = {name: getattr(model, name) for name in (*_SETTINGS, "alpha")}
    described: dict[str, Any] = {}
    files = max(sets.values())
    set_metadata = [
        {"index": index, "range_of_step": model.range_of_step.tolist(), **metadata}
        for index in range(files if files > 1 else 0)
    ]
    with ExitStack() as stack:
        writers = []
        for index, own in enumerate(set_metadata):
            layout = {
                f"{name}/{field}": of_field
                for name, count in sets.items()
                if index < count and count > 1
                for field, of_field in _weight_layout(*shapes[name]).items()
            }
            target = set_path(path, index)
            writer = ArrayWriter(target, SET_KIND, FILE_VERSION, layout, own)
            writers.append(stack.enter_context(writer))
        for name, linear in linears:
            shifted = linear.input_shift is not None
            described[name] = {"weight_bits": [weight.bits for weight in linear.weights], "shifted": shifted}
            fields = (*_FIELDS, "input_shift") if shifted else _FIELDS
            arrays |= {f"linears/{name}/{field}": getattr(linear, field) for field in fields}
            for index, weight in enumerate(linear.weights):
                for field in _weight_layout(*shapes[name]):
                    if len(linear.weights) == 1:
                        arrays[f"linears/{name}/{field}"] = getattr(weight, field)
                    else:
                        writers[index].put(f"{name}/{field}", getattr(weight, field))
    metadata |= {"linears": described, "points": list(model.point_absmax)}
    metadata["set_sha256"] = [_sha256(w.digests, own) for w, own in zip(writers, set_metadata, strict=True)]
    save_arrays(path, FILE_KIND, FILE_VERSION, arrays, sealed(arrays, metadata))


def sealed(arrays: Arrays, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a model file with the SHA-256 of its contents."""
    return {**metadata, "sha256": _sha256({name: array_sha256(array) for name, array in arrays.items()}, metadata)}


def _sha256(digests: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([digests, metadata], sort_keys=True).encode()).hexdigest()


def linear_shapes(model: STDiT) -> dict[str, tuple[int, int]]:
    """(outputs N, inputs K) of every executed linear."""
    return {name: (len(module.weight), input_channels(module)) for name, module in executed_linears(model).items()}


def _weight_layout(rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    return {
        "q": ((rows, columns), np.uint8),
        "scale": ((rows,), np.float64),
        "zero_point": ((rows,), np.int64),
        "smoothing": ((columns,), np.float64),
    }


def read_model(path: Path) -> QuantizedModel:
    """Read what `write_model` wrote, checking every name, shape, dtype and value range; see `QuantizedModel.load`."""
    arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
    if metadata.pop("sha256", None) != sealed(arrays, metadata)["sha256"]:
        raise ModelError(f"{path}: contents do not match their SHA-256; the file was altered")
    for name, kind in {**_SETTINGS, "linears": dict, "points": list, "set_sha256": list}.items():
        if not isinstance(metadata.get(name), kind):
            raise ModelError(f"{path}: metadata field '{name}' is missing or not of type {kind.__name__}")
    alpha, steps = metadata.get("alpha"), metadata["num_steps"]
    if not (alpha is None or type(alpha) is float):
        raise ModelError(f"{path}: metadata field 'alpha' is neither a number nor null")
    _check_sampler(path, metadata["iddpm"], steps)
    range_of_step = check_array(path, arrays, "range_of_step", (steps,), np.int64)
    ranges = int(range_of_step.max(initial=-1)) + 1
    if sorted(set(range_of_step.tolist())) != list(range(ranges)):
        raise ModelError(f"{path}: 'range_of_step' is {range_of_step.tolist()}, allowed are ranges 0..R-1, all used")
    outline = _skeleton(path, metadata["config"])
    shapes = linear_shapes(outline)
    # A linear without grids is quantized at run time, and its divided input's magnitude is kept beside the points'.
    grids = {name: arrays.get(f"linears/{name}/act_scale") for name in shapes}
    divided = (f"{name}:divided" for name, grid in grids.items() if grid is not None and grid.shape == (0,))
    for field, listed, known in (
        ("linears", metadata["linears"], shapes),
        ("points", metadata["points"], {*calibrated_points(outline), *divided}),
    ):
        if different := sorted({str(name) for name in listed} ^ set(known)):
            raise ModelError(f"{path}: metadata field '{field}' lacks or adds '{different[0]}'")
    used: set[str] = {"range_of_step"}

    def take(name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float64) -> NDArray[Any]:
        used.add(name)
        return check_array(path, arrays, name, shape, dtype)

    absmax = {point: take(f"point_absmax/{point}", (ranges,)) for point in metadata["points"]}
    values = {name: take(f"value_absmax/{name}", (ranges, outline.hidden_size)) for name in attentions(outline)}
    constants: dict[str, Any] = {name: take(name, shape) for name, shape in constant_shapes(outline, steps).items()}
    for name, value in constants.items():
        if (largest := np.abs(value).max()) >= CONSTANT_LIMIT:
            raise ModelError(f"{path}: tensor '{name}' holds magnitude {largest:.3g}; allowed is < {CONSTANT_LIMIT:g}")
    settings = {name: metadata[name] for name in _SETTINGS}
    shared = {**settings, "alpha": alpha, "range_of_step": range_of_step.tolist()}
    reader = _LinearReader(path, arrays, shared, metadata["set_sha256"], ranges, used)
    linears = {name: reader.linear(name, shapes[name], entry) for name, entry in metadata["linears"].items()}
    if unknown := sorted(set(arrays) - used):
        raise ModelError(f"{path}: unknown tensor '{unknown[0]}'")
    return QuantizedModel(
        alpha=alpha, range_of_step=range_of_step, linears=linears, point_absmax=absmax, value_absmax=values,
        **constants, **settings,
    )  # fmt: skip


def attentions(model: STDiT) -> list[str]:
    """Module paths of all attentions."""
    return [name.removesuffix(".tap_v") for name, _ in model.named_modules() if name.endswith(".tap_v")]


@dataclasses.dataclass
class _LinearReader:
    path: Path
    arrays: Arrays
    settings: Mapping[str, Any]
    set_sha256: list[str]
    ranges: int
    used: set[str]
    sets: dict[int, Arrays] = dataclasses.field(default_factory=dict)

    def linear(self, name: str, shape: tuple[int, int], entry: object) -> QuantizedLinear:
        path, ranges = self.path, self.ranges
        fields = {"weight_bits": list, "shifted": bool}
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != fields:
            raise ModelError(
                f"{path}: metadata of linear '{name}' is not {{weight_bits: [...], shifted: true or false}}"
            )
        bits = entry["weight_bits"]
        if not bits or any(type(b) is not int or b not in WEIGHT_BITS for b in bits):
            raise ModelError(
                f"{path}: linear '{name}' has weight_bits={bits}, allowed: {', '.join(map(str, WEIGHT_BITS))}"
            )
        set_of_range = self._take(f"{name}/set_of_range", (ranges,), np.int64)
        if set(set_of_range.tolist()) != set(range(len(bits))):
            raise ModelError(f"{path}: 'linears/{name}/set_of_range' must use every set of 0..{len(bits) - 1}")
        act_bits = self._take(f"{name}/act_bits", (ranges,), np.int64)
        if not np.isin(act_bits, ACT_BITS).all():
            raise ModelError(f"{path}: 'linears/{name}/act_bits' is {act_bits.tolist()}; allowed: {ACT_BITS}")
        key = f"linears/{name}/act_scale"
        grids = 0 if key in self.arrays and self.arrays[key].shape == (0,) else ranges
        linear = QuantizedLinear(
            weights=tuple(self._weight(name, shape, index, b, len(bits)) for index, b in enumerate(bits)),
            set_of_range=set_of_range,
            bias=self._take(f"{name}/bias", (shape[0],)),
            act_bits=act_bits,
            act_scale=self._take(f"{name}/act_scale", (grids,)),
            act_zp=self._take(f"{name}/act_zp", (grids,), np.int64),
            input_shift=self._take(f"{name}/input_shift", (ranges, shape[1]), np.uint8) if entry["shifted"] else None,
        )
        if grids:
            self._check_grid(f"linears/{name}/act", linear.act_scale, linear.act_zp, 2**act_bits)
        if linear.input_shift is not None and linear.input_shift.max() > MAX_SHIFT:
            raise ModelError(f"{path}: 'linears/{name}/input_shift' must lie in 0..{MAX_SHIFT}")
        return linear

    def _take(self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float64) -> NDArray[Any]:
        self.used.add(f"linears/{name}")
        return check_array(self.path, self.arrays, f"linears/{name}", shape, dtype)

    def _weight(self, name: str, shape: tuple[int, int], index: int, bits: int, count: int) -> QuantizedWeight:
        path, arrays, prefix = self.path, self.arrays, f"linears/{name}"
        if count > 1:
            path, arrays, prefix = set_path(self.path, index), self._set(index), name
        fields = {}
        for field, (size, dtype) in _weight_layout(*shape).items():
            self.used.add(f"{prefix}/{field}")
            fields[field] = check_array(path, arrays, f"{prefix}/{field}", size, dtype)
        weight = QuantizedWeight(bits, **fields)
        if bits < 8 and weight.q.max() >= 2**bits:
            raise ModelError(f"{path}: '{prefix}/q' must lie in 0..{2**bits - 1}")
        if (weight.smoothing <= 0).any():
            raise ModelError(f"{path}: '{prefix}/smoothing' must be positive")
        self._check_grid(prefix, weight.scale, weight.zero_point, np.int64(2**bits), path, "scale", "zero_point")
        return weight

    def _check_grid(
        self, prefix: str, scale: Float64, zero_point: NDArray[np.int64], levels: Any,
        path: Path | None = None, *names: str,
    ) -> None:  # fmt: skip
        path = path or self.path
        scale_name, zero_name = (
            (f"{prefix}/{names[0]}", f"{prefix}/{names[1]}") if names else (f"{prefix}_scale", f"{prefix}_zp")
        )
        if (scale <= 0).any():
            raise ModelError(f"{path}: '{scale_name}' must be positive")
        if ((zero_point < 0) | (zero_point >= levels)).any():
            raise ModelError(f"{path}: '{zero_name}' must lie in 0..{int(np.max(levels)) - 1}")

    def _set(self, index: int) -> Arrays:
        if index not in self.sets:
            path = set_path(self.path, index)
            arrays, metadata = load_arrays(path, SET_KIND, FILE_VERSION, mapped=True)
            if metadata != {"index": index, **self.settings}:
                raise ModelError(f"{path}: belongs to another quantized model than {self.path}")
            digest = _sha256({name: array_sha256(array) for name, array in arrays.items()}, metadata)
            if self.set_sha256[index : index + 1] != [digest]:
                raise ModelError(f"{path}: contents do not match their SHA-256 in {self.path}; one of them was altered")
            self.sets[index] = arrays
        return self.sets[index]


def _check_sampler(path: Path, iddpm: Mapping[str, Any], steps: object) -> None:
    types = {"num_sampling_steps": int, "cfg_scale": float, "cfg_channels": int}
    for name in sorted(set(iddpm) ^ set(types)):
        raise ModelError(f"{path}: metadata field 'iddpm' lacks or adds '{name}'")
    for name, kind in types.items():
        if type(iddpm[name]) is not kind:
            raise ModelError(f"{path}: metadata field 'iddpm.{name}' is not of type {kind.__name__}")
    count = iddpm["num_sampling_steps"]
    if type(steps) is not int or count != steps:
        raise ModelError(f"{path}: metadata field 'iddpm.num_sampling_steps' is {count}, 'num_steps' is {steps}")
    try:
        IDDPM(**iddpm)
    except ModelError as error:
        raise ModelError(f"{path}: metadata field 'iddpm': {error}") from error


def _skeleton(path: Path, config: Mapping[str, Any]) -> STDiT:
    """`models.stdit.skeleton`, naming the file and field in its ModelError."""
    try:
        return skeleton(config)
    except ModelError as error:
        raise ModelError(f"{path}: metadata field 'config' does not describe an STDiT ({error})") from error


def constant_shapes(model: STDiT, steps: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's and the steps' constants, by field of `QuantizedModel`."""
    hidden = model.hidden_size
    return {
        "t0": (steps, 6, hidden),
        "te": (steps, hidden),
        "scale_shift_table": (len(model.blocks), 6, hidden),
        "final_table": (2, hidden),
        "pos_embed": (model.num_spatial, hidden),
        "pos_embed_temporal": (model.num_temporal, hidden),
        "y_embedding": tuple(model.y_embedder.y_embedding.shape),
    }
