"""Machines for the RTL tests: the tiny one, other sizes of it, and small arrays that differ in everything else."""

from __future__ import annotations

from typing import Any

from npusim.config import Machine

Fields = dict[str, Any]

OUTPUT_STATIONARY: Fields = {"dataflow": "output_stationary"}

PLAIN: Fields = {
    "narrowest_activation_bits": 8, "narrowest_weight_bits": 8, "a4w4_per_cell": 1, "input_shift": False,
    "factored_requant": False,
}  # fmt: skip
"""An array without the additions for few bits and smoothing."""

NO_SHADOW_TRAP: Fields = PLAIN | {
    "rows": 8, "cols": 8, "acc_bits": 32, "overflow": "trap", "acc_rows": 5, "shadow_weights": False,
    "pass_cycles_a8w8": 1, "pass_cycles_a16w8": 1, "pass_cycles_a16w16": 2,
    "requant_multiplier_bits": 32, "requant_rounding": "double", "requant_latency_cycles": 2,
}  # fmt: skip
"""8 x 8, as unlike the tiny machine as an array of that size can be."""

SIZES: dict[str, Fields] = {
    "16x16": {"rows": 16, "cols": 16},
    "8x16": {"cols": 16, "acc_bits": 24, "acc_rows": 17, "pass_cycles_a16w16": 3, "requant_latency_cycles": 7},
    "16x8": {"rows": 16, "acc_bits": 24, "overflow": "wrap", "acc_rows": 11, "shadow_weights": False},
    "16x16, outputs": OUTPUT_STATIONARY | {"rows": 16, "cols": 16},
    "8x16, outputs": OUTPUT_STATIONARY
    | {"cols": 16, "acc_bits": 24, "pass_cycles_a16w16": 3, "requant_latency_cycles": 7},
    "8x8, outputs, plain": OUTPUT_STATIONARY | NO_SHADOW_TRAP,
}

SMALL: dict[str, Fields] = {
    "one cell": {"rows": 1, "cols": 1, "acc_rows": 1, "requant_latency_cycles": 1},
    "one row": {"rows": 1, "cols": 5, "acc_rows": 3, "overflow": "wrap", "acc_bits": 25, "requant_latency_cycles": 3},
    "one column": {"rows": 5, "cols": 1, "acc_rows": 4, "overflow": "trap", "acc_bits": 24, "pass_cycles_a16w8": 1},
    "all bytes at once": {
        "rows": 3, "cols": 4, "pass_cycles_a16w8": 1, "pass_cycles_a16w16": 1, "acc_bits": 48, "acc_rows": 6,
        "requant_latency_cycles": 6,
    },
    "idle phases": {
        "rows": 4, "cols": 3, "pass_cycles_a8w8": 2, "pass_cycles_a16w8": 5, "pass_cycles_a16w16": 7,
        "overflow": "wrap", "acc_bits": 24, "acc_rows": 7, "a4w4_per_cell": 1, "input_shift": False,
    },
    "32-bit multipliers": {
        "rows": 4, "cols": 4, "acc_bits": 32, "requant_multiplier_bits": 32, "acc_rows": 8, "pass_cycles_a16w16": 2,
        "narrowest_activation_bits": 6,
    },
    "double rounding": {
        "rows": 3, "cols": 4, "acc_bits": 31, "requant_multiplier_bits": 32, "requant_rounding": "double",
        "acc_rows": 8, "shadow_weights": False, "requant_latency_cycles": 5, "factored_requant": False,
    },
    "no row sums": {"rows": 2, "cols": 3, "row_sum_column": False, "overflow": "trap", "acc_bits": 36, "acc_rows": 9},
    "one cell, outputs": OUTPUT_STATIONARY | {"rows": 1, "cols": 1, "requant_latency_cycles": 1, "overflow": "trap"},
    "one row, outputs": OUTPUT_STATIONARY | {"rows": 1, "cols": 5, "overflow": "wrap", "acc_bits": 25},
    "one column, outputs": OUTPUT_STATIONARY
    | {"rows": 5, "cols": 1, "acc_bits": 32, "requant_multiplier_bits": 32, "requant_latency_cycles": 3},
    "all bytes at once, outputs": OUTPUT_STATIONARY
    | {
        "rows": 3, "cols": 4, "pass_cycles_a16w8": 1, "pass_cycles_a16w16": 1, "acc_bits": 48,
        "requant_latency_cycles": 6,
    },
    "idle phases, no row sums, outputs": OUTPUT_STATIONARY
    | {
        "rows": 4, "cols": 3, "pass_cycles_a8w8": 2, "pass_cycles_a16w8": 5, "pass_cycles_a16w16": 7,
        "overflow": "trap", "acc_bits": 30, "row_sum_column": False, "a4w4_per_cell": 1, "narrowest_weight_bits": 6,
    },
}  # fmt: skip


def variant(machine: Machine, fields: Fields) -> Machine:
    """``machine`` with other fields of its array, and an SRAM that holds every test's operands."""
    data = machine.model_dump(mode="json")
    data["mac_array"] |= fields
    data["sram"]["capacity_bytes"] = 1 << 19
    return Machine.model_validate(data)
