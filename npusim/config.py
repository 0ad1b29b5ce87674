"""The machine: what an NPU described in `hwconfigs/*.yaml` is made of. Read by the compiler and the simulator alike.

Every number is a positive integer whose name ends in its unit. `load_machine` is the only way from a file to a
`Machine`; a `Machine` that exists has passed every check here. Fields and their ranges are listed for readers in
`hwconfigs/README.md`.
"""

from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from npusim.config_messages import NAME_PATTERN, TEXT_PATTERN, problems
from npusim.errors import UserError
from npusim.strict_yaml import read_yaml

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TIB = 1 << 40

# Description texts become the table in hwconfigs/README.md; units are the last part of the field's name.


def _whole(low: int, high: int, meaning: str) -> Any:
    return Field(ge=low, le=high, description=meaning)


def _text(meaning: str) -> Any:
    return Field(pattern=TEXT_PATTERN, description=meaning)


def _clash(field: str, message: str) -> PydanticCustomError:
    """Make the error for values that are fine alone and do not fit together; `field` is relative to the section.

    The message goes in as context, not as the template, because it may hold braces.
    """
    return PydanticCustomError("clash", "{message}", {"field": field, "message": message})


class _Section(BaseModel):
    """Common rules: frozen, no unknown field, and no conversion ("5" and true are not numbers)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_float(cls, value: object) -> object:
        # YAML reads 51.2e9 as a float although it is a whole number of bytes.
        return int(value) if isinstance(value, float) and value.is_integer() else value


class MacArray(_Section):
    """The systolic array, its accumulators and its requantizer.

    Weight-stationary: one pass holds a `rows` x `cols` tile of weights and streams up to `acc_rows` activation rows
    through it. Output-stationary: one pass holds `rows` x `cols` outputs and streams the reduction dimension. Each
    streamed row costs `pass_cycles_*` cycles according to the operand widths.
    """

    dataflow: Annotated[
        Literal["weight_stationary", "output_stationary"], Field(description="what stays in the cells during a pass")
    ]
    rows: Annotated[
        int, _whole(1, 4096, "array height: elements of the reduction dimension (K), or output rows (M), held at once")
    ]
    cols: Annotated[int, _whole(1, 4096, "array width: output channels (N) held at once")]
    acc_bits: Annotated[int, _whole(24, 48, "width of one signed accumulator")]
    overflow: Annotated[
        Literal["saturate", "wrap", "trap"], Field(description="what an accumulator does beyond its width")
    ]
    acc_rows: Annotated[int, _whole(1, 65536, "accumulators per column: output rows (M) of one weight-stationary pass")]
    shadow_weights: Annotated[
        bool,
        Field(description="a second weight register per cell, so that the next tile loads while this one computes"),
    ]
    narrowest_activation_bits: Annotated[
        Literal[4, 6, 8], Field(description="packed activations that the array takes, down to this width")
    ]
    narrowest_weight_bits: Annotated[
        Literal[4, 6, 8], Field(description="packed weights that the array takes, down to this width")
    ]
    a4w4_per_cell: Annotated[Literal[1, 2], Field(description="products of 4 x 4 bits in one cell and cycle")]
    input_shift: Annotated[
        bool, Field(description="a left shift of 0 to 3 for each input channel, before the multiplication")
    ]
    pass_cycles_a8w8: Annotated[int, _whole(1, 64, "cycles per streamed row, 8-bit activations, 8-bit weights")]
    pass_cycles_a16w8: Annotated[int, _whole(1, 64, "cycles per streamed row, 16-bit activations, 8-bit weights")]
    pass_cycles_a16w16: Annotated[int, _whole(1, 64, "cycles per streamed row, both operands 16-bit")]
    row_sum_column: Annotated[
        bool, Field(description="an extra column that sums the activations, for the zero point of asymmetric weights")
    ]
    requant_multiplier_bits: Annotated[
        Literal[16, 32], Field(description="width of the requantization multiplier; 32 needs acc_bits of at most 32")
    ]
    requant_rounding: Annotated[
        Literal["single", "double"],
        Field(description="rounding of TOSA RESCALE; double exists only with 32-bit multipliers"),
    ]
    factored_requant: Annotated[
        bool,
        Field(description="a second multiplier per column, for a scale per layer or per row behind that per channel"),
    ]
    requant_latency_cycles: Annotated[int, _whole(1, 1024, "pipeline depth of the requantizer")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.requant_multiplier_bits == 32 and self.acc_bits > 32:
            # A multiplier is never negative, so it has one magnitude bit less than its width.
            raise _clash(
                "requant_multiplier_bits",
                f"32 does not fit mac_array.acc_bits {self.acc_bits}: accumulator times multiplier needs "
                f"{self.acc_bits} + 31 = {self.acc_bits + 31} bits, and the requantizer computes in int64; "
                "allowed: 16, or 32 with acc_bits of at most 32",
            )
        if self.requant_rounding == "double" and self.requant_multiplier_bits != 32:
            raise _clash(
                "requant_rounding",
                f"double does not fit mac_array.requant_multiplier_bits {self.requant_multiplier_bits}: TOSA defines "
                "double rounding for 32-bit multipliers only; allowed: single, or double with 32-bit multipliers",
            )
        if self.factored_requant and self.requant_rounding == "double":
            raise _clash(
                "factored_requant",
                "true does not fit mac_array.requant_rounding double: the factored modes round each of their products "
                "once; allowed: false, or true with single rounding",
            )
        widths = ("pass_cycles_a8w8", "pass_cycles_a16w8", "pass_cycles_a16w16")
        for narrow, wide in pairwise(widths):
            if getattr(self, wide) < getattr(self, narrow):
                raise _clash(
                    wide,
                    f"{getattr(self, wide)} is less than mac_array.{narrow} {getattr(self, narrow)}: wider operands "
                    f"cannot be faster; allowed: at least {getattr(self, narrow)}",
                )
        return self


class VectorUnit(_Section):
    """The unit for everything that is not a matrix product: LayerNorm, softmax, GELU, residuals, the sampler."""

    lanes: Annotated[int, _whole(1, 4096, "elements processed per cycle")]
    op_latency_cycles: Annotated[int, _whole(1, 1024, "pipeline depth of one vector operation")]
    runtime_quantization: Annotated[
        bool, Field(description="computes scale and zero point of each token at run time (dynamic quantization)")
    ]


class Sram(_Section):
    """The on-chip buffer that activations and weight tiles are computed from."""

    capacity_bytes: Annotated[int, _whole(1 * KIB, 1 * GIB, "size of the buffer")]
    bytes_per_cycle: Annotated[int, _whole(1, 65536, "port width: bytes moved per cycle; a power of two; not used yet")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _need_power_of_two("sram", "bytes_per_cycle", self.bytes_per_cycle)
        if self.capacity_bytes % self.bytes_per_cycle:
            raise _clash(
                "capacity_bytes",
                f"{self.capacity_bytes} is not a multiple of sram.bytes_per_cycle {self.bytes_per_cycle}; allowed: "
                "whole words of the port's width",
            )
        return self


class ParamMemory(_Section):
    """The small memory that holds the active parameter set: requantization tables, modulation, sampler constants."""

    capacity_bytes: Annotated[int, _whole(256, 256 * MIB, "size of the memory, both banks included")]
    bank_bytes: Annotated[
        int, _whole(0, 128 * MIB, "size of each of two banks, one in use while the other is filled; 0: no banks")
    ]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if 2 * self.bank_bytes >= self.capacity_bytes:
            raise _clash(
                "bank_bytes",
                f"two banks of {self.bank_bytes} leave nothing of param_memory.capacity_bytes {self.capacity_bytes}; "
                "allowed: less than half of that",
            )
        return self

    @property
    def common_bytes(self) -> int:
        """Bytes outside the banks; the active bank's addresses follow them."""
        return self.capacity_bytes - 2 * self.bank_bytes

    @property
    def addressable_bytes(self) -> int:
        """Bytes that instructions reach: all but the bank that is being filled."""
        return self.capacity_bytes - self.bank_bytes


