"""Quantization: from a float STDiT and its calibration statistics to integer weights, grids and smoothing."""

from models.quantize.build import quantize
from models.quantize.constants import model_config, time_embeddings
from models.quantize.files import FILE_KIND, FILE_VERSION, set_path
from models.quantize.methods import METHODS, TORCH_ONLY, Method, get_method
from models.quantize.model import QuantizedLinear, QuantizedModel
from models.quantize.overrides import ACT_BITS, WEIGHT_BITS, Override, load_overrides
from models.quantize.ranges import parse_ranges
from models.quantize.structure import SIDE_LINEARS, follows_ranges
from models.quantize.weights import QuantizedWeight

__all__ = [
    "ACT_BITS",
    "FILE_KIND",
    "FILE_VERSION",
    "METHODS",
    "SIDE_LINEARS",
    "TORCH_ONLY",
    "WEIGHT_BITS",
    "Method",
    "Override",
    "QuantizedLinear",
    "QuantizedModel",
    "QuantizedWeight",
    "follows_ranges",
    "get_method",
    "load_overrides",
    "model_config",
    "parse_ranges",
    "quantize",
    "set_path",
    "time_embeddings",
]
