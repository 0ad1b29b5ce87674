"""Model sizes, counted by hand from the shapes of the small network."""

from __future__ import annotations

from models.prepare import quantize_for
from models.quantize import SIDE_LINEARS
from models.stats import CalibrationStats, executed_linears, input_channels
from models.stdit import STDiT
from models.workloads import get_workload
from npusim.tables.size import ModelSize, float_size, quantized_size

TINY = get_workload("tiny")


def _shapes(model: STDiT, prefix: str = "") -> list[tuple[int, int]]:
    """(outputs, inputs) of the linears; with "blocks." of those whose parameters may follow the step."""
    linears = executed_linears(model).items()
    return [
        (len(module.weight), input_channels(module))
        for name, module in linears
        if name.startswith(prefix) and not (prefix and name.endswith("kv_linear"))
    ]


def test_float(model: STDiT) -> None:
    weights = sum(n * k for n, k in _shapes(model))
    assert float_size(model, 2) == ModelSize(1, 2 * weights, 2 * sum(n for n, _ in _shapes(model)))


def test_one_set_of_eight_bits(model: STDiT, stats: CalibrationStats) -> None:
    size = quantized_size(quantize_for(TINY, model, stats, "cw_tw"))
    shapes = _shapes(model)
    weights, rows = sum(n * k for n, k in shapes), sum(n for n, _ in shapes)
    assert size == ModelSize(1, weights, rows * (4 + 1 + 4) + len(shapes) * 6)
    assert size.as_dict()["total_bytes"] == size.weight_bytes + size.parameter_bytes


def test_four_bit_weights_are_packed_but_those_outside_the_blocks(model: STDiT, stats: CalibrationStats) -> None:
    wide, narrow = (quantized_size(quantize_for(TINY, model, stats, "cw_tw", bits)).weight_bytes for bits in (8, 4))
    side = sum(executed_linears(model)[name].weight.numel() for name in SIDE_LINEARS)
    assert narrow == (wide - side) / 2 + side


def test_smoothing_per_range_has_weight_sets_and_shifts_have_not(model: STDiT, stats: CalibrationStats) -> None:
    tsq = quantized_size(quantize_for(TINY, model, stats, "tsq", ranges=2))
    once, changing = sum(n * k for n, k in _shapes(model)), sum(n * k for n, k in _shapes(model, "blocks."))
    assert (tsq.weight_sets, tsq.weight_bytes) == (2, once + changing)
    pot = quantized_size(quantize_for(TINY, model, stats, "tsq_pot", ranges=2))
    assert (pot.weight_sets, pot.weight_bytes) == (1, once)


def test_dynamic_grids_take_no_room(model: STDiT, stats: CalibrationStats) -> None:
    dynamic, static = (quantized_size(quantize_for(TINY, model, stats, method)) for method in ("dynamic", "cw_tw"))
    blocks = len(_shapes(model)) - len(SIDE_LINEARS)
    assert static.parameter_bytes - dynamic.parameter_bytes == 6 * blocks