class Dram(_Section):
    """The SoC's main memory, seen from the NPU."""

    kind: Annotated[str, _text("what it is, for reports")]
    capacity_bytes: Annotated[int, _whole(1 * MIB, 1 * TIB, "size of the whole memory")]
    npu_budget_bytes: Annotated[int, _whole(1 * MIB, 1 * TIB, "share that the NPU may fill")]
    bandwidth_bytes_per_second: Annotated[int, _whole(1_000_000, 100_000_000_000_000, "peak rate")]
    latency_ns: Annotated[int, _whole(1, 100_000, "from request to first byte")]
    burst_bytes: Annotated[int, _whole(8, 4096, "smallest transfer; a power of two")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _need_power_of_two("dram", "burst_bytes", self.burst_bytes)
        if self.npu_budget_bytes > self.capacity_bytes:
            raise _clash(
                "npu_budget_bytes",
                f"{self.npu_budget_bytes} is more than dram.capacity_bytes {self.capacity_bytes}; "
                "allowed: at most that",
            )
        return self


class Storage(_Section):
    """Where all parameter sets lie before they are needed: UFS, eMMC or NVMe."""

    kind: Annotated[str, _text("what it is, for reports; not used yet")]
    bandwidth_bytes_per_second: Annotated[
        int, _whole(1_000_000, 1_000_000_000_000, "sequential read rate; not used yet")
    ]
    latency_us: Annotated[int, _whole(1, 1_000_000, "from request to first byte; not used yet")]


class Dma(_Section):
    """The engines between DRAM and SRAM, and between storage and DRAM."""

    setup_cycles: Annotated[int, _whole(1, 65536, "from issue of one transfer to its first request")]


class Machine(_Section):
    """One NPU with its memories. Immutable and hashable; `model_dump(mode="json")` gives it back as plain data."""

    schema_version: Annotated[Literal[1], Field(description="version of this file format")]
    name: Annotated[str, Field(pattern=NAME_PATTERN, description="the machine's name in reports and file names")]
    clock_mhz: Annotated[int, _whole(1, 10_000, "clock of the NPU; all cycles are its cycles")]
    mac_array: MacArray
    vector_unit: VectorUnit
    sram: Sram
    param_memory: ParamMemory
    dram: Dram
    storage: Storage
    dma: Dma
    barrier_cycles: Annotated[int, _whole(1, 1_000_000, "charged at the end of each denoising step")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        array, sram = self.mac_array, self.sram
        if array.rows * array.cols > sram.capacity_bytes:
            raise _clash(
                "sram.capacity_bytes",
                f"{sram.capacity_bytes} cannot hold one weight tile of mac_array.rows {array.rows} x cols {array.cols} "
                f"= {array.rows * array.cols} bytes; allowed: at least that",
            )
        if sram.capacity_bytes > self.dram.npu_budget_bytes:
            raise _clash(
                "sram.capacity_bytes",
                f"{sram.capacity_bytes} is more than dram.npu_budget_bytes {self.dram.npu_budget_bytes}; "
                "allowed: at most that",
            )
        return self

    @property
    def clock_hz(self) -> int:
        """Clock in cycles per second."""
        return self.clock_mhz * 1_000_000

    @property
    def peak_macs_per_cycle(self) -> float:
        """Multiply-accumulates per cycle at 8 x 8 bits with a full array, without the row-sum column."""
        return self.mac_array.rows * self.mac_array.cols / self.mac_array.pass_cycles_a8w8

    @property
    def peak_tops(self) -> float:
        """Peak 8-bit operations per second in units of 1e12; one multiply-accumulate counts as two operations."""
        return 2 * self.peak_macs_per_cycle * self.clock_hz / 1e12

    @property
    def dram_bytes_per_cycle(self) -> float:
        """DRAM peak rate in bytes per NPU cycle, for display; exact cycle counts come from `dram_stream_cycles`."""
        return self.dram.bandwidth_bytes_per_second / self.clock_hz

    @property
    def dram_latency_cycles(self) -> int:
        """DRAM latency in NPU cycles, rounded up."""
        return ceil(Fraction(self.dram.latency_ns * self.clock_mhz, 1000))

    @property
    def storage_bytes_per_cycle(self) -> float:
        """Storage rate in bytes per NPU cycle, for display; exact cycle counts come from `storage_stream_cycles`."""
        return self.storage.bandwidth_bytes_per_second / self.clock_hz

    @property
    def storage_latency_cycles(self) -> int:
        """Storage latency in NPU cycles."""
        return self.storage.latency_us * self.clock_mhz

    def dram_stream_cycles(self, transfer_bytes: int) -> int:
        """Return the NPU cycles that `transfer_bytes` take at DRAM peak rate: exact, rounded up, no latency."""
        return ceil(Fraction(transfer_bytes * self.clock_hz, self.dram.bandwidth_bytes_per_second))

    def storage_stream_cycles(self, transfer_bytes: int) -> int:
        """Return the NPU cycles that `transfer_bytes` take at the storage rate: exact, rounded up, no latency."""
        return ceil(Fraction(transfer_bytes * self.clock_hz, self.storage.bandwidth_bytes_per_second))


def load_machine(path: str | Path) -> Machine:
    """Read the machine file at `path`.

    Raises:
        UserError: the file cannot be read, is not strict YAML 1.2 (see `npusim.strict_yaml`), or has a field that is
            unknown, missing, of the wrong type, out of range, or in conflict with another. The message has one line for
            each fault: file, line, field, the value given, what is allowed, and for an unknown field the nearest name.
    """
    document = read_yaml(path)
    try:
        return Machine.model_validate(document.data)
    except ValidationError as error:
        raise UserError("\n".join(problems(error, Machine, document))) from error


def _need_power_of_two(section: str, field: str, value: int) -> None:
    if value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        raise _clash(field, f"{value} is not a power of two; {section}.{field} allows e.g. {below} or {2 * below}")
