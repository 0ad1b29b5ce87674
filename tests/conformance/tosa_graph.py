"""A list of small TOSA graphs, run together by the reference model in its own environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.conformance.side_venv import work

Array = NDArray[Any]
TYPES = {"i8": "INT8", "u8": "INT8", "i16": "INT16", "i32": "INT32", "i48": "INT48"}


class TosaGraphs:
    """Each method adds one graph; ``run`` returns the results in that order. Types are the ISA's, and ``i48``."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.arrays: dict[str, Array] = {}

    def _new(self) -> dict[str, Any]:
        job: dict[str, Any] = {"inputs": [], "constants": [], "operators": []}
        self.jobs.append(job)
        return job

    def _array(self, job: dict[str, Any], role: str, values: ArrayLike, kind: str) -> str:
        name = f"a{len(self.arrays)}"
        self.arrays[name] = np.ascontiguousarray(np.atleast_1d(values))
        job[role].append([name, TYPES[kind]])
        return name

    def _operator(
        self, job: dict[str, Any], op: str, names: list[str], shape: tuple[int, ...], kind: str, arguments: Any = None
    ) -> str:
        job["operators"].append([op, names, list(shape), TYPES[kind], arguments])
        return f"t{len(job['operators']) - 1}"

    def _rescale(
        self, job: dict[str, Any], source: str, shape: tuple[int, ...], in_dtype: str, multiplier: Array, shift: Array,
        out_dtype: str, out_zp: int, scale32: bool, double: bool,
    ) -> None:  # fmt: skip
        constants = [
            self._array(job, "constants", values, kind)
            for values, kind in (
                (multiplier, "i32" if scale32 else "i16"), (shift, "i8"), (0, in_dtype), (out_zp, out_dtype),
            )
        ]  # fmt: skip
        rounding = "DOUBLE_ROUND" if double else "SINGLE_ROUND"
        arguments = [scale32, rounding, multiplier.size > 1, in_dtype == "u8", out_dtype == "u8"]
        self._operator(job, "RESCALE", [source, *constants], shape, out_dtype, arguments)

    def rescale(
        self, x: Array, in_dtype: str, multiplier: Array, shift: Array, out_dtype: str, out_zp: int = 0,
        scale32: bool = False, double: bool = False,
    ) -> None:  # fmt: skip
        """RESCALE of ``x``, per channel of the last axis where there is more than one multiplier."""
        job = self._new()
        source = self._array(job, "inputs", x, in_dtype)
        self._rescale(job, source, x.shape, in_dtype, multiplier, shift, out_dtype, out_zp, scale32, double)

    def matmul(self, a: Array, b: Array, a_zp: int, b_zp: int) -> None:
        """MATMUL of int8 (batch, m, k) by (batch, k, n) to int32."""
        job = self._new()
        names = [self._array(job, "inputs", v, "i8") for v in (a, b)]
        names += [self._array(job, "constants", v, "i8") for v in (a_zp, b_zp)]
        self._operator(job, "MATMUL", names, (*a.shape[:2], b.shape[2]), "i32")

    def matmul_rescale(self, a: Array, b: Array, multiplier: Array, shift: Array, out_dtype: str, out_zp: int) -> None:
        """MATMUL of int16 (batch, m, k) by (batch, k, n) to int48, then RESCALE with 16-bit multipliers."""
        job, shape = self._new(), (*a.shape[:2], b.shape[2])
        names = [self._array(job, "inputs", v, "i16") for v in (a, b)]
        names += [self._array(job, "constants", 0, "i16") for _ in range(2)]
        product = self._operator(job, "MATMUL", names, shape, "i48")
        self._rescale(job, product, shape, "i48", multiplier, shift, out_dtype, out_zp, False, False)

    def table_of_bytes(self, x: Array, entries: Array) -> None:
        """TABLE of int8 to int8 with 256 entries."""
        job = self._new()
        names = [self._array(job, "inputs", x, "i8"), self._array(job, "constants", entries, "i8")]
        self._operator(job, "TABLE", names, x.shape, "i8")

    def table(self, x: Array, entries: Array) -> None:
        """TABLE of int16 to int32."""
        self._table(x, entries)

    def table_rescale(self, x: Array, entries: Array, multiplier: int, shift: int, out_dtype: str, out_zp: int) -> None:
        """TABLE of int16, then RESCALE with a 16-bit multiplier."""
        job, looked_up = self._table(x, entries)
        scale, down = np.array([multiplier]), np.array([shift])
        self._rescale(job, looked_up, x.shape, "i32", scale, down, out_dtype, out_zp, False, False)

    def _table(self, x: Array, entries: Array) -> tuple[dict[str, Any], str]:
        job = self._new()
        names = [self._array(job, "inputs", x, "i16"), self._array(job, "constants", entries, "i16")]
        return job, self._operator(job, "TABLE", names, x.shape, "i32")

    def mul(self, a: Array, b: Array, shift: int) -> None:
        """MUL of int32 with a rounding shift."""
        job = self._new()
        names = [self._array(job, "inputs", v, "i32") for v in (a, b)]
        self._operator(job, "MUL", [*names, self._array(job, "constants", shift, "i8")], a.shape, "i32")

    def run(self) -> list[Array]:
        """Results of all graphs. Raises OracleError if the model rejects one: a value outside TOSA's domain."""
        found = work("tosa", "tosa_run.py", self.jobs, self.arrays)
        return [found[str(number)] for number in range(len(self.jobs))]
